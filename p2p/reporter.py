"""A member's talk with its home: which agent that is, what it is told, and when.

Theory of operation
-------------------
Rule 1. The home is the first agent of the view by rendezvous on the swarm's id that is not
*shunned*. We are always in our own view: who is alone is its own home.
Rule 2. One report is under way at a time. What happens meanwhile goes into the next one, which
leaves as soon as the answer is in: reports batch themselves by the home's speed, without a delay of
ours.
Rule 3. What a report said is kept until it is answered, and said again if it is not. A home may
hear things twice and must not mind.
Rule 4. A home that does not answer is shunned for a while, longer each time, and the next in rank
gets our whole state. When the shunning ends, the better home is tried again: two homes grow into
one.
Rule 5. A heartbeat says nothing new: it only keeps claims alive.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from damselfly.model.digest import Digest
from damselfly.p2p.actions import ReportFailure, SendReport
from damselfly.p2p.messages import (
    AgentID,
    HandBack,
    Lack,
    OpenClaim,
    Reply,
    Report,
    ReturnedClaim,
    Run,
    State,
    SwarmID,
)
from damselfly.p2p.rendezvous import ranked


@dataclass(frozen=True, kw_only=True)
class ReporterLimits:
    """How often a member reports, and how long it waits."""

    heartbeat_s: float = 1.0
    idle_heartbeat_s: float = 10.0
    """Of a member that has everything it wants."""
    patience_s: float = 1.5
    """A home answers at once; a report unanswered for so long has failed."""
    retry_s: float = 0.2
    shun_s: float = 10.0
    shun_s_max: float = 80.0
    failures_max: int = 2
    """Refused connections in a row before a home is shunned; one silence is enough."""
    got_max: int = 2048
    """More news than this is told as a whole state."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the planner adds to a report."""

    open: tuple[OpenClaim, ...]
    room: int
    lacking: tuple[Lack, ...]
    urgent: int | None
    first_byte_s: float | None
    chunk_s: float | None
    is_idle: bool


@dataclass(slots=True)
class _News:
    """What the home has not heard, or not answered."""

    done: dict[int, Digest]
    got: list[int]
    lost: list[int]
    returned: list[ReturnedClaim]
    dead: set[AgentID]
    corrupt: set[AgentID]
    sealed: Digest | None
    refuted: list[int]

    @classmethod
    def none(cls) -> "_News":
        return cls({}, [], [], [], set(), set(), None, [])

    def before(self, later: "_News") -> "_News":
        """Both, this one having happened first."""
        held_again = {*later.got, *later.done}
        return _News(
            {n: digest for n, digest in self.done.items() if n not in later.lost} | later.done,
            [index for index in self.got if index not in later.lost] + later.got,
            [index for index in self.lost if index not in held_again] + later.lost,
            self.returned + later.returned,
            self.dead | later.dead,
            self.corrupt | later.corrupt,
            later.sealed or self.sealed,
            self.refuted + later.refuted,
        )


