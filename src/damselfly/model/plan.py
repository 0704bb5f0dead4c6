"""Cut plans: where the chunks of an artifact begin and end, known before any digest is.

A plan follows from file sizes and safetensors headers alone, so agents that meet an artifact for
the first time agree on it, share the work by chunk index, and learn the digests as they go. Chunk
`i` of a plan is chunk `i` of the manifest that comes of it.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import cast

from damselfly.errors import ManifestError, RemoteProtocolError
from damselfly.model import canonical
from damselfly.model.bounded_json import CHUNKS_VALUES_MAX
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.paths import check_tree

FILES_MAX = 100_000
CHUNKS_MAX = 1_000_000
"""About 4 TB of chunks that are full."""
REF_CHARS_MAX = 4096
VERSION_CHARS_MAX = 512
FILE_DIGESTS_MAX = 4

_VERSIONS = ("version-id:", "generation:", 'etag:"', "blob:", "lfs:", "sha256:")
"""Neither times, which two contents may have, nor weak ETags, which are for what is alike."""
_FILE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """One chunk's place: bytes `[start, start + length)` of file number `file`."""

    file: int
    start: int
    length: int


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan.

    `lengths` are its chunks' in order, none of them 0; a zero-byte file has no chunks. `version` is
    what the origin says about the file's identity (an ETag, a commit), empty where it says nothing.
    `digests` are whole-file digests that the origin publishes, as `sha256:<hex>`.
    """

    path: str
    lengths: tuple[int, ...]
    version: str = ""
    digests: tuple[str, ...] = ()

    @cached_property
    def bytes(self) -> int:
        """The file's size."""
        return sum(self.lengths)

    @property
    def is_versioned(self) -> bool:
        """Whether whatever has this version, at this path of this ref, has the same content."""
        return self.version.startswith(_VERSIONS)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Where each chunk stops, from the start of the file."""
        return tuple(accumulate(self.lengths))


@dataclass(frozen=True)
class Plan:
    """The files of an artifact in path order, cut into chunks, as found at `ref`."""

    ref: str
    files: tuple[PlannedFile, ...]

    @classmethod
    def of(cls, ref: str, files: Iterable[PlannedFile]) -> "Plan":
        """Put the files of a directory in order and make a plan of them.

        Raises:
            ManifestError: a path that may not be, two files in one place, or more than the limits.
        """
        plan = cls(ref, tuple(sorted(files, key=lambda file: file.path)))
        if len(plan.files) > FILES_MAX:
            raise ManifestError(f"{len(plan.files)} files: an artifact has at most {FILES_MAX}")
        check_tree(file.path for file in plan.files)
        if plan.chunk_count > CHUNKS_MAX:
            raise ManifestError(f"{plan.chunk_count} chunks: an artifact has at most {CHUNKS_MAX}")
        assert all(1 <= length <= CHUNK_BYTES_MAX for file in plan.files for length in file.lengths)
        return plan

    @classmethod
    def parse(cls, source: object) -> "Plan":
        """Read a plan from somebody we do not trust: `canonical()` bytes, or a `to_json()` value.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        try:
            if isinstance(source, bytes):
                source = canonical.decode(source, values_max=CHUNKS_VALUES_MAX, has_floats=False)
            return _parsed(source)
        except (ValueError, ManifestError) as exc:
            raise RemoteProtocolError("reading a cut plan") from exc

    def to_json(self) -> dict[str, object]:
        """Write the plan as a JSON value; lengths are runs, so it is small whatever the model."""
        return {
            "files": [
                {
                    "digests": list(file.digests),
                    "lengths": canonical.runs_of(file.lengths),
                    "path": file.path,
                    "version": file.version,
                }
                for file in self.files
            ],
            "ref": self.ref,
        }

    def canonical(self) -> bytes:
        """Write the plan as bytes, the one way; their digest is the plan's name."""
        return canonical.encode(self.to_json())

    @cached_property
    def id(self) -> Digest:
        """The plan's name: the same exactly where ref, files, cuts and versions are."""
        return Digest.of(self.canonical())

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """The index of each file's first chunk, and at the end the number of chunks."""
        return tuple(accumulate((len(file.lengths) for file in self.files), initial=0))

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return self.firsts[-1]

    @cached_property
    def bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.bytes for file in self.files)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The length of every chunk by index."""
        return tuple(length for file in self.files for length in file.lengths)

    def span(self, index: int) -> Span:
        """Where chunk `index` lies."""
        assert 0 <= index < self.chunk_count, "index outside of the plan"
        file = bisect_right(self.firsts, index) - 1
        within = index - self.firsts[file]
        length = self.files[file].lengths[within]
        return Span(file, self.files[file].stops[within] - length, length)

    def indexes(self, file: int) -> range:
        """The chunk indexes of file number `file`."""
        return range(self.firsts[file], self.firsts[file + 1])

    def __repr__(self) -> str:
        return f"<Plan {self.id.hex[:12]}: {len(self.files)} files, {self.chunk_count} chunks>"


def file_digests_of(value: object) -> tuple[str, ...]:
    """Read whole-file digests: `sha256:<hex>`, sorted, each once.

    Raises:
        ValueError: they are not.
    """
    found: list[str] = []
    for item in cast("list[object]", canonical.expect(value, list, "digests")):
        digest = canonical.expect(item, str, "a digest of a file")
        if not _FILE_DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:90]!r} is not the digest of a whole file (sha256:<hex>)")
        found.append(digest)
    if len(found) > FILE_DIGESTS_MAX or found != sorted(set(found)):
        raise ValueError("the digests of a file are too many, unsorted, or repeat")
    return tuple(found)


def _parsed(value: object) -> Plan:
    fields = _object(value, {"files", "ref"}, "a plan")
    ref = _line(fields["ref"], REF_CHARS_MAX, "ref")
    if not ref:
        raise ValueError("the ref is empty")
    items = cast("list[object]", canonical.expect(fields["files"], list, "files"))
    if len(items) > FILES_MAX:
        raise ValueError(f"{len(items)} files: the limit is {FILES_MAX}")
    files: list[PlannedFile] = []
    room = CHUNKS_MAX
    for item in items:
        file = _object(item, {"digests", "lengths", "path", "version"}, "a file of a plan")
        lengths = canonical.lengths_of(file["lengths"], CHUNK_BYTES_MAX, room)
        room -= len(lengths)
        files.append(
            PlannedFile(
                canonical.expect(file["path"], str, "path"),
                lengths,
                _line(file["version"], VERSION_CHARS_MAX, "version"),
                file_digests_of(file["digests"]),
            )
        )
    paths = [file.path for file in files]
    check_tree(paths)
    if paths != sorted(paths):
        raise ValueError("the files are not in path order")
    return Plan(ref, tuple(files))


def _object(value: object, keys: set[str], what: str) -> dict[str, object]:
    fields = cast("dict[str, object]", canonical.expect(value, dict, what))
    if fields.keys() != keys:
        raise ValueError(f"{what} has the wrong fields")
    return fields


def _line(value: object, chars_max: int, what: str) -> str:
    text = canonical.expect(value, str, what)
    if len(text) > chars_max or not text.isprintable():
        raise ValueError(f"the {what} is too long, or not one line of text")
    return text
