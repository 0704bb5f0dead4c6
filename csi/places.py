"""Directories walked to without following a link: what is below them may be somebody else's.

The store belongs to an agent that is not root, and what is below a pod's directory may be a pod's.
We are root: a link that either puts in our way must not lead us out.
"""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from damselfly.csi.status import PreconditionError

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def folder_below(root: Path, path: Path) -> Generator[int]:
    """A descriptor of the directory `path`, walked to from `root`, which itself may be a link.

    Raises:
        FileNotFoundError: It is not there.
        PreconditionError: It is not below `root`, or a link or a file is in the way.
    """
    if not path.is_relative_to(root) or ".." in path.parts:
        raise PreconditionError(f"{path} is not below {root}")
    current = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in path.relative_to(root).parts:
            try:
                below = os.open(name, _FOLDER, dir_fd=current)
            except OSError as exc:
                if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                    raise PreconditionError(
                        f"{name} in {path} is a link or a file: not following it"
                    ) from exc
                raise
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def through(descriptor: int, name: str = "") -> str:
    """A path to what a descriptor refers to, for system calls that take nothing else."""
    return f"/proc/self/fd/{descriptor}/{name}" if name else f"/proc/self/fd/{descriptor}"
