"""mount(2) and umount2(2): the only module that calls them.

Read-only takes two calls: a bind mount takes its flags from where it comes from, and only a remount
of it may change them. Whoever dies in between leaves a mount that can be written through, which is
found by its options and mended.
"""

import ctypes
import errno
import os
from pathlib import Path

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_RELATIME = 0x200000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

_SEALED = MS_RDONLY | MS_NOSUID | MS_NODEV
# A remount sets all flags of a mount anew: what the store's own mount has must be said again.
_KEPT = {
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: MS_NOATIME,
    os.ST_NODIRATIME: MS_NODIRATIME,
    os.ST_RELATIME: MS_RELATIME,
}
_STACKED_MAX = 64
DEAD = frozenset({errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, errno.EIO})
"""What looking at a mount gives whose server or device is gone."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def bind(source: str, target: str) -> None:
    """Show the directory `source` at `target`, with the flags that it has where it comes from.

    Raises:
        OSError: The kernel refuses.
    """
    _mount(source, target, MS_BIND)


def seal(target: str) -> None:
    """Make the bind mount at `target` read-only, without devices and set-user-id bits.

    Raises:
        OSError: The kernel refuses.
    """
    had = os.statvfs(target).f_flag
    kept = sum(flag for seen, flag in _KEPT.items() if had & seen)
    _mount(None, target, MS_REMOUNT | MS_BIND | _SEALED | kept)


def unmount_all(target: str) -> int:
    """Take away every mount at `target`, the uppermost first; returns how many there were.

    One that is busy or dead is detached: it goes when its last user does.

    Raises:
        OSError: The kernel refuses.
    """
    for count in range(_STACKED_MAX):
        if not _unmount(target):
            return count
    raise OSError(errno.EBUSY, f"more than {_STACKED_MAX} mounts, one upon the other", target)


def _unmount(target: str) -> bool:
    error = 0
    for flags in (UMOUNT_NOFOLLOW, UMOUNT_NOFOLLOW | MNT_DETACH):
        if _libc.umount2(os.fsencode(target), flags) == 0:
            return True
        error = ctypes.get_errno()
        if error in {errno.EINVAL, errno.ENOENT}:
            return False  # Not a mount, or nothing at all.
    raise OSError(error, os.strerror(error), target)


def _mount(source: str | None, target: str, flags: int) -> None:
    said = None if source is None else os.fsencode(source)
    if _libc.mount(said, os.fsencode(target), None, flags, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


def mount_table() -> str:
    """The mounts that this process sees, as `mountinfo` reads them."""
    return os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
