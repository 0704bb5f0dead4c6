"""Cut plans: where the chunks of an artifact begin and end, known before any digest is.

A plan follows from file sizes and safetensors headers alone, so agents that meet an artifact for
the first time agree on it, share the work by chunk index, and learn the digests as they go. Chunk
`i` of a plan is chunk `i` of the manifest that comes of it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


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

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Where each chunk stops, from the start of the file."""
        return tuple(accumulate(self.lengths))


@dataclass(frozen=True)
class Plan:
    """The files of an artifact in path order, cut into chunks, as found at `ref`."""

    ref: str
    files: tuple[PlannedFile, ...]

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
