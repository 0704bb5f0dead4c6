"""Manifests of registries: which files an artifact has, each a layer of its own. Pure.

Two kinds of artifacts are read:
- those of CNCF's ModelPack (`application/vnd.cncf.model.*`), whose raw layers are files and whose
  annotation `org.cncf.model.filepath` says where (older tools write `org.cnai.model.filepath`);
- plain files as ORAS leaves them, by the annotation `org.opencontainers.image.title`.

A layer that is an archive holds files at places that nobody knows without unpacking all of it, so
it could be neither cut nor shared: it is refused by name. `damselfly push` leaves its own manifest
as one more layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from damselfly.errors import ManifestError, UnsupportedFormatError, UsageError
from damselfly.model import canonical
from damselfly.model.chunker import CHUNK_BYTES
from damselfly.model.manifest import MANIFEST_BYTES_MAX
from damselfly.model.paths import MANIFEST_NAME, check_tree, is_bookkeeping
from damselfly.model.plan import CHUNKS_MAX, file_digests_of

OCI_MANIFEST_BYTES_MAX = 4 << 20
"""What registries take at most."""
VALUES_MAX = 300_000
"""Ten thousand layers with a dozen annotations each."""
LAYERS_MAX = 10_000

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST_TYPE, DOCKER_INDEX_TYPE)

MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
OWN_MANIFEST_TYPE = "application/vnd.damselfly.manifest.v1+json"
FILE_PATH = "org.cncf.model.filepath"
OLD_FILE_PATH = "org.cnai.model.filepath"
TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"

_MODEL_LAYERS = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
_ARCHIVES = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
)
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_REFERENCE_TYPE = "vnd.docker.reference.type"
_SHOWN_MAX = 8


@dataclass(frozen=True, slots=True)
class Blob:
    """Content of a registry: what it is called, and how big it is."""

    digest: str
    size: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of an artifact."""

    path: str
    blob: Blob


@dataclass(frozen=True, slots=True)
class OCIArtifact:
    """The files of a manifest, and the manifest that `damselfly push` left among them."""

    layers: tuple[Layer, ...]
    pushed: Blob | None


@dataclass(frozen=True, slots=True)
class OCIIndex:
    """Manifests that share a tag: what each is of, and whether it is a model."""

    manifests: tuple[Blob, ...]
    models: tuple[Blob, ...]

    def only(self, place: str) -> Blob:
        """The one that is meant.

        Raises:
            UsageError: it could be several, or none.
        """
        for candidates in (self.models, self.manifests):
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                names = ", ".join(blob.digest for blob in candidates[:_SHOWN_MAX])
                raise UsageError(
                    f"{place} is an index of {len(candidates)} manifests: name the one that you"
                    f" mean, by @ and its digest: {names}"
                )
        raise UsageError(f"{place} is an index of no manifests")


def parse_oci_manifest(data: bytes, place: str) -> OCIArtifact | OCIIndex:
    """Read a manifest or an index from a registry, which nobody trusts; errors call it `place`.

    Raises:
        ManifestError: it breaks a rule or a limit.
        UnsupportedFormatError: it has layers that are archives, or another kind of digests.
    """
    try:
        return _parsed(data)
    except ValueError as exc:
        raise ManifestError(f"reading the manifest of {place}") from exc
    except ManifestError as exc:
        raise ManifestError(f"reading the manifest of {place}") from exc
    except UnsupportedFormatError as exc:
        raise UnsupportedFormatError(f"reading the manifest of {place}") from exc


def _parsed(data: bytes) -> OCIArtifact | OCIIndex:
    if len(data) > OCI_MANIFEST_BYTES_MAX:
        raise ValueError(f"it has more than {OCI_MANIFEST_BYTES_MAX} bytes")
    # Whatever it says, it must not become a hundred times as large in memory.
    if sum(data.count(mark) for mark in (b",", b"{", b"[")) > VALUES_MAX:
        raise ValueError(f"it has more than {VALUES_MAX} values")
    fields = _fields(canonical.decode(data), "a manifest")
    match [key for key in ("layers", "manifests", "fsLayers") if key in fields]:
        case ["manifests"]:
            return _index(fields)
        case ["layers"]:
            return _artifact(fields)
        case ["fsLayers"]:
            raise UnsupportedFormatError("it is a manifest of schema 1, which nobody writes now")
        case _:
            # Two readers could take one that has both for two things.
            raise ValueError("it has neither layers nor manifests, or more than one of them")


