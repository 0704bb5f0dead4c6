"""The budget of an origin's host: how often and how much all agents together may read. Pure.

Theory of operation
-------------------
The agent that rendezvous hashing ranks first for `origin:<host>` is the host's home. It keeps two
buckets and a clock: requests a second, bytes a second, and until when the host asked to be left
alone. An agent that wants to read asks it for an *allotment*; where no rate is set, only for news.

    member ── BudgetQuestion ──> home     so many requests and bytes; what I do not need; rests
    member <── BudgetReply ───── home     slots and bytes, each with its time; rests
    member <── BudgetQuestion ── home     a rest, to everybody who asked of late

Rule 1. A *slot* is a moment at which one request may leave. The bucket gives out moments, not
permissions: whoever comes when it is empty is told when its turn is, and does not ask again until
then. So a rate of 1/s is used as 1/s, without polling. Times are told as seconds from the message's
arrival, because clocks differ.
Rule 2. A slot is used once, within `lent_s` of its moment, or is lost. One that is handed back goes
to the next who asks, and keeps its end. So in any T seconds no more than
`burst + rate (T + lent_s)` requests leave, whatever gets lost.
Rule 3. Fairness: an agent whose moment is still to come gets nothing more, and at most its part of
`turn_s` at once. Everybody waits for one turn of each other, and who is idle holds nothing.
Rule 4. State is soft. A home that begins has empty buckets, and learns of rests from who asks. A
member drops what another home lent it. Two homes at a time lend twice the rate, for as long as
views differ.
Rule 5. A home that cannot be reached, gives nothing for far longer than a fair turn, or lends
moments further away than that, is gone without: the member helps itself to `rate / agents`, one
after the other.
Rule 6. Agents may be set differently, as while settings are rolled out. A reply says which of the
two its home limits. What the home does not limit and the member does, the member helps itself to;
what both limit, it takes from the home, and never faster than its own rate.
Rule 7. What peers say can slow origin reading down and nothing else. A home passes on a rest as
long as it was told, and for `told_rest_s_max` at most unless it hears of it again; each agent
believes in rests without having asked the origin itself only for so long (`origin/host_clock.py`).
Hosts and agents remembered are few hundreds and few thousands; whoever is idle is forgotten first.
"""

import heapq
import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.fields import Fields, written
from damselfly.p2p.messages import AGENT_PATTERN, AgentID

BUDGET_MESSAGE_BYTES_MAX: Final = 16 << 10
HOST_PATTERN: Final = re.compile(
    r"(?:\[[0-9a-f:.%]{2,60}\]|[a-z0-9_](?:[a-z0-9._-]{0,252}))(?::[0-9]{1,5})?", re.ASCII
)
_SLOTS_MAX: Final = 256
_BYTES_MAX: Final = 1 << 50
_SECONDS_MAX: Final = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What all agents together may ask of one host, in a second; None: as much as they like."""

    requests: float | None = None
    bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetLimits:
    """How budgets are shared out; every default with its reason."""

    turn_s: float = 0.5
    """What is lent at once to all who ask, in seconds of the rate: the longest wait for a turn."""
    lent_s: float = 2.0
    """A loaded agent wakes late; a dead one may waste so much."""
    burst_s: float = 0.25
    """What an idle bucket saves up, in seconds of its rate; one request at least."""
    bytes_min: int = 64 << 10
    """Less at once costs more talk than it is worth."""
    askers_s: float = 5.0
    """Who asked longer ago gets no part of a turn."""
    interested_s: float = 60.0
    """Who asked longer ago is not told of rests."""
    told_rest_s_max: float = 120.0
    """Nobody's word stops others for longer; who is really told to rest says so again."""
    hosts_max: int = 256
    agents_max: int = 4096
    idle_s: float = 300.0
    patience_turns: float = 3.0
    """After so many fair turns without a slot a member helps itself; it waits for none longer."""
    retry_s_min: float = 0.05
    """Whoever was given nothing asks again after so long at the earliest, whatever it was told."""
    alone_s: float = 5.0
    """For so long a home that does not limit what we do is not asked for it again."""


