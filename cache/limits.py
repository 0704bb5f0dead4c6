"""Every bound of the store, with its reason."""

from dataclasses import dataclass

MIB = 1 << 20
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the store may use, and when it makes room.

    Room is counted twice: by our own bytes against `capacity_bytes`, and by what the file system
    still has free against `keep_free_bytes`. A pull that would push the store over the high mark
    of either evicts down to the low mark; it is refused only if the hard bound itself (the
    capacity, the space to keep free) would be broken.
    """

    capacity_bytes: int | None = None
    """Our own bytes at most; None leaves it to the file system."""
    high: float = 0.95
    """Eviction begins above this share of the capacity."""
    low: float = 0.85
    """Eviction ends at this share of the capacity: not every pull pays for one."""
    keep_free_bytes: int = 1024 * MIB
    """Never leave the file system with less: the catalog and other programs need some."""
    free_again_bytes: int = 2048 * MIB
    """Eviction for the file system's sake goes on until this much is free."""
    sync_bytes: int = 256 * MIB
    """Chunks written since the last `fdatasync`: a power cut costs at most re-hashing these."""
    sync_interval_s: float = 2.0
    """... or this long, whichever comes first."""
    leftover_age_s: float = 7 * DAY_S
    """`gc` takes what an interrupted pull left when nobody has touched it for this long."""
    open_files_max: int = 256
    """Descriptors kept open between chunks, for serving and for writing, each."""
    scratch_buffers_max: int = 4
    """Buffers of one chunk for copying and re-reading: bounds memory, not the number of threads."""
    manifests_cached_max: int = 4
    """Parsed manifests kept at hand; a large one is tens of megabytes."""

    def __post_init__(self) -> None:
        assert self.capacity_bytes is None or self.capacity_bytes >= 0
        assert 0 < self.low <= self.high <= 1, "the low mark is above the high one"
        assert 0 <= self.keep_free_bytes <= self.free_again_bytes
        assert self.sync_bytes > 0
        assert self.sync_interval_s > 0
        assert self.open_files_max > 0
        assert self.scratch_buffers_max > 0
        assert self.manifests_cached_max > 0
