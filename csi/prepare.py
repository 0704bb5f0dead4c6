"""Making the store's directory for an agent that is not root."""

import os
from pathlib import Path

from damselfly.errors import ConfigError

MODE = 0o755
"""Pods read through it: their files are world-readable, and so is the way to them."""


def prepare_store(path: Path, uid: int, gid: int) -> None:
    """Make `path` if it is not there, and give it to the agent's user.

    What is inside is left as it is: an agent made it, and walking a store of a million files is
    no work for a start.

    Raises:
        ConfigError: It cannot be made, or is something else than a directory.
    """
    try:
        path.mkdir(mode=MODE, parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(folder, uid, gid)
            os.fchmod(folder, MODE)
        finally:
            os.close(folder)
    except OSError as exc:
        raise ConfigError(f"preparing the store's directory {path}") from exc
