"""What one member does about one swarm: whom it asks for what, and what it reads from the origin.

Theory of operation
-------------------
A planner knows what its home and its peers told it, nothing else. It never waits: the shell brings
facts, drains the actions, and comes back at the deadline.

    view_changed, urgent, leave ───────┐                 ┌─> SendReport, OpenLive, CloseLive
    reply_received, live_received ─────┤                 ├─> Follow, Unfollow
    peer_told, peer_lost ──────────────┼──>  Planner  ───┼─> Ask, CancelAsk, TellCorrupt
    chunk_arrived, ask_failed ─────────┤                 ├─> FetchOrigin, CancelOrigin
    origin_chunk_arrived, _failed ─────┤                 ├─> Finish, GiveUp
    handle_timer ──────────────────────┘                 └─  next_deadline()

A wanted chunk is, for this member:

    missing ──> asked (of one peer, of two when hedged) ──> held
       ^  └───> claimed (we read it from the origin)  ───────^
       └── failed, cancelled, handed back ──┘ (from both)

Rule 1. Time comes in as `now`; randomness comes in as the agent's id. The same facts give the same
actions.
Rule 2. The origin is read only under a claim of the home. Nothing else, no deadline and no failure
of a peer, makes a member read from the origin: that is how 1.00 F becomes 1.7 F.
Rule 3. A chunk is asked only of peers that said they hold it, and only once its digest is known.
Rule 4. The least asked peer first, and of what it offers the rarest chunk within a window that
follows file order. Few asks per peer: one that is being served and one that waits keep a connection
busy.
Rule 5. A busy peer is left alone as long as it says; others are asked meanwhile.
Rule 6. A hedge is a second ask to another peer, when a transfer stalls, or when there is nothing
else to ask and it takes far longer than usual. The first to arrive wins, the other is cancelled.
Rule 7. Wrong bytes: that peer is asked for this chunk no more; after three different chunks it is
quarantined. Lateness never quarantines: the late peer may be the last one who holds a chunk.
Rule 8. A reader's urgent chunk goes before everything, past the limit on asks if need be.
"""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from damselfly.model.bitmap import indexes_of
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
    GiveUpReason,
    OpenLive,
    OriginFailure,
    OriginReason,
    ReportFailure,
    TellCorrupt,
    Unfollow,
)
from damselfly.p2p.messages import (
    FOLLOWED_MAX,
    AgentID,
    HandBack,
    HaveLine,
    Lack,
    LiveLine,
    Member,
    OpenClaim,
    Reply,
    Run,
    State,
    SwarmID,
)
from damselfly.p2p.peers import Peer, Peers, rarest
from damselfly.p2p.rendezvous import score
from damselfly.p2p.reporter import Reporter, ReporterLimits, Standing


@dataclass(frozen=True, kw_only=True)
class PlannerLimits:
    """What a member does at once, and how patient it is."""

    asks_max: int = 7
    """One less than an agent's serve slots: the difference is what keeps asks from meeting a busy
    peer, and the slots are what spreads them over the holders (see DESIGN.md for the figures)."""
    asks_per_peer_max: int = 4
    """Where there are few peers; where there are many, one each."""
    origin_connections_max: int = 16
    window_chunks: int = 128
    hedges_max: int = 2
    hedge_factor: float = 3.0
    """An ask is late after so many times the usual."""
    hedge_s_min: float = 0.25
    stall_s: float = 2.0
    check_interval_s: float = 0.25
    busy_s_min: float = 0.02
    busy_s_max: float = 2.0
    dead_rest_s: float = 0.5
    dead_rest_s_max: float = 15.0
    corrupt_max: int = 3
    quarantine_s: float = 60.0
    quarantine_s_max: float = 3600.0
    origin_rest_s: float = 1.0
    origin_rest_s_max: float = 30.0
    lacking_max: int = 16
    lack_patience_s: float = 2.0
    give_up_s: float = 10.0
    extra_followed_max: int = 16
    reporter: ReporterLimits = field(default_factory=ReporterLimits)


@dataclass(slots=True, eq=False)
class _Ask:
    ask_id: int
    peer: Peer
    index: int
    asked_s: float
    moved_s: float
    received_bytes: int = 0
    is_hedge: bool = False


@dataclass(slots=True, eq=False)
class _OriginRun:
    run_id: int
    bits: int
    """What is left of it."""
    began_s: float
    """When it was answered, or its latest chunk came."""
    received_bytes: int = 0
    is_answered: bool = False
    is_resting: bool = False
    """The origin makes us wait: it asked for rest, or its budget is used up."""
    is_own: bool = False
    """Nobody granted it, and the home is not told."""

    @property
    def run(self) -> Run:
        start = (self.bits & -self.bits).bit_length() - 1
        return Run(start, self.bits.bit_length() - start)


