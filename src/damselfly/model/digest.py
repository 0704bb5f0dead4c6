"""Digests: what bytes are called.

BLAKE3-256 (the BLAKE3 paper, 2020) names chunks, manifests, plans and artifacts. Whole-file digests
that an origin publishes keep that origin's algorithm (`sha256:`) and never name a chunk.
"""

import re
from dataclasses import dataclass

from blake3 import blake3

from damselfly.errors import DigestMismatchError, UsageError

_HEX_64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
DIGEST_BYTES = 32


@dataclass(frozen=True, order=True, slots=True)
class Digest:
    """A BLAKE3-256 digest; prints as `blake3:<64 hex digits>`."""

    raw: bytes

    def __post_init__(self) -> None:
        assert len(self.raw) == DIGEST_BYTES, "a digest is 32 bytes"

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> "Digest":
        """Hash `data`. Releases the GIL: call it from a thread for anything large."""
        return cls(blake3(data).digest())

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read `blake3:<hex>`.

        Raises:
            UsageError: `text` is anything else.
        """
        algorithm, _, digits = text.partition(":")
        if algorithm != "blake3" or not _HEX_64.fullmatch(digits):
            raise UsageError(f"{text[:90]!r} is not a digest: expected blake3: and 64 hex digits")
        return cls(bytes.fromhex(digits))

    @property
    def hex(self) -> str:
        """The 64 hex digits alone, for file names and paths of URLs."""
        return self.raw.hex()

    def verify(self, data: bytes | bytearray | memoryview, source: str) -> None:
        """Hash `data` and compare. There is no boolean to forget.

        Raises:
            DigestMismatchError: `data`, which came from `source`, is something else.
        """
        actual = Digest.of(data)
        if actual != self:
            raise DigestMismatchError(str(self), str(actual), source)

    def __str__(self) -> str:
        return f"blake3:{self.hex}"

    def __repr__(self) -> str:
        return f"<blake3:{self.hex[:12]}>"