def _index(fields: Mapping[str, object]) -> OCIIndex:
    manifests: list[Blob] = []
    models: list[Blob] = []
    for item in _items(fields, "manifests"):
        entry = _fields(item, "an entry of the index")
        if _REFERENCE_TYPE in _annotations(entry):
            continue  # What a builder attests about another entry.
        blob = _blob(entry)
        manifests.append(blob)
        if entry.get("artifactType") == MODEL_TYPE:
            models.append(blob)
    return OCIIndex(tuple(manifests), tuple(models))


def _artifact(fields: Mapping[str, object]) -> OCIArtifact:
    layers: list[Layer] = []
    pushed: Blob | None = None
    chunk_count = 0
    for number, item in enumerate(_items(fields, "layers")):
        entry = _fields(item, f"layer {number}")
        blob = _blob(entry)
        path = _path(entry, blob, number)
        if blob.media_type == OWN_MANIFEST_TYPE or path == MANIFEST_NAME:
            if pushed is not None or blob.size > MANIFEST_BYTES_MAX:
                raise ManifestError(f"it has two layers called {MANIFEST_NAME}, or a huge one")
            pushed = blob
            continue
        if path is None or is_bookkeeping(path):
            continue
        # Before anything is made that is as large as somebody says.
        chunk_count += -(-blob.size // CHUNK_BYTES)
        if chunk_count > CHUNKS_MAX:
            raise ManifestError(f"layer {number}, {path[:120]!r}, is larger than any artifact")
        layers.append(Layer(path, blob))
    check_tree(layer.path for layer in layers)
    if not layers:
        raise ManifestError("it has no layer that is a file")
    return OCIArtifact(tuple(layers), pushed)


def _path(entry: Mapping[str, object], blob: Blob, number: int) -> str | None:
    """Where a layer is a file; None where it is nothing at all."""
    notes = _annotations(entry)
    path = notes.get(FILE_PATH) or notes.get(OLD_FILE_PATH) or notes.get(TITLE)
    kind = blob.media_type
    if kind in {_EMPTY_TYPE, OWN_MANIFEST_TYPE}:
        return None
    shown = f"layer {number}" + (f", {path[:120]!r}," if path else "")
    if kind.startswith(_MODEL_LAYERS):
        if not kind.endswith(".raw"):
            raise UnsupportedFormatError(
                f"{shown} is {kind[:120]!a}: only raw layers are supported, each a file of its own"
                " (application/vnd.cncf.model.weight.v1.raw), not archives"
            )
    elif kind in _ARCHIVES or notes.get(UNPACK) == "true":
        raise UnsupportedFormatError(
            f"{shown} is a directory or an image layer that was packed ({kind[:120]!a}): only"
            " layers that are files are supported; push the files one by one"
        )
    if not path:
        raise ManifestError(
            f"{shown} ({kind[:120]!a}) does not say which file it is, by {FILE_PATH} or {TITLE}:"
            " this is no model artifact"
        )
    return path


def _blob(entry: Mapping[str, object]) -> Blob:
    digest = canonical.expect(entry.get("digest"), str, "a digest")
    if digest.partition(":")[0] != "sha256":
        raise UnsupportedFormatError(f"{digest[:90]!r} is not sha256:, the one kind that is read")
    file_digests_of([digest])
    size = canonical.expect(entry.get("size"), int, "a size")
    if size < 0:
        raise ValueError(f"{digest} has a size of {size}")
    media_type = canonical.expect(entry.get("mediaType", ""), str, "a media type")
    return Blob(digest, size, media_type.partition(";")[0].strip().lower())


def _annotations(entry: Mapping[str, object]) -> dict[str, str]:
    value = entry.get("annotations")
    fields = {} if value is None else _fields(value, "annotations")
    return {key: canonical.expect(text, str, "an annotation") for key, text in fields.items()}


def _items(fields: Mapping[str, object], key: str) -> list[object]:
    items = cast("list[object]", canonical.expect(fields.get(key), list, key))
    if len(items) > LAYERS_MAX:
        raise ValueError(f"it has {len(items)} {key}, more than {LAYERS_MAX}")
    return items


def _fields(value: object, what: str) -> dict[str, object]:
    return cast("dict[str, object]", canonical.expect(value, dict, what))
