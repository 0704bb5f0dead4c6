"""A directory by its descriptor: every step of a path is opened without following a link."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from typing import Self

from damselfly.cache.disk import write_all
from damselfly.errors import IntegrityError

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}", re.ASCII)

FOLDER_MODE = 0o755
READ_ONLY = 0o444
PRIVATE = 0o600


class Directory:
    """An open directory; names given to it have no slash.

    One that has is refused where something would be made or removed (`check_name`). Nothing planted
    inside (a symlink, a fifo) can lead an operation outside or block it. `OSError` passes through:
    the callers know what they were doing. Close it, or use it in a `with`.
    """

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str) -> "Directory":
        """Open the directory at a path that we trust (the store's root)."""
        return cls(os.open(path, _OPEN_DIR & ~os.O_NOFOLLOW), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def folder(self, name: str) -> "Directory":
        """Open the directory `name`."""
        return Directory(os.open(name, _OPEN_DIR, dir_fd=self.fd), f"{self.path}/{name}")

    def make_folder(self, name: str) -> "Directory":
        """Open the directory `name`, made if need be; anything else of that name is removed."""
        check_name(name)
        for _ in range(2):
            try:
                os.mkdir(name, FOLDER_MODE, dir_fd=self.fd)
            except FileExistsError:
                pass
            else:
                os.chmod(name, FOLDER_MODE, dir_fd=self.fd)  # The umask may be stricter.
            try:
                return self.folder(name)
            except OSError:
                self.remove(name)
        raise IntegrityError(f"{self.path}/{name} does not stay a directory")

    def names(self) -> list[str]:
        """The names in here, in no order."""
        with os.scandir(self.fd) as entries:
            return [entry.name for entry in entries]

    def stat(self, name: str) -> os.stat_result | None:
        """What lies under `name`, not followed; None: nothing."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def create(self, name: str) -> int:
        """Make a new file, private until it is complete, and open it for writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FILE
        return os.open(check_name(name), flags, PRIVATE, dir_fd=self.fd)

    def open_file(self, name: str) -> int:
        """Open a regular file for reading.

        Raises:
            FileNotFoundError: nothing there, or something which is not a regular file.
        """
        try:
            fd = os.open(name, os.O_RDONLY | _OPEN_FILE, dir_fd=self.fd)
        except OSError as exc:
            found = self.stat(name)
            if found is None or not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(f"{self.path}/{name}") from exc
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(f"{self.path}/{name}")
        return fd

    def read(self, name: str, size_max: int) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: no such regular file.
            IntegrityError: it is larger than `size_max`.
        """
        fd = self.open_file(name)
        try:
            data = os.read(fd, size_max + 1)
        finally:
            os.close(fd)
        if len(data) > size_max:
            raise IntegrityError(f"{self.path}/{name} has more than {size_max} bytes")
        return data

    def write(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Make or replace a small file atomically: readers see the old or the new one, whole."""
        check_name(name)
        temporary = temporary_name()
        fd = self.create(temporary)
        try:
            write_all(fd, memoryview(data), 0)
            os.fchmod(fd, mode)
            os.fdatasync(fd)
        except OSError:
            self.remove(temporary)
            raise
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def make_link(self, name: str, target: str) -> None:
        """Make a symbolic link to `target`."""
        os.symlink(target, check_name(name), dir_fd=self.fd)

    def read_link(self, name: str) -> str | None:
        """Where a symbolic link leads; None: it is not one, or not there."""
        try:
            return os.readlink(name, dir_fd=self.fd)
        except OSError:
            return None

    def move(self, name: str, to: "Directory", new_name: str) -> None:
        """Rename, replacing a file of that name."""
        os.rename(name, check_name(new_name), src_dir_fd=self.fd, dst_dir_fd=to.fd)

    def link(self, name: str, to: "Directory", new_name: str) -> None:
        """Give the inode of `name` another name."""
        os.link(
            name, check_name(new_name), src_dir_fd=self.fd, dst_dir_fd=to.fd, follow_symlinks=False
        )

    def remove(self, name: str) -> bool:
        """Remove a file, a link or a whole tree; False: nothing was there."""
        try:
            os.unlink(check_name(name), dir_fd=self.fd)
        except FileNotFoundError:
            return False
        except (IsADirectoryError, PermissionError):
            shutil.rmtree(name, dir_fd=self.fd)
        return True

    def remove_if_empty(self, name: str) -> None:
        """Remove a folder in which nothing is."""
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self.fd)


def check_name(name: str) -> str:
    """Return `name` if it can be one in a directory, and leads nowhere else.

    Names come from refs and manifests, which were checked: this is for the day that a check fails.

    Raises:
        IntegrityError: it is empty, `.` or `..`, or has a slash or a NUL.
    """
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise IntegrityError(f"{name[:120]!r} cannot be a name in a directory of the store")
    return name


def temporary_name() -> str:
    """A name that nobody else uses; it starts with a dot, as only temporaries do."""
    return f".{secrets.token_hex(8)}"


def is_temporary(name: str) -> bool:
    """It is one that `temporary_name` made."""
    return _TEMPORARY.fullmatch(name) is not None
