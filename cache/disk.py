"""System calls the store needs and Python does not dress: allocate, write whole, clone, boot id.

`OSError`s of the store's directory become named errors here: `disk_errors` wraps whatever touches
the disk and says what was being done.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from damselfly.errors import CapacityError, IntegrityError, StoreFullError, UsageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

_FICLONERANGE = 0x4020940D
BLOCK_BYTES = 4096
"""What clones and direct reads are aligned to; every file system we meet has 4 KiB or less."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_full(error: OSError) -> bool:
    """The file system, or our quota of it, has no room."""
    return error.errno in _FULL


@contextmanager
def disk_errors(doing: str) -> Generator[None, None, None]:
    """Turn an `OSError` into a named error that says what was being done.

    Raises:
        StoreFullError: no space, no quota.
        CapacityError: too many open files, no memory.
        UsageError: not allowed, or a read-only file system.
        IntegrityError: anything else a disk says.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StoreFullError(doing) from exc
        if exc.errno in _EXHAUSTED:
            raise CapacityError(doing) from exc
        if exc.errno in _CANNOT:
            raise UsageError(doing) from exc
        raise IntegrityError(doing) from exc


def allocate(fd: int, length: int) -> bool:
    """Make the file `length` bytes long, with room on disk behind all of it where possible.

    Not `os.posix_fallocate`: where the file system cannot, glibc writes a byte to every block, a
    minute of work for a large model. False: the room is only promised, and a write may yet fail.
    """
    if length == 0:
        return True
    while True:
        if not _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(length)):
            return True
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
        os.ftruncate(fd, length)
        return False


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write every byte of `data` at `offset`; one `pwrite` may take fewer."""
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; fewer bytes only where the file ends."""
    total = 0
    while total < len(buffer):
        count = os.preadv(fd, [buffer[total:]], offset + total)
        if count == 0:
            break
        total += count
    return total


def clone_range(source: int, offset: int, length: int, target: int, at: int) -> bool:
    """Share the source's blocks with the target (a reflink); False where that cannot be."""
    if offset % BLOCK_BYTES or at % BLOCK_BYTES or length % BLOCK_BYTES:
        return False
    argument = struct.pack("=qQQQ", source, offset, length, at)
    try:
        fcntl.ioctl(target, _FICLONERANGE, argument)
    except OSError as exc:
        if is_full(exc):
            raise
        return False
    return True


def open_direct(fd: int) -> int | None:
    """Open the same inode again past the page cache; None where the file system cannot."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def open_writable(fd: int) -> int:
    """Open the same inode again for writing, though its mode says that nobody may.

    A complete file is 0444 and its owner is no exception unless it is root, so the mode is
    widened for the moment of the open. By descriptor: no name can be swapped underneath.
    """
    mode = os.fstat(fd).st_mode & 0o7777
    path = f"/proc/self/fd/{fd}"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        os.fchmod(fd, mode | 0o200)
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.fchmod(fd, mode)


def aligned_buffer(size: int) -> mmap.mmap:
    """Anonymous memory on a page boundary, as direct reads want it."""
    return mmap.mmap(-1, -(-size // BLOCK_BYTES) * BLOCK_BYTES)


def boot_id() -> str:
    """Which boot of this machine it is; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def free_bytes(fd: int) -> int:
    """What the file system under `fd` has left for us."""
    stats = os.fstatvfs(fd)
    return stats.f_bavail * stats.f_frsize
