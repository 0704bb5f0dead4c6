"""`damselfly push`: a directory, chunked, copied to where agents read it, its manifest beside it.

A manifest must never lie about the files beside it. So the old one goes before the first file is
touched, each file is complete before it gets its name, and the new manifest comes last: a push that
is interrupted leaves no manifest, and agents take the directory for one that was never pushed.
Files that are already there with the same content are left alone; what is hashed is what was
written, or read where it stays, so a source that changes meanwhile cannot slip by.
"""

import errno
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import local
from typing import cast

from damselfly.errors import OriginNotFoundError, StoreFullError, UsageError
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.model.paths import PUSH_DIRECTORY
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin import tree
from damselfly.origin.tree import LocalFile

_FICLONE = 0x40049409
_THREADS = 4
"""Reading, hashing and writing overlap; more threads than disks like do not help."""


@dataclass(frozen=True, slots=True)
class PushProgress:
    """How far a push has come: the file at work, and bytes that are at their destination."""

    path: str
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did."""

    manifest: Manifest
    destination: Path
    files_copied: int
    files_kept: int
    bytes_copied: int

    @property
    def artifact(self) -> Digest:
        """The artifact's name."""
        return self.manifest.digest


def push(
    directory: Path, destination: str, on_progress: Callable[[PushProgress], None] | None = None
) -> PushReport:
    """Copy the files of `directory` to `destination` and leave their manifest beside them.

    `destination` is a path or a `file://` ref, and may be `directory` itself: then nothing is
    copied. What else lies there is left alone; the manifest does not name it.

    Raises:
        UsageError: the destination makes no sense, or another push is writing there.
        OriginNotFoundError, HeaderError, ManifestError: `directory` is not an artifact.
        OriginChangedError: a file was written to meanwhile.
        StoreFullError: the destination has no room.
    """
    source = Path(os.path.realpath(directory))
    target = _target(destination)
    if target != source and target.is_relative_to(source):
        raise UsageError(f"pushing {directory} into itself: {target} lies inside of it")
    if not tree.is_directory(source):
        raise UsageError(f"pushing {directory}: it is not a directory")
    files = tree.walk(source)
    if not files:
        raise OriginNotFoundError(f"the directory {directory} has no files")
    plan = Plan.of("-", [tree.plan_file(file) for file in files])
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        with (
            _locked(target),
            _scratch(target),
            ThreadPoolExecutor(_THREADS, "push") as threads,
        ):
            return _Push(plan, source, target, threads, on_progress).run(files)


