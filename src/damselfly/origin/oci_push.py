"""Pushing to a registry: files become layers, and the tag moves last.

Blobs are called by their content, so what is there is never sent again, also after a push that was
interrupted, and a reader of the old tag sees the old artifact until the new manifest is there.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Set as AbstractSet
from functools import partial
from typing import TypeVar

from damselfly.errors import (
    DigestMismatchError,
    ManifestError,
    OriginNotFoundError,
    OriginUnavailableError,
    UsageError,
)
from damselfly.model.oci_name import OCIName
from damselfly.model.paths import MANIFEST_NAME
from damselfly.model.ref import Ref
from damselfly.origin import tree
from damselfly.origin.access import Access
from damselfly.origin.bearer import PUSH
from damselfly.origin.destination import Parcel, Standing
from damselfly.origin.oci_artifact import DOC, config_of, digest_of, manifest_of, media_type_of
from damselfly.origin.oci_client import Registry
from damselfly.origin.oci_manifest import (
    ACCEPTED,
    MANIFEST_TYPE,
    MODEL_CONFIG_TYPE,
    OCI_MANIFEST_BYTES_MAX,
    Blob,
    Layer,
    OCIArtifact,
    parse_oci_manifest,
)
from damselfly.origin.oci_session import BlobSession, Read, check_answer, has_blob
from damselfly.origin.patience import Patience, Sleep
from damselfly.origin.port import OriginLimits
from damselfly.origin.together import together
from damselfly.origin.tree import LocalFile
from damselfly.origin.web import Web

SENT_AT_ONCE_MAX = 4
LOOKED_AT_ONCE_MAX = 8
INSECURE_VARIABLE = "DAMSELFLY_ORIGIN_INSECURE"
"""The agent's own: registries that are asked in plain HTTP."""

_T = TypeVar("_T")


