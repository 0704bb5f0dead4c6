"""The home of a ref: who resolves it, and what it was found to be. Pure and soft.

A ref is resolved once in the cluster, the way chunks are fetched once: the first who asks is told
to do it, the others wait a moment and are told the outcome.

    ask ──> resolve                     you do it; say `planned` or `failed`
        └─> pending                     somebody else is at it
        └─> plan P, held by ...         join the swarm of P
        └─> artifact A, held by ...     somebody has sealed it: join the swarm of A

A home of an agent that has just started is *closed*: it does not know yet who is at what, so it
learns and tells outcomes, but answers `pending` where it would say `resolve`. Who resolves a ref
says so to its new home (`resolving`). Once the agent has met the others, the home is opened.

A resolution is believed for `fresh_s`: what stands behind a ref may change. Who asks may want a
newer one, or be content with an older one (`age_s_max`): a commit is the same for ever. An outcome
whose holders have all gone is asked for anew in the same way, and so is one of which somebody found
the files to be others than the origin had said (`refuted`).

That plan P became artifact A stays true for ever, and is kept as long as there is room. The first
who says so is believed, and a later one that says something else is not: it is wrong, or a liar who
would change what others get. Unless the first was the liar: whoever finds that the origin has other
bytes refutes A (`REFUTED` with an artifact). A is dropped when as many agents refute it as have
said it, and whoever says another artifact next is believed. So that nobody flaps a plan for ever,
an agent refutes a plan once; a dropped artifact comes back by agents alone that had not said it;
and who has been refuted `strikes_max` times is not believed for this plan.
"""

import re
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from damselfly.errors import RemoteProtocolError
from damselfly.model.digest import Digest
from damselfly.p2p.fields import Fields, checked_text, written
from damselfly.p2p.messages import AGENT_PATTERN, BOOT_PATTERN, AgentID

REF_MESSAGE_BYTES_MAX = 64 << 10
AGE_S_MAX = 1e9
"""Thirty years: of a ref that never changes."""
_REF = re.compile(r"[!-~]{1,4096}")
_NEWS = re.compile(r"ask|recall|resolving|planned|sealed|failed|refuted")


@dataclass(frozen=True, kw_only=True)
class RefLimits:
    """How much a home of refs remembers, and for how long."""

    fresh_s: float = 60.0
    """Somebody who pushes to a branch waits a minute for it, or pulls with `--fresh`."""
    resolving_s: float = 30.0
    """A resolver that has said nothing for so long is given up; it says something every 5 s, and
    at once when it gives up itself. One that has left the view is given up at once."""
    retry_after_s: float = 0.1
    refs_max: int = 4096
    plans_max: int = 16_384
    holders_max: int = 8
    sayers_max: int = 8
    """Agents that are remembered for having said what a plan became; more say no more."""
    strikes_max: int = 2
    refuted_max: int = 64
    """Agents that may refute a plan, and that are remembered for having been refuted."""


class RefNews(Enum):
    """What a member tells the home of a ref."""

    ASK = "ask"
    RECALL = "recall"
    """Whatever it last was is good enough: the origin is not asked."""
    RESOLVING = "resolving"
    PLANNED = "planned"
    SEALED = "sealed"
    FAILED = "failed"
    REFUTED = "refuted"
    """What it was found to be is not what the origin has: it is to be found out anew. With an
    artifact: the plan did not become this one."""


@dataclass(frozen=True, slots=True)
class RefReport:
    """A question or news about `ref`."""

    news: RefNews
    ref: str
    agent: AgentID
    boot: str
    plan: Digest | None = None
    artifact: Digest | None = None
    age_s_max: float | None = None
    """How old an outcome may be to answer this question; None: as old as the home believes it."""

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {
            "news": self.news.value,
            "ref": self.ref,
            "agent": self.agent,
            "boot": self.boot,
        }
        if self.plan is not None:
            value["plan"] = self.plan.hex
        if self.artifact is not None:
            value["artifact"] = self.artifact.hex
        if self.age_s_max is not None:
            value["age_s_max"] = self.age_s_max
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "RefReport":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        fields = Fields.parse("a report about a ref", data, REF_MESSAGE_BYTES_MAX)
        news = RefNews(fields.text("news", _NEWS))
        report = cls(
            news,
            fields.text("ref", _REF),
            AgentID(fields.text("agent", AGENT_PATTERN)),
            fields.text("boot", BOOT_PATTERN),
            fields.digest("plan"),
            fields.digest("artifact"),
            fields.number("age_s_max", 0.0, AGE_S_MAX) if fields.has("age_s_max") else None,
        )
        if news in {RefNews.PLANNED, RefNews.REFUTED} and report.plan is None:
            raise RemoteProtocolError(f"a ref was {news.value}, but there is no plan")
        if news is RefNews.SEALED and report.artifact is None:
            raise RemoteProtocolError("a ref was sealed, but there is no artifact")
        return report


