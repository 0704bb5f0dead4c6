"""A world whose agents start one after the other, meet, resolve a ref and pull what it is.

The real cores of membership and of refs decide; what stands here for the shell is `Agents`,
`Resolver` and `daemon._begin` in a few lines. Every agent is asked the moment it starts.
"""

from dataclasses import dataclass, field

from damselfly.agent.daemon import OPENING_S
from damselfly.model.digest import Digest
from damselfly.p2p.home import Home
from damselfly.p2p.membership import Greet, Hello, Membership, MembershipLimits
from damselfly.p2p.messages import AgentID
from damselfly.p2p.refs import RefHome, RefNews, RefReply, RefReport
from damselfly.p2p.rendezvous import ranked
from tests.sim.world import Node, Scenario, World

PLAN = Digest.of(b"plan")
RESOLVE_S = 0.005
"""Sooner than most messages arrive: who resolves too early has the plan too early."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """How agents come together, on top of a scenario."""

    membership: MembershipLimits = field(default_factory=MembershipLimits)
    opening_s: float = OPENING_S
    are_homes_closed: bool = True
    """They are opened `opening_s` after their agent has met the others."""


@dataclass(eq=False)
class Party:
    """What an agent knows of the others."""

    node: Node
    membership: Membership
    refs: RefHome
    version: int = 0
    is_open: bool = False
    has_met: bool = False
    is_resolving: bool = False
    timer_s: float = float("inf")

    @property
    def boot(self) -> str:
        return f"boot-{self.node.agent}"


class MeetingWorld(World):
    """A world in which nobody is told who is there."""

    def __init__(self, scenario: Scenario, meeting: Meeting, rng_seed: int) -> None:
        self.meeting = meeting
        self.parties: dict[AgentID, Party] = {}
        self.resolutions = 0
        super().__init__(scenario, rng_seed)

    def _schedule(self) -> None:
        for node in self.nodes.values():
            node.is_alive, node.is_dead = False, True
            start_s = self.random.uniform(0.0, self.scenario.start_spread_s)
            self.events.at(start_s, self._start, node)

    def _view(self, node: Node) -> list[AgentID]:
        return list(self.parties[node.agent].membership.view)

    def _new_home(self, node: Node, *, is_open: bool = True) -> Home:
        return super()._new_home(node, is_open=is_open and self.parties[node.agent].is_open)

    # --- the shell of membership -----------------------------------------------------------

    def _start(self, node: Node) -> None:
        now = self.events.now
        me = Hello(node.agent, f"boot-{node.agent}", "")
        is_closed = self.meeting.are_homes_closed
        party = Party(
            node,
            Membership(me, self.meeting.membership, now=now),
            RefHome(is_open=not is_closed),
            is_open=not is_closed,
        )
        self.parties[node.agent] = party
        node.is_alive, node.is_dead = True, False
        self._later(self._delay(), self._listed, party)

    def _listed(self, party: Party) -> None:
        party.membership.listed(self.nodes, self.events.now)
        self._pump(party)

    def _pump(self, party: Party) -> None:
        core = party.membership
        while (action := core.next_action(self.events.now)) is not None:
            self._later(self._delay(), self._greet, party, action)
        if core.version != party.version:
            party.version = core.version
            if party.node.planner is not None:
                party.node.planner.view_changed(self._view(party.node), self.events.now)
                self._drain(party.node)
            if party.is_resolving:
                self._tell(party, RefNews.RESOLVING)
        if core.has_met and not party.has_met:
            party.has_met = True
            rest_s = self.meeting.opening_s if len(core.view) > 1 else 0.0
            self._later(rest_s, self._open, party)
            self._tell(party, RefNews.ASK)
        deadline = core.next_deadline()
        if deadline is not None and deadline < party.timer_s:
            party.timer_s = deadline
            self.events.at(max(deadline, self.events.now + 0.001), self._wake, party, deadline)

    def _wake(self, party: Party, deadline: float) -> None:
        if party.timer_s == deadline:
            party.timer_s = float("inf")
            self._pump(party)

    def _greet(self, party: Party, action: Greet) -> None:
        other = self.parties.get(AgentID(action.address))
        if other is None:
            self._later(self._delay(), self._refused, party, action)
            return
        knows = other.membership.greeted_by(party.node.agent, party.boot, self.events.now)
        self._pump(other)
        self._later(self._delay(), self._answered, party, action, other.membership.me, knows)

    def _refused(self, party: Party, action: Greet) -> None:
        party.membership.failed(action.address, self.events.now, is_refused=True)
        self._pump(party)

    def _answered(self, party: Party, action: Greet, hello: Hello, knows_us: bool) -> None:
        now = self.events.now
        party.membership.answered(action.address, hello, now, knows_us=knows_us)
        self._pump(party)

    def _open(self, party: Party) -> None:
        party.is_open = True
        party.refs.opened()
        if party.node.home is not None:
            party.node.home.opened(self.events.now)
            self._drain_home(party.node)

    # --- the shell of refs -------------------------------------------------------------------

    def _tell(self, party: Party, news: RefNews) -> None:
        home = ranked("ref", self._view(party.node))[0]
        plan = PLAN if news is RefNews.PLANNED else None
        report = RefReport(news, "ref", party.node.agent, party.boot, plan)
        delay_s = 0.0 if home == party.node.agent else self._delay()
        self._later(delay_s, self._ref_told, self.parties[home], party, report)

    def _ref_told(self, home: Party, party: Party, report: RefReport) -> None:
        reply = home.refs.reported(report, self.events.now)
        if report.news is RefNews.ASK:
            delay_s = 0.0 if home is party else self._delay()
            self._later(delay_s, self._ref_replied, party, reply)

    def _ref_replied(self, party: Party, reply: RefReply) -> None:
        if reply.must_resolve:
            self.resolutions += 1
            party.is_resolving = True
            self._later(RESOLVE_S, self._resolved, party)
        elif reply.plan is not None:
            self._join(party.node)
        else:
            self._later(reply.retry_after_s or 0.2, self._tell, party, RefNews.ASK)

    def _resolved(self, party: Party) -> None:
        party.is_resolving = False
        self._tell(party, RefNews.PLANNED)
        self._join(party.node)
