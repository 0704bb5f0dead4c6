"""Whatever else fsspec knows: `sftp://`, `smb://`, `webhdfs://`, if the configuration names it.

These are libraries of other people that block and speak for themselves, so all of it runs in
threads, each call with a filesystem of its own: many cannot do two things at once. What that means:

- None of it goes through our one web: no budget of requests or bytes, no proxy of ours. Where a
  library follows a redirect or asks a name again, our rule against metadata services is not asked.
- They find their credentials themselves (`~/.ssh`, tickets, the environment), which are the
  agent's. So only who commands the agent may read here: a pod has no way to show its own.
- A file is pinned by whatever the filesystem tells of it, which is held against the plan before
  every span. Some tell only the size.

Filesystems of this machine, those that wrap another one, and what we speak ourselves are refused
whatever the configuration says.
"""

import asyncio
import contextlib
import importlib
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Protocol, Self, TypeVar, cast
from urllib.parse import urlsplit

from damselfly.errors import (
    DamselflyError,
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME
from damselfly.model.paths import check_tree, is_bookkeeping
from damselfly.model.plan import FILES_MAX, VERSION_CHARS_MAX, Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.beside import manifest_from
from damselfly.origin.clouds import REFUSED
from damselfly.origin.cutting import Listed, cut
from damselfly.origin.link_local import denied, is_forbidden
from damselfly.origin.port import OriginLimits, Resolved, revision_of, revision_of_manifest
from damselfly.origin.together import together

PLACES_MAX = 8
"""Hosts whose filesystems are kept open."""

_IDENTITIES = (
    ("etag", ("ETag", "etag", "e_tag")),
    ("generation", ("generation",)),
    ("version", ("VersionId", "version_id", "versionId")),
    ("checksum", ("checksum", "md5Hash", "content_md5", "sha256", "sha", "md5")),
    ("modified", ("mtime", "LastModified", "last_modified", "modified", "updated", "modify")),
    ("modified", ("modificationTime", "last_write_time")),
)
"""What tells two contents of a file apart, best first, and what filesystems call it."""
_T = TypeVar("_T")


class _FileSystem(Protocol):
    """The part of fsspec's filesystems that is asked."""

    def info(self, path: str) -> Mapping[str, object]: ...

    def ls(self, path: str, *, detail: bool) -> list[Mapping[str, object]]: ...

    def cat_file(self, path: str, start: int, end: int) -> bytes: ...

    def open(self, path: str, mode: str, *, cache_type: str) -> "_File": ...


class _File(Protocol):
    def seek(self, offset: int) -> int: ...

    def read(self, length: int) -> bytes: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *args: object) -> None: ...


