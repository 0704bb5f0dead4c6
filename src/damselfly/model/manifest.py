"""Manifests: the immutable list of an artifact's files and chunks. Its digest is the name.

Format 1 is canonical JSON (`damselfly.model.canonical`):

    {"files":[FILE,...],"format":"damselfly-manifest/1","requires":[]}
    FILE = {"bytes":SIZE,"chunks":["blake3:<hex>",...],"digests":["sha256:<hex>",...],
            "lengths":[[LENGTH,COUNT],...],"path":"..."}

Files are in the order of their paths' code points (that of their UTF-8 bytes); `lengths` are runs,
as many lengths together as there are chunks. Bytes that spell the same thing another way are
refused: an artifact has one name. `requires` lists features without which the rest would be
misread; this version knows none, and refuses what it does not know by name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from struct import Struct
from typing import cast

from blake3 import blake3

from damselfly.errors import ManifestError, UnsupportedFormatError
from damselfly.model import canonical
from damselfly.model.bounded_json import CHUNKS_VALUES_MAX
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.paths import MANIFEST_NAME, check_tree
from damselfly.model.plan import CHUNKS_MAX, FILES_MAX, Plan, PlannedFile, file_digests_of

__all__ = ["MANIFEST_BYTES_MAX", "MANIFEST_NAME", "Chunk", "Manifest", "ManifestFile"]

MANIFEST_BYTES_MAX = 128 << 20
FORMAT = 1

_FORMAT = re.compile(r"damselfly-manifest/([1-9][0-9]{0,8})", re.ASCII)
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}", re.ASCII)
_FEATURE = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)
_KNOWN_FEATURES: frozenset[str] = frozenset()
_FILE_ID_MARK = b"damselfly-file/1\n"
_LENGTH = Struct("<Q")


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

    @cached_property
    def bytes(self) -> int:
        """The file's size."""
        return sum(chunk.length for chunk in self.chunks)

    @cached_property
    def id(self) -> Digest:
        """The content's name in a store, whatever the file is called.

        BLAKE3 of a mark, then each chunk's 32 raw bytes and its length as 8 bytes, little-endian.
        """
        hasher = blake3(_FILE_ID_MARK)
        for chunk in self.chunks:
            hasher.update(chunk.digest.raw + _LENGTH.pack(chunk.length))
        return Digest(hasher.digest())