class Planner:
    """One member's part in one swarm. Facts in, actions out; belongs to one task.

    `digests` holds every index for a sealed manifest, and at first contact what an earlier run of
    ours found out. `have` is part of what has a digest; `wanted` may be any set, held or not.
    `lengths` are the chunks' in bytes, where they differ. Who `is_eager` shall read everything from
    the origin, whatever the home says (`--origin always`): the one exception from Rule 2.
    """

    def __init__(
        self,
        swarm: SwarmID,
        agent: AgentID,
        boot: str,
        *,
        chunk_count: int,
        have: int,
        wanted: int,
        digests: Mapping[int, Digest],
        is_sealed: bool,
        can_claim: bool = True,
        is_eager: bool = False,
        zone: str = "",
        lengths: Sequence[int] | None = None,
        limits: PlannerLimits | None = None,
        now: float,
    ) -> None:
        self.swarm = swarm
        self.agent = agent
        self.chunk_count = chunk_count
        self.have = have
        """The chunks held."""
        self.wanted = wanted
        self.digests: dict[int, Digest] = dict(digests)
        """Every digest known. Invariant: a digest that verified a held chunk never changes."""
        self.artifact: Digest | None = None
        """The artifact's digest, as soon as anybody has sealed the manifest."""
        self.disputed = 0
        """Chunks whose bytes, as we read them from the origin, are not those the swarm means."""
        self._lengths = lengths
        self._mean_bytes = sum(lengths) / max(1, chunk_count) if lengths is not None else 1.0
        self.is_sealed = is_sealed
        """The swarm is named by an artifact, not by a plan at first contact."""
        self._can_claim = can_claim
        self._is_eager = is_eager and can_claim
        self._zone = zone
        self._limits = limits or PlannerLimits()
        self._known = 0
        for index in self.digests:
            self._known |= 1 << index
        assert not have & ~self._known, "a held chunk has a digest"
        self._order = score(swarm, agent)
        self._start = self._order * chunk_count >> 64
        self._salt = self._order & 0xFFFFF
        self._roll = self._order & 0xFFFFFFFF
        self._peers = Peers(chunk_count)
        self._listed: dict[AgentID, None] = {}
        self._reporter = Reporter(
            swarm, agent, boot, chunk_count=chunk_count, limits=self._limits.reporter, now=now
        )
        self._live: AgentID | None = None
        self._live_retry_s: float | None = None
        self._asks: dict[int, _Ask] = {}
        self._asks_of: dict[int, list[_Ask]] = {}
        self._asked = 0
        self._next_id = 0
        self._usual_s = 0.0
        self._runs: dict[int, _OriginRun] = {}
        self._fetching = 0
        self._urgent: list[int] = []
        self._first_byte_s: float | None = None
        self._chunk_s: float | None = None
        self._origin_failures = 0
        self._origin_rests_until_s = now
        self._is_denied = False
        self._stuck_since_s: float | None = None
        self._moved_s = now
        self._check_s = now
        self._is_finished = False
        self._has_given_up = False
        self._has_left = False
        self._actions: deque[Action] = deque()
        self._wake_s = math.inf
        """When the first peer has rested that we could ask."""
        self._is_dirty = True
        self._now = now
        self._mind_end()  # Whoever starts with everything is a holder from the beginning.

    # --- facts: the home -----------------------------------------------------------

    def view_changed(self, agents: Collection[AgentID], now: float) -> None:
        """These agents are believed alive, with or without ourselves."""
        self._now = now
        self._reporter.view_changed(agents, now)
        self._mind_home()

    def reply_received(self, serial: int, reply: Reply, now: float) -> None:
        """The home answered the report with this serial."""
        self._now = now
        if self._has_left or not self._reporter.replied(serial, reply, now):
            return
        if reply.sealed is not None:
            self.artifact = reply.sealed
        if not self._is_finished:
            if self._live is None and self._live_retry_s is None:
                self._live = self._reporter.home
                self._actions.append(OpenLive(self._live))
            if reply.members is not None:
                self._follow_exactly(reply.members)
            for _, agents in reply.holders:
                for agent in agents[:2]:
                    self._follow_too(agent)
            for run in reply.revoked:
                self._drop_run(run.bits)
        for run in reply.grants:
            self._begin(run)
        self._mind_hope(reply)
        self._is_dirty = True

    def report_failed(self, serial: int, failure: ReportFailure, now: float) -> None:
        """The report with this serial was not answered."""
        self._now = now
        self._reporter.failed(serial, failure, now)
        self._mind_home()

    def live_received(self, home: AgentID, line: LiveLine, now: float) -> None:
        """The home said something without being asked."""
        self._now = now
        if home != self._live:
            return
        for index in line.forgotten:
            self._forget(index)
        for index, digest in line.digests.items():
            self._learn(index, digest)
        if line.sealed is not None:
            self.artifact = line.sealed
        for member in line.joined:
            self._follow(member)
        for agent in line.left:
            self._unfollow(agent)
        if line.has_claims:
            self._reporter.hurry()
        self._is_dirty = True

    def live_lost(self, home: AgentID, now: float) -> None:
        """The live stream ended, or could not be opened."""
        self._now = now
        if home == self._live:
            self._live = None
            self._live_retry_s = now + self._limits.dead_rest_s
            self._reporter.live_lost(now)

    # --- facts: peers ----------------------------------------------------------------

    def peer_told(self, peer: AgentID, line: HaveLine, now: float) -> None:
        """A peer said what it holds."""
        self._now = now
        known = self._peers.get(peer)
        if known is None or not known.is_followed:
            return
        if line.is_leaving:
            self._unfollow(peer)
            return
        known.is_dead = False
        known.failures = 0
        if self._peers.told(known, line) & self._missing():
            self._is_dirty = True

    def peer_lost(self, peer: AgentID, now: float) -> None:
        """A peer's have stream ended, or could not be opened."""
        self._now = now
        known = self._peers.get(peer)
        if known is None or not known.is_followed:
            return
        known.is_followed = False
        self._peers.forget_chunks(known)
        self._rest_dead(known)
        self._is_dirty = True

    def chunk_arrived(self, ask_id: int, now: float) -> bool:
        """What was asked has come, is verified and kept; False if it is not held for that.

        Then the ask was cancelled too late: another one won, or the chunk is by now known to be
        other bytes.
        """
        self._now = now
        ask = self._asks.get(ask_id)
        if ask is None:
            return False
        took_s = now - ask.asked_s
        self._usual_s = took_s if not self._usual_s else 0.8 * self._usual_s + 0.2 * took_s
        ask.peer.failures = ask.peer.busies = 0
        self._moved_s = now
        self._end_ask(ask)
        self._hold(ask.index)
        self._reporter.chunk_got(ask.index)
        return True

    def ask_progressed(self, ask_id: int, received_bytes: int, now: float) -> None:
        """So many bytes of what was asked are here; told some times a second."""
        self._now = now
        ask = self._asks.get(ask_id)
        if ask is not None and received_bytes > ask.received_bytes:
            ask.received_bytes = received_bytes
            ask.moved_s = now

    def ask_failed(
        self, ask_id: int, failure: AskFailure, now: float, retry_after_s: float = 0.0
    ) -> None:
        """What was asked will not come."""
        self._now = now
        ask = self._asks.get(ask_id)
        if ask is None:
            return
        limits = self._limits
        peer = ask.peer
        self._end_ask(ask)
        if failure is AskFailure.BUSY:
            rest_s = max(retry_after_s, limits.busy_s_min) * 2 ** min(peer.busies, 8)
            rest_s = min(rest_s, limits.busy_s_max)
            peer.busies += 1
            self._rest(peer, rest_s)
        elif failure is AskFailure.MISSING:
            self._peers.avoid(peer, ask.index)
        elif failure is AskFailure.CORRUPT:
            self._mistrust(peer, ask.index)
        elif failure is AskFailure.DEAD:
            self._rest_dead(peer)
        else:
            self._rest(peer, limits.stall_s)
        self._is_dirty = True

    # --- facts: the origin -----------------------------------------------------------

    def origin_answered(self, run_id: int, first_byte_s: float, now: float) -> None:
        """The origin began to answer, after so long."""
        self._now = now
        self._first_byte_s = first_byte_s
        run = self._runs.get(run_id)
        if run is not None:
            run.began_s = now
            run.is_answered = True

    def origin_progressed(self, run_id: int, received_bytes: int, now: float) -> None:
        """So many bytes of the whole run are here; told some times a second."""
        self._now = now
        run = self._runs.get(run_id)
        if run is not None:
            run.received_bytes = received_bytes

    def origin_waits(self, run_id: int, now: float, *, is_resting: bool) -> None:
        """The origin makes a run wait, or it goes on."""
        self._now = now
        run = self._runs.get(run_id)
        if run is not None:
            run.is_resting = is_resting

    def origin_chunk_arrived(self, run_id: int, index: int, digest: Digest, now: float) -> None:
        """A chunk of a run has come, is hashed and kept."""
        self._now = now
        run = self._runs.get(run_id)
        if run is None or not run.bits >> index & 1:
            return  # The run was cancelled meanwhile.
        if run.is_answered:
            self._time_chunk(index, now - run.began_s)
        run.began_s = self._moved_s = now
        run.bits &= ~(1 << index)
        self._fetching &= ~(1 << index)
        self._origin_failures = 0
        if not run.bits:
            del self._runs[run_id]
        for ask in self._asks_of.get(index, [])[:]:
            self._cancel(ask)
        if self.digests.setdefault(index, digest) != digest:
            self.disputed |= 1 << index
            self.digests[index] = digest
        self._known |= 1 << index
        self._hold(index)
        self._reporter.chunk_done(index, digest)

    def origin_failed(self, run_id: int, failure: OriginFailure, now: float) -> None:
        """The rest of a run will not come."""
        self._now = now
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        self._fetching &= ~run.bits
        if failure is OriginFailure.FAILED:
            limits = self._limits
            if now >= self._origin_rests_until_s:  # Of runs that break together one counts.
                rest_s = limits.origin_rest_s * 2 ** min(self._origin_failures, 16)
                self._origin_failures += 1
                self._origin_rests_until_s = now + min(rest_s, limits.origin_rest_s_max)
            if not run.is_own:
                self._reporter.claim_returned(run.run, HandBack.FAILED)
        else:
            self._is_denied = True
            if not run.is_own:
                self._reporter.claim_returned(run.run, HandBack.DENIED)
            if failure is OriginFailure.CHANGED:
                self._give_up(GiveUpReason.CHANGED)
        self._is_dirty = True

    # --- facts: ourselves --------------------------------------------------------------

    def chunk_copied(self, index: int, digest: Digest, now: float) -> bool:
        """A chunk was found elsewhere on this node; False if it was here already."""
        self._now = now
        if self.have >> index & 1:
            return False
        self.digests[index] = digest
        self._known |= 1 << index
        self._hold(index)
        self._reporter.chunk_got(index)
        return True

    def chunk_lost(self, index: int, now: float) -> None:
        """A chunk was found bad on our disk."""
        self._now = now
        if self.have >> index & 1:
            self.have &= ~(1 << index)
            self._reporter.chunk_lost(index)
            self._mind_end()

    def chunks_refuted(self, indexes: Collection[int], now: float) -> None:
        """These are of a file that is wrong: given up, with what we know of them."""
        self._now = now
        for index in indexes:
            self.have &= ~(1 << index)
            self._forget(index)
        self._reporter.chunks_refuted(indexes)
        self._mind_end()

    def urgent(self, index: int, now: float) -> None:
        """Somebody waits for this chunk."""
        self._now = now
        if not self.have >> index & 1 and index not in self._urgent:
            self._urgent.append(index)
            self._reporter.hurry()
            self._is_dirty = True

    def sealed(self, artifact: Digest, now: float) -> None:
        """We sealed the manifest: the artifact has a name."""
        self._now = now
        self.artifact = artifact
        self._reporter.sealed(artifact)

    def leave(self, now: float) -> None:
        """Leave the swarm: end everything under way and say goodbye. No facts matter after it."""
        self._now = now
        if self._has_left:
            return
        for ask in list(self._asks.values()):
            self._cancel(ask)
        self._drop_run(self._fetching)
        self._let_go()
        goodbye = self._reporter.next_report(self._standing(), self._state, now, is_leaving=True)
        self._actions.append(goodbye)
        self._has_left = True

    def handle_timer(self, now: float) -> None:
        """Let time pass."""
        self._now = now
        home = self._reporter.home
        self._reporter.handle_timer(now)
        if self._reporter.home != home:
            self._mind_home()
        if now >= self._check_s:
            self._check()
        if now >= self._wake_s:
            self._wake_s = min(
                (peer.rests_until_s for peer in self._peers if peer.rests_until_s > now),
                default=math.inf,
            )
        self._is_dirty = True

    # --- commands ------------------------------------------------------------------------

    def next_action(self) -> Action | None:
        """The next thing to do, if any."""
        if not self._actions and not self._has_left:
            if self._is_dirty:
                self._is_dirty = False
                self._help_oneself()
                self._ask_peers()
            if self._reporter.is_due(self._now):
                self._actions.append(
                    self._reporter.next_report(self._standing(), self._state, self._now)
                )
        return self._actions.popleft() if self._actions else None

    def next_deadline(self) -> float | None:
        """When to call `handle_timer`; None once we have left."""
        if self._has_left:
            return None
        deadline = self._reporter.next_deadline()
        if not self._is_finished:
            deadline = self._check_s if deadline is None else min(deadline, self._check_s)
            deadline = min(deadline, self._wake_s)
        return deadline

    # --- for the shell to look at ----------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """There may be something to do: a shell with many facts at once need not drain each."""
        return self._is_dirty or bool(self._actions) or self._reporter.is_due(self._now)

    @property
    def is_complete(self) -> bool:
        """Every wanted chunk is held."""
        return not self.wanted & ~self.have

    @property
    def home(self) -> AgentID:
        """Whom we report to."""
        return self._reporter.home

    @property
    def peer_count(self) -> int:
        """How many peers we follow."""
        return sum(peer.is_followed for peer in self._peers)

    @property
    def unoffered(self) -> int:
        """How many wanted chunks we lack, and nobody we follow offers."""
        lacking = self.wanted & ~self.have
        for peer in self._peers:
            lacking &= ~peer.offered
        return lacking.bit_count()

    @property
    def asks(self) -> tuple[tuple[AgentID, int], ...]:
        """Which chunks are asked of whom."""
        return tuple((ask.peer.agent, ask.index) for ask in self._asks.values())

    @property
    def fetching(self) -> int:
        """The chunks we have a claim for."""
        return self._fetching

    @property
    def is_resting(self) -> bool:
        """Nothing is on its way, and all that we may read from the origin has to wait there."""
        return bool(self._runs) and all(run.is_resting for run in self._runs.values())

    @property
    def waiting_for(self) -> str | None:
        """What holds us up, in words for people; None while bytes are on their way."""
        if self.is_complete or self._asks or self._runs:
            return None
        if self._reporter.home_boot is None:
            return f"home {self._reporter.home}"
        if self._is_denied:
            return "peers (the origin refuses our credentials)"
        if self._now < self._origin_rests_until_s:
            return "origin (it failed, and is tried again)"
        if self._can_claim and not self._listed:
            return f"home {self._reporter.home} (to grant what to read)"
        return "peers"

    def __repr__(self) -> str:
        return (
            f"<Planner {self.agent} {self.have.bit_count()}/{self.wanted.bit_count()} held, "
            f"{len(self._asks)} asked, {self._fetching.bit_count()} claimed>"
        )

    # --- the home ----------------------------------------------------------------------------

    def _mind_home(self) -> None:
        """Listen to the home we have now."""
        if self._live is not None and self._live != self._reporter.home:
            self._actions.append(CloseLive(self._live))
            self._live = None
        self._live_retry_s = None

    def _mind_hope(self, reply: Reply) -> None:
        """Whether what we lack can still come from anywhere."""
        is_stuck = not (
            self.is_complete
            or reply.has_hope
            or self._asks
            or self._runs
            or any(peer.offered & self.wanted & ~self.have for peer in self._peers)
        )
        if not is_stuck:
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = self._now
        elif self._now - self._stuck_since_s >= self._limits.give_up_s:
            self._give_up(GiveUpReason.DENIED if self._is_denied else GiveUpReason.NO_ORIGIN)

    def _give_up(self, reason: GiveUpReason) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            self._actions.append(GiveUp(reason))

    def _learn(self, index: int, digest: Digest) -> None:
        known = self.digests.get(index)
        if known == digest:
            return
        if self.have >> index & 1:
            self.disputed |= 1 << index
            return  # Our bytes verified against our digest; the seal will tell who is right.
        # What is asked for by another digest would be held under this one.
        for ask in self._asks_of.get(index, [])[:]:
            self._cancel(ask)
        self.digests[index] = digest
        self._known |= 1 << index

    def _forget(self, index: int) -> None:
        """A digest is worth nothing any more; unless we hold the chunk, and say so again."""
        if self.is_sealed or index not in self.digests:
            return
        if self.have >> index & 1:
            self._reporter.tell_everything()
            return
        for ask in self._asks_of.get(index, [])[:]:
            self._cancel(ask)
        del self.digests[index]
        self._known &= ~(1 << index)

    def _state(self) -> State:
        return State(
            have=self.have,
            wanted=self.wanted,
            digests={} if self.is_sealed else self.digests,
            is_sealed=self.is_sealed,
            can_claim=self._can_claim and not self._is_denied,
            zone=self._zone,
            peers=(*self._listed, *self._reporter.shunned),
        )

    def _standing(self) -> Standing:
        return Standing(
            open=tuple(
                OpenClaim(run.run, run.received_bytes, run.is_resting)
                for run in self._runs.values()
                if not run.is_own
            ),
            room=self._room(),
            lacking=self._lacking(),
            urgent=self._urgent[0] if self._urgent else None,
            first_byte_s=self._first_byte_s,
            chunk_s=self._chunk_s,
            is_idle=self._is_finished,
        )

    def _room(self) -> int:
        if (
            not self._can_claim
            or self._is_eager
            or self._is_denied
            or self._is_finished
            or self._now < self._origin_rests_until_s
        ):
            return 0
        return max(0, self._limits.origin_connections_max - len(self._runs))

    def _lacking(self) -> tuple[Lack, ...]:
        """What we cannot get from anybody we know, although somebody should hold it."""
        if len(self._asks) >= self._limits.asks_max or self._is_finished:
            return ()
        lacking = self._missing() & self._known
        mistrusted = 0
        for peer in self._peers:
            lacking &= ~peer.offered
            mistrusted |= peer.have & ~peer.offered
        if self._now - self._moved_s < self._limits.lack_patience_s:
            lacking &= mistrusted
        lacks: list[Lack] = []
        for index in indexes_of(lacking):
            tried = [
                peer.agent
                for peer in self._peers
                if peer.is_dead or (peer.have & ~peer.offered) >> index & 1
            ]
            lacks.append(Lack(index, tuple(tried[:FOLLOWED_MAX])))
            if len(lacks) >= self._limits.lacking_max:
                break
        return tuple(lacks)

    # --- peers -----------------------------------------------------------------------------------

    def _follow_exactly(self, members: Collection[Member]) -> None:
        wanted = {member.agent for member in members}
        for agent in [agent for agent in self._listed if agent not in wanted]:
            self._unfollow(agent)
        for member in members:
            self._follow(member)

    def _follow(self, member: Member) -> None:
        if member.agent == self.agent or self._is_finished:
            return
        if len(self._listed) >= FOLLOWED_MAX + self._limits.extra_followed_max:
            return
        self._listed[member.agent] = None
        peer = self._peers.meet(
            member.agent,
            is_near=member.zone == self._zone,
            order=score(self.agent, member.agent) & 0xFFFFFFFF,
        )
        if not peer.is_followed and self._now >= peer.rests_until_s:
            peer.is_followed = True
            self._actions.append(Follow(member.agent))

    def _follow_too(self, agent: AgentID) -> None:
        if agent not in self._listed:
            self._follow(Member(agent, self._zone))

    def _unfollow(self, agent: AgentID) -> None:
        self._listed.pop(agent, None)
        peer = self._peers.get(agent)
        if peer is None:
            return
        if peer.is_followed:
            peer.is_followed = False
            self._actions.append(Unfollow(agent))
        self._peers.forget_chunks(peer)
        if not peer.corrupt and not peer.asks:
            self._peers.part(agent)

    def _let_go(self) -> None:
        for agent in list(self._listed):
            self._unfollow(agent)
        if self._live is not None:
            self._actions.append(CloseLive(self._live))
            self._live = None
        self._live_retry_s = None

    def _rest_dead(self, peer: Peer) -> None:
        limits = self._limits
        rest_s = min(limits.dead_rest_s * 2 ** min(peer.failures, 16), limits.dead_rest_s_max)
        peer.failures += 1
        peer.is_dead = True
        self._rest(peer, rest_s)
        self._reporter.found_dead(peer.agent)

    def _rest(self, peer: Peer, rest_s: float) -> None:
        """Leave a peer alone for a while."""
        peer.rests_until_s = max(peer.rests_until_s, self._now + rest_s)
        self._wake_s = min(self._wake_s, peer.rests_until_s)

    def _mistrust(self, peer: Peer, index: int) -> None:
        limits = self._limits
        digest = self.digests[index]
        self._actions.append(TellCorrupt(peer.agent, index, digest))
        self._reporter.found_corrupt(peer.agent)
        if not peer.avoided >> index & 1:
            peer.corrupt += 1
        if peer.corrupt >= limits.corrupt_max:
            rest_s = min(limits.quarantine_s * 2**peer.quarantines, limits.quarantine_s_max)
            peer.quarantines = min(peer.quarantines + 1, 16)
            peer.quarantined_until_s = self._now + rest_s
            peer.corrupt = 0
        self._peers.avoid(peer, index)

    # --- asking -----------------------------------------------------------------------------------

    def _missing(self) -> int:
        """Wanted, not held, not on its way."""
        return self.wanted & ~(self.have | self._asked | self._fetching)

    def _asks_per_peer_max(self) -> int:
        limits = self._limits
        share = (limits.asks_max + 1) // max(1, len(self._peers))
        return max(1, min(share, limits.asks_per_peer_max))

    def _ask_peers(self) -> None:
        """Fill the slots: the least asked peer first, of what it offers the rarest."""
        missing = self._missing() & self._known
        if not missing or self._is_finished:
            return
        if self._urgent:
            missing &= ~self._ask_urgent(missing)
        slots = self._limits.asks_max - len(self._asks)
        if slots <= 0:
            return
        now = self._now
        per_peer_max = self._asks_per_peer_max()
        usable = [
            peer
            for peer in self._peers
            if peer.offered & missing and peer.asks < per_peer_max and peer.rests_until_s <= now
        ]
        limits = self._limits
        while slots > 0 and usable:
            self._roll = roll = (self._roll * 1103515245 + 12345) & 0xFFFFFFFF
            peer = min(usable, key=lambda peer: (peer.asks, not peer.is_near, peer.order ^ roll))
            candidates = peer.offered & missing
            if not candidates:
                usable.remove(peer)
                continue
            index = rarest(
                candidates, self._peers.copies, self._start, limits.window_chunks, self._salt
            )
            self._ask(peer, index)
            missing &= ~(1 << index)
            slots -= 1
            if peer.asks >= per_peer_max:
                usable.remove(peer)

    def _ask_urgent(self, missing: int) -> int:
        """Ask for urgent chunks, beyond the slots: they are few."""
        asked = 0
        for index in self._urgent:
            if missing >> index & 1:
                peer = self._holder_of(index, None)
                if peer is not None:
                    self._ask(peer, index, is_urgent=True)
                    asked |= 1 << index
        return asked

    def _holder_of(self, index: int, other_than: Peer | None) -> Peer | None:
        """The least asked peer that offers a chunk."""
        return min(
            (
                peer
                for peer in self._peers
                if peer.offered >> index & 1
                and peer is not other_than
                and peer.rests_until_s <= self._now
            ),
            key=lambda peer: (peer.asks, not peer.is_near, peer.order),
            default=None,
        )

    def _ask(
        self, peer: Peer, index: int, *, is_urgent: bool = False, is_hedge: bool = False
    ) -> None:
        assert not self.have >> index & 1, "a held chunk is not asked for"
        ask = _Ask(self._next_id, peer, index, self._now, self._now, is_hedge=is_hedge)
        self._next_id += 1
        self._asks[ask.ask_id] = ask
        self._asks_of.setdefault(index, []).append(ask)
        self._asked |= 1 << index
        peer.asks += 1
        digest = self.digests[index]
        self._actions.append(Ask(ask.ask_id, peer.agent, index, digest, is_urgent, is_hedge))

    def _end_ask(self, ask: _Ask) -> None:
        del self._asks[ask.ask_id]
        ask.peer.asks -= 1
        others = self._asks_of[ask.index]
        others.remove(ask)
        if not others:
            del self._asks_of[ask.index]
            self._asked &= ~(1 << ask.index)
        if not ask.peer.asks and ask.peer.agent not in self._listed and not ask.peer.corrupt:
            self._peers.part(ask.peer.agent)
        self._is_dirty = True

    def _cancel(self, ask: _Ask) -> None:
        self._end_ask(ask)
        self._actions.append(CancelAsk(ask.ask_id, ask.peer.agent, ask.index))

    def _hold(self, index: int) -> None:
        self.have |= 1 << index
        for ask in self._asks_of.get(index, [])[:]:
            self._cancel(ask)
        if index in self._urgent:
            self._urgent.remove(index)
        self._is_dirty = True
        self._mind_end()

    def _mind_end(self) -> None:
        """Notice that everything is here, or that it is no more."""
        if self.is_complete and not self._is_finished:
            self._is_finished = True
            for ask in list(self._asks.values()):
                self._cancel(ask)
            self._drop_run(self._fetching)
            self._let_go()
            self._reporter.hurry()
            self._actions.append(Finish())
        elif not self.is_complete and self._is_finished:
            self._is_finished = False
            self._reporter.tell_everything()
        self._is_dirty = True

    # --- the origin -------------------------------------------------------------------------------

    def _time_chunk(self, index: int, took_s: float) -> None:
        """Learn how long a chunk of the mean size takes from the origin."""
        if self._lengths is not None:
            length = self._lengths[index]
            if 2 * length < self._mean_bytes:
                return  # A small one tells of delays, not of rates.
            took_s *= self._mean_bytes / length
        self._chunk_s = took_s if self._chunk_s is None else (self._chunk_s + took_s) / 2

    def _begin(self, run: Run, *, is_own: bool = False) -> None:
        """Work on a claim, or on what of it we still miss; `is_own`: nobody granted it."""
        bits = run.bits & self.wanted & ~self.have & ~self._fetching
        if not bits or self._is_finished or self._is_denied:
            self._reporter.claim_returned(run, HandBack.CANCELLED)
            return
        start = (bits & -bits).bit_length() - 1
        ahead = bits >> start
        count = ((ahead + 1) & ~ahead).bit_length() - 1
        taken = Run(start, count)
        if taken != run:
            self._reporter.hurry()  # What we left out of it is free again.
        origin = _OriginRun(self._next_id, taken.bits, self._now, is_own=is_own)
        self._next_id += 1
        self._runs[origin.run_id] = origin
        self._fetching |= taken.bits
        why, tried = self._reason_for(taken, is_own=is_own)
        self._actions.append(FetchOrigin(origin.run_id, taken, why, tried))

    def _reason_for(self, run: Run, *, is_own: bool) -> tuple[OriginReason, int]:
        """Why the origin is asked, and how many peers could not help."""
        tried = sum(1 for peer in self._peers if peer.have & ~peer.offered & run.bits)
        if is_own:
            return OriginReason.ALWAYS, tried
        if tried:
            return OriginReason.LACKING, tried
        return (OriginReason.CLAIM if self._listed else OriginReason.ALONE), 0

    def _help_oneself(self) -> None:
        """Who shall read everything from the origin waits for no grant."""
        rests = self._now < self._origin_rests_until_s
        if not self._is_eager or self._is_finished or self._is_denied or rests:
            return
        room = self._limits.origin_connections_max - len(self._runs)
        missing = self.wanted & ~(self.have | self._asked | self._fetching)
        ahead = missing >> self._start << self._start  # Others begin elsewhere.
        for index in (*islice(indexes_of(ahead), room), *islice(indexes_of(missing), room)):
            if room > 0 and not self._fetching >> index & 1:
                room -= 1
                self._begin(Run(index, 1), is_own=True)

    def _drop_run(self, bits: int) -> None:
        """Stop reading these chunks from the origin, and what else is in their runs."""
        for run in [run for run in self._runs.values() if run.bits & bits]:
            del self._runs[run.run_id]
            self._fetching &= ~run.bits
            self._actions.append(CancelOrigin(run.run_id))
            if not run.is_own:
                self._reporter.claim_returned(run.run, HandBack.CANCELLED)

    # --- time -------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Look after what only time changes."""
        now = self._now
        self._check_s = now + self._limits.check_interval_s
        if self._is_finished:
            return
        if self._live_retry_s is not None and now >= self._live_retry_s:
            self._live_retry_s = None
            if self._reporter.home_boot is not None:
                self._live = self._reporter.home
                self._actions.append(OpenLive(self._live))
        for agent in self._listed:
            peer = self._peers.get(agent)
            if peer is None:
                continue
            if peer.quarantined_until_s and now >= peer.quarantined_until_s:
                peer.quarantined_until_s = 0.0
                self._peers.refresh(peer)
            if not peer.is_followed and now >= peer.rests_until_s:
                peer.is_followed = True
                self._actions.append(Follow(agent))
        if self._asks:
            self._hedge()

    def _hedge(self) -> None:
        limits = self._limits
        now = self._now
        hedges = sum(ask.is_hedge for ask in self._asks.values())
        offered = 0
        for peer in self._peers:
            offered |= peer.offered
        is_starved = len(self._asks) < limits.asks_max and not (
            self._missing() & self._known & offered
        )
        late_s = max(limits.hedge_s_min, limits.hedge_factor * self._usual_s)
        for ask in list(self._asks.values()):
            if hedges >= limits.hedges_max:
                return
            if len(self._asks_of[ask.index]) > 1:
                continue
            is_urgent = ask.index in self._urgent and now - ask.asked_s > limits.hedge_s_min
            is_late = is_urgent or (is_starved and now - ask.asked_s > late_s)
            if is_late or now - ask.moved_s > limits.stall_s:
                other = self._holder_of(ask.index, ask.peer)
                if other is not None:
                    self._ask(other, ask.index, is_hedge=True)
                    hedges += 1
