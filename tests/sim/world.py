"""A whole swarm under a virtual clock: the real cores, the real messages, simulated machines.

No fact reaches a core except by a message that took its time. One `rng_seed` is one world.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from damselfly.model.digest import Digest
from damselfly.p2p.actions import (
    Action,
    Ask,
    AskFailure,
    CancelAsk,
    CancelOrigin,
    CloseLive,
    FetchOrigin,
    Finish,
    Follow,
    GiveUp,
    OpenLive,
    OriginFailure,
    ReportFailure,
    SendReport,
    TellCorrupt,
    Unfollow,
)
from damselfly.p2p.feed import HaveFeed
from damselfly.p2p.home import Home, HomeLimits
from damselfly.p2p.messages import AgentID, HaveLine, LiveLine, Reply, SwarmID
from damselfly.p2p.planner import Planner, PlannerLimits
from tests.sim.network import Events, Flow, Link, Network, Transfer

SWARM = SwarmID("a-swarm")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens in a world. Rates in bytes per second, times in seconds."""

    nodes: int = 8
    chunks: int = 256
    chunk_bytes: int = 4 << 20
    link_rate: float = 50e6
    """Each agent's uplink, and its downlink."""
    origin_rate: float = 50e6
    origin_connection_rate: float = math.inf
    origin_first_byte_s: float = 0.01
    delay_s: tuple[float, float] = (0.001, 0.005)
    handling_s: float = 0.002
    """Hashing a chunk and writing it."""
    is_sealed: bool = False
    """False is first contact: digests come with the claims."""
    loss: float = 0.0
    """Share of messages that come 200 ms late; a tenth of it breaks its stream or request."""
    slow: float = 0.0
    """Share of agents with a tenth of the link."""
    liars: float = 0.0
    """Share of agents whose chunks do not verify."""
    deaths: int = 0
    """Agents that die for good half-way; the home is the first."""
    is_death_silent: bool = True
    home_dies: bool = False
    late: int = 0
    """Agents that join at half-time."""
    stagger_s: float = 0.0
    """Agents arrive one by one over this time."""
    start_spread_s: float = 0.05
    denied: float = 0.0
    """Share of agents that the origin refuses."""
    unable: float = 0.0
    """Share of agents that cannot read the origin at all, and say so."""
    partial: float = 0.0
    """Share of agents that want only half of the chunks."""
    serve_slots: int = 8
    busy_retry_s: float = 0.05
    view_lag_s: float = 3.0
    """So long after a death the others' membership knows it."""
    stall_s: float = 3.0
    """A shell gives a transfer up that has not moved for so long."""
    tolerance: float = 1e-9
    visits_max: int = 10_000
    time_max: float = 40.0
    """The world ends after so many times the bound."""
    planner: PlannerLimits = field(default_factory=PlannerLimits)
    home: HomeLimits = field(default_factory=HomeLimits)

    @property
    def bound_s(self) -> float:
        """No swarm can be faster than this."""
        return self.chunks * self.chunk_bytes / min(self.origin_rate, self.link_rate)


@dataclass(slots=True, eq=False)
class _AskUnderWay:
    ask: Ask
    transfer: Transfer | None = None
    flow: Flow | None = None


@dataclass(slots=True, eq=False)
class _RunUnderWay:
    run_id: int
    flow: Flow
    pending: deque[int]
    transfer: Transfer | None = None
    done_bytes: float = 0.0


@dataclass(slots=True, eq=False)
class Node:
    """One simulated machine with its agent."""

    agent: AgentID
    up: Link
    down: Link
    is_liar: bool = False
    is_slow: bool = False
    is_denied: bool = False
    is_alive: bool = True
    is_dead: bool = False
    planner: Planner | None = None
    feed: HaveFeed | None = None
    home: Home | None = None
    home_boots: int = 0
    serving: int = 0
    followers: dict[AgentID, None] = field(default_factory=dict[AgentID, None])
    following: set[AgentID] = field(default_factory=set[AgentID])
    live_from: AgentID | None = None
    flows: dict[AgentID, Flow] = field(default_factory=dict[AgentID, Flow])
    """From others to here."""
    asks: dict[int, _AskUnderWay] = field(default_factory=dict[int, _AskUnderWay])
    runs: dict[int, _RunUnderWay] = field(default_factory=dict[int, _RunUnderWay])
    have_out_s: float = 0.0
    live_out_s: float = 0.0
    timer_s: float = math.inf
    home_timer_s: float = math.inf
    feed_timer_s: float = math.inf
    is_ticking: bool = False
    told_have: int = 0
    joined_s: float = 0.0
    finished_s: float | None = None
    reports: int = 0
    ask_count: int = 0
    busy_count: int = 0


