"""`hf://`: repositories of the Hugging Face hub, or of a mirror that answers like it.

A ref means a commit (`hub_api.py` finds it), whose tree says every file's size and, of large ones,
their sha256. So a plan is of a commit and means the same for ever, and what arrives can be held
against digests that the hub publishes. Large files lie on other hosts, behind addresses that
expire (`renewed.py`); small ones the hub sends itself.

A repository that `damselfly push` wrote has our manifest: then every digest is known, and no header
is read. One that was left behind by a commit of somebody else describes other files: it is passed
over, for the tree of the commit is the truth.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from damselfly.errors import OriginNotFoundError, OriginUnavailableError, RemoteProtocolError
from damselfly.model.hub_ref import HubRef
from damselfly.model.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, ManifestFile
from damselfly.model.paths import check_tree, is_bookkeeping
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.beside import manifest_from
from damselfly.origin.cutting import Listed, cut
from damselfly.origin.hub_api import Entry, HubAPI
from damselfly.origin.hub_environment import HubEnvironment
from damselfly.origin.port import OriginLimits, Resolved, revision_of, revision_of_manifest
from damselfly.origin.renewed import Renewed
from damselfly.origin.together import together
from damselfly.origin.web import HTTPStream, Wanted, Web

logger = logging.getLogger(__name__)


class HubOrigin:
    """Repositories of one hub. Belongs to one event loop; the web is not its own."""

    shared = True

    def __init__(
        self, limits: OriginLimits, web: Web, environment: HubEnvironment | None = None
    ) -> None:
        self._limits = limits
        self._api = HubAPI(web, limits, environment or HubEnvironment())
        self._renewed = Renewed(web)

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the files behind `ref` and cut them; see `Origin`."""
        meant = HubRef.of(ref)
        commit = await self._api.commit(meant, access)
        is_directory, entries = await self._listed(meant, commit, access)
        at = meant.ref_at(commit, is_directory=is_directory)
        place = HubRef.of(Ref.parse(at))
        if (manifest := await self._manifest(place, entries, access)) is not None:
            return Resolved(manifest.plan(at), manifest, revision_of_manifest(manifest))
        files = {path: entry for path, entry in entries.items() if not is_bookkeeping(path)}
        if not files:
            raise OriginNotFoundError(f"{ref.safe} has no files")
        check_tree(files)
        planned = await together(
            (partial(self._cut, place, path, entry, access) for path, entry in files.items()),
            self._limits.connections_per_host_max,
        )
        plan = Plan.of(at, planned)
        return Resolved(plan, None, revision_of(plan))

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Prove that `access` may read a file, by a byte of it; see `Origin`."""
        place, entry = _planned(ref, file)
        if not file.bytes:
            await self._api.address(place, place.revision, entry, access)
            return
        async with self._span(place, entry, 0, 1, access, is_proof=True) as stream:
            await stream.readinto(memoryview(bytearray(1)))

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
        async with self._span(*_planned(ref, file), start, stop, access) as stream:
            yield stream

    async def close(self) -> None:
        """Nothing is held but addresses."""

    # --- finding --------------------------------------------------------------------------------

    async def _listed(
        self, place: HubRef, commit: str, access: Access
    ) -> tuple[bool, dict[str, Entry]]:
        """The files by what they are called in the artifact, and whether it is a directory."""
        above, _, name = place.inside.rpartition("/")
        try:
            entries = await self._api.tree(place, commit, access, inside=place.inside)
        except OriginNotFoundError:
            if place.is_directory:
                raise
            # What is inside may be a single file, and a tree is asked for directories alone.
            beside = await self._api.tree(place, commit, access, inside=above, is_deep=False)
            found = [entry for entry in beside if entry.path == place.inside]
            if not found:
                raise
            return False, {name: found[0]}
        within = f"{place.inside}/" if place.inside else ""
        if strange := next((each for each in entries if not each.path.startswith(within)), None):
            raise RemoteProtocolError(
                f"{place.shown}: {strange.path[:120]!r} is listed below {place.inside!r}"
            )
        return True, {entry.path.removeprefix(within): entry for entry in entries}

    async def _manifest(
        self, place: HubRef, entries: dict[str, Entry], access: Access
    ) -> Manifest | None:
        entry = entries.get(MANIFEST_NAME)
        if entry is None or not place.is_directory:
            return None
        if entry.size > MANIFEST_BYTES_MAX:
            raise RemoteProtocolError(f"{MANIFEST_NAME} of {place.shown} has {entry.size} bytes")
        data = await self._api.small(place, place.revision, entry.path, access, MANIFEST_BYTES_MAX)
        where = f"{entry.path} of {place.shown} at {place.revision[:12]}"
        manifest = await asyncio.to_thread(manifest_from, data, where)
        for file in manifest.files:
            if not _is_of(file, entries.get(file.path)):
                extra = {"repository": place.shown, "path": file.path}
                logger.warning("manifest.stale", extra=extra)
                return None
        return manifest

    async def _cut(self, place: HubRef, path: str, entry: Entry, access: Access) -> PlannedFile:
        async def read(start: int, stop: int) -> bytes:
            data = bytearray(stop - start)
            try:
                async with (
                    asyncio.timeout(self._limits.page_s),
                    self._span(place, entry, start, stop, access) as stream,
                ):
                    await stream.readinto(memoryview(data))
            except TimeoutError:
                raise OriginUnavailableError(f"reading {what}: it takes too long") from None
            return bytes(data)

        what = f"{entry.path} of {place.shown}"
        digests = () if entry.sha256 is None else (f"sha256:{entry.sha256}",)
        return await cut(Listed(path, entry.size, entry.version, digests), read, what, self._limits)

    # --- reading --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _span(
        self,
        place: HubRef,
        entry: Entry,
        start: int,
        stop: int,
        access: Access,
        *,
        is_proof: bool = False,
    ) -> AsyncGenerator[HTTPStream]:
        url = self._api.url(place, place.revision, entry.path)
        wanted = Wanted(url, entry.size, entry.version, start, stop, access)
        ask = partial(self._api.address, place, place.revision, entry, access)
        async with self._renewed.span(wanted, ask, is_proof=is_proof) as stream:
            yield stream


def _is_of(file: ManifestFile, entry: Entry | None) -> bool:
    """Whether a file of a manifest can be the one that the commit has."""
    if entry is None or entry.size != file.bytes:
        return False
    return entry.sha256 is None or not file.digests or f"sha256:{entry.sha256}" in file.digests


def _planned(ref: Ref, file: PlannedFile) -> tuple[HubRef, Entry]:
    """Where a file of a plan is, and what was planned of it."""
    place = HubRef.of(ref)
    path = file.path
    # A ref without a slash at the end is a file, unless the plan says otherwise.
    if place.inside and (place.is_directory or place.inside.rpartition("/")[2] != path):
        path = f"{place.inside}/{path}"
    elif place.inside:
        path = place.inside
    kind, _, name = file.version.partition(":")
    published = [digest.removeprefix("sha256:") for digest in file.digests]
    sha256 = name if kind == "lfs" else next(iter(published), None)
    return place, Entry(path, file.bytes, name if kind == "blob" else "", sha256)