class Reporter:
    """Which home a member has in one swarm, and what is still to be told to it."""

    def __init__(
        self,
        swarm: SwarmID,
        agent: AgentID,
        boot: str,
        *,
        chunk_count: int,
        limits: ReporterLimits | None = None,
        now: float,
    ) -> None:
        self._swarm = swarm
        self._agent = agent
        self._boot = boot
        self._chunk_count = chunk_count
        self._limits = limits or ReporterLimits()
        self._view: list[AgentID] = [agent]
        self._shunned: dict[AgentID, float] = {}
        self._shunnings: dict[AgentID, int] = {}
        self._failures = 0
        self._serial = 0
        self._asked: _News | None = None
        self._is_asked_whole = False
        self._news = _News.none()
        self._due_s = now
        self._not_before_s = now
        self._is_hurried = True
        self._is_state_due = True
        self.home = agent
        """Whom we report to."""
        self.home_boot: str | None = None
        """Of the home that knows us; None before its first answer."""

    @property
    def shunned(self) -> tuple[AgentID, ...]:
        """Homes that did not answer of late: who takes their place should wait for the others."""
        return tuple(self._shunned)

    # --- facts ---------------------------------------------------------------

    def view_changed(self, agents: Collection[AgentID], now: float) -> None:
        """These are believed alive."""
        self._view = ranked(self._swarm, {*agents, self._agent})
        self._choose(now)

    def chunk_done(self, index: int, digest: Digest) -> None:
        """A chunk came from the origin: everybody waits for it."""
        self._news.done[index] = digest
        self._held_again(index)
        self._is_hurried = True

    def chunk_got(self, index: int) -> None:
        """A chunk came from elsewhere."""
        self._news.got.append(index)
        self._held_again(index)
        if len(self._news.got) > self._limits.got_max:
            self.tell_everything()

    def chunk_lost(self, index: int) -> None:
        """A chunk is held no more."""
        if index in self._news.got:
            self._news.got.remove(index)
        self._news.done.pop(index, None)
        self._news.lost.append(index)
        self._is_hurried = True

    def chunks_refuted(self, indexes: Collection[int]) -> None:
        """Chunks of a file that is wrong: held no more, and their digests are worth nothing."""
        for index in indexes:
            self._news.done.pop(index, None)
        self._news.refuted.extend(indexes)
        self.tell_everything()

    def _held_again(self, index: int) -> None:
        """The home takes what was lost last: it must not hear of what came back since."""
        if index in self._news.lost:
            self._news.lost.remove(index)

    def claim_returned(self, run: Run, reason: HandBack) -> None:
        """We do not work on a claim any more."""
        self._news.returned.append(ReturnedClaim(run, reason))
        self._is_hurried = True

    def found_dead(self, agent: AgentID) -> None:
        """An agent could not be reached."""
        self._news.dead.add(agent)

    def found_corrupt(self, agent: AgentID) -> None:
        """An agent's bytes did not verify."""
        self._news.corrupt.add(agent)
        self._is_hurried = True

    def sealed(self, artifact: Digest) -> None:
        """We know the artifact's digest, because we sealed it."""
        self._news.sealed = artifact
        self._is_hurried = True

    def hurry(self) -> None:
        """Report as soon as possible."""
        self._is_hurried = True

    def tell_everything(self) -> None:
        """The next report carries the whole state."""
        self._is_state_due = True
        self._is_hurried = True

    def replied(self, serial: int, reply: Reply, now: float) -> bool:
        """The report with this serial was answered; False if we wait for another answer."""
        if self._asked is None or serial != self._serial:
            return False
        asked, self._asked = self._asked, None
        self._failures = 0
        self._shunnings.pop(self.home, None)
        if reply.need_state:
            self._news = asked.before(self._news)
            self.home_boot = None
            self.tell_everything()
            return False
        self.home_boot = reply.boot
        if reply.retry_after_s is not None:
            self._due_s = min(self._due_s, now + max(reply.retry_after_s, 0.02))
        return True

    def failed(self, serial: int, failure: ReportFailure, now: float) -> None:
        """The report with this serial was not answered."""
        if self._asked is None or serial != self._serial:
            return
        limits = self._limits
        self._news = self._asked.before(self._news)
        self._asked = None
        self._is_state_due |= self._is_asked_whole
        self._failures += 1
        self._is_hurried = True
        self._not_before_s = now + limits.retry_s * self._failures
        if failure is ReportFailure.SILENT or self._failures >= limits.failures_max:
            times = self._shunnings.get(self.home, 0)
            self._shunnings[self.home] = times + 1
            self._shunned[self.home] = now + min(limits.shun_s_max, limits.shun_s * 2**times)
            self._choose(now)

    def live_lost(self, now: float) -> None:
        """The home's live stream ended: see whether it still answers."""
        self._is_hurried = True

    def handle_timer(self, now: float) -> None:
        """Let time pass: shunnings end."""
        ended = [agent for agent, until_s in self._shunned.items() if until_s <= now]
        for agent in ended:
            del self._shunned[agent]
        if ended:
            self._choose(now)

    # --- commands --------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """A report should leave now."""
        if self._asked is not None or now < self._not_before_s:
            return False
        return self._is_hurried or now >= self._due_s

    def next_report(
        self,
        standing: Standing,
        state: Callable[[], State],
        now: float,
        *,
        is_leaving: bool = False,
    ) -> SendReport:
        """The report that is due: it is under way from now on."""
        limits = self._limits
        next_s = limits.idle_heartbeat_s if standing.is_idle else limits.heartbeat_s
        news = self._asked = self._news
        self._news = _News.none()
        self._serial += 1
        self._is_hurried = False
        self._due_s = now + next_s
        is_whole = self._is_asked_whole = self._is_state_due
        self._is_state_due = False
        report = Report(
            agent=self._agent,
            boot=self._boot,
            chunk_count=self._chunk_count,
            serial=self._serial,
            state=state() if is_whole else None,
            done=tuple(news.done.items()),
            got=() if is_whole else tuple(news.got),
            lost=() if is_whole else tuple(news.lost),
            refuted=tuple(news.refuted),
            open=standing.open,
            returned=tuple(news.returned),
            dead=tuple(sorted(news.dead)),
            corrupt=tuple(sorted(news.corrupt)),
            lacking=standing.lacking,
            room=standing.room,
            urgent=standing.urgent,
            first_byte_s=standing.first_byte_s,
            chunk_s=standing.chunk_s,
            next_s=next_s,
            sealed=news.sealed,
            is_leaving=is_leaving,
        )
        return SendReport(self.home, report, limits.patience_s)

    def next_deadline(self) -> float | None:
        """When a report is due, or a shunning ends."""
        deadline = min(self._shunned.values(), default=None)
        if self._asked is not None:
            return deadline
        due_s = self._not_before_s if self._is_hurried else max(self._due_s, self._not_before_s)
        return due_s if deadline is None else min(due_s, deadline)

    def _choose(self, now: float) -> None:
        home = next(
            agent for agent in self._view if agent == self._agent or agent not in self._shunned
        )
        if home == self.home:
            return
        self.home = home
        self.home_boot = None
        self._failures = 0
        if self._asked is not None:
            # Whether the former home answers does not matter any more.
            self._news = self._asked.before(self._news)
            self._asked = None
        self._not_before_s = now
        self.tell_everything()