@dataclass(frozen=True, slots=True)
class RefReply:
    """What the home of a ref answers."""

    must_resolve: bool = False
    retry_after_s: float | None = None
    plan: Digest | None = None
    artifact: Digest | None = None
    holders: tuple[AgentID, ...] = ()

    def to_json(self) -> bytes:
        """Write it on one line."""
        value: dict[str, object] = {}
        if self.must_resolve:
            value["resolve"] = True
        if self.retry_after_s is not None:
            value["retry_after_s"] = self.retry_after_s
        if self.plan is not None:
            value["plan"] = self.plan.hex
        if self.artifact is not None:
            value["artifact"] = self.artifact.hex
        if self.holders:
            value["holders"] = self.holders
        return written(value)

    @classmethod
    def parse(cls, data: bytes) -> "RefReply":
        """Read one from somebody we do not trust.

        Raises:
            RemoteProtocolError: it breaks a rule or a limit.
        """
        what = "a reply about a ref"
        fields = Fields.parse(what, data, REF_MESSAGE_BYTES_MAX)
        return cls(
            fields.flag("resolve"),
            fields.number("retry_after_s", 0.0, 60.0) if fields.has("retry_after_s") else None,
            fields.digest("plan"),
            fields.digest("artifact"),
            fields.items("holders", 64, lambda v: AgentID(checked_text(v, AGENT_PATTERN, what))),
        )


@dataclass(slots=True)
class _Ref:
    resolver: tuple[AgentID, str] | None = None
    resolver_heard_s: float = 0.0
    outcome: tuple[Digest | None, Digest | None] | None = None
    """The plan or the artifact, or both."""
    outcome_s: float = 0.0


@dataclass(slots=True)
class _Holders:
    agents: OrderedDict[AgentID, None] = field(default_factory=OrderedDict[AgentID, None])


@dataclass(slots=True)
class _Became:
    """What a plan became, and who says so."""

    artifact: Digest | None = None
    sayers: set[AgentID] = field(default_factory=set[AgentID])
    refuters: set[AgentID] = field(default_factory=set[AgentID])
    """Of what it is said to have become now."""
    have_refuted: set[AgentID] = field(default_factory=set[AgentID])
    strikes: dict[tuple[AgentID, Digest], None] = field(
        default_factory=dict[tuple[AgentID, Digest], None]
    )
    """Who said an artifact that was dropped."""

    def said(self, artifact: Digest, agent: AgentID, limits: RefLimits) -> None:
        """An agent says that the plan became this."""
        mine = [dropped for sayer, dropped in self.strikes if sayer == agent]
        if artifact in mine or len(mine) >= limits.strikes_max:
            return
        if self.artifact is None:
            self.artifact, self.sayers, self.refuters = artifact, set(), set()
        if self.artifact == artifact and len(self.sayers) < limits.sayers_max:
            self.sayers.add(agent)

    def refuted(self, artifact: Digest, agent: AgentID, limits: RefLimits) -> bool:
        """An agent found that it did not; tell whether that is believed."""
        is_full = len(self.have_refuted) >= limits.refuted_max
        if artifact != self.artifact or agent in self.have_refuted or is_full:
            return False
        self.have_refuted.add(agent)
        self.refuters.add(agent)
        self.sayers.discard(agent)
        if len(self.refuters) < len(self.sayers):
            return False
        for sayer in self.sayers:
            if len(self.strikes) < limits.refuted_max:
                self.strikes[sayer, artifact] = None
        self.artifact = None
        return True


