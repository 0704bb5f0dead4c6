"""Which agents there are: a pure core (facts in with `now`, commands out).

Theory of operation
-------------------
Discovery lists addresses; greeting an address (`GET /v1/hello`) tells which agent answers there.

    listed(addresses)  ─┐                       ┌─> Greet(address)
    answered(hello)    ─┼─> Membership ─────────┤
    failed(address)    ─┤        │              └─  next_deadline()
    greeted_by(agent)  ─┘        ├─> view: the agents believed alive, ourselves among them
                                 └─> has_met: whether we may act on it

Rule 1. An agent's id is the address it advertises; we know ourselves by our boot nonce, because the
list may name us by an address that we do not know as ours.
Rule 2. An agent that answered is alive until some greetings fail in a row, or one with a
refused or reset connection. A lost agent is greeted again with back-off as long as it is listed,
and at once when it greets us.
Rule 3. An address that leaves the list leaves the view: redirects and homes stay inside of it.
Rule 4. Views differ between agents for a while. That costs redundant asks, never wrong data.
Rule 5. We act only once we have *met* the others, or what two agents see differently would be read
twice from the origin. We have met an agent when it answered us *and* knows us: from then on both
rank the same homes. An address that refuses may be an agent that starts with us, so while we are
young it is greeted again and again; after `youth_s` whoever has not answered is taken for absent.
A list may come late, or in parts: an empty one that may still change has not told us of anybody,
and one that lacks an agent that greets us is not whole.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from damselfly.p2p.messages import AgentID


@dataclass(frozen=True, kw_only=True)
class MembershipLimits:
    """How often we look, and how much we believe."""

    greet_interval_s: float = 2.0
    """Between two greetings of an agent that answers; grows with their number."""
    greet_interval_per_peer_s: float = 0.02
    """A thousand agents are greeted every 20 s each: 50 greetings a second."""
    failures_max: int = 3
    """Silences in a row: a node under load answers late, and homes must not move for that."""
    back_off_s_min: float = 0.2
    back_off_s_max: float = 15.0
    youth_s: float = 3.0
    """Agents of a cluster start together, seconds apart when a node is busy. Where an address is
    listed at which nobody is, this is how much later every agent is ready."""
    young_interval_s: float = 0.1
    young_interval_per_peer_s: float = 0.001
    """A thousand that are not there yet are greeted once a second each."""
    hurry_s: float = 0.02
    """Between two greetings of an agent that greets us: it cannot make us do it endlessly."""
    addresses_max: int = 10_000


@dataclass(frozen=True, slots=True)
class Hello:
    """What an agent says of itself."""

    agent: AgentID
    boot: str
    zone: str


@dataclass(frozen=True, slots=True)
class Greet:
    """Ask who is at this address."""

    address: str


@dataclass(slots=True)
class _Contact:
    address: str
    due_s: float
    asked_s: float = float("-inf")
    is_asked: bool = False
    hello: Hello | None = None
    failures: int = 0
    is_me: bool = False
    knows_us: bool = False

    @property
    def is_met(self) -> bool:
        return self.is_me or (self.hello is not None and self.knows_us)


class Membership:
    """The agents we know of. Belongs to one task."""

    def __init__(self, me: Hello, limits: MembershipLimits | None = None, *, now: float) -> None:
        self.me = me
        self._limits = limits or MembershipLimits()
        self._contacts: dict[str, _Contact] = {}
        self._grown_s = now + self._limits.youth_s
        self._is_listed = False
        self._strangers: set[AgentID] = set()
        """Who greeted us while we are young: they have to be listed too."""
        self._has_met = False
        self.version = 0
        """Grows whenever `view` changes."""

    # --- facts ---------------------------------------------------------------

    def listed(self, addresses: Iterable[str], now: float) -> None:
        """Discovery sees exactly these addresses now."""
        wanted = set(sorted(set(addresses))[: self._limits.addresses_max])
        for address in self._contacts.keys() - wanted:
            if self._contacts.pop(address).hello is not None:
                self.version += 1
        for address in sorted(wanted - self._contacts.keys()):
            self._contacts[address] = _Contact(address, due_s=now)
        self._is_listed = bool(self._contacts)
        self._look(now)

    def listing_ended(self, now: float) -> None:
        """What is listed will never change: if it is nobody, there is nobody to meet."""
        self._is_listed = True
        self._look(now)

    def answered(self, address: str, hello: Hello, now: float, *, knows_us: bool) -> None:
        """An agent answered there; `knows_us`: we are in its view."""
        contact = self._contacts.get(address)
        if contact is None:
            return  # It left the list while we asked.
        contact.is_asked = False
        contact.failures = 0
        contact.is_me = hello.boot == self.me.boot
        contact.knows_us = knows_us
        known = None if contact.is_me else hello
        if contact.hello != known:
            contact.hello = known
            self.version += 1
        if not contact.is_met and self._is_young(now):
            contact.due_s = now + self._young_interval_s()
        else:
            contact.due_s = now + self._interval_s() * (15 if contact.is_me else 1)
        self._look(now)

    def failed(self, address: str, now: float, *, is_refused: bool = False) -> None:
        """Nobody answered there; `is_refused` when a connection was refused or reset."""
        contact = self._contacts.get(address)
        if contact is None:
            return
        contact.is_asked = False
        contact.failures += 1
        if self._is_young(now):
            contact.due_s = now + self._young_interval_s()
        else:
            rest_s = self._limits.back_off_s_min * 2 ** min(contact.failures - 1, 16)
            contact.due_s = now + min(self._limits.back_off_s_max, rest_s)
        is_gone = is_refused or contact.failures >= self._limits.failures_max
        if contact.hello is not None and is_gone:
            contact.hello = None
            self.version += 1

    def greeted_by(self, agent: AgentID, boot: str, now: float) -> bool:
        """An agent greeted us: tell whether it is in our view. If not, it is greeted back at once.

        Where the list has it by another name, it may be any of those that are absent.
        """
        is_known = False
        if self._is_young(now) and len(self._strangers) < self._limits.addresses_max:
            self._strangers.add(agent)
        for contact in self._called(agent):
            if contact.hello is not None and contact.hello.boot == boot:
                is_known = True
                if contact.is_met:
                    continue
            if not contact.is_me:
                self._hurry(contact, now)
        return is_known

    def suspected(self, agent: AgentID, now: float) -> None:
        """A connection to this agent broke: greet it at once."""
        for contact in self._contacts.values():
            if contact.hello is not None and contact.hello.agent == agent:
                contact.due_s = min(contact.due_s, now)

    # --- commands --------------------------------------------------------------

    def next_action(self, now: float) -> Greet | None:
        """Who to greet now, if anybody."""
        self._look(now)
        for contact in self._contacts.values():
            if not contact.is_asked and contact.due_s <= now:
                contact.is_asked = True
                contact.asked_s = now
                return Greet(contact.address)
        return None

    def next_deadline(self) -> float | None:
        """When to ask for actions again."""
        deadline = min((c.due_s for c in self._contacts.values() if not c.is_asked), default=None)
        if self._has_met:
            return deadline
        return self._grown_s if deadline is None else min(deadline, self._grown_s)

    # --- what we know ------------------------------------------------------------

    @property
    def has_met(self) -> bool:
        """We know everybody who is there, and they know us; or we have waited long enough."""
        return self._has_met

    @property
    def view(self) -> Mapping[AgentID, Hello]:
        """The agents believed alive, ourselves included."""
        agents = {c.hello.agent: c.hello for c in self._contacts.values() if c.hello is not None}
        agents[self.me.agent] = self.me
        return agents

    def _called(self, agent: AgentID) -> Iterator[_Contact]:
        """The contacts that may be this agent."""
        contact = self._contacts.get(agent)
        if contact is not None:
            yield contact
            return
        contacts = self._contacts.values()
        known = [c for c in contacts if c.hello is not None and c.hello.agent == agent]
        yield from known or [c for c in contacts if c.hello is None]

    def _hurry(self, contact: _Contact, now: float) -> None:
        contact.due_s = min(contact.due_s, max(now, contact.asked_s + self._limits.hurry_s))

    def _look(self, now: float) -> None:
        if not self._has_met:
            has_everybody = (
                self._is_listed
                and all(contact.is_met for contact in self._contacts.values())
                and self._strangers <= self.view.keys()
            )
            self._has_met = has_everybody or now >= self._grown_s
            if self._has_met:
                self._strangers.clear()

    def _is_young(self, now: float) -> bool:
        return not self._has_met and now < self._grown_s

    def _young_interval_s(self) -> float:
        limits = self._limits
        return max(limits.young_interval_s, limits.young_interval_per_peer_s * len(self._contacts))

    def _interval_s(self) -> float:
        limits = self._limits
        return max(limits.greet_interval_s, limits.greet_interval_per_peer_s * len(self._contacts))

    def __repr__(self) -> str:
        return f"<Membership {len(self.view)} alive of {len(self._contacts)} listed>"
