"""Bitmaps: which of an artifact's chunks somebody has.

A Python integer underneath: set algebra on 35,000 chunks (140 GB) takes a tenth of a microsecond.
On the wire and on disk bit i is bit `i % 8` of byte `i // 8`; unused bits are zero.
"""

from collections.abc import Iterable, Iterator

from damselfly.errors import RemoteProtocolError


class Bitmap:
    """A set of chunk indexes in `[0, size)`. Mutable; belongs to one task."""

    __slots__ = ("bits", "size")

    def __init__(self, size: int, bits: int = 0) -> None:
        assert size >= 0
        assert 0 <= bits < (1 << size), "a bit outside of the bitmap"
        self.size = size
        self.bits = bits

    @classmethod
    def full(cls, size: int) -> "Bitmap":
        """Every index set."""
        return cls(size, (1 << size) - 1)

    @classmethod
    def of(cls, size: int, indexes: Iterable[int]) -> "Bitmap":
        """The given indexes set."""
        bitmap = cls(size)
        for index in indexes:
            bitmap.add(index)
        return bitmap

    @classmethod
    def parse(cls, size: int, data: bytes) -> "Bitmap":
        """Read what `to_bytes` wrote, from somebody we do not trust.

        Raises:
            RemoteProtocolError: wrong length, or a bit set past `size`.
        """
        if len(data) != (size + 7) // 8:
            raise RemoteProtocolError(f"a bitmap of {size} chunks has {len(data)} bytes")
        bits = int.from_bytes(data, "little")
        if bits >> size:
            raise RemoteProtocolError(f"a bitmap of {size} chunks has bits past its end")
        return cls(size, bits)

    def to_bytes(self) -> bytes:
        """Write `(size + 7) // 8` bytes, lowest index first."""
        return self.bits.to_bytes((self.size + 7) // 8, "little")

    def add(self, index: int) -> None:
        """Set one index."""
        assert 0 <= index < self.size, "index outside of the bitmap"
        self.bits |= 1 << index

    def discard(self, index: int) -> None:
        """Clear one index."""
        assert 0 <= index < self.size, "index outside of the bitmap"
        self.bits &= ~(1 << index)

    def copy(self) -> "Bitmap":
        """An independent copy."""
        return Bitmap(self.size, self.bits)

    @property
    def is_full(self) -> bool:
        """Every index is set."""
        return self.bits == (1 << self.size) - 1

    def __contains__(self, index: int) -> bool:
        return bool(self.bits >> index & 1)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __iter__(self) -> Iterator[int]:
        return indexes_of(self.bits)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        return (self.size, self.bits) == (other.size, other.bits)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Bitmap {len(self)}/{self.size}>"


def indexes_of(bits: int) -> Iterator[int]:
    """Yield the set bits of a non-negative integer, lowest first, in time linear in its length."""
    base = 0
    data = bits.to_bytes((bits.bit_length() + 63) // 64 * 8, "little")
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        while word:
            low = word & -word
            yield base + low.bit_length() - 1
            word ^= low
        base += 64
