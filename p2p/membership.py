"""Which agents there are: a pure core (facts in with `now`, commands out).

Theory of operation
-------------------
Discovery lists addresses; greeting an address (`GET /v1/hello`) tells which agent answers there.

    listed(addresses)  ─┐                       ┌─> Greet(address)
    answered(hello)    ─┼─> Membership ─────────┤
    failed(address)    ─┘        │              └─  next_deadline(now)
                                 └─> view: the agents believed alive, ourselves among them

Rule 1. An agent's id is the address it advertises; we know ourselves by our boot nonce, because the
list may name us by an address that we do not know as ours.
Rule 2. An agent that answered is alive until some greetings fail in a row, or one with a
refused or reset connection. A lost agent is greeted again with back-off as long as it is listed,
and at once when it greets us.
Rule 3. An address that leaves the list leaves the view: redirects and homes stay inside of it.
Rule 4. Views differ between agents for a while. That costs redundant asks, never wrong data.
"""

from collections.abc import Iterable, Mapping
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
    """Agents of a cluster start together: who is not there yet will be in a moment."""
    back_off_s_max: float = 15.0
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
    is_asked: bool = False
    hello: Hello | None = None
    failures: int = 0
    is_me: bool = False


class Membership:
    """The agents we know of. Belongs to one task."""

    def __init__(self, me: Hello, limits: MembershipLimits | None = None) -> None:
        self.me = me
        self._limits = limits or MembershipLimits()
        self._contacts: dict[str, _Contact] = {}
        self.version = 0
        """Grows whenever `view` changes."""

    def listed(self, addresses: Iterable[str], now: float) -> None:
        """Discovery sees exactly these addresses now."""
        wanted = set(sorted(set(addresses))[: self._limits.addresses_max])
        for address in self._contacts.keys() - wanted:
            if self._contacts.pop(address).hello is not None:
                self.version += 1
        for address in sorted(wanted - self._contacts.keys()):
            self._contacts[address] = _Contact(address, due_s=now)

    def answered(self, address: str, hello: Hello, now: float) -> None:
        """An agent answered there."""
        contact = self._contacts.get(address)
        if contact is None:
            return  # It left the list while we asked.
        contact.is_asked = False
        contact.failures = 0
        contact.is_me = hello.boot == self.me.boot
        contact.due_s = now + self._interval_s() * (15 if contact.is_me else 1)
        known = None if contact.is_me else hello
        if contact.hello != known:
            contact.hello = known
            self.version += 1

    def failed(self, address: str, now: float, *, is_refused: bool = False) -> None:
        """Nobody answered there; `is_refused` when a connection was refused or reset."""
        contact = self._contacts.get(address)
        if contact is None:
            return
        contact.is_asked = False
        contact.failures += 1
        rest_s = self._limits.back_off_s_min * 2 ** min(contact.failures - 1, 16)
        contact.due_s = now + min(self._limits.back_off_s_max, rest_s)
        is_gone = is_refused or contact.failures >= self._limits.failures_max
        if contact.hello is not None and is_gone:
            contact.hello = None
            self.version += 1

    def greeted_by(self, agent: AgentID, now: float) -> None:
        """An agent that we may take for absent greeted us: greet it back at once."""
        contact = self._contacts.get(agent)
        if contact is not None and contact.hello is None and not contact.is_me:
            contact.due_s = min(contact.due_s, now)

    def suspected(self, agent: AgentID, now: float) -> None:
        """A connection to this agent broke: greet it at once."""
        for contact in self._contacts.values():
            if contact.hello is not None and contact.hello.agent == agent:
                contact.due_s = min(contact.due_s, now)

    def next_action(self, now: float) -> Greet | None:
        """Who to greet now, if anybody."""
        for contact in self._contacts.values():
            if not contact.is_asked and contact.due_s <= now:
                contact.is_asked = True
                return Greet(contact.address)
        return None

    def next_deadline(self) -> float | None:
        """When to ask for actions again."""
        return min((c.due_s for c in self._contacts.values() if not c.is_asked), default=None)

    @property
    def is_settled(self) -> bool:
        """Every listed address has answered or failed at least once."""
        return all(c.hello or c.failures or c.is_me for c in self._contacts.values())

    @property
    def view(self) -> Mapping[AgentID, Hello]:
        """The agents believed alive, ourselves included."""
        agents = {c.hello.agent: c.hello for c in self._contacts.values() if c.hello is not None}
        agents[self.me.agent] = self.me
        return agents

    def _interval_s(self) -> float:
        limits = self._limits
        return max(limits.greet_interval_s, limits.greet_interval_per_peer_s * len(self._contacts))

    def __repr__(self) -> str:
        return f"<Membership {len(self.view)} alive of {len(self._contacts)} listed>"
