"""Paths inside an artifact: relative, POSIX, and harmless wherever they are joined.

A path is what the file is called at the origin, byte for byte: case and Unicode normal form are
significant, as they are to Linux, and two names that differ only there are two files. Refused is
what could leave the directory (`..`, a leading `/`), what another system would read as a separator
(a backslash), and what lies to the person who reads a log or a listing (control characters, line
separators, direction overrides).
"""

import re
from collections.abc import Iterable

from damselfly.errors import ManifestError

MANIFEST_NAME = "damselfly-manifest.json"
"""What `damselfly push` calls the manifest that it leaves beside the files."""

PUSH_DIRECTORY = ".damselfly-push"
"""Where `damselfly push` keeps a file until it is complete."""

PATH_BYTES_MAX = 1024
NAME_BYTES_MAX = 255
DEPTH_MAX = 32

_UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\\]")
_BOOKKEEPING = frozenset({".git", ".cache", ".DS_Store", PUSH_DIRECTORY})


def check_path(path: str) -> str:
    """Return `path` if a file of an artifact may be called that.

    Raises:
        ManifestError: it may not, and why.
    """
    shown = f"{path[:120]!r}"
    if not path:
        raise ManifestError("a file with an empty path")
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"the path {shown} is not Unicode text") from None
    if len(encoded) > PATH_BYTES_MAX:
        raise ManifestError(
            f"the path {shown}... has {len(encoded)} bytes, more than {PATH_BYTES_MAX}"
        )
    if found := _UNREADABLE.search(path):
        raise ManifestError(f"the path {shown} contains {found[0]!r}")
    if path.startswith("/"):
        raise ManifestError(f"the path {shown} is absolute")
    names = path.split("/")
    if len(names) > DEPTH_MAX:
        raise ManifestError(f"the path {shown} is {len(names)} deep, more than {DEPTH_MAX}")
    for name in names:
        if name in {"", ".", ".."}:
            raise ManifestError(f"the path {shown} has a component {name!r}")
        if len(name.encode()) > NAME_BYTES_MAX:
            raise ManifestError(f"the path {shown} has a component over {NAME_BYTES_MAX} bytes")
    return path


def check_tree(paths: Iterable[str]) -> None:
    """Check every path, and that together they are the files of one directory tree.

    Raises:
        ManifestError: a bad path, one that occurs twice, or a file where another path needs a
            directory.
    """
    files: set[str] = set()
    for path in paths:
        check_path(path)
        if path in files:
            raise ManifestError(f"the path {path!r} occurs twice")
        files.add(path)
    for path in files:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise ManifestError(f"{parent!r} is a file, and the directory of {path!r}")
            parent = parent.rpartition("/")[0]


def is_bookkeeping(path: str) -> bool:
    """Somebody's notes about the files rather than one of them, at any depth.

    What version control, download tools and desktops leave in a directory (`.git`, `.cache`,
    `.DS_Store`), and our own manifest at the top. Other names with a leading dot are files like
    any other: `.gitattributes` belongs to a model.
    """
    return path == MANIFEST_NAME or not _BOOKKEEPING.isdisjoint(path.split("/"))