class World:
    """A scenario with one rng_seed."""

    def __init__(self, scenario: Scenario, rng_seed: int) -> None:
        self.scenario = scenario
        self.random = random.Random(rng_seed)
        self.events = Events()
        self.network = Network(
            self.events, tolerance=scenario.tolerance, visits_max=scenario.visits_max
        )
        self.digests = [
            Digest(index.to_bytes(32, "little")) for index in range(1, scenario.chunks + 1)
        ]
        self.origin_up = Link(scenario.origin_rate)
        self.origin_chunks: list[int] = [0] * scenario.chunks
        self.origin_bytes = 0.0
        self.wasted_bytes = 0.0
        self.gave_up: list[AgentID] = []
        self.nodes: dict[AgentID, Node] = {}
        for number in range(scenario.nodes):
            agent = AgentID(f"10.0.{number // 250}.{number % 250 + 1}:7400")
            self.nodes[agent] = Node(agent, Link(scenario.link_rate), Link(scenario.link_rate))
        self._cast()
        self._schedule()

    # --- who is who ----------------------------------------------------------------

    def _cast(self) -> None:
        scenario = self.scenario
        names = list(self.nodes)
        self.random.shuffle(names)
        for share, name in ((scenario.slow, "is_slow"), (scenario.liars, "is_liar")):
            for _ in range(round(share * scenario.nodes)):
                setattr(self.nodes[names.pop()], name, True)
        for agent in self.random.sample(list(self.nodes), round(scenario.denied * scenario.nodes)):
            self.nodes[agent].is_denied = True
        for node in self.nodes.values():
            if node.is_slow:
                node.up.cap /= 10
                node.down.cap /= 10

    def _schedule(self) -> None:
        scenario = self.scenario
        agents = list(self.nodes)
        late = set(self.random.sample(agents, scenario.late))
        half_s = scenario.bound_s / 2
        for number, agent in enumerate(agents):
            start_s = self.random.uniform(0.0, scenario.start_spread_s)
            if agent in late:
                start_s += half_s
            elif scenario.stagger_s:
                start_s += scenario.stagger_s * number / len(agents)
            self.events.at(start_s, self._join, self.nodes[agent])
        if scenario.home_dies:
            self.events.at(half_s, self._kill_home)
        healthy = [a for a in agents if not self.nodes[a].is_liar and a not in late]
        for agent in self.random.sample(healthy, min(scenario.deaths, len(healthy) - 1)):
            self.events.at(half_s, self._kill, self.nodes[agent])

    def _join(self, node: Node) -> None:
        scenario = self.scenario
        now = self.events.now
        node.joined_s = now
        wanted = (1 << scenario.chunks) - 1
        if self.random.random() < scenario.partial:
            wanted &= ((1 << max(1, scenario.chunks // 2)) - 1) << self.random.randrange(
                max(1, scenario.chunks // 2)
            )
        node.feed = HaveFeed(now=now)
        node.planner = Planner(
            SWARM,
            node.agent,
            "boot",
            chunk_count=scenario.chunks,
            have=0,
            wanted=wanted,
            digests=dict(enumerate(self.digests)) if scenario.is_sealed else {},
            is_sealed=scenario.is_sealed,
            can_claim=self.random.random() >= scenario.unable,
            limits=scenario.planner,
            now=now,
        )
        node.planner.view_changed(self._view(node), now)
        self._drain(node)

    def _view(self, node: Node) -> list[AgentID]:
        """What discovery tells an agent: every agent that is not known to be dead."""
        return [agent for agent, other in self.nodes.items() if not other.is_dead]

    def _kill_home(self) -> None:
        alive = next(node for node in self.nodes.values() if node.planner is not None)
        assert alive.planner is not None
        self._kill(self.nodes[alive.planner.home])

    def _kill(self, node: Node) -> None:
        if not node.is_alive:
            return
        node.is_alive = False
        self.network.drop(node.flows.values())
        for run in node.runs.values():
            self.network.drop((run.flow,))
        is_silent = self.scenario.is_death_silent
        for other in self.nodes.values():
            flow = other.flows.get(node.agent)
            if flow is not None:
                self.network.drop((flow,))
            for ask_id, under_way in list(other.asks.items()):
                if under_way.ask.peer == node.agent:
                    failure = AskFailure.STALLED if is_silent else AskFailure.DEAD
                    wait_s = self.scenario.stall_s if is_silent else self._delay()
                    self._later(wait_s, self._ask_failed, other, ask_id, failure)
            lost_s = 5.0 if is_silent else self._delay()
            if node.agent in other.following:
                self._later(lost_s, self._peer_lost, other, node.agent)
            if other.live_from == node.agent:
                self._later(lost_s, self._live_lost, other, node.agent)
            if other.home is not None and node.live_from == other.agent:
                self._later(lost_s, self._unsubscribe, other, node.agent)
        self._later(self.scenario.view_lag_s, self._bury, node)

    def _bury(self, node: Node) -> None:
        node.is_dead = True
        for other in self.nodes.values():
            if other.is_alive and other.planner is not None:
                other.planner.view_changed(self._view(other), self.events.now)
                self._drain(other)

    # --- messages ------------------------------------------------------------------

    def _delay(self) -> float:
        low, high = self.scenario.delay_s
        delay_s = low + (high - low) * self.random.random()
        if self.scenario.loss and self.random.random() < self.scenario.loss:
            delay_s += 0.2
        return delay_s

    def _is_broken(self) -> bool:
        return self.scenario.loss > 0 and self.random.random() < self.scenario.loss / 10

    def _later(self, delay_s: float, do: Callable[..., None], *args: object) -> None:
        self.events.at(self.events.now + delay_s, do, *args)

    def _drain(self, node: Node) -> None:
        planner = node.planner
        if planner is None or not node.is_alive:
            return
        before = node.told_have
        while (action := planner.next_action()) is not None:
            self._do(node, action)
        if planner.have != before:
            self._feed(node)
        deadline = planner.next_deadline()
        if deadline is not None and deadline < node.timer_s:
            node.timer_s = deadline
            self.events.at(deadline, self._timer, node, deadline)

    def _timer(self, node: Node, deadline: float) -> None:
        if node.timer_s != deadline:
            return
        node.timer_s = math.inf
        if node.planner is not None and node.is_alive:
            node.planner.handle_timer(self.events.now)
            self._drain(node)

    def _do(self, node: Node, action: Action) -> None:
        match action:
            case SendReport():
                self._send_report(node, action)
            case OpenLive(home):
                node.live_from = home
                self._later(self._delay(), self._subscribe, self.nodes[home], node)
            case CloseLive(home):
                if node.live_from == home:
                    node.live_from = None
                self._later(self._delay(), self._unsubscribe, self.nodes[home], node.agent)
            case Follow(peer):
                node.following.add(peer)
                self._later(self._delay(), self._followed, self.nodes[peer], node)
            case Unfollow(peer):
                node.following.discard(peer)
                self.nodes[peer].followers.pop(node.agent, None)
            case Ask():
                node.ask_count += 1
                node.asks[action.ask_id] = _AskUnderWay(action)
                self._later(
                    self._delay(), self._asked, self.nodes[action.peer], node, action.ask_id
                )
                self._tick_on(node)
            case CancelAsk(ask_id):
                self._stop_ask(node, ask_id)
            case FetchOrigin(run_id, run):
                flow = Flow(self.origin_up, node.down, self.scenario.origin_connection_rate)
                indexes = deque(range(run.start, run.start + run.count))
                node.runs[run_id] = _RunUnderWay(run_id, flow, indexes)
                wait_s = self._delay() + self._delay() + self.scenario.origin_first_byte_s
                self._later(wait_s, self._origin_answers, node, run_id, wait_s)
                self._tick_on(node)
            case CancelOrigin(run_id):
                run_under_way = node.runs.pop(run_id)
                if run_under_way.transfer is not None:
                    arrived = self.network.cancel(run_under_way.flow, run_under_way.transfer)
                    self.origin_bytes += arrived
            case TellCorrupt():
                pass
            case Finish():
                assert node.planner is not None
                if node.finished_s is None:
                    node.finished_s = self.events.now
            case GiveUp():
                self.gave_up.append(node.agent)

    # --- home and members ------------------------------------------------------------

    def _send_report(self, node: Node, action: SendReport) -> None:
        node.reports += 1
        if action.home == node.agent:
            self._later(0.0, self._report_arrives, node, node, action)
            return
        home = self.nodes[action.home]
        if self._is_broken():
            self._later(self._delay(), self._report_failed, node, action, ReportFailure.UNREACHABLE)
            return
        if not home.is_alive:
            is_silent = self.scenario.is_death_silent and not home.is_dead
            self._later(
                action.patience_s if is_silent else self._delay(),
                self._report_failed,
                node,
                action,
                ReportFailure.SILENT if is_silent else ReportFailure.UNREACHABLE,
            )
            return
        self._later(self._delay(), self._report_arrives, home, node, action)

    def _report_arrives(self, home: Node, node: Node, action: SendReport) -> None:
        if not home.is_alive:
            self._later(action.patience_s, self._report_failed, node, action, ReportFailure.SILENT)
            return
        now = self.events.now
        if home.home is None:
            home.home_boots += 1
            home.home = self._new_home(home)
        reply = home.home.reported(action.report, now)
        self.check_home(home.home)
        self._drain_home(home)
        delay_s = 0.0 if home is node else self._delay()
        self._later(delay_s, self._reply_arrives, node, action, reply)

    def _new_home(self, node: Node, *, is_open: bool = True) -> Home:
        return Home(
            SWARM,
            f"home-{node.home_boots}",
            chunk_count=self.scenario.chunks,
            limits=self.scenario.home,
            is_open=is_open,
            now=self.events.now,
        )

    def _reply_arrives(self, node: Node, action: SendReport, reply: Reply) -> None:
        if node.planner is not None and node.is_alive:
            node.planner.reply_received(action.report.serial, reply, self.events.now)
            self._drain(node)

    def _report_failed(self, node: Node, action: SendReport, failure: ReportFailure) -> None:
        if node.planner is not None and node.is_alive:
            node.planner.report_failed(action.report.serial, failure, self.events.now)
            self._drain(node)

    def _drain_home(self, node: Node) -> None:
        home = node.home
        if home is None or not node.is_alive:
            return
        while (tell := home.next_action()) is not None:
            if self._is_broken():
                self._unsubscribe(node, tell.agent)
                self._later(self._delay(), self._live_lost, self.nodes[tell.agent], node.agent)
                continue
            when_s = max(node.live_out_s, self.events.now + self._delay())
            node.live_out_s = when_s
            self.events.at(when_s, self._live_line, self.nodes[tell.agent], node.agent, tell.line)
        deadline = home.next_deadline()
        if deadline is not None and deadline < node.home_timer_s:
            node.home_timer_s = deadline
            self.events.at(deadline, self._home_timer, node, deadline)

    def _home_timer(self, node: Node, deadline: float) -> None:
        if node.home_timer_s != deadline:
            return
        node.home_timer_s = math.inf
        if node.home is not None and node.is_alive:
            node.home.handle_timer(self.events.now)
            self._drain_home(node)

    def _subscribe(self, home: Node, node: Node) -> None:
        if not home.is_alive or home.home is None:
            self._later(self._delay(), self._live_lost, node, home.agent)
            return
        home.home.subscribed(node.agent, self.events.now)
        self._drain_home(home)

    def _unsubscribe(self, home: Node, agent: AgentID) -> None:
        if home.is_alive and home.home is not None:
            home.home.unsubscribed(agent, self.events.now)
            self._drain_home(home)

    def _live_line(self, node: Node, home: AgentID, line: LiveLine) -> None:
        if node.is_alive and node.planner is not None and node.live_from == home:
            node.planner.live_received(home, line, self.events.now)
            self._drain(node)

    def _live_lost(self, node: Node, home: AgentID) -> None:
        if node.is_alive and node.planner is not None and node.live_from == home:
            node.live_from = None
            node.planner.live_lost(home, self.events.now)
            self._drain(node)

    # --- have streams ------------------------------------------------------------------

    def _followed(self, node: Node, follower: Node) -> None:
        if not node.is_alive or node.planner is None or node.feed is None:
            self._later(self._delay(), self._peer_lost, follower, node.agent)
            return
        node.followers[follower.agent] = None
        when_s = node.have_out_s = max(node.have_out_s, self.events.now + self._delay())
        line = node.feed.first_line(node.planner.have)
        self.events.at(when_s, self._have_line, node.agent, (follower.agent,), line)

    def _feed(self, node: Node) -> None:
        planner, feed = node.planner, node.feed
        assert planner is not None
        assert feed is not None
        fresh = planner.have & ~node.told_have
        while fresh:
            low = fresh & -fresh
            feed.chunk_held(low.bit_length() - 1)
            fresh ^= low
        node.told_have = planner.have
        self._tell_followers(node)

    def _tell_followers(self, node: Node) -> None:
        assert node.feed is not None
        count = len(node.followers)
        line = node.feed.next_line(count, self.events.now)
        if line is not None and node.followers:
            agents = tuple(node.followers)
            if self.scenario.loss:
                agents = tuple(agent for agent in agents if not self._breaks(node, agent))
            when_s = node.have_out_s = max(node.have_out_s, self.events.now + self._delay())
            self.events.at(when_s, self._have_line, node.agent, agents, line)
        deadline = node.feed.next_deadline(count)
        if deadline is not None and deadline < node.feed_timer_s:
            node.feed_timer_s = deadline
            self.events.at(deadline, self._feed_timer, node, deadline)

    def _breaks(self, node: Node, follower: AgentID) -> bool:
        if not self._is_broken():
            return False
        del node.followers[follower]
        self._later(self._delay(), self._peer_lost, self.nodes[follower], node.agent)
        return True

    def _feed_timer(self, node: Node, deadline: float) -> None:
        if node.feed_timer_s != deadline:
            return
        node.feed_timer_s = math.inf
        if node.is_alive:
            self._tell_followers(node)

    def _have_line(self, peer: AgentID, followers: tuple[AgentID, ...], line: HaveLine) -> None:
        now = self.events.now
        for agent in followers:
            node = self.nodes[agent]
            if node.is_alive and node.planner is not None and peer in node.following:
                node.planner.peer_told(peer, line, now)
                if node.planner.has_work:
                    self._drain(node)

    def _peer_lost(self, node: Node, peer: AgentID) -> None:
        if node.is_alive and node.planner is not None and peer in node.following:
            node.following.discard(peer)
            node.planner.peer_lost(peer, self.events.now)
            self._drain(node)

    # --- asks ------------------------------------------------------------------------------

    def _asked(self, server: Node, node: Node, ask_id: int) -> None:
        under_way = node.asks.get(ask_id)
        if under_way is None:
            return
        if not server.is_alive or self._is_broken():
            is_silent = self.scenario.is_death_silent and not server.is_alive and not server.is_dead
            failure = AskFailure.STALLED if is_silent else AskFailure.DEAD
            wait_s = self.scenario.stall_s if is_silent else self._delay()
            self._later(wait_s, self._ask_failed, node, ask_id, failure)
            return
        assert server.planner is not None
        if not server.planner.have >> under_way.ask.index & 1:
            self._later(self._delay(), self._ask_failed, node, ask_id, AskFailure.MISSING)
            return
        if server.serving >= self.scenario.serve_slots:
            server.busy_count += 1
            self._later(
                self._delay(),
                self._ask_failed,
                node,
                ask_id,
                AskFailure.BUSY,
                self.scenario.busy_retry_s,
            )
            return
        server.serving += 1
        flow = node.flows.get(server.agent)
        if flow is None:
            flow = node.flows[server.agent] = Flow(server.up, node.down)
        under_way.flow = flow
        under_way.transfer = self.network.send(
            flow, self.scenario.chunk_bytes, self._served, server, node, ask_id
        )

    def _served(self, server: Node, node: Node, ask_id: int) -> None:
        server.serving -= 1
        under_way = node.asks.get(ask_id)
        if under_way is None:
            return
        self._later(self._delay() + self.scenario.handling_s, self._arrived, server, node, ask_id)

    def _arrived(self, server: Node, node: Node, ask_id: int) -> None:
        under_way = node.asks.get(ask_id)
        if under_way is None or not node.is_alive or node.planner is None:
            return
        if server.is_liar:
            self._ask_failed(node, ask_id, AskFailure.CORRUPT)
            return
        del node.asks[ask_id]
        assert under_way.ask.digest == self.digests[under_way.ask.index]
        node.planner.chunk_arrived(ask_id, self.events.now)
        self._drain(node)

    def _ask_failed(
        self, node: Node, ask_id: int, failure: AskFailure, retry_after_s: float = 0.0
    ) -> None:
        if node.asks.pop(ask_id, None) is None or not node.is_alive or node.planner is None:
            return
        node.planner.ask_failed(ask_id, failure, self.events.now, retry_after_s)
        self._drain(node)

    def _stop_ask(self, node: Node, ask_id: int) -> None:
        under_way = node.asks.pop(ask_id, None)
        if under_way is None or under_way.flow is None or under_way.transfer is None:
            return
        if under_way.transfer in under_way.flow.queue:
            self.nodes[under_way.ask.peer].serving -= 1
            self.wasted_bytes += self.network.cancel(under_way.flow, under_way.transfer)

    # --- the origin ---------------------------------------------------------------------------

    def _origin_answers(self, node: Node, run_id: int, first_byte_s: float) -> None:
        run = node.runs.get(run_id)
        if run is None or not node.is_alive or node.planner is None:
            return
        if node.is_denied:
            del node.runs[run_id]
            node.planner.origin_failed(run_id, OriginFailure.DENIED, self.events.now)
            self._drain(node)
            return
        node.planner.origin_answered(run_id, first_byte_s, self.events.now)
        self._origin_next(node, run)
        self._drain(node)

    def _origin_next(self, node: Node, run: _RunUnderWay) -> None:
        run.transfer = self.network.send(
            run.flow, self.scenario.chunk_bytes, self._origin_served, node, run
        )

    def _origin_served(self, node: Node, run: _RunUnderWay) -> None:
        index = run.pending.popleft()
        self.origin_chunks[index] += 1
        self.origin_bytes += self.scenario.chunk_bytes
        run.done_bytes += self.scenario.chunk_bytes
        if run.pending and run.run_id in node.runs:
            self._origin_next(node, run)
        self._later(
            self._delay() + self.scenario.handling_s, self._origin_arrived, node, run, index
        )

    def _origin_arrived(self, node: Node, run: _RunUnderWay, index: int) -> None:
        if run.run_id not in node.runs or not node.is_alive or node.planner is None:
            return
        if not run.pending and run.transfer is not None and not run.flow.queue:
            del node.runs[run.run_id]
        node.planner.origin_chunk_arrived(run.run_id, index, self.digests[index], self.events.now)
        self._drain(node)

    # --- progress --------------------------------------------------------------------------------

    def _tick_on(self, node: Node) -> None:
        if not node.is_ticking:
            node.is_ticking = True
            self._later(0.5, self._tick, node)

    def _tick(self, node: Node) -> None:
        """What a shell tells some times a second: bytes so far."""
        node.is_ticking = False
        planner = node.planner
        if planner is None or not node.is_alive or not (node.asks or node.runs):
            return
        now = self.events.now
        for ask_id, under_way in node.asks.items():
            if under_way.transfer is not None and under_way.flow is not None:
                arrived = self.network.arrived(under_way.flow, under_way.transfer)
                if arrived:
                    planner.ask_progressed(ask_id, int(arrived), now)
        for run_id, run in node.runs.items():
            if run.transfer is not None:
                arrived = self.network.arrived(run.flow, run.transfer) if run.flow.queue else 0
                planner.origin_progressed(run_id, int(run.done_bytes + arrived), now)
        self._tick_on(node)
        self._drain(node)

    # --- safety and the end -----------------------------------------------------------------------

    def check_home(self, home: Home) -> None:
        """One live claim for a chunk, at most W claims."""
        claimed = 0
        for _, bits in home.claims:
            assert bits, "a claim for nothing"
            assert not claimed & bits, "two live claims for a chunk"
            claimed |= bits
        assert len(home.claims) <= home.claims_max or home.has_adopted, "more claims than W"

    @property
    def honest(self) -> list[Node]:
        """Who must have everything in the end."""
        return [node for node in self.nodes.values() if not node.is_liar and not self._died(node)]

    def _died(self, node: Node) -> bool:
        return node.planner is not None and not node.is_alive

    def is_done(self) -> bool:
        """Everybody honest who lives has what it wants."""
        return all(node.planner is not None and node.finished_s is not None for node in self.honest)

    def run(self) -> Self:
        """Let it happen, until everybody is done or time is up."""
        end_s = self.scenario.time_max * self.scenario.bound_s + 60.0
        steps = 0
        while self.events.now < end_s:
            if not self.events.step():
                break
            steps += 1
            if steps % 64 == 0 and self.is_done():
                break
        return self

    @property
    def makespan(self) -> float:
        """When the last honest agent was done, as a multiple of the bound; slow ones apart."""
        return max(
            (
                (node.finished_s or math.inf) / self.scenario.bound_s
                for node in self.honest
                if not node.is_slow
            ),
            default=math.inf,
        )

    @property
    def origin_share(self) -> float:
        """Bytes the origin gave, as a multiple of the artifact."""
        return self.origin_bytes / (self.scenario.chunks * self.scenario.chunk_bytes)
