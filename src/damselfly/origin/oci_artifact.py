"""What a push leaves in a registry: an artifact of CNCF's ModelPack that ORAS can pull too. Pure.

Every file is a raw layer of its own, called by both conventions. Our manifest is one more, so that
whoever pulls with another tool finds it beside the files. Nothing depends on the time: the same
files make the same artifact, and a second push of them has nothing to do.
"""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from damselfly.errors import UsageError
from damselfly.model import canonical
from damselfly.origin.oci_manifest import (
    FILE_PATH,
    MANIFEST_TYPE,
    MODEL_CONFIG_TYPE,
    MODEL_TYPE,
    OCI_MANIFEST_BYTES_MAX,
    TITLE,
    Blob,
    Layer,
)

WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
CODE = "application/vnd.cncf.model.code.v1.raw"
DATASET = "application/vnd.cncf.model.dataset.v1.raw"

_BY_SUFFIX = {
    **dict.fromkeys((".md", ".rst", ".pdf", ".sig", ".png", ".jpg"), DOC),
    **dict.fromkeys((".py", ".sh", ".ipynb", ".cpp", ".cu", ".go", ".rs", ".js"), CODE),
    **dict.fromkeys((".parquet", ".csv", ".arrow"), DATASET),
    **dict.fromkeys(
        (".json", ".jinja", ".txt", ".yaml", ".yml", ".toml", ".model", ".tiktoken", ".cfg"),
        WEIGHT_CONFIG,
    ),
}
_DOCS = ("README", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
_FORMATS = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx"}


def media_type_of(path: str) -> str:
    """The media type of a file's layer: what people use it for, as far as its name tells."""
    name = PurePosixPath(path)
    if name.name.upper().startswith(_DOCS):
        return DOC
    if name.name.startswith("."):
        return WEIGHT_CONFIG
    return _BY_SUFFIX.get(name.suffix.lower(), WEIGHT)


def digest_of(data: bytes) -> str:
    """The digest of a blob."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config_of(name: str, layers: Iterable[Layer]) -> bytes:
    """The blob that tells what the model is; registries and tools show it."""
    listed = list(layers)
    suffixes = {PurePosixPath(layer.path).suffix for layer in listed}
    formats = [name for suffix, name in _FORMATS.items() if suffix in suffixes]
    return canonical.encode(
        {
            "config": {"format": formats[0]} if formats else {},
            "descriptor": {"name": name},
            "modelfs": {"diffIds": [layer.blob.digest for layer in listed], "type": "layers"},
        }
    )


def manifest_of(config: Blob, layers: Iterable[Layer]) -> bytes:
    """The manifest of an artifact.

    Raises:
        UsageError: it has more files than a registry takes.
    """
    listed = list(layers)
    data = canonical.encode(
        {
            "artifactType": MODEL_TYPE,
            "config": _descriptor(config) | {"mediaType": MODEL_CONFIG_TYPE},
            "layers": [
                _descriptor(layer.blob)
                | {"annotations": {FILE_PATH: layer.path, TITLE: layer.path}}
                for layer in listed
            ],
            "mediaType": MANIFEST_TYPE,
            "schemaVersion": 2,
        }
    )
    if len(data) > OCI_MANIFEST_BYTES_MAX:
        raise UsageError(
            f"{len(listed)} files make a manifest of {len(data)} bytes: registries take"
            f" {OCI_MANIFEST_BYTES_MAX}"
        )
    return data


def _descriptor(blob: Blob) -> dict[str, object]:
    return {"digest": blob.digest, "mediaType": blob.media_type, "size": blob.size}
