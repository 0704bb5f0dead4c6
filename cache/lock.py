"""Who may open a directory as a store: one agent at a time, and only a directory that is one."""

import fcntl
import os
from contextlib import suppress

from damselfly.cache import layout
from damselfly.cache.directory import Directory, is_temporary
from damselfly.errors import StoreInUseError, UnsupportedFormatError, UsageError

_MARKER_BYTES_MAX = 64
_FOREIGN_OK = frozenset({layout.LOCK, "lost+found"})


class StoreLock:
    """The flock on `LOCK`; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, root: Directory) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(layout.LOCK, flags, 0o644, dir_fd=root.fd)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as exc:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise StoreInUseError(
                f"the store {root.path} is open in another agent (process {holder or 'unknown'})"
            ) from exc
        except OSError:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Let another agent open the store; twice is harmless."""
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def check_format(root: Directory) -> None:
    """Read the marker, or write it into an empty directory.

    A start removes what it does not know from the store's folders, so a directory that is not
    empty and not marked is refused: it is somebody's home.

    Raises:
        UnsupportedFormatError: a newer Damselfly made the store, or something else wrote there.
        UsageError: the directory is not a store, and not empty.
    """
    for name in root.names():
        if is_temporary(name):  # Of a marker that a stop left half written.
            root.remove(name)
    try:
        text = root.read(layout.MARKER, _MARKER_BYTES_MAX).decode("ascii", "replace").strip()
    except FileNotFoundError:
        others = [
            name for name in root.names() if name not in _FOREIGN_OK and not name.startswith(".")
        ]
        if others:
            raise UsageError(
                f"{root.path} is not a store, and not empty: {min(others)!r} is in it"
            ) from None
        root.write(layout.MARKER, b"%d\n" % layout.FORMAT)
        return
    if text != str(layout.FORMAT):
        raise UnsupportedFormatError(
            f"the store {root.path} has format {text[:20]!r}: this Damselfly knows {layout.FORMAT}"
        )
