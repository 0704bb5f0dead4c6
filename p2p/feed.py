"""What a member tells its followers: the chunks it holds, in few lines."""

from dataclasses import dataclass

from damselfly.p2p.messages import HaveLine


@dataclass(frozen=True, kw_only=True)
class FeedLimits:
    """How often a line goes out."""

    interval_s: float = 0.01
    interval_per_follower_s: float = 0.001
    """Sixty followers get a line every 70 ms: each is a system call here and there."""


class HaveFeed:
    """The have stream of one member in one swarm: the same lines for every follower.

    A new follower is written `first_line()`, and from then on every line that `next_line` returns.
    The first chunk after a quiet time is told at once, those that follow soon after together.
    """

    def __init__(self, *, limits: FeedLimits | None = None, now: float) -> None:
        self._limits = limits or FeedLimits()
        self._got: list[int] = []
        self._lost: list[int] = []
        self._is_leaving = False
        self._told_s = now - 3600.0

    def first_line(self, have: int) -> HaveLine:
        """Everything held now, for a new follower."""
        return HaveLine(have=have)

    def chunk_held(self, index: int) -> None:
        """A chunk is held from now on."""
        if index in self._lost:
            self._lost.remove(index)
        self._got.append(index)

    def chunk_lost(self, index: int) -> None:
        """A chunk is held no more."""
        if index in self._got:
            self._got.remove(index)
        self._lost.append(index)

    def leave(self) -> None:
        """We leave the swarm."""
        self._is_leaving = True

    def next_deadline(self, follower_count: int) -> float | None:
        """When the next line is due; None while there is nothing to say."""
        if self._is_leaving:
            return self._told_s
        if not self._got and not self._lost:
            return None
        limits = self._limits
        return self._told_s + limits.interval_s + limits.interval_per_follower_s * follower_count

    def next_line(self, follower_count: int, now: float) -> HaveLine | None:
        """The line that is due now, if any: write it to every follower."""
        deadline = self.next_deadline(follower_count)
        if deadline is None or deadline > now:
            return None
        line = HaveLine(got=tuple(self._got), lost=tuple(self._lost), is_leaving=self._is_leaving)
        self._got.clear()
        self._lost.clear()
        self._is_leaving = False
        self._told_s = now
        return line