# --- messages -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BudgetQuestion:
    """An agent asks the home of `host` for an allotment, and tells what it knows.

    From a home to those who asked of late it is the same, and asks for nothing.
    """

    host: str
    agent: AgentID
    requests: int = 0
    """Slots that it has use for now."""
    length: int = 0
    """Bytes that it has use for, or has read already."""
    returned: int = 0
    """Slots that it was lent and will not use, the latest ones."""
    rests_s: float = 0.0
    """The host asked to be left alone for so long from now."""

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {"host": self.host, "agent": self.agent}
        for name in ("requests", "length", "returned", "rests_s"):
            if getattr(self, name):
                value[name] = getattr(self, name)
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "BudgetQuestion":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a question about a budget", data, BUDGET_MESSAGE_BYTES_MAX)
        return cls(
            fields.text("host", HOST_PATTERN),
            AgentID(fields.text("agent", AGENT_PATTERN)),
            fields.integer("requests", 0, _SLOTS_MAX, 0),
            fields.integer("length", 0, _BYTES_MAX, 0),
            fields.integer("returned", 0, _SLOTS_MAX, 0),
            fields.number("rests_s", 0.0, _SECONDS_MAX, 0.0),
        )


@dataclass(frozen=True, slots=True)
class BudgetReply:
    """What the home of a host answers, at once. Seconds count from its arrival."""

    slots: tuple[float, ...] = ()
    """When requests may leave; below zero: since when."""
    length: int = 0
    """Bytes that may be read, and when."""
    length_in_s: float = 0.0
    retry_after_s: float | None = None
    """There is nothing more for this agent before that."""
    rests_s: float = 0.0
    limits_requests: bool = False
    """The home has a rate of requests. If not, everybody goes by their own."""
    limits_bytes: bool = False
    """The home has a rate of bytes. If not, everybody goes by their own."""

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {}
        if self.slots:
            value["slots"] = [round(each, 4) for each in self.slots]
        if self.length:
            value["length"] = self.length
            value["length_in_s"] = round(self.length_in_s, 4)
        if self.retry_after_s is not None:
            value["retry_after_s"] = round(self.retry_after_s, 4)
        if self.rests_s:
            value["rests_s"] = round(self.rests_s, 4)
        if self.limits_requests:
            value["limits_requests"] = True
        if self.limits_bytes:
            value["limits_bytes"] = True
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "BudgetReply":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        what = "a reply about a budget"
        fields = Fields.parse(what, data, BUDGET_MESSAGE_BYTES_MAX)
        is_told = fields.has("retry_after_s")
        return cls(
            fields.items("slots", _SLOTS_MAX, lambda value: _offset(value, what)),
            fields.integer("length", 0, _BYTES_MAX, 0),
            fields.number("length_in_s", -_SECONDS_MAX, _SECONDS_MAX, 0.0),
            fields.number("retry_after_s", 0.0, _SECONDS_MAX) if is_told else None,
            fields.number("rests_s", 0.0, _SECONDS_MAX, 0.0),
            fields.flag("limits_requests"),
            fields.flag("limits_bytes"),
        )