class FsspecOrigin:
    """Files of filesystems that fsspec knows. Belongs to one event loop."""

    shared = True

    def __init__(self, limits: OriginLimits) -> None:
        self._limits = limits
        self._jobs = _Jobs(limits.read_threads)
        self._idle: dict[tuple[str, str], list[_FileSystem]] = {}
        self._lock = threading.Lock()

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the files behind `ref` and cut them; see `Origin`."""
        ref = ref.unpinned
        _check_access(ref, access)
        if not ref.is_directory:
            found = await self._do(ref, lambda files: files.file_or_none(""))
            if found is not None:
                file = await self._cut(ref, ref.name, found, "")
                plan = Plan.of(str(ref), [file])
                return Resolved(plan, None, revision_of(plan))
        ref = ref.as_directory
        data = await self._do(ref, lambda files: files.manifest())
        if data is not None:
            place = f"{MANIFEST_NAME} at {ref.safe}"
            manifest = await asyncio.to_thread(manifest_from, data, place)
            return Resolved(manifest.plan(str(ref)), manifest, revision_of_manifest(manifest))
        found_files = await self._listed(ref)
        if not found_files:
            raise OriginNotFoundError(f"the directory {ref.safe} has no files")
        check_tree(found_files)
        files = await together(
            (partial(self._cut, ref, path, found, path) for path, found in found_files.items()),
            self._limits.read_threads,
        )
        plan = Plan.of(str(ref), files)
        return Resolved(plan, None, revision_of(plan))

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Prove that the agent may read a file, by a byte of it; see `Origin`."""
        _check_access(ref, access)
        path = _inside(ref, file)
        await self._do(ref, lambda files: files.unchanged(path, file.bytes, file.version))
        if file.bytes:
            await self._do(ref, lambda files: files.read(path, 0, 1))

    @asynccontextmanager
    async def open(
        self,
        ref: Ref,
        file: PlannedFile,
        start: int,
        stop: int,
        access: Access = ANONYMOUS,
    ) -> AsyncGenerator["FsspecStream"]:
        """Read a span of a file; see `Origin`."""
        _check_access(ref, access)
        path = _inside(ref, file)
        await self._do(ref, lambda files: files.unchanged(path, file.bytes, file.version))

        async def read(start: int, stop: int) -> bytes:
            return await self._do(ref, lambda files: files.read(path, start, stop))

        yield FsspecStream(read, start, stop)

    async def close(self) -> None:
        """Forget the filesystems. Threads end when theirs is done, or with the process."""
        with self._lock:
            self._idle.clear()

    async def _listed(self, ref: Ref) -> dict[str, Listed]:
        files: dict[str, Listed] = {}
        pending = [""]
        directory_count = 1
        while pending:
            listings = await together(
                (partial(self._do, ref, partial(_list, path)) for path in pending),
                self._limits.read_threads,
            )
            pending = [path for _, below in listings for path in below]
            for found, _ in listings:
                files |= {file.path: file for file in found}
            directory_count += len(pending)
            if directory_count > self._limits.directories_max:
                raise ManifestError(
                    f"{ref.safe} has more than {self._limits.directories_max} directories"
                )
            if any(path.count("/") > self._limits.directory_depth_max for path in pending):
                raise ManifestError(f"a directory below {ref.safe} is too deep")
            if len(files) > FILES_MAX:
                raise ManifestError(f"{ref.safe} has more than {FILES_MAX} files")
        return files

    async def _cut(self, ref: Ref, path: str, found: Listed, inside: str) -> PlannedFile:
        async def read(start: int, stop: int) -> bytes:
            return await self._do(ref, lambda files: files.read(inside, start, stop))

        file = Listed(path, found.size, found.version)
        return await cut(file, read, f"{path} at {ref.safe}", self._limits)

    async def _do(self, ref: Ref, work: "Callable[[_Files], _T]") -> _T:
        return await self._jobs.run(
            partial(self._at, ref, work), f"asking {ref.safe}", self._limits.head_s
        )

    def _at(self, ref: Ref, work: "Callable[[_Files], _T]") -> _T:
        """Do `work` with a filesystem that nobody else uses meanwhile. In a thread."""
        key = (ref.scheme, ref.netloc)
        with _told(f"asking {ref.safe}"):
            cls = _class_of(ref.scheme)
            # The path is put behind: what splits URLs would take a # or a ? in a name for more.
            url = f"{ref.scheme}://{ref.netloc}/"
            with self._lock:
                idle = self._idle.get(key)
                filesystem = idle.pop() if idle else None
            if filesystem is None:
                _check_host(ref)
                options = cls._get_kwargs_from_urls(url)
                made = cls(**options, use_listings_cache=False, skip_instance_cache=True)
                filesystem = cast("_FileSystem", made)
            base = str(cls._strip_protocol(url)).rstrip("/") + ref.decoded_path.rstrip("/")
            result = work(_Files(filesystem, base, ref, self._limits))
            # One that failed is not asked again: its connection may be what is wrong.
            with self._lock:
                idle = self._idle.setdefault(key, [])
                if len(idle) < self._limits.read_threads:
                    idle.append(filesystem)
                while len(self._idle) > PLACES_MAX:
                    del self._idle[next(iter(self._idle))]
            return result


