"""What is mounted, as the kernel tells it: `/proc/self/mountinfo`, read anew at each question.

Whether something is a mount cannot be told by `os.path.ismount`: a bind mount from the same file
system has the same device number on both sides.
"""

import os
import re
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount: where, which directory of its file system, and its own options."""

    path: Path
    root: str
    options: frozenset[str]
    kind: str


def mounts_below(folder: Path) -> list[Mount]:
    """The mounts at `folder` and below it, in the order in which they were made."""
    found: list[Mount] = []
    top = folder.resolve()
    with Path("/proc/self/mountinfo").open() as lines:
        for line in lines:
            words = line.split(" ")
            path = Path(_plain(words[4]))
            if path == top or top in path.parents:
                kind = words[words.index("-", 6) + 1]
                options = frozenset(words[5].split(","))
                found.append(Mount(path=path, root=_plain(words[3]), options=options, kind=kind))
    return found


def mounts_at(path: Path) -> list[Mount]:
    """The mounts at exactly this path; more than one lie on top of each other."""
    place = path.parent.resolve() / path.name
    return [mount for mount in mounts_below(path.parent) if mount.path == place]


@contextmanager
def no_mounts_left(folder: Path) -> Generator[None]:
    """Take away whatever is mounted below `folder` when this is left, however it is left."""
    try:
        yield
    finally:
        for mount in reversed(mounts_below(folder)):
            subprocess.run(["umount", "--lazy", str(mount.path)], check=False)


def why_not() -> str | None:
    """Why nothing can be mounted here, if so."""
    return None if os.geteuid() == 0 else "mounting needs root"


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
