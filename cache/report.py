"""What the store says about itself: frozen values for the agent to log, print and count."""

from dataclasses import dataclass
from enum import StrEnum

from damselfly.model.digest import Digest


class ArtifactState(StrEnum):
    """How much of an artifact is here."""

    KNOWN = "known"
    """Its manifest is kept, no file of it has been pulled."""
    PARTIAL = "partial"
    """Some of its files are here, whole: a pull took a selection."""
    COMPLETE = "complete"
    """Every file is here, whole."""
    DEGRADED = "degraded"
    """A file that was here has lost chunks (bad disk, changed by hand): pull it again."""


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """One artifact of the store, as `damselfly ls` shows it."""

    artifact: Digest
    state: ArtifactState
    file_count: int
    files_held: int
    bytes: int
    """Of all its files."""
    bytes_held: int
    """Of the chunks of its files that are here; shared files count for each artifact."""
    created_ns: int
    used_ns: int
    is_pinned: bool
    leases: tuple[str, ...]
    refs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Somebody who is trusted signed these files of an artifact: who, how, and when it was seen.

    `trust` changes with whom to trust; only under the same one does a verdict count.
    """

    trust: Digest
    method: str
    signer: str
    files: frozenset[int]
    verified_ns: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the store takes and may take."""

    bytes: int
    """Promised to files: whole, partial, and those being pulled."""
    capacity_bytes: int | None
    reserved_bytes: int
    """Of `bytes`, what pulls that are going on have yet to write."""
    leftover_bytes: int
    """Of `bytes`, files that no artifact names and nobody is pulling."""
    free_bytes: int
    """On the file system, for us."""
    keep_free_bytes: int
    artifact_count: int
    file_count: int
    chunk_count: int
    lease_count: int
    pin_count: int


@dataclass(frozen=True, kw_only=True)
class RoomFor:
    """How much could be stored, if everything went that may go."""

    available_bytes: int
    """With what is here already of the files that were asked about."""
    bytes: int
    """Of those files."""
    bytes_held: int
    """... which are here; a file that is there twice counts twice."""


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What `Store.open` found different between the account and the disk, and did about it."""

    strangers_removed: int = 0
    """Names in the store that the account does not know."""
    files_lost: int = 0
    """Files of the account that are gone or were replaced; their chunks are missing again."""
    files_recovered: int = 0
    """... which a view still had: linked back."""
    files_moved: int = 0
    """Files between `partial/` and `files/`: the stop came between the rename and the commit."""
    files_suspect: int = 0
    """Size or time of change differ: re-verified before they are handed out."""
    files_forgotten: int = 0
    """Rows without a chunk and without an artifact."""
    chunks_rehashed: int = 0
    """Written before a power cut and perhaps not on disk: re-read."""
    chunks_dropped: int = 0
    """... and found wrong."""
    views_dropped: int = 0
    """Trees that nothing accounts for, and accounts without a tree."""
    leases_expired: int = 0
    temporaries_removed: int = 0

    @property
    def is_clean(self) -> bool:
        """Nothing had to be done."""
        return self == Reconciled()


@dataclass(frozen=True, kw_only=True)
class BadChunk:
    """A chunk whose bytes on disk are not what they were."""

    path: str
    """In the artifact; or the store's own name for a file that no artifact names."""
    number: int
    """Which chunk of that file."""
    expected: Digest
    actual: Digest | None
    """None: it could not be read at all."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `Store.verify` read, and what was wrong."""

    file_count: int
    chunk_count: int
    bytes: int
    bad: tuple[BadChunk, ...]
    degraded: tuple[Digest, ...]
    """Artifacts that lack a chunk of a file they had."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What `remove`, `gc` or an eviction took away."""

    artifacts: tuple[Digest, ...] = ()
    file_count: int = 0
    bytes: int = 0
