"""Buckets: an origin of objects with keys, whoever runs it. A provider is a `BucketAPI`.

A directory is a prefix that ends with a slash; the files in it are the objects whose keys begin
with it. Keys are text, and there are no directories: whatever key ends with a slash is a mark that
somebody's browser left, and is skipped. A ref without a slash at the end is an object if there is
one, else a prefix.

What a provider must do (`s3.py` is one):
1. `page` lists a prefix, as deep as it goes, page by page, in one request each.
2. `measure` tells size, version and digests of one object. The version must pin the content: what
   is read later under that version is that content, or nothing. A provider whose pages tell all of
   that sets `pages_are_complete`, and is not asked for every object again.
3. `wanted` makes the request for a span of an object: its URL, what proves who asks, and headers
   that insist on the version (`If-Match`, a version in the query). A server that has another one
   answers 412, or 404 where a version can be named.
4. `refused` is called when such a request was refused. The span's answer was not read, so the
   provider asks anew, small and in words that it understands: it learns what was wrong (another
   region, credentials that ran out), or raises what the refusal means. Then the span is asked for
   once more.

Every request goes through the `Web`. An SDK may find credentials and make signatures, and where it
may block it does so in a thread. Errors are those of the origin port, by name, without secrets:
`OWN` may be shown what the environment has, every other `Access` itself and nothing more.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from damselfly.errors import (
    ManifestError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
)
from damselfly.model.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME
from damselfly.model.paths import check_path, check_tree, is_bookkeeping
from damselfly.model.plan import FILES_MAX, Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.beside import manifest_from
from damselfly.origin.cutting import Listed, cut
from damselfly.origin.port import OriginLimits, Resolved, revision_of, revision_of_manifest
from damselfly.origin.together import together
from damselfly.origin.web import HTTPStream, Wanted, Web

logger = logging.getLogger(__name__)

PAGES_MAX = 2_000
"""Twenty times what `FILES_MAX` needs at 1,000 a page: servers may give less, or empty ones."""


@dataclass(frozen=True, slots=True)
class BucketObject:
    """An object: `version` and `digests` are what its `PlannedFile` says."""

    key: str
    size: int
    version: str
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """A page of a listing, and the token of the next one; None at the end."""

    objects: tuple[BucketObject, ...]
    next_token: str | None


class BucketAPI(Protocol):
    """What a provider can be asked; see the top of this file. Errors are the origin port's.

    `bucket` is as the ref has it, keys are decoded text.
    """

    @property
    def pages_are_complete(self) -> bool:
        """Whether versions and digests in pages are all there is to know of an object."""
        ...

    async def page(self, bucket: str, prefix: str, token: str | None, access: Access) -> ObjectPage:
        """List objects whose keys begin with `prefix`, from the start or where a page ended."""
        ...

    async def measure(self, bucket: str, key: str, access: Access) -> BucketObject:
        """Look at one object.

        Raises:
            OriginNotFoundError: there is none.
        """
        ...

    async def wanted(
        self, bucket: str, found: BucketObject, start: int, stop: int, access: Access
    ) -> Wanted:
        """The request for bytes `[start, stop)` of what `found` was; an empty version is any."""
        ...

    async def refused(self, bucket: str, key: str, access: Access) -> None:
        """Find out why a span was refused, and learn from it, or raise what it means."""
        ...

    def shown(self, bucket: str, key: str) -> str:
        """What people call an object, or a prefix: no secrets."""
        ...


class BucketOrigin:
    """The objects that a provider has, as an `Origin`. Belongs to one event loop."""

    shared = True

    def __init__(self, api: BucketAPI, web: Web, limits: OriginLimits) -> None:
        self._api = api
        self._web = web
        self._limits = limits

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the objects behind `ref` and cut them; see `Origin`."""
        return await _Look(self, self._api, ref.unpinned, access, self._limits).resolve()

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Prove that `access` may read a file, by its first byte; see `Origin`."""
        if file.bytes:
            await self.read(ref.netloc, _object_of(ref, file), 0, 1, access)
        else:
            await self._api.measure(ref.netloc, _key_of(ref, file.path), access)

    @asynccontextmanager
    async def open(
        self,
        ref: Ref,
        file: PlannedFile,
        start: int,
        stop: int,
        access: Access = ANONYMOUS,
    ) -> AsyncGenerator[HTTPStream]:
        """Read a span of a file; see `Origin`."""
        async with self._span(ref.netloc, _object_of(ref, file), start, stop, access) as stream:
            yield stream

    async def read(
        self, bucket: str, found: BucketObject, start: int, stop: int, access: Access
    ) -> bytes:
        """Read a few bytes of an object that was measured."""
        data = bytearray(stop - start)
        async with self._span(bucket, found, start, stop, access) as stream:
            await stream.readinto(memoryview(data))
        return bytes(data)

    async def close(self) -> None:
        """Nothing is held: the web belongs to whoever gave it."""

    @asynccontextmanager
    async def _span(
        self, bucket: str, found: BucketObject, start: int, stop: int, access: Access
    ) -> AsyncGenerator[HTTPStream]:
        async with contextlib.AsyncExitStack() as stack:
            wanted = await self._api.wanted(bucket, found, start, stop, access)
            try:
                stream = await stack.enter_async_context(self._web.span(wanted))
            except OriginNotFoundError as exc:
                if not found.version:
                    raise
                raise OriginChangedError(
                    f"{self._api.shown(bucket, found.key)} is gone, or was replaced after it was"
                    " planned"
                ) from exc
            except (OriginDeniedError, RemoteProtocolError):
                await self._api.refused(bucket, found.key, access)
                wanted = await self._api.wanted(bucket, found, start, stop, access)
                stream = await stack.enter_async_context(self._web.span(wanted))
            yield stream


class _Look:
    """One look at one ref."""

    def __init__(
        self, origin: BucketOrigin, api: BucketAPI, ref: Ref, access: Access, limits: OriginLimits
    ) -> None:
        self._origin = origin
        self._api = api
        self._ref = ref
        self._bucket = ref.netloc
        self._access = access
        self._limits = limits

    async def resolve(self) -> Resolved:
        if self._ref.is_directory:
            return await self._directory(self._ref)
        denied: OriginDeniedError | None = None
        try:
            found = await self._api.measure(self._bucket, _key_of(self._ref, ""), self._access)
        except OriginNotFoundError:
            pass
        except OriginDeniedError as exc:
            denied = exc  # Who may not list a bucket hears that of every key that is not there.
        else:
            return _resolved(self._ref, [await self._cut(self._ref.name, found)])
        try:
            return await self._directory(self._ref.as_directory)
        except (OriginNotFoundError, OriginDeniedError):
            if denied is not None:
                raise denied from None
            raise

    async def _directory(self, ref: Ref) -> Resolved:
        prefix = _key_of(ref, "")
        if (data := await self._beside(prefix + MANIFEST_NAME)) is not None:
            place = f"{MANIFEST_NAME} at {ref.safe}"
            manifest = await asyncio.to_thread(manifest_from, data, place)
            return Resolved(manifest.plan(str(ref)), manifest, revision_of_manifest(manifest))
        objects = await self._listed(prefix)
        if not objects:
            raise OriginNotFoundError(f"there are no objects below {ref.safe}")
        work = (partial(self._file, path, found) for path, found in objects.items())
        return _resolved(ref, await together(work, self._limits.connections_per_host_max))

    async def _beside(self, key: str) -> bytes | None:
        try:
            found = await self._api.measure(self._bucket, key, self._access)
        except (OriginNotFoundError, OriginDeniedError):
            return None
        shown = self._api.shown(self._bucket, key)
        if not 0 < found.size <= MANIFEST_BYTES_MAX:
            raise ManifestError(f"{shown} has {found.size} bytes: no manifest has")
        return await self._read(found, 0, found.size)

    async def _listed(self, prefix: str) -> dict[str, BucketObject]:
        found: dict[str, BucketObject] = {}
        async for each in listed(self._api, self._bucket, prefix, self._access):
            path = each.key.removeprefix(prefix)
            if each.key.endswith("/"):
                continue
            if is_bookkeeping(path):
                logger.info("origin.skipped", extra={"path": path})
                continue
            try:
                check_path(path)
            except ManifestError as exc:
                place = self._api.shown(self._bucket, prefix)
                raise ManifestError(f"a key below {place} cannot be a path") from exc
            if path in found:
                raise RemoteProtocolError(
                    f"{self._api.shown(self._bucket, each.key)} is listed twice"
                )
            found[path] = each
            if len(found) > FILES_MAX:
                place = self._api.shown(self._bucket, prefix)
                raise ManifestError(f"more than {FILES_MAX} objects are below {place}")
        check_tree(found)
        return found

    async def _file(self, path: str, found: BucketObject) -> PlannedFile:
        if not self._api.pages_are_complete:
            found = await self._api.measure(self._bucket, found.key, self._access)
        return await self._cut(path, found)

    async def _cut(self, path: str, found: BucketObject) -> PlannedFile:
        file = Listed(path, found.size, found.version, found.digests)
        place = self._api.shown(self._bucket, found.key)
        return await cut(file, partial(self._read, found), place, self._limits)

    async def _read(self, found: BucketObject, start: int, stop: int) -> bytes:
        async with _in_time(self._limits.page_s, self._api.shown(self._bucket, found.key)):
            return await self._origin.read(self._bucket, found, start, stop, self._access)


async def listed(
    api: BucketAPI, bucket: str, prefix: str, access: Access
) -> AsyncGenerator[BucketObject]:
    """Every object below a prefix, page by page: no two pages have one token.

    Raises:
        RemoteProtocolError: the listing does not end, or tells of what is elsewhere.
    """
    token: str | None = None
    seen: set[str] = set()
    place = api.shown(bucket, prefix)
    for _ in range(PAGES_MAX):
        page = await api.page(bucket, prefix, token, access)
        for each in page.objects:
            if not each.key.startswith(prefix):
                raise RemoteProtocolError(f"the listing of {place} tells of what is elsewhere")
            yield each
        token = page.next_token
        if token is None:
            return
        if token in seen:
            raise RemoteProtocolError(f"the listing of {place} goes round in circles")
        seen.add(token)
    raise RemoteProtocolError(f"the listing of {place} has more than {PAGES_MAX} pages")


@asynccontextmanager
async def _in_time(seconds: float, place: str) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise OriginUnavailableError(f"reading {place}: it takes too long") from None


def _resolved(ref: Ref, files: list[PlannedFile]) -> Resolved:
    plan = Plan.of(str(ref), files)
    return Resolved(plan, None, revision_of(plan))


def _key_of(ref: Ref, path: str) -> str:
    """The key of `path` below a directory; that of the only file, where `ref` is one."""
    key = ref.decoded_path.removeprefix("/")
    return key + path if ref.is_directory else key


def _object_of(ref: Ref, file: PlannedFile) -> BucketObject:
    return BucketObject(_key_of(ref, file.path), file.bytes, file.version)
