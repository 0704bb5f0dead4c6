"""Manifests: the immutable list of an artifact's files and chunks. Its digest is the name."""

from dataclasses import dataclass

from damselfly.model.digest import Digest


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: its digest, and its length in bytes."""

    digest: Digest
    length: int


@dataclass(frozen=True)
class ManifestFile:
    """One file: a relative POSIX path, its chunks in order, whole-file digests if known."""

    path: str
    chunks: tuple[Chunk, ...]
    digests: tuple[str, ...] = ()