class OCIDestination:
    """One tag of a registry. Belongs to one event loop, and to one push."""

    def __init__(
        self,
        ref: Ref,
        web: Web,
        access: Access,
        limits: OriginLimits,
        *,
        insecure: AbstractSet[str] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Without `insecure` the environment says which registries may be asked in plain HTTP."""
        del limits
        self._name = OCIName.of(ref)
        if self._name.digest is not None or ref.pin is not None:
            raise UsageError(f"pushing to {ref.safe}: to a tag, not to what is there already")
        if insecure is None:
            listed = os.environ.get(INSECURE_VARIABLE, "").split(",")
            insecure = {host.strip().lower() for host in listed if host.strip()}
        self._registry = Registry(web, insecure)
        self._access = access
        self._sleep = sleep

    @property
    def shown(self) -> str:
        """What people call it."""
        return self._name.shown

    @property
    def replaces_all(self) -> bool:
        """An artifact has its own files and no others."""
        return True

    async def small(self, path: str, bytes_max: int) -> bytes | None:
        """Read a small file that the tag has now; see `Destination`."""
        try:
            body = await self._patiently(self._tagged)
        except OriginNotFoundError:
            return None
        try:
            artifact = parse_oci_manifest(body, self.shown)
        except (ManifestError, UsageError):
            return None  # Somebody else's: it is replaced whatever it is.
        layers = artifact.layers if isinstance(artifact, OCIArtifact) else ()
        blob = next((layer.blob for layer in layers if layer.path == path), None)
        if blob is None:
            return None
        if blob.size > bytes_max:
            return b""
        read = partial(self._registry.blob, self._name, blob, self._access)
        try:
            return await self._patiently(read)
        except OriginNotFoundError:
            return None

    async def standing(self, parcel: Parcel) -> Standing:
        """Look what is there already; see `Destination`."""
        blobs = {blob.digest: blob for blob in map(_blob_of, parcel.files, parcel.sha256)}
        found = await together(
            (partial(self._has, blob) for blob in blobs.values()), LOOKED_AT_ONCE_MAX
        )
        pairs = zip(blobs.values(), found, strict=True)
        missing = {blob.digest: blob.size for blob, has in pairs if not has}
        kept = frozenset(
            number for number, hexed in enumerate(parcel.sha256) if f"sha256:{hexed}" not in missing
        )
        is_whole = not missing and await self._is_whole(parcel)
        return Standing(kept, sum(missing.values()), is_whole)

    async def push(
        self, parcel: Parcel, standing: Standing, advance: Callable[[str, int], None]
    ) -> None:
        """Send what `standing` lacks, then the manifest; see `Destination`."""
        missing = {
            hexed: file
            for number, (file, hexed) in enumerate(zip(parcel.files, parcel.sha256, strict=True))
            if number not in standing.kept
        }
        # The largest first: else it begins last, and runs alone.
        order = sorted(missing.items(), key=lambda pair: -pair[1].size)
        await together(
            (
                partial(
                    self._bring,
                    _blob_of(file, hexed),
                    partial(_read, file),
                    partial(advance, file.path),
                )
                for hexed, file in order
            ),
            SENT_AT_ONCE_MAX,
        )
        artifact = await asyncio.to_thread(_Artifact.of, self._name, parcel)
        for blob, data in artifact.small:
            await self._bring(blob, _reader(data), lambda count: None)
        await self._patiently(partial(self._tag, artifact))

    async def close(self) -> None:
        """Nothing is held but the web, which is the caller's."""

    async def _has(self, blob: Blob) -> bool:
        return await self._patiently(
            partial(has_blob, self._registry, self._name, self._access, blob)
        )

    async def _bring(self, blob: Blob, read: Read, advance: Callable[[int], None]) -> None:
        await BlobSession(
            self._registry, self._name, self._access, blob, read, advance, self._sleep
        ).run()

    async def _is_whole(self, parcel: Parcel) -> bool:
        artifact = await asyncio.to_thread(_Artifact.of, self._name, parcel)
        try:
            return await self._patiently(self._tagged) == artifact.manifest
        except OriginNotFoundError:
            return False

    async def _tagged(self) -> bytes:
        answer = await self._registry.send(
            "GET",
            self._manifest_place,
            self._name,
            self._access,
            actions=PUSH,
            headers={"Accept": ", ".join(ACCEPTED)},
            bytes_max=OCI_MANIFEST_BYTES_MAX,
        )
        check_answer(answer, f"getting the manifest of {self.shown}")
        return answer.body

    async def _tag(self, artifact: "_Artifact") -> None:
        answer = await self._registry.send(
            "PUT",
            self._manifest_place,
            self._name,
            self._access,
            actions=PUSH,
            headers={"Content-Type": MANIFEST_TYPE},
            body=artifact.manifest,
            follows=False,
        )
        check_answer(answer, f"putting the manifest of {self.shown}")
        expected = digest_of(artifact.manifest)
        said = answer.headers.get("Docker-Content-Digest", expected).strip()
        if said != expected:
            raise DigestMismatchError(expected, said[:80], f"the manifest of {self.shown}")

    @property
    def _manifest_place(self) -> str:
        return f"{self._registry.place(self._name)}/manifests/{self._name.tag}"

    async def _patiently(self, work: Callable[[], Awaitable[_T]]) -> _T:
        patience = Patience(self._sleep)
        while True:
            try:
                return await work()
            except OriginUnavailableError as exc:
                await patience.wait(exc)


class _Artifact:
    """What is put into the registry besides the files."""

    def __init__(self, manifest: bytes, small: tuple[tuple[Blob, bytes], ...]) -> None:
        self.manifest = manifest
        self.small = small

    @classmethod
    def of(cls, name: OCIName, parcel: Parcel) -> "_Artifact":
        """Make it. Hashes a few megabytes at most: for a thread."""
        own_data = parcel.manifest.canonical()
        own = Blob(digest_of(own_data), len(own_data), DOC)
        layers = [
            Layer(file.path, _blob_of(file, hexed))
            for file, hexed in zip(parcel.files, parcel.sha256, strict=True)
        ]
        layers.append(Layer(MANIFEST_NAME, own))
        config_data = config_of(name.repository.rpartition("/")[2], layers)
        config = Blob(digest_of(config_data), len(config_data), MODEL_CONFIG_TYPE)
        return cls(manifest_of(config, layers), ((config, config_data), (own, own_data)))


def _blob_of(file: LocalFile, hexed: str) -> Blob:
    return Blob(f"sha256:{hexed}", file.size, media_type_of(file.path))


async def _read(file: LocalFile, start: int, stop: int) -> bytes:
    return await asyncio.to_thread(_read_now, file, start, stop)


def _read_now(file: LocalFile, start: int, stop: int) -> bytes:
    # A thread that goes on after its push ended has a descriptor of its own.
    data = bytearray(stop - start)
    descriptor = tree.open_unchanged(file)
    try:
        tree.read_exactly(descriptor, memoryview(data), start, file)
        tree.check_unchanged(descriptor, file)
    finally:
        os.close(descriptor)
    return bytes(data)


def _reader(data: bytes) -> Read:
    async def read(start: int, stop: int) -> bytes:
        return data[start:stop]

    return read
