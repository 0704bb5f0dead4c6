"""A directory of this machine as what is pushed to. Blocks: it reads and writes files.

A manifest must never lie about the files beside it. So the old one goes before the first file is
touched, each file is complete before it gets its name, and the new manifest comes last: a push that
is interrupted leaves no manifest, and agents take the directory for one that was never pushed.
Files that are there already with the same content are left alone. What is written is held against
the digests of the parcel, so a source that changes meanwhile cannot slip by.
"""

import errno
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from threading import local
from typing import cast

from damselfly.errors import OriginChangedError, OriginDeniedError, StoreFullError, UsageError
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, ManifestFile
from damselfly.model.paths import PUSH_DIRECTORY
from damselfly.origin import tree
from damselfly.origin.destination import Parcel, Standing
from damselfly.origin.parcel import Advance
from damselfly.origin.tree import LocalFile

_FICLONE = 0x40049409
_THREADS = 4
"""Reading, hashing and writing overlap; more threads than disks like do not help."""


class DirectoryPush:
    """One push to one directory. It may be the parcel's own: then its files stay where they are."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target / PUSH_DIRECTORY / "file"
        self._buffers = local()

    @contextmanager
    def held(self) -> Generator[None]:
        """Make the directory, and keep other pushes out of it.

        Raises:
            UsageError: another push is writing there, or it is a file.
            OriginDeniedError, StoreFullError: as their names say.
        """
        with self._writing():
            self._target.mkdir(parents=True, exist_ok=True)
            with _locked(self._target), _scratch(self._target):
                yield

    def check(self) -> None:
        """Say what would refuse a push, as far as that is seen without writing.

        Raises:
            UsageError: a file is in the way, or another push is writing there.
            OriginDeniedError: it cannot be written to.
        """
        with self._writing():
            there = next(
                place for place in (self._target, *self._target.parents) if os.path.lexists(place)
            )
            if not there.is_dir():
                raise UsageError(f"pushing to {self._target}: {there} is not a directory")
            state = os.statvfs(there)
            # What the kernel only shows has no blocks, and takes no files whoever asks.
            is_shown = there != self._target and not (state.f_blocks or state.f_files)
            is_fixed = is_shown or bool(state.f_flag & os.ST_RDONLY)
            if is_fixed or not os.access(there, os.W_OK | os.X_OK):
                raise OriginDeniedError(f"writing to {self._target}: {there} takes no files")
            if there == self._target:
                with _locked(there):
                    pass

    def small(self, path: str, bytes_max: int) -> bytes | None:
        """Read a small file that is there; empty if it is larger, None if there is none."""
        there = self._target / path
        with self._writing():
            if not os.path.lexists(there):
                return None
            if not there.is_file() or there.stat().st_size > bytes_max:
                return b""
            return there.read_bytes()

    def standing(self, parcel: Parcel, advance: Advance) -> Standing:
        """Compare what is there with a parcel; `advance` is told of what was compared.

        Raises:
            UsageError: something is there that is not a file.
        """
        kept: set[int] = set()
        with self._writing(), ThreadPoolExecutor(_THREADS, "push") as threads:
            pairs = zip(parcel.files, parcel.manifest.files, strict=True)
            for number, (file, content) in enumerate(pairs):
                if self._is_itself(parcel, file) or self._is_there(file, content, threads, advance):
                    kept.add(number)
        missing = sum(file.size for at, file in enumerate(parcel.files) if at not in kept)
        is_whole = (
            len(kept) == len(parcel.files) and not parcel.drops and self._has_manifest(parcel)
        )
        return Standing(frozenset(kept), missing, is_whole)

    def push(self, parcel: Parcel, standing: Standing, advance: Advance) -> None:
        """Write what `standing` lacks, then the manifest. Only while it is `held`.

        Raises:
            OriginChangedError: a file is no longer the one that was hashed.
            StoreFullError, OriginDeniedError, OriginUnavailableError: as their names say.
        """
        with self._writing(), ThreadPoolExecutor(_THREADS, "push") as threads:
            pairs = zip(parcel.files, parcel.manifest.files, strict=True)
            for number, (file, content) in enumerate(pairs):
                if number not in standing.kept:
                    self._copy(file, content, threads, advance)
            for file in parcel.files:
                with tree.opened(file):  # It is what was hashed, or the manifest would lie.
                    pass
            for path in parcel.drops:
                self._forget()
                (self._target / path).unlink(missing_ok=True)
            self._leave(parcel)

    # --- what is there ------------------------------------------------------------------------

    def _is_itself(self, parcel: Parcel, file: LocalFile) -> bool:
        is_same_place = parcel.directory == self._target
        return is_same_place and os.path.realpath(self._target / file.path) == str(file.location)

    def _is_there(
        self,
        file: LocalFile,
        content: ManifestFile,
        threads: ThreadPoolExecutor,
        advance: Advance,
    ) -> bool:
        there = self._target / file.path
        if there.is_symlink() or not there.exists():
            return False  # A link is replaced by the file that agents may read.
        if not there.is_file():
            raise UsageError(f"pushing a file to {there}: what is there is none")
        present = tree.look_at(file.path, there)
        if present.size != file.size:
            return False
        with tree.opened(present) as descriptor:
            return self._carry(descriptor, present, content, threads, advance)

    def _has_manifest(self, parcel: Parcel) -> bool:
        there = self._target / MANIFEST_NAME
        return there.is_file() and there.read_bytes() == parcel.manifest.canonical()

    # --- bringing it there --------------------------------------------------------------------

    def _copy(
        self,
        file: LocalFile,
        content: ManifestFile,
        threads: ThreadPoolExecutor,
        advance: Advance,
    ) -> None:
        # From here on the old manifest, if there is one, no longer tells what is here.
        self._forget()
        with tree.opened(file) as source, self._created() as copy:
            if _cloned(source, copy):
                state = LocalFile(file.path, self._temporary, file.size, "")
                is_same = self._carry(copy, state, content, threads, advance)
            else:
                is_same = self._carry(source, file, content, threads, advance, copy=copy)
            tree.check_unchanged(source, file)
            if not is_same:
                raise OriginChangedError(f"{file.location} is not what was hashed any more")
            os.fsync(copy)
        there = self._target / file.path
        there.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.replace(there)

    def _carry(
        self,
        descriptor: int,
        file: LocalFile,
        content: ManifestFile,
        threads: ThreadPoolExecutor,
        advance: Advance,
        *,
        copy: int | None = None,
    ) -> bool:
        """Read an open file, and write it to `copy`; tell whether it has that content."""

        def chunk(start: int, stop: int) -> Digest:
            view = self._buffer()[: stop - start]
            tree.read_exactly(descriptor, view, start, file)
            digest = Digest.of(view)
            if copy is not None:
                _write_exactly(copy, view, start)
            return digest

        stops = accumulate(chunk.length for chunk in content.chunks)
        spans = list(pairwise((0, *stops)))
        pending: deque[Future[Digest]] = deque()
        try:
            for number, (start, stop) in enumerate(spans):
                while len(pending) < 2 * _THREADS and number + len(pending) < len(spans):
                    pending.append(threads.submit(chunk, *spans[number + len(pending)]))
                if pending.popleft().result() != content.chunks[number].digest:
                    return False
                advance(file.path, stop - start)
        finally:
            # Threads use descriptors that are about to be closed: none may be left at work.
            for future in pending:
                future.cancel()
            wait(pending)
        tree.check_unchanged(descriptor, file)
        return True

    def _leave(self, parcel: Parcel) -> None:
        if self._has_manifest(parcel):
            return
        self._forget()
        with self._created() as descriptor:
            _write_exactly(descriptor, memoryview(parcel.manifest.canonical()), 0)
            os.fsync(descriptor)
        # The names of the files must not be lost to a power cut that the manifest survives.
        for parent in {(self._target / file.path).parent for file in parcel.files}:
            _sync_directory(parent)
        self._temporary.replace(self._target / MANIFEST_NAME)
        _sync_directory(self._target)

    def _created(self) -> AbstractContextManager[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return _opened(os.open(self._temporary, flags, 0o666))

    def _forget(self) -> None:
        there = self._target / MANIFEST_NAME
        if there.is_symlink() or there.exists():
            there.unlink()
            _sync_directory(self._target)

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(CHUNK_BYTES_MAX))
        return cast(memoryview, self._buffers.view)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StoreFullError(f"there is no room for the push in {self._target}") from exc
            if isinstance(exc, FileExistsError | IsADirectoryError | NotADirectoryError):
                raise UsageError(
                    f"{self._target} has a file where a directory is needed, or one for one"
                ) from exc
            raise tree.local_error(exc, f"writing to {self._target}") from exc


@contextmanager
def _locked(target: Path) -> Generator[None]:
    with _opened(os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another push is writing to {target}") from None
        yield


@contextmanager
def _scratch(target: Path) -> Generator[None]:
    scratch = target / PUSH_DIRECTORY
    shutil.rmtree(scratch, ignore_errors=True)  # What a push that was killed left.
    scratch.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _opened(descriptor: int) -> Generator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _cloned(source: int, copy: int) -> bool:
    """Share the source's blocks with the copy, where the file system can."""
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError:
        return False
    return True


def _write_exactly(descriptor: int, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], start + done)


def _sync_directory(directory: Path) -> None:
    with _opened(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)
