"""A tree of files made from a view: what `pull --to DIR` leaves.

Each file appears whole or not at all: it is filled without a name (`O_TMPFILE`) and then linked
into place, so that not even kill -9 leaves half of one. The bytes are shared with the store where
the file system can (reflink), else copied; hard links only if asked for, because they hand out the
store's own file. DIR may be anybody's: nothing in it is followed, and nothing different is
replaced without `force`.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from damselfly.errors import (
    CapacityError,
    DamselflyError,
    DeniedError,
    IntegrityError,
    NotFoundError,
    UsageError,
)

FICLONE = 0x40049409
COPY_BYTES = 16 * 1024 * 1024  # at a time: an interrupt and the progress wait no longer
COMPARE_BYTES = 1024 * 1024
DEPTH_MAX = 128
FILE_MODE = 0o644

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# What file systems say when they cannot clone, copy by themselves, or make unnamed files.
_CANNOT = {
    errno.EACCES,
    errno.EBADF,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.ETXTBSY,
    errno.EXDEV,
}


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What was made: files by how their bytes came; the `kept` were there already."""

    bytes: int = 0
    reflinked: int = 0
    copied: int = 0
    linked: int = 0
    kept: int = 0

    @property
    def files(self) -> int:
        """How many files are in place."""
        return self.reflinked + self.copied + self.linked + self.kept


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the view: its directories from the top, its own name, its size."""

    directories: tuple[str, ...]
    name: str
    bytes: int

    @property
    def path(self) -> str:
        return "/".join((*self.directories, self.name))


def make_tree(
    view: str,
    destination: str,
    *,
    link: bool = False,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tree:
    """Make the directory `destination` hold every file of `view`; others in it are left alone.

    Files that are there with the same bytes are kept. Whether one differs is found out before
    anything is written. `on_progress` is told the bytes in place, and the bytes in all.

    Raises:
        UsageError: A file is in the way and differs (`force` replaces it), or `link` was asked
            for across file systems.
        NotFoundError: The view is not there.
        DeniedError: This user may not read the one or write the other.
        CapacityError: The destination's file system is full.
    """
    with _telling(f"making the tree {destination}"), ExitStack() as stack:
        source = stack.enter_context(_view(view))
        files = list(_walk(source, (), view))
        os.makedirs(destination, exist_ok=True)  # noqa: PTH103 - paths are text in this module
        target = stack.enter_context(_opened(destination, _DIRECTORY))
        kept = _survey(files, source, target, destination, force=force)
        bytes_total = sum(file.bytes for file in files)
        tree = Tree(kept=len(kept), bytes=sum(file.bytes for file in kept))
        for file in files:
            if file in kept:
                continue

            def tell(count: int, before: int = tree.bytes) -> None:
                if on_progress:
                    on_progress(before + count, bytes_total)

            match _place(file, source, target, link=link, force=force, tell=tell):
                case "reflinked":
                    tree = replace(tree, reflinked=tree.reflinked + 1)
                case "linked":
                    tree = replace(tree, linked=tree.linked + 1)
                case _:
                    tree = replace(tree, copied=tree.copied + 1)
            tree = replace(tree, bytes=tree.bytes + file.bytes)
            tell(file.bytes)
        return tree


# --- looking ----------------------------------------------------------------------------------


@contextmanager
def _opened(path: str, flags: int, *, inside: int | None = None) -> Generator[int]:
    # Nothing inside of a directory is followed; the directory itself may be named by a link.
    follow = 0 if inside is None else os.O_NOFOLLOW
    descriptor = os.open(path, flags | follow | os.O_CLOEXEC, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _view(path: str) -> Generator[int]:
    try:
        descriptor = os.open(path, _DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFoundError(f"the view {path} is not there (was it evicted?)") from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _descended(top: int, directories: Sequence[str], *, make: bool) -> Generator[int]:
    """Open a directory below `top` a name at a time, so that no link on the way is followed."""
    with ExitStack() as stack:
        current = top
        for name in directories:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=current)
            current = stack.enter_context(_opened(name, _DIRECTORY, inside=current))
        yield current


def _walk(directory: int, names: tuple[str, ...], view: str) -> Iterator[_File]:
    if len(names) > DEPTH_MAX:
        raise IntegrityError(f"the view {view} is more than {DEPTH_MAX} directories deep")
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            with _opened(entry.name, _DIRECTORY, inside=directory) as below:
                yield from _walk(below, (*names, entry.name), view)
        elif stat.S_ISREG(status.st_mode):
            yield _File(names, entry.name, status.st_size)
        else:
            path = "/".join((*names, entry.name))
            raise IntegrityError(f"{path} in the view {view} is neither a file nor a directory")


def _survey(
    files: Sequence[_File], source: int, target: int, destination: str, *, force: bool
) -> frozenset[_File]:
    """Find the files that are there already, and refuse if something else is in their way."""
    kept: set[_File] = set()
    for file in files:
        shown = f"{destination}/{file.path}"
        try:
            with _descended(target, file.directories, make=False) as directory:
                status = os.stat(file.name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    raise UsageError(f"{shown} is a directory, where a file belongs")
                if stat.S_ISREG(status.st_mode) and _are_same(file, source, directory, status):
                    kept.add(file)
                    continue
        except FileNotFoundError:
            continue
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise UsageError(f"something is in the way of the directory of {shown}") from exc
            raise
        if not force:
            raise UsageError(f"{shown} is there and differs (--force replaces it)")
    return frozenset(kept)


def _are_same(file: _File, source: int, directory: int, there: os.stat_result) -> bool:
    if there.st_size != file.bytes:
        return False
    with (
        _descended(source, file.directories, make=False) as above,
        _opened(file.name, os.O_RDONLY, inside=above) as ours,
        _opened(file.name, os.O_RDONLY | os.O_NONBLOCK, inside=directory) as theirs,
    ):
        if os.path.samestat(os.fstat(ours), there):
            return True
        for offset in range(0, file.bytes, COMPARE_BYTES):
            if os.pread(ours, COMPARE_BYTES, offset) != os.pread(theirs, COMPARE_BYTES, offset):
                return False
    return True


# --- making -----------------------------------------------------------------------------------


def _place(
    file: _File,
    source: int,
    target: int,
    *,
    link: bool,
    force: bool,
    tell: Callable[[int], None],
) -> str:
    """Put one file in its place; returns how."""
    with (
        _descended(source, file.directories, make=False) as above,
        _descended(target, file.directories, make=True) as directory,
    ):
        if link:
            with _link_advice(file):
                _settle(file.name, directory, force=force, name=file.name, inside=above)
            return "linked"
        with (
            _opened(file.name, os.O_RDONLY, inside=above) as ours,
            _draft(directory) as (draft, name),
        ):
            how = "reflinked" if _reflink(ours, draft) else "copied"
            if how == "copied":
                _copy(ours, draft, file, tell)
            os.fchmod(draft, FILE_MODE)
            _settle(file.name, directory, force=force, name=name, inside=directory)
            return how


@contextmanager
def _draft(directory: int) -> Generator[tuple[int, str]]:
    """A new file without a name in `directory`, and a path to link it from.

    On file systems that know no such files it has a hidden name, which goes away at the end.
    """
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
        name, is_named = f"/proc/self/fd/{descriptor}", False
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise
        name, is_named = _hidden_name(), True
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)
        if is_named:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)


def _hidden_name() -> str:
    return f".damselfly-{secrets.token_hex(8)}"


def _settle(final: str, directory: int, *, force: bool, name: str, inside: int) -> None:
    """Give a file its final name, in one step."""

    def link(to: str) -> None:
        is_unnamed = name.startswith("/proc/")
        os.link(name, to, src_dir_fd=inside, dst_dir_fd=directory, follow_symlinks=is_unnamed)

    if not force:
        try:
            link(final)
        except FileExistsError as exc:
            raise UsageError(f"{final} appeared while it was being made") from exc
        return
    aside = _hidden_name()
    link(aside)
    try:
        os.rename(aside, final, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=directory)


def _reflink(ours: int, draft: int) -> bool:
    try:
        fcntl.ioctl(draft, FICLONE, ours)
    except OSError as exc:
        if exc.errno not in _CANNOT:
            raise
        return False
    return True


def _copy(ours: int, draft: int, file: _File, tell: Callable[[int], None]) -> None:
    done = 0
    in_kernel = True
    while done < file.bytes:
        count = min(COPY_BYTES, file.bytes - done)
        if in_kernel:
            try:
                moved = os.copy_file_range(ours, draft, count, done, done)
            except OSError as exc:
                if exc.errno not in _CANNOT:
                    raise
                moved = 0
            in_kernel = moved > 0  # Some file systems say nothing and copy nothing.
        else:
            data = os.pread(ours, min(count, COMPARE_BYTES), done)
            if not data:
                raise IntegrityError(f"{file.path} became shorter while it was copied")
            moved = os.pwrite(draft, data, done)
        done += moved
        tell(done)


# --- telling ----------------------------------------------------------------------------------


@contextmanager
def _link_advice(file: _File) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            raise UsageError(
                f"{file.path} cannot be a hard link: the store is on another file system"
                " (leave out --link)"
            ) from exc
        if exc.errno in {errno.EPERM, errno.EMLINK}:
            raise DeniedError(
                f"{file.path} may not be a hard link to the store's file (leave out --link)"
            ) from exc
        raise


@contextmanager
def _telling(doing: str) -> Generator[None]:
    """Turn what the operating system says into our errors, at one place."""
    try:
        yield
    except OSError as exc:
        match exc.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                raise CapacityError(doing) from exc
            case errno.EACCES | errno.EPERM | errno.EROFS:
                raise DeniedError(doing) from exc
            case errno.ENOTDIR | errno.EEXIST:
                raise UsageError(doing) from exc
            case _:
                raise DamselflyError(doing) from exc