class RefHome:
    """All refs that this agent is home of. Facts in, answers out; belongs to one task."""

    def __init__(self, limits: RefLimits | None = None, *, is_open: bool = True) -> None:
        self._limits = limits or RefLimits()
        self._is_open = is_open
        self._alive: frozenset[tuple[AgentID, str]] = frozenset()
        self._refs: OrderedDict[str, _Ref] = OrderedDict()
        self._became: OrderedDict[Digest, _Became] = OrderedDict()
        """What plans became."""
        self._holders: OrderedDict[Digest, _Holders] = OrderedDict()
        """Who can hand out a plan or a manifest."""

    def opened(self) -> None:
        """The agent has met the others, and whoever was at something has had time to say so."""
        self._is_open = True

    def view_changed(self, alive: Collection[tuple[AgentID, str]]) -> None:
        """These agents, each with its boot, are believed alive: who has gone resolves nothing.

        One that we have not seen yet may well be at something.
        """
        gone = self._alive - set(alive)
        self._alive = frozenset(alive)
        for ref in self._refs.values():
            if ref.resolver in gone:
                ref.resolver = None

    def reported(self, report: RefReport, now: float) -> RefReply:
        """Take a question or news; answer it."""
        ref = self._refs.setdefault(report.ref, _Ref())
        self._refs.move_to_end(report.ref)
        if len(self._refs) > self._limits.refs_max:
            self._refs.popitem(last=False)
        match report.news:
            case RefNews.ASK:
                return self._asked(ref, report, now)
            case RefNews.RECALL:
                return self._outcome(ref.outcome or (None, None))
            case RefNews.RESOLVING:
                if ref.resolver is None or self._is_silent(ref, now):
                    ref.resolver = (report.agent, report.boot)
                if ref.resolver == (report.agent, report.boot):
                    ref.resolver_heard_s = now
                return RefReply()
            case RefNews.FAILED:
                if ref.resolver == (report.agent, report.boot):
                    ref.resolver = None
                return RefReply()
            case RefNews.REFUTED:
                if report.plan is not None and report.artifact is not None:
                    self._refuted(ref, report.plan, report.artifact, report.agent)
                    return RefReply()
                if ref.outcome is not None and ref.outcome[0] == report.plan:
                    ref.outcome = None
                return RefReply()
            case RefNews.PLANNED | RefNews.SEALED:
                return self._learned(ref, report, now)

    def _asked(self, ref: _Ref, report: RefReport, now: float) -> RefReply:
        limits = self._limits
        age_s_max = limits.fresh_s if report.age_s_max is None else report.age_s_max
        if ref.outcome is not None and now - ref.outcome_s <= age_s_max:
            return self._outcome(ref.outcome)
        me = (report.agent, report.boot)
        if ref.resolver == me:
            ref.resolver_heard_s = now
            return RefReply(must_resolve=True)
        if not self._is_open or (ref.resolver is not None and not self._is_silent(ref, now)):
            return RefReply(retry_after_s=limits.retry_after_s)
        ref.resolver, ref.resolver_heard_s = me, now
        return RefReply(must_resolve=True)

    def _is_silent(self, ref: _Ref, now: float) -> bool:
        return now - ref.resolver_heard_s > self._limits.resolving_s

    def _learned(self, ref: _Ref, report: RefReport, now: float) -> RefReply:
        plan, artifact = report.plan, report.artifact
        for held in (plan, artifact):
            if held is not None:
                self._held_by(held, report.agent)
        if plan is not None and artifact is not None:
            self._became.setdefault(plan, _Became()).said(artifact, report.agent, self._limits)
            if len(self._became) > self._limits.plans_max:
                self._became.popitem(last=False)
        if plan is not None:
            artifact = self._artifact_of(plan)
        is_resolver = ref.resolver == (report.agent, report.boot)
        is_known = plan is not None and ref.outcome is not None and plan == ref.outcome[0]
        if is_resolver or is_known:
            if is_resolver:
                ref.resolver = None
                ref.outcome_s = now
            ref.outcome = (plan, artifact)
        return self._outcome((plan, artifact))

    def _refuted(self, ref: _Ref, plan: Digest, artifact: Digest, agent: AgentID) -> None:
        became = self._became.get(plan)
        if became is None or not became.refuted(artifact, agent, self._limits):
            return
        if ref.outcome == (plan, artifact):
            ref.outcome = (plan, None)

    def _artifact_of(self, plan: Digest) -> Digest | None:
        became = self._became.get(plan)
        return became.artifact if became is not None else None

    def _outcome(self, outcome: tuple[Digest | None, Digest | None]) -> RefReply:
        plan, artifact = outcome
        if plan is not None and plan in self._became:
            artifact = self._artifact_of(plan)
        agents: dict[AgentID, None] = {}
        for held in (artifact, plan):
            holders = self._holders.get(held) if held is not None else None
            if holders is not None:
                agents.update(holders.agents)
        return RefReply(plan=plan, artifact=artifact, holders=tuple(agents))

    def _held_by(self, digest: Digest, agent: AgentID) -> None:
        holders = self._holders.setdefault(digest, _Holders())
        self._holders.move_to_end(digest)
        holders.agents[agent] = None
        holders.agents.move_to_end(agent)
        if len(holders.agents) > self._limits.holders_max:
            holders.agents.popitem(last=False)
        if len(self._holders) > self._limits.plans_max:
            self._holders.popitem(last=False)

    def __repr__(self) -> str:
        return f"<RefHome {len(self._refs)} refs, {len(self._became)} sealed>"