class FsspecStream:
    """A span of a file. Belongs to one task."""

    def __init__(self, read: "_Read", start: int, stop: int) -> None:
        self.first_byte_s: float | None = None
        self._read = read
        self._position = start
        self._stop = stop
        self._asked_s = time.monotonic()

    async def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes; see `OriginStream`."""
        assert len(view) <= self._stop - self._position, "reading past the end of the span"
        view[:] = await self._read(self._position, self._position + len(view))
        self._position += len(view)
        if self.first_byte_s is None:
            self.first_byte_s = time.monotonic() - self._asked_s


class _Read(Protocol):
    async def __call__(self, start: int, stop: int) -> bytes: ...


class _Files:
    """The files below one place, as one filesystem sees them. Belongs to one thread."""

    def __init__(self, filesystem: _FileSystem, base: str, ref: Ref, limits: OriginLimits) -> None:
        self._filesystem = filesystem
        self._base = base
        self._ref = ref
        self._limits = limits

    def file_or_none(self, path: str) -> Listed | None:
        """What a file is like; None where there is a directory."""
        info = self._filesystem.info(self._place(path))
        if info.get("type") == "directory":
            return None
        return self._listed(path, info)

    def manifest(self) -> bytes | None:
        """The manifest that a push left here, if there is one."""
        try:
            found = self.file_or_none(MANIFEST_NAME)
        except FileNotFoundError:
            return None
        if found is None:
            return None
        if found.size > MANIFEST_BYTES_MAX:
            raise ManifestError(f"{MANIFEST_NAME} at {self._ref.safe} has {found.size} bytes")
        return self.read(MANIFEST_NAME, 0, found.size) if found.size else b""

    def list(self, path: str) -> tuple[list[Listed], list[str]]:
        """The files of one directory, and the directories in it; each ends with a slash."""
        files: list[Listed] = []
        below: list[str] = []
        place = self._place(path.rstrip("/"))
        for info in self._filesystem.ls(place or "/", detail=True):
            full = info.get("name")
            name = full.rstrip("/") if isinstance(full, str) else ""
            if name == place.rstrip("/"):
                continue  # Some list a directory in itself.
            head, _, last = name.rpartition("/")
            if head.strip("/") != place.strip("/") or not last:
                raise RemoteProtocolError(f"{self._ref.safe} lists what is not in the directory")
            if is_bookkeeping(path + last):
                continue
            if info.get("type") == "directory":
                below.append(f"{path}{last}/")
            else:
                files.append(self._listed(path + last, info))
            if len(files) > FILES_MAX:
                raise ManifestError(f"{self._ref.safe} has more than {FILES_MAX} files")
        return files, below

    def unchanged(self, path: str, size: int, version: str) -> None:
        """Hold a file against the plan.

        Raises:
            OriginChangedError: it is another one now.
        """
        found = self.file_or_none(path)
        if found is None or found.size != size or (version and found.version != version):
            raise OriginChangedError(
                f"{path or 'the file'} at {self._ref.safe} changed after it was planned"
            )

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of a file."""
        place = self._place(path)
        if _has_own_ranges(self._filesystem):
            data = self._filesystem.cat_file(place, start, stop)
        else:
            # The base class would read ahead, which is read twice then.
            with self._filesystem.open(place, "rb", cache_type="none") as opened:
                opened.seek(start)
                data = opened.read(stop - start)
        if len(data) > stop - start:
            raise RemoteProtocolError(f"{self._ref.safe} cannot be read by ranges")
        if len(data) < stop - start:
            raise OriginUnavailableError(
                f"{path or 'the file'} at {self._ref.safe} broke off at byte {start + len(data)}"
            )
        return bytes(data)

    def _place(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def _listed(self, path: str, info: Mapping[str, object]) -> Listed:
        size = info.get("size")
        if info.get("type") != "file":
            raise ManifestError(f"{path!r} at {self._ref.safe} is neither a file nor a directory")
        if not isinstance(size, int) or size < 0:
            raise RemoteProtocolError(f"{self._ref.safe} does not say how big {path!r} is")
        return Listed(path, size, version_of(info))


def _list(path: str, files: _Files) -> tuple[list[Listed], list[str]]:
    return files.list(path)


def version_of(info: Mapping[str, object]) -> str:
    """What a filesystem says of a file's identity; empty where it tells the size alone."""
    for kind, names in _IDENTITIES:
        for name in names:
            value = info.get(name)
            if value is None or value == "":
                continue
            text = value.isoformat() if isinstance(value, datetime) else str(value)
            version = f"{kind}:{text}"
            if len(version) > VERSION_CHARS_MAX or not version.isprintable():
                version = f"{kind}:{Digest.of(version.encode(errors='surrogateescape'))}"
            return version
    return ""


def _check_access(ref: Ref, access: Access) -> None:
    if not access.is_own:
        raise OriginDeniedError(
            f"{ref.safe} is read with the agent's own credentials: only for who commands the agent"
        )


def _inside(ref: Ref, file: PlannedFile) -> str:
    return file.path if ref.is_directory else ""


def _has_own_ranges(filesystem: _FileSystem) -> bool:
    abstract = importlib.import_module("fsspec").AbstractFileSystem
    return type(filesystem).cat_file is not abstract.cat_file


def _class_of(scheme: str) -> Any:  # noqa: ANN401 - fsspec has no types
    if scheme in REFUSED:
        raise UsageError(f"{scheme}:// is not read through fsspec")
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError:
        raise UsageError(f"{scheme}:// needs the extra damselfly[fsspec]") from None
    try:
        cls: Any = fsspec.get_filesystem_class(scheme)
    except ImportError:
        raise UsageError(f"{scheme}:// needs a package that fsspec names in its list") from None
    except ValueError:
        raise UsageError(f"fsspec knows no {scheme}://") from None
    names = {cls.protocol} if isinstance(cls.protocol, str) else set(cls.protocol)
    if names & REFUSED:
        raise UsageError(f"{scheme}:// is another name of {min(names & REFUSED)}://")
    return cls


def _check_host(ref: Ref) -> None:
    host = urlsplit(f"//{ref.netloc}").hostname or ""
    try:
        found = {str(item[4][0]) for item in socket.getaddrinfo(host, None)}
    except OSError:
        return  # A bucket, a share: whatever it is, no host of ours to judge.
    for address in sorted(found):
        if is_forbidden(address.partition("%")[0]):
            raise denied(host, address)


@contextmanager
def _told(doing: str) -> Generator[None]:
    """Tell what went wrong, by its kind alone: a library's text may repeat its options."""
    try:
        yield
    except DamselflyError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise OriginNotFoundError(f"{doing}: there is no such file or directory") from None
    except PermissionError:
        raise OriginDeniedError(f"{doing}: permission denied") from None
    except Exception as exc:
        name = type(exc).__name__
        if "Auth" in name or "Login" in name or str(exc).startswith("530"):
            raise OriginDeniedError(f"{doing}: {name}") from None
        raise OriginUnavailableError(f"{doing}: {name}") from None


class _Jobs:
    """Work in threads that may hang for ever: they are few, and end with the process.

    The threads of an executor are waited for when the interpreter ends, which one that hangs in
    somebody's library would then never do.
    """

    def __init__(self, thread_count: int) -> None:
        self._slots = asyncio.Semaphore(thread_count)

    async def run(self, work: Callable[[], _T], doing: str, patience_s: float = math.inf) -> _T:
        """Do `work` in a thread of its own, which is given up after a while but not ended."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s if patience_s < math.inf else None):
                await self._slots.acquire()
                future: asyncio.Future[_T] = loop.create_future()
                thread = threading.Thread(
                    target=_work, args=(work, future, loop, self._slots), daemon=True
                )
                thread.start()
                return await future
        except TimeoutError:
            raise OriginUnavailableError(f"{doing}: no answer in {patience_s:g} s") from None


def _work(
    work: Callable[[], _T],
    future: "asyncio.Future[_T]",
    loop: asyncio.AbstractEventLoop,
    slots: asyncio.Semaphore,
) -> None:
    result: _T | None = None
    error: BaseException | None = None
    try:
        result = work()
    except BaseException as exc:
        error = exc

    def tell() -> None:
        slots.release()
        if future.done():
            return  # Nobody waits any more.
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("_T", result))

    with contextlib.suppress(RuntimeError):  # The loop was closed before.
        loop.call_soon_threadsafe(tell)
