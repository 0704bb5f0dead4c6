"""The home of a swarm: who holds what, and who may fetch what from the origin.

Theory of operation
-------------------
A home is a tracker, never a fetcher. Whoever rendezvous hashing ranks first for a swarm keeps one
of these for it, member or not. It answers at once and waits for nobody.

    reported(report)      ─┐                ┌─> Reply (returned at once)
    subscribed(agent)     ─┤                │
    unsubscribed(agent)   ─┼──>  Home  ─────┼─> Tell(agent, live line)
    handle_timer          ─┘                └─  next_deadline()

Rule 1. A chunk is *held* when a member says it has it, *claimed* when a member may fetch it from
the origin, and *free* otherwise. Only free chunks are granted, lowest index first, an urgent one
before all: files fill from their beginnings, and what is in flight stays close together.
Rule 2. A claim is one run of consecutive chunks. At most W (`claims_max`) live at once in the whole
swarm, shared evenly: with too many, members would each read a slice of the origin and only then
exchange them, and nobody's link would be used both ways from the start.
Rule 3. A claim lives while its holder's reports list it and its bytes grow. It ends when it is
done, handed back, missing from a report, or has not moved for `claim_patience_s`. Time alone never
moves it: a second reader of the same bytes would slow the first one down. Resting is not silence:
a holder that says that the origin makes it wait (429, or its budget is used up) keeps its claim for
`rest_patience_s`, for everybody else would have to wait as well.
Rule 4. A member that is silent is forgotten after three of its own heartbeats. Others' words (dead,
corrupt) only shorten the wait for one that is silent anyway, or pass over one that at least two
accuse, a quarter of the swarm at most, as long as somebody else can fetch what it lacks: a liar can
waste the time of its victims, not shut them out.
Rule 5. Who was refused by the origin (401, 403) is passed over in this swarm, as long as it runs.
Rule 6. State is soft. A home that does not know a reporter asks it for everything; one that hears
of members it does not know (it took over from a dead home) waits for them, at most `youth_s`, and
grants nothing meanwhile. Claims in flight go on and are adopted. Two homes at a time cost redundant
claims. A home in an agent that has just started is *closed*: it grants nothing before it is opened.
Rule 7. At first contact a digest is set once: by somebody who was granted the index, or, where
nobody works on it, by somebody who holds it. What several told a young home is settled by majority.
Rule 8. A member's word that a file is wrong refutes the digests of its chunks: as soon as nobody
holds such a chunk any more, its digest is forgotten and it is free, as if never read. A liar alone
cannot have one forgotten that others hold: they read the file for themselves (`hashing.py`).
Rule 9. A member that has tried all holders of a chunk and got it from none may fetch it itself. It
costs the origin no more than the liar could have cost it by asking directly.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from damselfly.errors import RemoteProtocolError
from damselfly.model.bitmap import indexes_of
from damselfly.model.digest import Digest
from damselfly.p2p.messages import (
    FOLLOWED_MAX,
    AgentID,
    HandBack,
    Lack,
    LiveLine,
    Member,
    Reply,
    Report,
    Run,
    State,
    SwarmID,
)
from damselfly.p2p.rendezvous import pair_score


@dataclass(frozen=True, kw_only=True)
class HomeLimits:
    """What a home allows, and how patient it is."""

    claims_min: int = 16
    claims_max: int = 256
    claims_share: int = 32
    """W = chunks / share, between the two above; but in a small artifact never more than an
    eighth of the chunks, or eight."""
    run_count_max: int = 8
    claim_patience_s: float = 5.0
    rest_patience_s: float = 600.0
    """So long a claim may rest without a byte: no longer than anybody waits for an origin."""
    claim_moved_bytes_min: int = 65_536
    """Less than this in `claim_patience_s` is no progress: a claim cannot be held by a trickle."""
    member_patience_s: float = 5.0
    """Silence after which a member is forgotten; or three of its heartbeats, if that is longer."""
    next_s_max: float = 60.0
    youth_s: float = 2.0
    settling_s: float = 0.25
    """So long after the latest arrival a member gets `settling_claims_max` claims at most, so that
    the first of eight that start together does not take everything."""
    settling_claims_max: int = 1
    retry_s: float = 0.5
    rest_s: float = 1.0
    """A member whose origin failed rests so long, twice as long each time."""
    rest_s_max: float = 30.0
    accusers_min: int = 2
    slow_factor: float = 3.0
    slow_members_min: int = 3
    slow_s: float = 30.0
    """So long a slow member is passed over before it is tried again."""
    adopted_max: int = 16
    """Claims of another home that a member may bring along."""
    live_interval_s: float = 0.01
    sweep_interval_s: float = 0.5
    members_max: int = 4096
    holders_told_max: int = 8


@dataclass(frozen=True, slots=True)
class Tell:
    """Write one line on the live stream of `agent`."""

    agent: AgentID
    line: LiveLine


@dataclass(slots=True, eq=False)
class _Claim:
    member: "_Member"
    bits: int
    """What is left of the run. Invariant: in no other claim of this home."""
    received_bytes: int
    moved_s: float
    rests_since_s: float | None = None
    """Since when it has rested without a byte in between."""
    is_contested: bool = False
    """Others say that they hold the chunk, but its claimant could get it from none of them."""


@dataclass(slots=True, eq=False)
class _Member:
    agent: AgentID
    boot: str
    zone: str
    can_claim: bool
    reported_s: float
    serial: int = -1
    have: int = 0
    wanted: int = 0
    next_s: float = 1.0
    room: int = 0
    claims: list[_Claim] = field(default_factory=list["_Claim"])
    is_denied: bool = False
    is_subscribed: bool = False
    is_sealed: bool = True
    is_hungry: bool = False
    """It could take more claims than it got. Invariant: not told of claims since it said so."""
    is_accused_dead: bool = False
    accusers: set[AgentID] = field(default_factory=set[AgentID])
    rests_until_s: float = 0.0
    failures: int = 0
    first_byte_s: float | None = None
    chunk_s: float | None = None
    timed_s: float = 0.0
    """When it first told `chunk_s`."""
    follows: dict[AgentID, int] = field(default_factory=dict[AgentID, int])
    """Whom it was told to follow, and how strongly drawn to each other the two are."""
    has_unseen: bool = False
    """`follows` changed and no line could tell it: the next reply does."""
    joined: list[Member] = field(default_factory=list[Member])
    left: list[AgentID] = field(default_factory=list[AgentID])

    @property
    def claims_well(self) -> bool:
        """It can fetch from the origin, as far as we know."""
        return self.can_claim and not self.is_denied


class Home:
    """What the home of one swarm knows. Soft state; belongs to one task.

    Keep one by swarm *and* chunk count: somebody who lies about the count is then alone.
    """

    def __init__(
        self,
        swarm: SwarmID,
        boot: str,
        *,
        chunk_count: int,
        limits: HomeLimits | None = None,
        is_open: bool = True,
        now: float,
    ) -> None:
        self._is_open = is_open
        self.swarm = swarm
        self.boot = boot
        self.chunk_count = chunk_count
        self._limits = limits or HomeLimits()
        self._members: dict[AgentID, _Member] = {}
        self._suspects: set[AgentID] = set()
        self._held = 0
        self._claims: list[_Claim] = []
        self._claimed = 0
        self._granted: dict[int, set[AgentID]] = {}
        """Who ever had a claim on an index whose digest is not known."""
        self.digests: dict[int, Digest] = {}
        self.artifact: Digest | None = None
        self._told_of: set[AgentID] = set()
        self._is_young = not is_open
        self._is_grown = False
        """It was young once. Nobody can make it young again."""
        self._born_s = now
        self._hearsay: dict[int, dict[AgentID, Digest]] = {}
        """Who told which digest of an index: an agent has one voice, however often it speaks."""
        self._joined_s = now
        self._is_unsettled = False
        self._sweep_s = now + self._limits.sweep_interval_s
        self._line_s = now - self._limits.live_interval_s
        self.has_adopted = False
        """Claims of another home were taken over: there may be more than W for a while."""
        self._has_news = False
        self._news: dict[int, Digest] = {}
        self._news_sealed: Digest | None = None
        self._refuted = 0
        """Chunks of files that somebody found wrong, and whose digests are still believed."""
        self._news_forgotten = 0
        self._actions: deque[Tell] = deque()
        self._heard_s = now

    # --- facts ---------------------------------------------------------------

    def reported(self, report: Report, now: float) -> Reply:
        """Take a member's report; answer it.

        Raises:
            RemoteProtocolError: it speaks of another number of chunks, or there is no room for it.
        """
        if report.chunk_count != self.chunk_count:
            raise RemoteProtocolError(
                f"{report.agent} counts {report.chunk_count} chunks, not {self.chunk_count}"
            )
        self._heard_s = now
        member = self._members.get(report.agent)
        if member is not None and member.boot != report.boot:
            self._forget(member)
            member = None
        if report.is_leaving:
            if member is not None:
                self._forget(member)
                self._refute(report.refuted)
            self._look_for_claimants(now)
            return Reply(self.boot)
        if member is None:
            if report.state is None:
                return Reply(self.boot, need_state=True)
            member = self._join(report, now)
        elif report.serial <= member.serial:
            return Reply(self.boot)  # It overtook a later one, which said all of it and more.
        self._take(member, report, now)
        reply = self._answer(member, report, now)
        self._look_for_claimants(now)
        return reply

    def subscribed(self, agent: AgentID, now: float) -> None:
        """A member opened its live stream; what it may have missed is told first."""
        member = self._members.get(agent)
        if member is None:
            return  # Its first report will come, and be asked for everything.
        member.is_subscribed = True
        member.has_unseen = False
        member.joined.clear()
        member.left.clear()
        line = LiveLine(
            digests={} if member.is_sealed else dict(self.digests),
            joined=tuple(self._introduce(other) for other in member.follows),
            has_claims=member.is_hungry and self._quota(member, now) > 0,
            sealed=self.artifact,
        )
        self._actions.append(Tell(agent, line))

    def unsubscribed(self, agent: AgentID, now: float) -> None:
        """A member's live stream ended: a word against it, if it falls silent too."""
        member = self._members.get(agent)
        if member is not None:
            member.is_subscribed = False
            member.has_unseen = True
            self._accuse_dead(member, now)
            self._look_for_claimants(now)

    def opened(self, now: float) -> None:
        """Our agent has met the others, and members of other homes have had time to report."""
        self._is_open = True
        self._look_for_claimants(now)

    def handle_timer(self, now: float) -> None:
        """Let time pass: silence ends claims and memberships."""
        if now >= self._sweep_s:
            self._sweep_s = now + self._limits.sweep_interval_s
            self._sweep(now)
        self._look_for_claimants(now)

    # --- commands --------------------------------------------------------------

    def next_action(self) -> Tell | None:
        """The next line to write, if any."""
        return self._actions.popleft() if self._actions else None

    def next_deadline(self) -> float | None:
        """When to call `handle_timer`; None while there are no members."""
        if not self._members:
            return None
        deadline = self._sweep_s
        if self._is_unsettled:
            deadline = min(deadline, self._joined_s + self._limits.settling_s)
        if self._has_news:
            deadline = min(deadline, self._line_s + self._limits.live_interval_s)
        return deadline

    # --- for the shell and tests to look at --------------------------------------

    @property
    def members(self) -> tuple[AgentID, ...]:
        """Who is in the swarm."""
        return tuple(self._members)

    @property
    def held(self) -> int:
        """The chunks that members hold."""
        return self._held

    @property
    def claims(self) -> tuple[tuple[AgentID, int], ...]:
        """Who may fetch which chunks from the origin."""
        return tuple((claim.member.agent, claim.bits) for claim in self._claims)

    @property
    def claims_max(self) -> int:
        """W: how many claims may live at once."""
        limits = self._limits
        share = self.chunk_count // limits.claims_share
        floor = min(limits.claims_min, max(8, self.chunk_count // 8))
        return max(floor, min(share, limits.claims_max))

    def idle_s(self, now: float) -> float:
        """How long nobody has reported: the shell drops a home nobody needs."""
        return now - self._heard_s

    def __repr__(self) -> str:
        return (
            f"<Home {self.swarm[:19]} {len(self._members)} members, {len(self._claims)} claims, "
            f"{self._held.bit_count()}/{self.chunk_count} held>"
        )

    # --- members -----------------------------------------------------------------

    def _join(self, report: Report, now: float) -> _Member:
        state = report.state
        assert state is not None, "only who sends its state joins"
        if len(self._members) >= self._limits.members_max:
            raise RemoteProtocolError(f"the swarm has {len(self._members)} members already")
        member = _Member(report.agent, report.boot, state.zone, state.can_claim, now)
        self._members[report.agent] = member
        self._joined_s = now
        self._is_unsettled = True
        self._pair_up(member)
        self._told_of.discard(report.agent)
        strangers = {peer for peer in state.peers if peer not in self._members}
        if strangers and not self._is_grown and now < self._born_s + self._limits.youth_s:
            self._is_young = True
            self._told_of |= strangers
        return member

    def _pair_up(self, member: _Member) -> None:
        """Everybody follows everybody; in a large swarm, those most drawn to each other."""
        for other in self._members.values():
            if other is member:
                continue
            strength = pair_score(member.agent, other.agent)
            for one, two in ((member, other), (other, member)):
                one.follows[two.agent] = strength
                if len(one.follows) > FOLLOWED_MAX:
                    weakest = min(one.follows, key=one.follows.__getitem__)
                    del one.follows[weakest]
                    if weakest == two.agent:
                        continue
                    if one is not member:
                        self._tell_change(one, left=weakest)
                if one is not member:
                    self._tell_change(one, joined=two)
        member.has_unseen = True

    def _tell_change(
        self, member: _Member, *, joined: _Member | None = None, left: AgentID | None = None
    ) -> None:
        if not member.is_subscribed:
            member.has_unseen = True
            return
        if joined is not None:
            member.joined.append(Member(joined.agent, joined.zone))
            if joined.agent in member.left:
                member.left.remove(joined.agent)
        if left is not None:
            member.left.append(left)
            member.joined = [other for other in member.joined if other.agent != left]
        self._has_news = True

    def _introduce(self, agent: AgentID) -> Member:
        return Member(agent, self._members[agent].zone)

    def _forget(self, member: _Member) -> None:
        del self._members[member.agent]
        self._suspects.discard(member.agent)
        for claim in member.claims[:]:
            self._end(claim)
        for other in self._members.values():
            if other.follows.pop(member.agent, None) is not None:
                self._tell_change(other, left=member.agent)
                if len(other.follows) < FOLLOWED_MAX // 2:
                    self._refill(other)
        self._count_held()
        if self._refuted:
            self._forget_refuted()

    def _refill(self, member: _Member) -> None:
        """Many of those a member followed have left a large swarm: find it others."""
        strangers = self._members.keys() - member.follows.keys() - {member.agent}
        drawn = sorted((pair_score(member.agent, agent), agent) for agent in strangers)
        for strength, agent in drawn[-(FOLLOWED_MAX - len(member.follows)) :]:
            member.follows[agent] = strength
            self._tell_change(member, joined=self._members[agent])

    def _count_held(self) -> None:
        held = 0
        for agent, member in self._members.items():
            if agent not in self._suspects:
                held |= member.have
        self._held = held

    # --- what a report says --------------------------------------------------------

    def _take(self, member: _Member, report: Report, now: float) -> None:
        member.serial = report.serial
        member.reported_s = now
        member.is_accused_dead = False
        member.next_s = min(report.next_s, self._limits.next_s_max)
        member.room = report.room
        if report.first_byte_s is not None:
            member.first_byte_s = report.first_byte_s
        if report.chunk_s is not None and report.chunk_s != member.chunk_s:
            member.chunk_s = report.chunk_s
            member.timed_s = now
        if report.state is not None:
            self._take_state(member, report.state, now)
        if report.done:
            member.failures = 0
        for index, digest in report.done:
            if self._learn(member, index, digest):
                self._hold(member, 1 << index)
        got = 0
        for index in report.got:
            got |= 1 << index
        self._hold(member, got)
        if report.lost:
            for index in report.lost:
                member.have &= ~(1 << index)
            self._count_held()
        if report.refuted:
            for index in report.refuted:
                member.have &= ~(1 << index)
            self._count_held()
            self._refute(report.refuted)
        for returned in report.returned:
            self._take_back(member, returned.reason, now)
        self._take_open(member, report, now)
        for agent in report.dead:
            accused = self._members.get(agent)
            if accused is not None and accused is not member:
                self._accuse_dead(accused, now)
        for agent in report.corrupt:
            self._accuse_corrupt(agent, member.agent)
        if report.sealed is not None and self.artifact is None:
            self.artifact = self._news_sealed = report.sealed
            self._has_news = True

    def _take_state(self, member: _Member, state: State, now: float) -> None:
        member.zone = state.zone
        member.can_claim = state.can_claim
        member.wanted = state.wanted
        member.is_sealed = state.is_sealed
        member.have = 0
        have = state.have
        for index, digest in state.digests.items():
            if self._is_young:
                self._hearsay.setdefault(index, {})[member.agent] = digest
            elif have >> index & 1 and not self._learn(member, index, digest):
                have &= ~(1 << index)
        self._hold(member, have)
        self._count_held()

    def _hold(self, member: _Member, bits: int) -> None:
        member.have |= bits
        if member.agent not in self._suspects:
            self._held |= bits

    def _learn(self, member: _Member, index: int, digest: Digest) -> bool:
        """Set the digest of an index, once; False if the member means something else by it."""
        if member.is_sealed:
            return True
        known = self.digests.get(index)
        if known is not None:
            return known == digest
        granted = self._granted.get(index, ())
        if member.agent not in granted and self._claimed >> index & 1:
            return False  # Somebody else was given the word on this one.
        self.digests[index] = digest
        self._news[index] = digest
        self._has_news = True
        self._granted.pop(index, None)
        return True

    def _refute(self, indexes: Iterable[int]) -> None:
        if not self.digests:
            return  # A sealed swarm: nobody learns digests here.
        for index in indexes:
            self._refuted |= 1 << index
        self._forget_refuted()

    def _forget_refuted(self) -> None:
        """Forget the digests that were refuted and that nobody stands for any more."""
        held = 0
        for member in self._members.values():
            held |= member.have
        gone = self._refuted & ~held
        if not gone:
            return
        self._refuted &= ~gone
        for index in indexes_of(gone):
            at_it = {claim.member.agent for claim in self._claims if claim.bits >> index & 1}
            self._granted[index] = at_it
            self._news.pop(index, None)
            self._hearsay.pop(index, None)
            if self.digests.pop(index, None) is not None:
                self._news_forgotten |= 1 << index
                self._has_news = True

    def _take_back(self, member: _Member, reason: HandBack, now: float) -> None:
        limits = self._limits
        if reason is HandBack.DENIED:
            member.is_denied = True
        elif reason is HandBack.FAILED:
            rest_s = min(limits.rest_s_max, limits.rest_s * 2 ** min(member.failures, 16))
            member.failures += 1
            member.rests_until_s = now + rest_s

    def _take_open(self, member: _Member, report: Report, now: float) -> None:
        """Bring a member's claims in line with what it says that it works on."""
        listed: list[_Claim] = []
        for entry in report.open:
            bits = entry.run.bits & ~member.have
            claim = next((claim for claim in member.claims if claim.bits & bits), None)
            if claim is None:
                claim = self._adopt(member, bits, entry.received_bytes, now)
                if claim is None:
                    continue
            elif claim in listed or not (claim.is_contested or bits & ~self._held):
                continue
            elif (
                bits & claim.bits != claim.bits
                or entry.received_bytes - claim.received_bytes >= self._limits.claim_moved_bytes_min
            ):
                self._claimed &= ~claim.bits | bits
                claim.moved_s = now
                claim.rests_since_s = None
                claim.received_bytes = entry.received_bytes
                claim.bits &= bits
            elif entry.is_resting:
                self._rest(claim, now)
            listed.append(claim)
        if len(listed) < len(member.claims):
            for claim in member.claims[:]:
                if claim not in listed:
                    self._end(claim)

    def _rest(self, claim: _Claim, now: float) -> None:
        """The origin makes its holder wait: it is not given up for that, for a long while."""
        if claim.rests_since_s is None:
            claim.rests_since_s = now
        if now - claim.rests_since_s < self._limits.rest_patience_s:
            claim.moved_s = now

    def _adopt(self, member: _Member, bits: int, received_bytes: int, now: float) -> _Claim | None:
        """Go on with a claim that another home granted, unless somebody here is at it."""
        limits = self._limits
        free = bits & ~self._claimed & ~self._held
        if (
            not free
            or free.bit_count() > limits.run_count_max
            or len(member.claims) >= limits.adopted_max
            or not member.claims_well
        ):
            return None
        self.has_adopted = True
        claim = _Claim(member, free, received_bytes, now)
        self._claims.append(claim)
        self._claimed |= free
        member.claims.append(claim)
        for index in indexes_of(free):
            if index not in self.digests and not member.is_sealed:
                self._granted.setdefault(index, set()).add(member.agent)
        return claim

    def _end(self, claim: _Claim) -> None:
        self._claims.remove(claim)
        claim.member.claims.remove(claim)
        self._claimed &= ~claim.bits

    def _accuse_dead(self, accused: _Member, now: float) -> None:
        accused.is_accused_dead = True
        if self._is_silent(accused, now):
            self._forget(accused)

    def _is_silent(self, member: _Member, now: float) -> bool:
        """It has missed a heartbeat by more than a delay could explain."""
        return now - member.reported_s > 1.6 * member.next_s

    def _accuse_corrupt(self, agent: AgentID, accuser: AgentID) -> None:
        accused = self._members.get(agent)
        if accused is None or agent == accuser:
            return
        accused.accusers.add(accuser)
        if (
            len(accused.accusers) >= self._limits.accusers_min
            and agent not in self._suspects
            and len(self._suspects) < len(self._members) // 4
        ):
            self._suspects.add(agent)
            self._count_held()

    # --- what a reply says ---------------------------------------------------------

    def _answer(self, member: _Member, report: Report, now: float) -> Reply:
        members: tuple[Member, ...] | None = None
        if member.has_unseen:
            members = tuple(self._introduce(agent) for agent in member.follows)
            member.has_unseen = False
        retry_after_s = None
        holders: list[tuple[int, tuple[AgentID, ...]]] = []
        contested = 0
        for lack in report.lacking:
            found = self._holders_of(lack, member)
            if found:
                holders.append((lack.index, found))
            elif (self._held & ~member.have) >> lack.index & 1:
                contested |= 1 << lack.index
        grants: tuple[Run, ...] = ()
        if self._is_young:
            retry_after_s = self._limits.retry_s
            member.is_hungry = report.room > 0
        else:
            grants = tuple(self._grant(member, report.urgent, contested, now))
            if member.rests_until_s > now:
                retry_after_s = member.rests_until_s - now
        return Reply(
            self.boot,
            grants=grants,
            revoked=self._revoked(member, report),
            members=members,
            holders=tuple(holders),
            retry_after_s=retry_after_s,
            has_hope=self._has_hope(member),
            sealed=self.artifact,
        )

    def _has_hope(self, member: _Member) -> bool:
        """Some of what it lacks is held, or wanted by somebody who can fetch it."""
        lacking = member.wanted & ~member.have
        return not lacking or any(
            (other.have & lacking and member.agent not in other.accusers)
            or (other.claims_well and other.wanted & ~other.have & lacking)
            for other in self._members.values()
            if other is member or other.agent not in self._suspects
        )

    def _holders_of(self, lack: Lack, asking: _Member) -> tuple[AgentID, ...]:
        found: list[AgentID] = []
        for agent, member in self._members.items():
            if (
                member.have >> lack.index & 1
                and member is not asking
                and agent not in lack.tried
                and agent not in self._suspects
            ):
                found.append(agent)
                if len(found) >= self._limits.holders_told_max:
                    break
        return tuple(found)

    def _revoked(self, member: _Member, report: Report) -> tuple[Run, ...]:
        """What it fetches and others hold: it is told to stop, and asks them."""
        if not report.open:
            return ()
        mine = 0
        for claim in member.claims:
            mine |= claim.bits
        return tuple(entry.run for entry in report.open if not entry.run.bits & mine)

    def _grant(
        self, member: _Member, urgent: int | None, contested: int, now: float
    ) -> Iterator[Run]:
        quota = self._quota(member, now)
        free = self._free(member) | (contested & ~self._claimed & member.wanted)
        count_max = self._run_count_max(member, free)
        while quota > 0 and free:
            start = (free & -free).bit_length() - 1
            if urgent is not None and free >> urgent & 1:
                start = urgent
            ahead = free >> start
            count = min(count_max, ((ahead + 1) & ~ahead).bit_length() - 1)
            run = Run(start, count)
            is_contested = bool(run.bits & contested)
            claim = _Claim(member, run.bits, 0, now, is_contested=is_contested)
            assert not self._claimed & run.bits, "one live claim for a chunk"
            self._claims.append(claim)
            self._claimed |= run.bits
            member.claims.append(claim)
            if not member.is_sealed:
                for index in range(start, start + count):
                    if index not in self.digests:
                        self._granted.setdefault(index, set()).add(member.agent)
            free &= ~run.bits
            quota -= 1
            member.room -= 1
            yield run
        member.is_hungry = member.room > 0 and member.claims_well

    def _quota(self, member: _Member, now: float) -> int:
        """How many more claims a member may have now."""
        if (
            not member.claims_well
            or member.rests_until_s > now
            or self._is_young
            or (member.agent in self._suspects and self._can_others_claim(member))
        ):
            return 0
        share = self._share()
        if self._is_slow(member, now):
            return 0
        if self._is_unsettled:
            share = min(share, self._limits.settling_claims_max)
        return min(member.room, share - len(member.claims), self.claims_max - len(self._claims))

    def _can_others_claim(self, suspect: _Member) -> bool:
        """Somebody trusted can fetch what a suspect lacks; otherwise it may help itself."""
        lacking = suspect.wanted & ~suspect.have
        return any(
            member.claims_well and member.wanted & ~member.have & lacking
            for agent, member in self._members.items()
            if agent not in self._suspects
        )

    def _share(self) -> int:
        """How many claims each of those who still need something may have."""
        claimants = sum(
            1
            for member in self._members.values()
            if member.claims_well
            and member.wanted & ~member.have
            and member.agent not in self._suspects
        )
        return max(1, -(-self.claims_max // max(1, claimants)))

    def _is_slow(self, member: _Member, now: float) -> bool:
        """Chunks from the origin take it far longer than they take most others.

        It would be the only holder of what it reads, and as slow to hand it on.
        """
        if member.chunk_s is None or now - member.timed_s > self._limits.slow_s:
            return False
        times_s = sorted(
            other.chunk_s
            for other in self._members.values()
            if other.chunk_s is not None and other.claims_well
        )
        if len(times_s) < self._limits.slow_members_min:
            return False
        return member.chunk_s > self._limits.slow_factor * times_s[len(times_s) // 2]

    def _free(self, member: _Member) -> int:
        return member.wanted & ~member.have & ~self._held & ~self._claimed

    def _run_count_max(self, member: _Member, free: int) -> int:
        """Long runs only where the origin is slow to begin: they keep chunks from others."""
        if member.first_byte_s is None or member.chunk_s is None:
            return 1
        if member.first_byte_s < 2 * member.chunk_s:
            return 1
        share = free.bit_count() // (4 * self.claims_max)
        return max(1, min(share, self._limits.run_count_max))

    # --- time --------------------------------------------------------------------------

    def _grow_up(self) -> None:
        """Settle what the members of the former home told us."""
        self._is_young = False
        self._is_grown = True
        self._told_of.clear()
        for index, told in self._hearsay.items():
            if index not in self.digests:
                digest, _ = Counter(told.values()).most_common(1)[0]
                self.digests[index] = self._news[index] = digest
                self._has_news = True
        self._hearsay.clear()

    def _sweep(self, now: float) -> None:
        limits = self._limits
        for member in list(self._members.values()):
            patience_s = max(limits.member_patience_s, 3 * member.next_s)
            if now - member.reported_s > patience_s or (
                member.is_accused_dead and self._is_silent(member, now)
            ):
                self._forget(member)
        for claim in list(self._claims):
            if now - claim.moved_s > limits.claim_patience_s:
                self._end(claim)

    def _look_for_claimants(self, now: float) -> None:
        """Tell who went hungry that there are claims to be had, as many of them as there are."""
        if now >= self._joined_s + self._limits.settling_s:
            self._is_unsettled = False
        is_waited_for = self._told_of and now < self._born_s + self._limits.youth_s
        if self._is_young and self._is_open and not is_waited_for:
            self._grow_up()
        slots = self.claims_max - len(self._claims)
        if slots > 0 and not self._is_young:
            hungry = [member for member in self._members.values() if member.is_hungry]
            hungry.sort(key=lambda member: len(member.claims))
            for member in hungry:
                if slots <= 0:
                    break
                if member.is_subscribed and self._quota(member, now) > 0 and self._free(member):
                    member.is_hungry = False
                    slots -= 1
                    self._actions.append(Tell(member.agent, LiveLine(has_claims=True)))
        if self._has_news and now >= self._line_s + self._limits.live_interval_s:
            self._tell_news(now)

    def _tell_news(self, now: float) -> None:
        self._line_s = now
        self._has_news = False
        forgotten = tuple(indexes_of(self._news_forgotten))
        shared = LiveLine(digests=self._news, forgotten=forgotten, sealed=self._news_sealed)
        is_shared_empty = not self._news and not forgotten and self._news_sealed is None
        self._news_forgotten = 0
        self._news = {}
        self._news_sealed = None
        for member in self._members.values():
            if not member.is_subscribed:
                continue
            if member.joined or member.left:
                digests: Mapping[int, Digest] = {} if member.is_sealed else shared.digests
                line = LiveLine(
                    digests=digests,
                    joined=tuple(member.joined),
                    left=tuple(member.left),
                    forgotten=() if member.is_sealed else forgotten,
                    sealed=shared.sealed,
                )
                member.joined.clear()
                member.left.clear()
                self._actions.append(Tell(member.agent, line))
            elif not is_shared_empty and not (member.is_sealed and shared.sealed is None):
                self._actions.append(Tell(member.agent, shared))
