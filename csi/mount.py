"""The system calls that change mounts: the only module that makes them.

What is bound at a target is seen by the host at once, because the target is shared with it, and a
remount later would change our own copy alone: the flags of a mount are not propagated. So a tree is
sealed while it is nowhere yet, and put at its target by one call: no moment of it can be written.
"""

import ctypes
import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# Of <linux/mount.h>. The C library names them too late; their numbers are the same everywhere.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_FROM_EMPTY = 0x4
_MOVE_MOUNT_TO_EMPTY = 0x40
_ATTR_SEALED = 0x1 | 0x2 | 0x4  # MOUNT_ATTR_RDONLY, _NOSUID, _NODEV

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
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    """`struct mount_attr`, as the first kernel with it has it."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


# --- trees: Linux 5.12 and newer ------------------------------------------------------------------


def has_trees() -> bool:
    """The kernel can seal a mount before it is anywhere."""
    # A structure of no size is refused by every kernel that knows the call, whoever asks.
    result = _libc.syscall(_SYS_MOUNT_SETATTR, -1, b"", 0, None, ctypes.c_size_t(0))
    return result == -1 and ctypes.get_errno() == errno.EINVAL


@contextmanager
def sealed_tree(source: int) -> Generator[int]:
    """A mount of the directory `source` that is read-only, without devices and set-user-id bits.

    It is nowhere yet, and gone when this is left, unless `attach` put it somewhere. Its other flags
    are those of the mount that it was cloned from.

    Raises:
        OSError: The kernel refuses.
    """
    tree = _open_tree(source)
    try:
        _seal(tree)
        yield tree
    finally:
        os.close(tree)


def attach(tree: int, target: int) -> None:
    """Put a tree at the directory `target`, upon whatever is mounted there.

    Raises:
        OSError: The kernel refuses.
    """
    flags = ctypes.c_uint(_MOVE_MOUNT_FROM_EMPTY | _MOVE_MOUNT_TO_EMPTY)
    _called(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", target, b"", flags))


def _open_tree(source: int) -> int:
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    return _called(_libc.syscall(_SYS_OPEN_TREE, source, b"", flags))


def _seal(tree: int) -> None:
    attributes = _MountAttr(attr_set=_ATTR_SEALED)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    flags = ctypes.c_uint(_AT_EMPTY_PATH)
    _called(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(attributes), size))


def _called(result: int) -> int:
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


# --- binds: every kernel --------------------------------------------------------------------------


def mount_private(target: str) -> None:
    """Mount an empty file system in memory, below which nothing that is mounted is seen elsewhere.

    Raises:
        OSError: The kernel refuses.
    """
    _mount("tmpfs", target, 0, "tmpfs")
    _mount(None, target, MS_PRIVATE)


def bind(source: str, target: str) -> None:
    """Show the directory `source` at `target`, with the flags that it has where it comes from.

    Raises:
        OSError: The kernel refuses.
    """
    _mount(source, target, MS_BIND)


def seal(target: str) -> None:
    """Make the bind mount at `target` read-only, without devices and set-user-id bits.

    Only here, and not where it was propagated to.

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


def _mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    said = None if source is None else os.fsencode(source)
    named = None if kind is None else os.fsencode(kind)
    if _libc.mount(said, os.fsencode(target), named, flags, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


def mount_table() -> str:
    """The mounts that this process sees, as `mountinfo` reads them."""
    return os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
