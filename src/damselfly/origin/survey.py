"""What lies behind a URL: which files a directory has, how big they are, where they are cut.

A directory is named, in this order, by
1. the manifest that `damselfly push` left beside the files: one request, every digest is known;
2. the server's listing, and those of the directories below;
3. `model.safetensors.index.json` and the files it names, or a lone `model.safetensors`, and those
   of the usual companions that exist.

What there is no manifest for is measured (HEAD, or one byte) and safetensors headers are read, so a
directory of n files costs about 2n small requests, side by side.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import Protocol, cast
from urllib.parse import urlsplit

from damselfly.errors import (
    ManifestError,
    OriginDeniedError,
    OriginNotFoundError,
    UsageError,
)
from damselfly.model import canonical
from damselfly.model.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME
from damselfly.model.paths import check_tree, is_bookkeeping
from damselfly.model.plan import FILES_MAX, Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.beside import manifest_from
from damselfly.origin.cutting import Listed, Room, cut
from damselfly.origin.listing import Entry, parse_listing
from damselfly.origin.port import OriginLimits, Resolved, revision_of, revision_of_manifest
from damselfly.origin.together import together
from damselfly.origin.web import Measured, Page, shown

logger = logging.getLogger(__name__)

_SMALL_PAGE_BYTES = 64 << 10
"""What is longer is read by a thread: a page of these takes a few milliseconds."""
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
COMPANIONS = (
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "README.md",
    "USE_POLICY.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)


class Asked(Protocol):
    """What a survey asks of HTTP. Errors are those of the origin port."""

    async def page(self, url: str, bytes_max: int) -> Page:
        """Get something small, whole."""
        ...

    async def measure(self, url: str) -> Measured:
        """Ask for the size and the version of a file."""
        ...

    async def read(self, url: str, size: int, version: str, start: int, stop: int) -> bytes:
        """Read a few bytes of a file that was measured."""
        ...


async def survey(web: Asked, ref: Ref, limits: OriginLimits) -> Resolved:
    """Find the files behind `ref` and cut them; see `Origin.resolve`."""
    return await _Survey(web, limits).resolve(ref)


class _Survey:
    """One look at one ref."""

    def __init__(self, web: Asked, limits: OriginLimits) -> None:
        self._web = web
        self._limits = limits
        self._denied: OriginDeniedError | None = None
        self._room = Room()
        self._listing_bytes = 0

    async def resolve(self, ref: Ref) -> Resolved:
        if ref.is_directory:
            return await self._directory(ref)
        try:
            measured = await self._web.measure(ref.location)
        except (OriginNotFoundError, OriginDeniedError) as exc:
            missing = exc
        else:
            return await self._measured(ref, measured)
        # A directory that has no page of its own may still have files.
        with contextlib.suppress(OriginNotFoundError, OriginDeniedError):
            return await self._directory(ref.as_directory)
        raise missing

    async def _measured(self, ref: Ref, measured: Measured) -> Resolved:
        if urlsplit(measured.url).path.endswith("/"):
            return await self._directory(ref.as_directory)
        if measured.is_html and await self._top(ref) is not None:
            return await self._directory(ref.as_directory)
        file = await self._cut(ref.name, ref.location, measured)
        return _resolved(str(ref), [file])

    async def _directory(self, ref: Ref) -> Resolved:
        page = await self._page(ref.file_location(MANIFEST_NAME), MANIFEST_BYTES_MAX)
        if page is not None and not page.is_html:
            manifest = await asyncio.to_thread(
                manifest_from, page.body, f"{MANIFEST_NAME} at {ref.safe}"
            )
            return Resolved(manifest.plan(str(ref)), manifest, revision_of_manifest(manifest))
        listed = await self._listed(ref)
        if listed is not None:
            place, paths = listed
            if not paths:
                raise OriginNotFoundError(f"the directory {ref.safe} has no files")
            return _resolved(str(place), await self._files(place, paths))
        return _resolved(str(ref), await self._indexed(ref))

    # --- by listing -----------------------------------------------------------------------------

    async def _listed(self, ref: Ref) -> tuple[Ref, list[str]] | None:
        """Walk the listings from `ref` down; None if there is none at the top."""
        top = await self._top(ref)
        if top is None:
            return None
        place, entries = top
        files: list[str] = []
        pending: list[str] = []
        self._sort("", entries, files, pending)
        directory_count = 1
        while pending:
            directory_count += len(pending)
            if directory_count > self._limits.directories_max:
                raise ManifestError(
                    f"{ref.safe} has more than {self._limits.directories_max} directories"
                )
            below = await together(
                (partial(self._below, place, path) for path in pending), self._width
            )
            parents, pending = pending, []
            for parent, entries in zip(parents, below, strict=True):
                self._sort(parent, entries, files, pending)
        check_tree(files)
        return place, files

    async def _top(self, ref: Ref) -> tuple[Ref, list[Entry]] | None:
        page = await self._page(ref.location, self._limits.listing_bytes_max)
        if page is not None:
            self._count(ref, page)
        entries = None if page is None else await _entries(page)
        return None if page is None or entries is None else (_moved(ref, page.url), entries)

    async def _below(self, place: Ref, path: str) -> list[Entry]:
        url = place.file_location(path)
        page = await self._web.page(url, self._limits.listing_bytes_max)
        self._count(place, page)
        entries = await _entries(page)
        if entries is None:
            raise OriginNotFoundError(f"{place.safe} lists {path!r}, which is no listing itself")
        return entries

    def _count(self, place: Ref, page: Page) -> None:
        """Refuse listings that are short one by one, and have no end."""
        self._listing_bytes += len(page.body)
        if self._listing_bytes > self._limits.listings_bytes_max:
            raise ManifestError(
                f"the listings of {place.safe} have more than"
                f" {self._limits.listings_bytes_max} bytes"
            )

    def _sort(
        self, parent: str, entries: Iterable[Entry], files: list[str], below: list[str]
    ) -> None:
        for entry in entries:
            path = parent + entry.name
            if is_bookkeeping(path):
                logger.info("origin.skipped", extra={"path": path})
            elif entry.is_directory:
                below.append(path + "/")
            else:
                files.append(path)
        if parent.count("/") > self._limits.directory_depth_max:
            raise ManifestError(f"the directory {parent[:120]!r} is too deep")
        if len(files) > FILES_MAX:
            raise ManifestError(f"more than {FILES_MAX} files are listed")

    # --- by index -------------------------------------------------------------------------------

    async def _indexed(self, ref: Ref) -> list[PlannedFile]:
        index = await self._page(ref.file_location(INDEX_NAME), self._limits.index_bytes_max)
        if index is not None and not index.is_html:
            named = await asyncio.to_thread(_weights_of, index.body, f"{INDEX_NAME} at {ref.safe}")
            paths = [INDEX_NAME, *named]
            weights = await self._files(ref, paths)
        else:
            weights = await self._existing(ref, [SINGLE_NAME])
        if not weights:
            if self._denied is not None:
                raise self._denied
            raise OriginNotFoundError(
                f"nothing at {ref.safe} names its files: there is no {MANIFEST_NAME}, no directory"
                f" listing, no {INDEX_NAME} and no {SINGLE_NAME}"
            )
        known = {file.path for file in weights}
        companions = [name for name in COMPANIONS if name not in known]
        return weights + await self._existing(ref, companions)

    async def _existing(self, ref: Ref, paths: list[str]) -> list[PlannedFile]:
        found = await together(
            (partial(self._file_or_none, ref, path) for path in paths), self._width
        )
        return [file for file in found if file is not None]

    async def _file_or_none(self, ref: Ref, path: str) -> PlannedFile | None:
        url = ref.file_location(path)
        try:
            measured = await self._web.measure(url)
        except OriginNotFoundError:
            return None
        except OriginDeniedError as exc:
            # Buckets whose keys may not be listed say 403 of one that does not exist.
            self._denied = self._denied or exc
            return None
        # A site that answers anything with a page has no such file.
        return None if measured.is_html else await self._cut(path, url, measured)

    # --- files ----------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        return self._limits.connections_per_host_max

    async def _page(self, url: str, bytes_max: int) -> Page | None:
        try:
            return await self._web.page(url, bytes_max)
        except OriginNotFoundError:
            return None
        except OriginDeniedError as exc:
            self._denied = self._denied or exc
            return None

    async def _files(self, ref: Ref, paths: Iterable[str]) -> list[PlannedFile]:
        return await together((partial(self._file, ref, path) for path in paths), self._width)

    async def _file(self, ref: Ref, path: str) -> PlannedFile:
        url = ref.file_location(path)
        return await self._cut(path, url, await self._web.measure(url))

    async def _cut(self, path: str, url: str, measured: Measured) -> PlannedFile:
        size, version = measured.size, measured.version
        self._room.take(size, shown(url))
        read = partial(self._web.read, url, size, version)
        return await cut(Listed(path, size, version), read, shown(url), self._limits)


async def _entries(page: Page) -> list[Entry] | None:
    if not page.is_html:
        return None
    if len(page.body) <= _SMALL_PAGE_BYTES:
        return _read_page(page)
    return await asyncio.to_thread(_read_page, page)


def _read_page(page: Page) -> list[Entry] | None:
    return parse_listing(page.body.decode(errors="replace"), page.url)


def _resolved(ref: str, files: Iterable[PlannedFile]) -> Resolved:
    plan = Plan.of(ref, files)
    return Resolved(plan, None, revision_of(plan))


def _moved(ref: Ref, url: str) -> Ref:
    """Follow a directory to where its page was: its files are surely there.

    A query that came with the redirect is its server's secret, and may be for that page alone: then
    the ref stays what it is, and its files are redirected one by one.
    """
    if url == ref.location:
        return ref.as_directory
    try:
        place = Ref.parse(url.partition("#")[0]).as_directory
    except UsageError:
        return ref.as_directory
    return place if place.query in {"", ref.query} else ref.as_directory


def _weights_of(data: bytes, place: str) -> list[str]:
    try:
        index = _fields(canonical.decode(data), "the index")
        names = _fields(index.get("weight_map"), "weight_map").values()
        paths = {canonical.expect(name, str, "the file of a tensor") for name in names}
        check_tree(paths)
    except (ValueError, ManifestError) as exc:
        raise ManifestError(f"reading {place}") from exc
    return sorted(paths)


def _fields(value: object, what: str) -> dict[str, object]:
    return cast("dict[str, object]", canonical.expect(value, dict, what))