@dataclass(frozen=True)
class Manifest:
    """All files of an artifact, in path order."""

    files: tuple[ManifestFile, ...]

    @classmethod
    def seal(cls, plan: Plan, digests: Sequence[Digest]) -> "Manifest":
        """Make the manifest of a plan whose every chunk has a digest now."""
        assert len(digests) == plan.chunk_count, "a digest for every chunk"
        return cls(
            tuple(
                ManifestFile(
                    file.path,
                    tuple(
                        Chunk(digests[index], length)
                        for index, length in zip(plan.indexes(number), file.lengths, strict=True)
                    ),
                    file.digests,
                )
                for number, file in enumerate(plan.files)
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read a manifest from somebody we do not trust.

        Raises:
            UnsupportedFormatError: a newer Damselfly made it; names what we lack.
            ManifestError: it breaks a rule or a limit, or is not in canonical form.
        """
        if len(data) > MANIFEST_BYTES_MAX:
            raise ManifestError(
                f"a manifest of {len(data)} bytes: the limit is {MANIFEST_BYTES_MAX}"
            )
        try:
            fields = cast(
                "dict[str, object]",
                canonical.expect(
                    canonical.decode(data, values_max=CHUNKS_VALUES_MAX, has_floats=False),
                    dict,
                    "a manifest",
                ),
            )
            _check_format(fields)
            manifest = cls(_files(fields))
        except ValueError as exc:
            raise ManifestError("reading a manifest") from exc
        if manifest.canonical() != data:
            raise ManifestError("the manifest is not in canonical form")
        return manifest

    def canonical(self) -> bytes:
        """Write the manifest as bytes, the one way; their digest is the artifact's name."""
        return canonical.encode(
            {
                "files": [
                    {
                        "bytes": file.bytes,
                        "chunks": [str(chunk.digest) for chunk in file.chunks],
                        "digests": list(file.digests),
                        "lengths": canonical.runs_of(tuple(chunk.length for chunk in file.chunks)),
                        "path": file.path,
                    }
                    for file in self.files
                ],
                "format": f"damselfly-manifest/{FORMAT}",
                "requires": [],
            }
        )

    @cached_property
    def digest(self) -> Digest:
        """The artifact's name."""
        return Digest.of(self.canonical())

    @cached_property
    def digests(self) -> tuple[Digest, ...]:
        """The digest of every chunk by index."""
        return tuple(chunk.digest for file in self.files for chunk in file.chunks)

    @cached_property
    def bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return len(self.digests)

    def is_of(self, plan: Plan) -> bool:
        """Whether the plan may have become this: the same paths, cuts and digests of whole files.

        Somebody who knows the cuts can write other chunk digests under them: this only keeps what
        counts chunks by the one from meeting the other.
        """
        return len(self.files) == len(plan.files) and all(
            (file.path, file.digests, tuple(chunk.length for chunk in file.chunks))
            == (planned.path, planned.digests, planned.lengths)
            for file, planned in zip(self.files, plan.files, strict=True)
        )

    def file_id(self, number: int) -> Digest:
        """The content's name of file `number`; see `ManifestFile.id`."""
        return self.files[number].id

    def plan(self, ref: str) -> Plan:
        """The cuts alone: what a plan made at `ref` would be, but for the origin's versions."""
        return Plan(
            ref,
            tuple(
                PlannedFile(
                    file.path,
                    tuple(chunk.length for chunk in file.chunks),
                    digests=file.digests,
                )
                for file in self.files
            ),
        )

    def __repr__(self) -> str:
        return (
            f"<Manifest {self.digest.hex[:12]}: {len(self.files)} files, {self.chunk_count} chunks>"
        )


def _check_format(fields: dict[str, object]) -> None:
    # First of all, and before anything that a newer format may have changed.
    mark = fields.get("format")
    match = _FORMAT.fullmatch(mark) if isinstance(mark, str) else None
    if match is None:
        raise ManifestError("this is not a Damselfly manifest")
    if int(match[1]) > FORMAT:
        raise UnsupportedFormatError(
            f"a manifest of format {match[1]}: this version reads {FORMAT}"
        )
    names: list[str] = []
    for item in cast("list[object]", canonical.expect(fields.get("requires"), list, "requires")):
        name = canonical.expect(item, str, "a required feature")
        if not _FEATURE.fullmatch(name):
            raise ManifestError(f"{name[:80]!r} is not the name of a feature")
        names.append(name)
    if lacking := sorted(set(names) - _KNOWN_FEATURES):
        raise UnsupportedFormatError(
            f"the manifest requires {', '.join(lacking[:8])}, which this version does not know"
        )
    if fields.keys() != {"files", "format", "requires"}:
        raise ManifestError("a manifest has files, format and requires, and nothing else")


def _files(fields: dict[str, object]) -> tuple[ManifestFile, ...]:
    items = cast("list[object]", canonical.expect(fields["files"], list, "files"))
    if len(items) > FILES_MAX:
        raise ManifestError(f"{len(items)} files: the limit is {FILES_MAX}")
    files: list[ManifestFile] = []
    room = CHUNKS_MAX
    for item in items:
        file = _file(item, room)
        room -= len(file.chunks)
        files.append(file)
    paths = [file.path for file in files]
    check_tree(paths)
    if paths != sorted(paths):
        raise ManifestError("the files are not in path order")
    return tuple(files)


def _file(value: object, room: int) -> ManifestFile:
    fields = cast("dict[str, object]", canonical.expect(value, dict, "a file"))
    if fields.keys() != {"bytes", "chunks", "digests", "lengths", "path"}:
        raise ManifestError("a file has bytes, chunks, digests, lengths and path, and nothing else")
    path = canonical.expect(fields["path"], str, "path")
    try:
        lengths = canonical.lengths_of(fields["lengths"], CHUNK_BYTES_MAX, room)
        digests = _digests(fields["chunks"])
        whole = file_digests_of(fields["digests"])
    except ValueError as exc:
        raise ManifestError(f"reading the file {path[:120]!r}") from exc
    if len(digests) != len(lengths):
        raise ManifestError(f"{path[:120]!r} has {len(digests)} digests, {len(lengths)} lengths")
    file = ManifestFile(
        path, tuple(Chunk(*pair) for pair in zip(digests, lengths, strict=True)), whole
    )
    if type(fields["bytes"]) is not int or fields["bytes"] != file.bytes:
        raise ManifestError(
            f"the chunks of {path[:120]!r} have {file.bytes} bytes, not what it says"
        )
    return file


def _digests(value: object) -> list[Digest]:
    found: list[Digest] = []
    for text in cast("list[object]", canonical.expect(value, list, "chunks")):
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise ValueError(f"{str(text)[:90]!r} is not blake3: and 64 hex digits")
        found.append(Digest(bytes.fromhex(text[7:])))
    return found
