"""A directory on this machine as an artifact: which files it has, and where they are cut.

Every file counts, whatever it is called, but for what `is_bookkeeping` names. A symbolic link to a
file inside the directory is that file; one that leaves the directory is refused, for it would hand
the swarm a file that nobody named; so is one to a directory (they make loops, and trees that
double at every step) and whatever is not a file at all.
"""

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from damselfly.errors import (
    DamselflyError,
    HeaderError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
)
from damselfly.model import chunker, safetensors
from damselfly.model.paths import DEPTH_MAX, check_path, is_bookkeeping
from damselfly.model.plan import FILES_MAX, PlannedFile

HEADER_GUESS_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the tree: what it is called in there, where it really is, and its state."""

    path: str
    location: Path
    size: int
    version: str


def walk(root: Path) -> list[LocalFile]:
    """List the files below `root`, in path order.

    Raises:
        OriginNotFoundError, OriginDeniedError, OriginUnavailableError: reading a directory failed.
        ManifestError: something in there cannot be part of an artifact.
    """
    real_root = Path(os.path.realpath(root))
    found: list[LocalFile] = []
    pending = [""]
    while pending:
        directory = pending.pop()
        if directory.count("/") > DEPTH_MAX:
            raise ManifestError(f"the directory {root} is more than {DEPTH_MAX} deep")
        place = real_root / directory
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    path = directory + entry.name
                    if is_bookkeeping(path):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        check_path(path)
                        pending.append(path + "/")
                    else:
                        found.append(look(real_root, path))
        except OSError as exc:
            raise local_error(exc, f"listing {place}") from exc
        if len(found) > FILES_MAX:
            raise ManifestError(f"the directory {root} has more than {FILES_MAX} files")
    found.sort(key=lambda file: file.path)
    return found


def look(root: Path, path: str) -> LocalFile:
    """Find the file `path` below `root`, and its state.

    Raises:
        ManifestError: it is not a file, or not below `root`.
        OriginNotFoundError, OriginDeniedError, OriginUnavailableError: as their names say.
    """
    check_path(path)
    location = Path(os.path.realpath(root / path))
    if not location.is_relative_to(os.path.realpath(root)):
        raise ManifestError(f"{path!r} in {root} is a link that leaves the directory: {location}")
    try:
        return look_at(path, location)
    except OriginNotFoundError as exc:
        if not (root / path).is_symlink():
            raise
        raise OriginNotFoundError(
            f"{path!r} in {root} is a link to what is not there: {location}"
        ) from exc


def look_at(path: str, location: Path) -> LocalFile:
    """Find the state of the one file at `location`, to be called `path`."""
    check_path(path)
    try:
        state = location.stat()
    except OSError as exc:
        raise local_error(exc, f"looking at {location}") from exc
    if not stat.S_ISREG(state.st_mode):
        raise ManifestError(f"{location} is neither a file nor a directory of its own")
    return LocalFile(path, location, state.st_size, version_of(state))


def is_directory(place: Path) -> bool:
    """Tell a directory from anything else that is there.

    Raises:
        OriginNotFoundError, OriginDeniedError, OriginUnavailableError: as their names say.
    """
    try:
        return stat.S_ISDIR(place.stat().st_mode)
    except OSError as exc:
        raise local_error(exc, f"looking at {place}") from exc


def version_of(state: os.stat_result) -> str:
    """What changes whenever a local file does."""
    return f"stat:{state.st_mtime_ns}-{state.st_size}-{state.st_ino}"


def open_unchanged(file: LocalFile) -> int:
    """Open the file that was looked at; the caller closes the descriptor.

    Raises:
        OriginChangedError: another file is there now.
    """
    try:
        descriptor = os.open(file.location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise local_error(exc, f"opening {file.location}") from exc
    try:
        check_unchanged(descriptor, file)
    except DamselflyError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opened(file: LocalFile) -> Generator[int]:
    """Have the file that was looked at open; see `open_unchanged`."""
    descriptor = open_unchanged(file)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_unchanged(descriptor: int, file: LocalFile) -> None:
    """Compare an open file with what was looked at.

    Raises:
        OriginChangedError: it was written to, or replaced.
    """
    state = os.fstat(descriptor)
    if state.st_size != file.size:
        raise OriginChangedError(
            f"{file.location} has {state.st_size} bytes now: it had {file.size} when it was planned"
        )
    if file.version and version_of(state) != file.version:
        raise OriginChangedError(f"{file.location} was written to or replaced after it was planned")


def read_exactly(descriptor: int, view: memoryview, start: int, file: LocalFile) -> None:
    """Fill `view` from byte `start` of an open file.

    Raises:
        OriginChangedError: it ends before that.
        OriginUnavailableError: the disk would not.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], start + done)
        except OSError as exc:
            raise local_error(exc, f"reading {file.location}") from exc
        if count == 0:
            raise OriginChangedError(f"{file.location} became shorter while it was being read")
        done += count


def plan_file(file: LocalFile) -> PlannedFile:
    """Cut a file.

    Raises:
        HeaderError: it is a safetensors file with a header that breaks the rules.
        ManifestError: it is bigger than any artifact.
        OriginChangedError: it changes meanwhile.
    """
    try:
        lengths = chunker.cut(file.size)
    except ManifestError as exc:
        raise ManifestError(f"looking at {file.location}") from exc
    if not chunker.is_safetensors(file.path):
        return PlannedFile(file.path, lengths, file.version)
    descriptor = open_unchanged(file)
    try:
        head = bytearray(min(HEADER_GUESS_BYTES, file.size))
        read_exactly(descriptor, memoryview(head), 0, file)
        missing = safetensors.header_bytes(bytes(head[:8]), file.size) - len(head)
        if missing > 0:
            rest = bytearray(missing)
            read_exactly(descriptor, memoryview(rest), len(head), file)
            head += rest
        header = safetensors.parse(bytes(head), file.size)
        check_unchanged(descriptor, file)
    except HeaderError as exc:
        raise HeaderError(f"reading the header of {file.location}") from exc
    finally:
        os.close(descriptor)
    return PlannedFile(file.path, chunker.cut_safetensors(header), file.version)


def local_error(error: OSError, doing: str) -> DamselflyError:
    """Choose the error for what the system said; the caller raises it from `error`."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return OriginNotFoundError(doing)
        case _ if error.errno in {errno.ELOOP, errno.ENAMETOOLONG}:
            return OriginNotFoundError(doing)
        case PermissionError():
            return OriginDeniedError(doing)
        case _:
            return OriginUnavailableError(doing)
