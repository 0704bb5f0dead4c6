"""`oci://`: artifacts of registries. `oci_manifest.py` says which there are.

A tag is asked for once and becomes the digest of its manifest, and with it every layer has a digest
that the pull verifies. What a registry sends is content by its digest, so nothing can change.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from damselfly.errors import ManifestError, OriginChangedError, OriginNotFoundError
from damselfly.model.manifest import Manifest
from damselfly.model.oci_name import OCIName
from damselfly.model.paths import MANIFEST_NAME
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.beside import manifest_from
from damselfly.origin.cutting import Listed, cut
from damselfly.origin.oci_client import Registry
from damselfly.origin.oci_manifest import (
    Blob,
    Layer,
    OCIArtifact,
    OCIIndex,
    parse_oci_manifest,
)
from damselfly.origin.port import OriginLimits, Resolved, revision_of, revision_of_manifest
from damselfly.origin.together import together
from damselfly.origin.web import HTTPStream, Web

LAYERS_KEPT_MAX = 8
"""Manifests whose layers are remembered for plans that do not name them."""


class OCIOrigin:
    """Artifacts of registries. Belongs to one event loop."""

    shared = True

    def __init__(
        self, limits: OriginLimits, web: Web | None = None, insecure: AbstractSet[str] = frozenset()
    ) -> None:
        self._is_own = web is None
        self._web = web or Web(limits)
        self._limits = limits
        self._registry = Registry(self._web, insecure)
        self._kept: OrderedDict[tuple[str, Access], dict[str, Blob]] = OrderedDict()

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the files behind `ref` and cut them; see `Origin`."""
        name, artifact = await self._artifact(OCIName.of(ref), access)
        if artifact.pushed is not None:
            return await self._pushed(name, artifact, artifact.pushed, access)
        files = await together(
            (partial(self._cut, name, layer, access) for layer in artifact.layers),
            self._limits.connections_per_host_max,
        )
        plan = Plan.of(name.pinned, files)
        return Resolved(plan, None, revision_of(plan))

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Prove that `access` may read a layer, by a byte of it; see `Origin`."""
        name = OCIName.of(ref)
        await self._registry.prove(name, await self._blob_of(ref, file, access), access)

    @asynccontextmanager
    async def open(
        self,
        ref: Ref,
        file: PlannedFile,
        start: int,
        stop: int,
        access: Access = ANONYMOUS,
    ) -> AsyncGenerator[HTTPStream]:
        """Read a span of a layer; see `Origin`."""
        blob = await self._blob_of(ref, file, access)
        async with self._registry.span(OCIName.of(ref), blob, start, stop, access) as stream:
            yield stream

    async def close(self) -> None:
        """Close the web, if it is its own."""
        if self._is_own:
            await self._web.close()

    async def _artifact(self, name: OCIName, access: Access) -> tuple[OCIName, OCIArtifact]:
        """The one manifest that is meant, by its digest, and what it says."""
        document = await self._registry.manifest(name, access)
        found = await asyncio.to_thread(parse_oci_manifest, document.body, name.shown)
        if isinstance(found, OCIIndex):
            document = await self._registry.manifest(name.at(found.only(name.shown).digest), access)
            found = await asyncio.to_thread(parse_oci_manifest, document.body, document.name.shown)
        if isinstance(found, OCIIndex):
            raise ManifestError(f"{document.name.shown} is an index inside of an index")
        return document.name, found

    async def _cut(self, name: OCIName, layer: Layer, access: Access) -> PlannedFile:
        blob = layer.blob

        async def read(start: int, stop: int) -> bytes:
            data = bytearray(stop - start)
            async with (
                asyncio.timeout(self._limits.page_s),
                self._registry.span(name, blob, start, stop, access) as stream,
            ):
                await stream.readinto(memoryview(data))
            return bytes(data)

        listed = Listed(layer.path, blob.size, blob.digest, (blob.digest,))
        return await cut(listed, read, f"{layer.path} in {name.shown}", self._limits)

    async def _pushed(
        self, name: OCIName, artifact: OCIArtifact, pushed: Blob, access: Access
    ) -> Resolved:
        data = await self._registry.blob(name, pushed, access)
        place = f"{MANIFEST_NAME} in {name.shown}"
        manifest = await asyncio.to_thread(manifest_from, data, place)
        blobs = {layer.path: layer.blob for layer in artifact.layers}
        plan = await asyncio.to_thread(_plan_of, manifest, name, blobs, place)
        return Resolved(plan, manifest, revision_of_manifest(manifest))

    async def _blob_of(self, ref: Ref, file: PlannedFile, access: Access) -> Blob:
        """The blob that is a planned file; a plan that was made of a manifest may not name it."""
        for digest in (file.version, *file.digests):
            if digest.startswith("sha256:"):
                return Blob(digest, file.bytes)
        key = (str(ref), access)
        if key not in self._kept:
            _, artifact = await self._artifact(OCIName.of(ref), access)
            self._kept[key] = {layer.path: layer.blob for layer in artifact.layers}
            if len(self._kept) > LAYERS_KEPT_MAX:
                self._kept.popitem(last=False)
        blob = self._kept[key].get(file.path)
        if blob is None:
            raise OriginNotFoundError(f"{ref.safe} has no file {file.path!r}")
        if blob.size != file.bytes:
            del self._kept[key]  # A tag may have moved.
            raise OriginChangedError(
                f"{file.path!r} in {ref.safe} has {blob.size} bytes: it had {file.bytes} when it"
                " was planned"
            )
        return blob


def _plan_of(manifest: Manifest, name: OCIName, blobs: dict[str, Blob], place: str) -> Plan:
    """The plan of a manifest, which must tell of the layers that it came with."""
    files: list[PlannedFile] = []
    for file in manifest.plan(name.pinned).files:
        blob = blobs.get(file.path)
        if blob is None or blob.size != file.bytes or {*file.digests} - {blob.digest}:
            raise ManifestError(f"{place} tells of another {file.path!r} than there is")
        files.append(replace(file, version=blob.digest))
    return Plan(name.pinned, tuple(files))