class _Push:
    """One push to one directory, which is locked for us."""

    def __init__(
        self,
        plan: Plan,
        source: Path,
        target: Path,
        threads: ThreadPoolExecutor,
        on_progress: Callable[[PushProgress], None] | None,
    ) -> None:
        self._plan = plan
        self._source = source
        self._target = target
        self._threads = threads
        self._on_progress = on_progress
        self._bytes_done = 0
        self._copied: list[PlannedFile] = []
        self._buffers = local()
        self._temporary = target / PUSH_DIRECTORY / "file"

    def run(self, files: list[LocalFile]) -> PushReport:
        """Bring every file over, then the manifest."""
        digests: list[Digest] = []
        for file, planned in zip(files, self._plan.files, strict=True):
            digests += self._bring(file, planned)
        manifest = Manifest.seal(self._plan, digests)
        self._leave(manifest)
        return PushReport(
            manifest,
            self._target,
            len(self._copied),
            len(files) - len(self._copied),
            sum(planned.bytes for planned in self._copied),
        )

    def _bring(self, file: LocalFile, planned: PlannedFile) -> list[Digest]:
        with _opened(tree.open_unchanged(file)) as source:
            if self._source == self._target:
                return self._read(source, file, planned, counted=True)
            present = self._present(planned.path)
            if present is not None and present.size == file.size:
                digests = self._read(source, file, planned, counted=False)
                with _opened(tree.open_unchanged(present)) as descriptor:
                    if digests == self._read(descriptor, present, planned, counted=False):
                        self._advance(planned.path, file.size)
                        return digests
            self._copied.append(planned)
            return self._copy(source, file, planned)

    def _present(self, path: str) -> LocalFile | None:
        there = self._target / path
        if there.is_symlink() or not there.exists():
            return None  # A link is replaced by the file that agents may read.
        if not there.is_file():
            raise UsageError(f"pushing a file to {there}: what is there is none")
        return tree.look_at(path, there)

    def _copy(self, source: int, file: LocalFile, planned: PlannedFile) -> list[Digest]:
        # From here on the old manifest, if there is one, no longer tells what is here.
        self._forget()
        with self._created() as copy:
            if _cloned(source, copy):
                state = LocalFile(planned.path, self._temporary, file.size, "")
                digests = self._read(copy, state, planned, counted=True)
            else:
                digests = self._read(source, file, planned, counted=True, copy=copy)
            tree.check_unchanged(source, file)
            os.fsync(copy)
        there = self._target / planned.path
        there.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.replace(there)
        return digests

    def _read(
        self,
        descriptor: int,
        file: LocalFile,
        planned: PlannedFile,
        *,
        counted: bool,
        copy: int | None = None,
    ) -> list[Digest]:
        def chunk(start: int, stop: int) -> Digest:
            view = self._buffer()[: stop - start]
            tree.read_exactly(descriptor, view, start, file)
            digest = Digest.of(view)
            if copy is not None:
                _write_exactly(copy, view, start)
            return digest

        digests: list[Digest] = []
        spans = list(pairwise((0, *planned.stops)))
        with closing(self._in_order(chunk, spans)) as done:
            for digest, (start, stop) in zip(done, spans, strict=True):
                digests.append(digest)
                if counted:
                    self._advance(planned.path, stop - start)
        tree.check_unchanged(descriptor, file)
        return digests

    def _in_order(
        self, work: Callable[[int, int], Digest], spans: list[tuple[int, int]]
    ) -> Generator[Digest]:
        pending: deque[Future[Digest]] = deque()
        try:
            for span in spans:
                pending.append(self._threads.submit(work, *span))
                if len(pending) > 2 * _THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # Threads use descriptors that are about to be closed: none may be left at work.
            for future in pending:
                future.cancel()
            wait(pending)

    def _leave(self, manifest: Manifest) -> None:
        there = self._target / MANIFEST_NAME
        data = manifest.canonical()
        if there.is_file() and there.read_bytes() == data:
            return
        self._forget()
        with self._created() as descriptor:
            _write_exactly(descriptor, memoryview(data), 0)
            os.fsync(descriptor)
        # The names of the files must not be lost to a power cut that the manifest survives.
        for parent in {(self._target / file.path).parent for file in self._plan.files}:
            _sync_directory(parent)
        self._temporary.replace(there)
        _sync_directory(self._target)

    def _created(self) -> AbstractContextManager[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return _opened(os.open(self._temporary, flags, 0o666))

    def _forget(self) -> None:
        there = self._target / MANIFEST_NAME
        if there.is_symlink() or there.exists():
            there.unlink()
            _sync_directory(self._target)

    def _advance(self, path: str, count: int) -> None:
        self._bytes_done += count
        if self._on_progress is not None:
            self._on_progress(PushProgress(path, self._bytes_done, self._plan.bytes))

    def _buffer(self) -> memoryview:
        if not hasattr(self._buffers, "view"):
            self._buffers.view = memoryview(bytearray(CHUNK_BYTES_MAX))
        return cast(memoryview, self._buffers.view)


def _target(destination: str) -> Path:
    if "://" not in destination:
        return Path(os.path.realpath(destination))
    ref = Ref.parse(destination)
    if ref.scheme != "file" or ref.pin is not None:
        raise UsageError(f"pushing to {ref.safe}: only to a path or a file:// ref for now")
    return Path(os.path.realpath(ref.local_path))


@contextmanager
def _writing(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreFullError(f"there is no room for the push in {target}") from exc
        if isinstance(exc, FileExistsError | IsADirectoryError | NotADirectoryError):
            raise UsageError(
                f"{target} has a file where a directory is needed, or one for one"
            ) from exc
        raise tree.local_error(exc, f"writing to {target}") from exc


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