def _offset(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RemoteProtocolError(f"{what} has a slot that is no number")
    if not -_SECONDS_MAX <= value <= _SECONDS_MAX:
        raise RemoteProtocolError(f"{what} has a slot that is far away")
    return float(value)


# --- the home -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TellRest:
    """Tell `agent` that a host asked for rest."""

    agent: AgentID
    host: str
    rests_s: float


class Bucket:
    """A bucket that gives out moments. It begins empty."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        assert rate > 0 < burst, "a bucket that fills"
        self._rate = rate
        self._slack_s = burst / rate
        self._full_s = now + self._slack_s
        """When it would be full if nothing more were taken."""

    def take(self, amount: float, now: float) -> float:
        """Take so much; returns from when on it may be used."""
        self._full_s = max(self._full_s, now) + amount / self._rate
        return max(now, self._full_s - self._slack_s)


@dataclass(slots=True)
class _Asker:
    asked_s: float
    slots: deque[float] = field(default_factory=deque[float])
    """The moments it was lent, and may still use."""
    bytes_s: float = 0.0
    """When the bytes it was lent last may be read."""


@dataclass(slots=True)
class _Host:
    requests: Bucket | None
    bytes: Bucket | None
    asked_s: float
    rests_until_s: float = 0.0
    """Until when the rest is passed on."""
    rest_ends_s: float = 0.0
    """When it ends, as was told."""
    askers: OrderedDict[AgentID, _Asker] = field(default_factory=OrderedDict[AgentID, _Asker])
    """Longest silent first."""
    free: list[float] = field(default_factory=list[float])
    """Slots that were handed back: a heap."""


class BudgetHome:
    """All hosts that this agent is home of. Facts in, answers out; belongs to one task."""

    def __init__(self, rates: Rates, limits: BudgetLimits | None = None) -> None:
        self._rates = rates
        self._limits = limits or BudgetLimits()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._actions: deque[TellRest] = deque()

    def __repr__(self) -> str:
        return f"<BudgetHome {len(self._hosts)} hosts>"

    def asked(self, question: BudgetQuestion, now: float) -> BudgetReply:
        """Answer an agent, and take in what it tells."""
        host = self._host(question.host, now)
        asker = self._asker(host, question.agent, now)
        self._take_back(host, asker, question.returned, now)
        if question.rests_s:
            self._rest(question, host, now)
        slots: tuple[float, ...] = ()
        retry_after_s = None
        if host.requests is not None and question.requests:
            if asker.slots and asker.slots[-1] > now:
                retry_after_s = asker.slots[-1] - now
            else:
                slots = self._slots(host, host.requests, asker, question.requests, now)
        lent = 0
        if host.bytes is not None and question.length:
            if asker.bytes_s > now:
                retry_after_s = max(retry_after_s or 0.0, asker.bytes_s - now)
            else:
                lent = min(question.length, self._bytes_part(host, now))
                asker.bytes_s = host.bytes.take(lent, now)
        return BudgetReply(
            slots=tuple(slot - now for slot in slots),
            length=lent,
            length_in_s=max(0.0, asker.bytes_s - now) if lent else 0.0,
            retry_after_s=retry_after_s,
            rests_s=max(0.0, host.rest_ends_s - now) if host.rests_until_s > now else 0.0,
            limits_requests=self._rates.requests is not None,
            limits_bytes=self._rates.bytes is not None,
        )

    def next_action(self) -> TellRest | None:
        """Whom to tell of a rest, if anybody."""
        return self._actions.popleft() if self._actions else None

    def _host(self, name: str, now: float) -> _Host:
        limits, rates = self._limits, self._rates
        host = self._hosts.get(name)
        if host is None:
            while self._hosts:
                oldest = next(iter(self._hosts.values()))
                is_idle = now - oldest.asked_s > limits.idle_s
                if not is_idle and len(self._hosts) < limits.hosts_max:
                    break
                self._hosts.popitem(last=False)
            requests = _bucket(rates.requests, 1.0, limits, now)
            host = _Host(requests, _bucket(rates.bytes, limits.bytes_min, limits, now), now)
            self._hosts[name] = host
        self._hosts.move_to_end(name)
        host.asked_s = now
        return host

    def _asker(self, host: _Host, agent: AgentID, now: float) -> _Asker:
        limits = self._limits
        asker = host.askers.get(agent)
        if asker is None:
            while host.askers:
                oldest = next(iter(host.askers.values()))
                is_gone = now - max(oldest.asked_s, *oldest.slots, oldest.bytes_s)
                if is_gone <= limits.interested_s and len(host.askers) < limits.agents_max:
                    break
                host.askers.popitem(last=False)
            asker = host.askers[agent] = _Asker(now)
        host.askers.move_to_end(agent)
        asker.asked_s = now
        while asker.slots and asker.slots[0] + limits.lent_s <= now:
            asker.slots.popleft()
        return asker

    def _take_back(self, host: _Host, asker: _Asker, count: int, now: float) -> None:
        for _ in range(min(count, len(asker.slots))):
            slot = asker.slots.pop()
            if slot + self._limits.lent_s > now:
                heapq.heappush(host.free, slot)

    def _rest(self, question: BudgetQuestion, host: _Host, now: float) -> None:
        until_s = now + min(question.rests_s, self._limits.told_rest_s_max)
        ends_s = host.rest_ends_s if host.rests_until_s > now else 0.0
        host.rest_ends_s = max(ends_s, now + question.rests_s)
        if until_s <= host.rests_until_s + 0.01:
            return
        host.rests_until_s = until_s
        for agent, asker in host.askers.items():
            if agent != question.agent and now - asker.asked_s <= self._limits.interested_s:
                self._actions.append(TellRest(agent, question.host, host.rest_ends_s - now))

    def _askers(self, host: _Host, now: float) -> int:
        """Among how many agents a turn is shared."""
        limits = self._limits
        count = 0
        for asker in reversed(host.askers.values()):
            last_s = max(asker.asked_s, asker.bytes_s, *asker.slots)
            if now - last_s > limits.askers_s:
                if now - asker.asked_s > limits.interested_s:
                    break
                continue
            count += 1
        return max(1, count)

    def _slots(
        self, host: _Host, bucket: Bucket, asker: _Asker, wanted: int, now: float
    ) -> tuple[float, ...]:
        limits = self._limits
        assert self._rates.requests is not None, "who has a bucket has a rate"
        part = int(self._rates.requests * limits.turn_s / self._askers(host, now))
        slots: list[float] = []
        for _ in range(min(wanted, max(1, part), _SLOTS_MAX)):
            while host.free and host.free[0] + limits.lent_s <= now:
                heapq.heappop(host.free)
            if host.free and host.free[0] + limits.lent_s / 2 > now:
                slots.append(heapq.heappop(host.free))
            else:
                slots.append(bucket.take(1, now))
        slots.sort()
        asker.slots.extend(slots)
        return tuple(slots)

    def _bytes_part(self, host: _Host, now: float) -> int:
        assert self._rates.bytes is not None, "who has a bucket has a rate"
        part = int(self._rates.bytes * self._limits.turn_s / self._askers(host, now))
        return max(self._limits.bytes_min, part)


def _bucket(rate: float | None, least: float, limits: BudgetLimits, now: float) -> Bucket | None:
    if rate is None:
        return None
    return Bucket(rate, max(least, rate * limits.burst_s), now)


# --- a member -----------------------------------------------------------------------------------


class BudgetMember:
    """What one agent was lent of one host. Facts in, answers out; belongs to one task."""

    def __init__(self, rates: Rates, now: float, limits: BudgetLimits | None = None) -> None:
        self._rates = rates
        self._limits = limits or BudgetLimits()
        self._slots: deque[float] = deque()
        self._bytes = 0
        """What may still be read; below zero: read already, and not lent yet."""
        self._bytes_from_s = now
        self._shared_s = now
        """When we last helped ourselves to a request, and to bytes."""
        self._bytes_shared_s = now
        self._own_s = now
        """When a bucket of our own rate would be full again."""
        self._own_bytes = _own_bytes(rates, self._limits, now)
        self._retry_s = now
        self._without_since_s: float | None = None
        self._alone_until_s = float("-inf")
        """The home does not limit requests, and is not asked for them; then bytes."""
        self._bytes_alone_until_s = float("-inf")

    def dropped(self) -> None:
        """Another agent is home now: what the former one lent us is not ours."""
        self._slots.clear()
        self._bytes = min(0, self._bytes)
        self._without_since_s = None
        self._alone_until_s = self._bytes_alone_until_s = float("-inf")

    # --- requests ---

    def next_slot(self, now: float) -> float | None:
        """When the next request may leave; None: the home has to be asked."""
        while self._slots and self._slots[0] + self._limits.lent_s <= now:
            self._slots.popleft()
        if not self._slots:
            return None
        slack_s = self._limits.burst_s + self._limits.lent_s
        return max(self._slots[0], self._own_s - slack_s)

    def slot_used(self) -> None:
        """A request left."""
        slot_s = self._slots.popleft()
        if self._rates.requests is not None:
            self._own_s = max(self._own_s, slot_s) + 1 / self._rates.requests

    @property
    def spare(self) -> int:
        """Slots in hand."""
        return len(self._slots)

    def give_back(self) -> int:
        """Keep none of them; returns how many they were."""
        count = len(self._slots)
        self._slots.clear()
        return count

    # --- bytes ---

    def read(self, length: int, now: float) -> float | None:
        """So many bytes came; tells when to go on reading, or None: the home has to be asked."""
        self._bytes -= length
        return self.next_read(now)

    def next_read(self, now: float) -> float | None:
        """When to go on reading; None: the home has to be asked."""
        if self._bytes < 0:
            return None
        return max(now, self._bytes_from_s)

    @property
    def debt(self) -> int:
        """Bytes that were read and not lent."""
        return max(0, -self._bytes)

    # --- the home ---

    def may_ask(self, now: float) -> float:
        """When to ask the home again."""
        return max(now, self._retry_s)

    def goes_alone(self, now: float, *, of_bytes: bool) -> bool:
        """The home does not limit this, as it said a moment ago: there is no need to ask it."""
        return now < (self._bytes_alone_until_s if of_bytes else self._alone_until_s)

    def replied(self, reply: BudgetReply, agent_count: int, now: float) -> None:
        """The home answered what it was asked for."""
        limits, patience_s = self._limits, self._patience_s(agent_count)
        alone_s = now + limits.alone_s
        self._alone_until_s = float("-inf") if reply.limits_requests else alone_s
        self._bytes_alone_until_s = float("-inf") if reply.limits_bytes else alone_s
        slots = [slot for slot in reply.slots if -limits.lent_s < slot <= patience_s]
        self._slots.extend(sorted(now + slot for slot in slots))
        lent = self._accepted(reply, patience_s, now)
        if slots or (lent and self._bytes >= 0) or lent >= limits.bytes_min:
            self._without_since_s = None
        elif self._without_since_s is None:
            self._without_since_s = now
        is_short = not (slots or lent) or self._bytes < 0
        retry_s = max(reply.retry_after_s or 0.0, limits.retry_s_min if is_short else 0.0)
        self._retry_s = now + min(retry_s, self._turn_s(agent_count))
        since_s = self._without_since_s
        is_far = any(slot > patience_s for slot in reply.slots) or reply.length_in_s > patience_s
        if is_far or (since_s is not None and now - since_s > patience_s):
            self.help_oneself(agent_count, now)
        if not reply.limits_requests:
            self._help_to_a_slot(agent_count, now)
        if not reply.limits_bytes:
            self._help_to_bytes(agent_count, now)

    def _accepted(self, reply: BudgetReply, patience_s: float, now: float) -> int:
        """Take the bytes that the home lends, when it says or as our own rate has them."""
        if self._own_bytes is None or not reply.length or reply.length_in_s > patience_s:
            return 0
        assert self._rates.bytes is not None, "who has a bucket has a rate"
        part = max(self._limits.bytes_min, int(self._rates.bytes * self._limits.turn_s))
        lent = min(reply.length, self.debt + part)
        self._bytes += lent
        self._bytes_from_s = max(now + reply.length_in_s, self._own_bytes.take(lent, now))
        return lent

    def help_oneself(self, agent_count: int, now: float) -> None:
        """There is no home to ask: take a part that would be right if all agents took one."""
        self._help_to_a_slot(agent_count, now)
        self._help_to_bytes(agent_count, now)
        self._without_since_s = None

    def _help_to_a_slot(self, agent_count: int, now: float) -> None:
        if self._rates.requests is not None and not self._slots:
            interval_s = agent_count / self._rates.requests
            self._shared_s = max(now, self._shared_s + interval_s)
            self._slots.append(self._shared_s)

    def _help_to_bytes(self, agent_count: int, now: float) -> None:
        if self._rates.bytes is not None and self._bytes < 0:
            lent = max(-self._bytes, self._limits.bytes_min)
            took_s = lent * agent_count / self._rates.bytes
            self._bytes_shared_s = max(now, self._bytes_shared_s) + took_s
            self._bytes += lent
            self._bytes_from_s = self._bytes_shared_s

    def _turn_s(self, agent_count: int) -> float:
        """A fair turn: how long everybody's one request takes, with a second for the road."""
        rates, limits = self._rates, self._limits
        turn_s = limits.turn_s
        if rates.requests is not None:
            turn_s = max(turn_s, agent_count / rates.requests)
        if rates.bytes is not None:
            turn_s = max(turn_s, agent_count * limits.bytes_min / rates.bytes)
        return 1.0 + turn_s

    def _patience_s(self, agent_count: int) -> float:
        return self._limits.patience_turns * self._turn_s(agent_count)


def _own_bytes(rates: Rates, limits: BudgetLimits, now: float) -> Bucket | None:
    """A bucket that a home with the same rate never finds empty, whatever is late."""
    if rates.bytes is None:
        return None
    ahead_s = limits.burst_s + limits.lent_s + limits.turn_s
    return Bucket(rates.bytes, 2 * limits.bytes_min + rates.bytes * ahead_s, now)
