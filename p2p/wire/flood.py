"""Floods: so much at once, so much a second, and no more."""

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.violation import ViolationError


class Bucket:
    """A leaky bucket of things that a peer may do for nothing.

    It starts with `burst`, refills at `per_s` and never holds more than `burst`.
    """

    __slots__ = ("burst", "left", "name", "per_s", "refilled_at")

    def __init__(self, name: str, burst: int, per_s: float, now: float) -> None:
        self.name = name
        self.burst = burst
        self.per_s = per_s
        self.left = float(burst)
        self.refilled_at = now

    def spend(self, now: float) -> None:
        """Take one.

        Raises:
            ViolationError: the bucket is empty.
        """
        if self.left < 1:
            self.left = min(self.burst, self.left + (now - self.refilled_at) * self.per_s)
            self.refilled_at = now
            if self.left < 1:
                raise ViolationError(
                    f"a flood of {self.name}", error_code=ErrorCode.ENHANCE_YOUR_CALM
                )
        self.left -= 1

    def earn(self, count: int) -> None:
        """Put some back, for work the peer did for them."""
        self.left = min(self.burst, self.left + count)
