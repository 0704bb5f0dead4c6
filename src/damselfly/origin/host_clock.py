"""When a host may be asked: its rests, and how carefully it is asked after one. Pure.

    answered(rest), told(rest), begun, failed ──>  HostClock  ──> may_begin, rests_until_s

Rule 1. An answer that asks for rest (429, or 503 with Retry-After) stops every request until the
rest is over. Without a word of how long, it is a second, twice as long each time.
Rule 2. After a rest one request goes first, and each answer doubles how many may be under way: a
host that has had enough of us says so to one and not to sixteen.
Rule 3. What other agents say of rests counts like what the host says, and is paid for: they may
stop us for `hearsay_s_max` in all. That credit comes back with the host's own word (it does want
rest), and otherwise by a hundredth of the time that goes by. A word to which the host itself gives
the lie (it answers us while it is said to rest) leaves `doubted_s` of it at most, and half as much
each time. So a liar stops us for two minutes in all, and then for a second in a hundred at most,
until the host itself asks us for rest.
While their word counts, `left_s` tells the whole length that they told: who would not wait so long
need not begin to.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RestLimits:
    """How long a host is left alone."""

    rest_s: float = 1.0
    """Of a host that does not say how long; twice as long each time."""
    rest_s_max: float = 60.0
    rest_s_min: float = 0.25
    """A rest of 0 s would be none."""
    asked_rest_s_max: float = 3600.0
    """A host that asks for more is asked once an hour."""
    told_s_max: float = 120.0
    """What anybody else says counts for so long at most."""
    hearsay_s_max: float = 120.0
    """So long others may stop us, until the host says for itself that it wants rest."""
    hearsay_s_min: float = 1.0
    """Who has less credit than this is not heard at all."""
    hearsay_share: float = 0.01
    """So much of the time that goes by comes back as credit."""
    doubted_s: float = 4.0
    """The credit of others when they have been found wrong once; half as much each time."""
    forgiven_s: float = 60.0
    """A host that has not rested for so long may be forgotten."""
    width_max: int = 64
    """More requests at once than this are as good as any number."""


class HostClock:
    """What we know of one host. Facts in, answers out; belongs to one task."""

    def __init__(self, limits: RestLimits) -> None:
        self._limits = limits
        self._own_until_s = 0.0
        self._told_until_s = 0.0
        self._told_end_s = 0.0
        """When the rest ends, as others say; it stops us until `_told_until_s` only."""
        self._said_until_s = 0.0
        """When the rest is over that others speak of, whether or not we heed them."""
        self._older = 0
        """Requests that left before others stopped us: their answers prove nothing."""
        self._credit_s = self._credit_s_max = limits.hearsay_s_max
        self._credited_s: float | None = None
        self._in_flight = 0
        self._width: int | None = None
        """How many requests may be under way; None: any number."""
        self._busies = 0

    @property
    def rests_until_s(self) -> float:
        """The end of its rest."""
        return max(self._own_until_s, self._told_until_s)

    @property
    def own_until_s(self) -> float:
        """The end of the rest that it asked us for ourselves."""
        return self._own_until_s

    def left_s(self, now: float) -> float:
        """For how long it wants to be left alone, as far as anybody says."""
        told_end_s = self._told_end_s if now < self._told_until_s else 0.0
        return max(0.0, self.rests_until_s - now, told_end_s - now)

    def is_idle(self, now: float) -> bool:
        """There is nothing to remember."""
        limits = self._limits
        return not self._in_flight and now > self.rests_until_s + limits.forgiven_s

    def may_begin(self, now: float) -> bool:
        """A request may leave now."""
        if now < self.rests_until_s:
            return False
        return self._width is None or self._in_flight < self._width

    def begun(self) -> None:
        """A request left."""
        self._in_flight += 1

    def failed(self) -> None:
        """A request was not answered."""
        self._ended()

    def answered(self, now: float) -> None:
        """A request was answered, and not with a plea for rest."""
        if self._ended() and now < self._said_until_s:
            self._said_until_s = now
            self._credit_s_max = min(self._credit_s_max, 2 * self._limits.doubted_s) / 2
            self._credit_s = min(self._credit_s, self._credit_s_max)
        self._busies = 0
        if self._width is not None:
            self._width *= 2
            if self._width > self._limits.width_max:
                self._width = None

    def asked_for_rest(self, rest_s: float | None, jitter: float, now: float) -> float:
        """The host wants to be left alone; `jitter` is in [0, 1). Returns for how long it is."""
        limits = self._limits
        self._ended()
        self._credit_s = self._credit_s_max = limits.hearsay_s_max
        if rest_s is None:
            rest_s = min(limits.rest_s_max, limits.rest_s * 2 ** min(self._busies, 16))
            rest_s *= 1 + jitter / 2
        elif now >= self._own_until_s:
            # Not before it is over, and not everybody in the same moment.
            rest_s += jitter * min(0.25, rest_s / 10)
        if now >= self._own_until_s:
            self._busies += 1  # Of requests that were under way together one counts.
        rest_s = min(max(rest_s, limits.rest_s_min), limits.asked_rest_s_max)
        self._own_until_s = max(self._own_until_s, now + rest_s)
        self._width = 1
        return rest_s

    def told(self, rest_s: float, now: float) -> bool:
        """Another agent says that the host wants rest; tells whether it is longer than known."""
        limits = self._limits
        said_s = now + min(rest_s, limits.told_s_max)
        self._said_until_s = max(self._said_until_s, said_s)
        if self._credited_s is not None:
            earned_s = limits.hearsay_share * (now - self._credited_s)
            self._credit_s = min(self._credit_s + earned_s, self._credit_s_max)
        self._credited_s = now
        from_s = max(now, self.rests_until_s)
        until_s = min(said_s, from_s + self._credit_s)
        if until_s <= from_s or self._credit_s < limits.hearsay_s_min:
            return False
        self._credit_s -= until_s - from_s
        self._told_until_s = until_s
        self._told_end_s = now + rest_s
        self._older = self._in_flight
        self._width = 1
        return True

    def _ended(self) -> bool:
        """A request has ended; tell whether it had left since others last stopped us."""
        self._in_flight -= 1
        is_newer = not self._older
        self._older = max(0, self._older - 1)
        return is_newer
