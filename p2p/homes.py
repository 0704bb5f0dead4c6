"""The homes this agent keeps for others: shell around the `Home` cores and their live streams.

Rule 1. Our own membership always has a home here: who is refused everywhere is its own home.
Rule 2. Any other agent opens `homes_per_agent_max` homes at most. Whom `Routes` lets in is in our
view, so that nobody has more by calling itself by many names.
Rule 3. When all are taken, the idlest home without a member makes way for a new one. Where there is
none the report is refused, and the member goes to the next agent in rank (`reporter.py`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from damselfly.clock import Clock
from damselfly.errors import RemoteProtocolError
from damselfly.p2p.hashing import HashDesk, HashReply, HashReport
from damselfly.p2p.home import Home
from damselfly.p2p.lines import Lines
from damselfly.p2p.messages import AgentID, LiveLine, Reply, Report, SwarmID

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HomesLimits:
    """How many homes one agent keeps, and how long an idle one."""

    homes_max: int = 4096
    homes_per_agent_max: int = 512
    """Twice the swarms that an agent seeds at once (`agent/swarms.py`)."""
    idle_s: float = 600.0
    counts_max: int = 8
    """Numbers of files in one swarm: one is right, and the others are lies."""
    lines_waiting_max: int = 1024
    """A listener that is so far behind is cut off; it comes back and is told everything."""


@dataclass(slots=True)
class _Desk:
    home: Home
    opener: AgentID | None = None
    """Whose quota it counts for; None: our own."""
    listeners: dict[AgentID, Lines[LiveLine]] = field(
        default_factory=dict[AgentID, Lines[LiveLine]]
    )
    hashes: dict[int, HashDesk] = field(default_factory=dict[int, HashDesk])
    """Who reads which files again, where an origin published digests of them; by their number: who
    counts them wrongly is alone with it."""


class Homes:
    """Every home this agent is, by swarm and chunk count. Belongs to one event loop."""

    def __init__(
        self, boot: str, clock: Clock, limits: HomesLimits | None = None, *, is_open: bool = True
    ) -> None:
        self._boot = boot
        self._is_open = is_open
        self._clock = clock
        self._limits = limits or HomesLimits()
        self._desks: dict[tuple[SwarmID, int], _Desk] = {}
        self._opened_by: Counter[AgentID] = Counter()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Homes {len(self._desks)}>"

    def opened(self) -> None:
        """Our agent has met the others: homes may grant what they have."""
        self._is_open = True
        for desk in self._desks.values():
            desk.home.opened(self._clock.monotonic_s())
            self._pump(desk)

    def report(self, swarm: SwarmID, report: Report, *, is_ours: bool = False) -> Reply:
        """Hand a member's report to the home of `swarm`.

        Raises:
            RemoteProtocolError: the home does not take it, or there are too many homes.
        """
        opener = None if is_ours else report.agent
        desk = self._desk(swarm, report.chunk_count, opener)
        reply = desk.home.reported(report, self._clock.monotonic_s())
        self._pump(desk)
        return reply

    def hashed(
        self, swarm: SwarmID, chunk_count: int, report: HashReport, *, is_ours: bool = False
    ) -> HashReply:
        """Hand what a member says of whole files to the desk of `swarm`.

        Raises:
            RemoteProtocolError: the desk does not take it, or there are too many homes.
        """
        desk = self._desk(swarm, chunk_count, None if is_ours else report.agent)
        now = self._clock.monotonic_s()
        count = report.file_count
        for other in [desk.hashes[n] for n in desk.hashes if n != count]:
            other.left(report.agent)
        if count not in desk.hashes:
            if len(desk.hashes) >= self._limits.counts_max:
                for n in [n for n, one in desk.hashes.items() if one.is_vacant(now)]:
                    del desk.hashes[n]
            if len(desk.hashes) >= self._limits.counts_max and not is_ours:
                raise RemoteProtocolError(f"{len(desk.hashes)} numbers of files in one swarm")
            desk.hashes[count] = HashDesk(swarm, count)
        return desk.hashes[count].reported(report, now)

    async def live(
        self, swarm: SwarmID, agent: AgentID, chunk_count: int, *, is_ours: bool = False
    ) -> AsyncGenerator[LiveLine]:
        """The live stream of one member; it ends when the member is cut off or comes anew."""
        desk = self._desk(swarm, chunk_count, None if is_ours else agent)
        lines = Lines[LiveLine](self._limits.lines_waiting_max)
        before = desk.listeners.get(agent)
        if before is not None:
            before.cut()
        desk.listeners[agent] = lines
        try:
            desk.home.subscribed(agent, self._clock.monotonic_s())
            self._pump(desk)
            while (line := await lines.next()) is not None:
                yield line
        finally:
            if desk.listeners.get(agent) is lines:
                del desk.listeners[agent]
                desk.home.unsubscribed(agent, self._clock.monotonic_s())
                self._pump(desk)

    async def run(self) -> None:
        """Let time pass for all homes, until cancelled."""
        while True:
            now = self._clock.monotonic_s()
            for key, desk in list(self._desks.items()):
                deadline = desk.home.next_deadline()
                is_due = deadline is not None and deadline <= now
                is_idle = desk.home.idle_s(now) > self._limits.idle_s and not desk.listeners
                if is_idle or (is_due and not self._tick(desk, now)):
                    self._drop(key)
            deadlines = [desk.home.next_deadline() for desk in self._desks.values()]
            soonest = min((d for d in deadlines if d is not None), default=now + 60.0)
            self._changed.clear()
            with suppress(TimeoutError):
                # A millisecond at least: timers of the loop are no finer, and must not spin.
                async with asyncio.timeout(max(0.001, soonest - now)):
                    await self._changed.wait()

    def _tick(self, desk: _Desk, now: float) -> bool:
        """Let time pass for one home; False if that one is broken (see `LocalProtocolError`)."""
        try:
            desk.home.handle_timer(now)
            self._pump(desk)
        except Exception:
            logger.exception("home.broken", extra={"swarm": desk.home.swarm})
            return False
        return True

    def _drop(self, key: tuple[SwarmID, int]) -> None:
        """Forget a home. Whoever listens comes back, and is asked for everything."""
        desk = self._desks.pop(key)
        for lines in desk.listeners.values():
            lines.cut()
        if desk.opener is not None:
            self._opened_by[desk.opener] -= 1
            if not self._opened_by[desk.opener]:
                del self._opened_by[desk.opener]

    def _make_room(self, opener: AgentID) -> None:
        """See whether this agent may open one more home, and have the idlest one make way.

        Raises:
            RemoteProtocolError: it may not, or all homes are in use.
        """
        if self._opened_by[opener] >= self._limits.homes_per_agent_max:
            raise RemoteProtocolError(f"{opener} has opened {self._opened_by[opener]} homes here")
        if len(self._desks) < self._limits.homes_max:
            return
        now = self._clock.monotonic_s()
        vacant = [
            (desk.home.idle_s(now), key)
            for key, desk in self._desks.items()
            if not desk.home.members and not desk.listeners
        ]
        if not vacant:
            raise RemoteProtocolError(f"{len(self._desks)} swarms have their home here already")
        self._drop(max(vacant)[1])

    def _desk(self, swarm: SwarmID, chunk_count: int, opener: AgentID | None) -> _Desk:
        key = (swarm, chunk_count)
        desk = self._desks.get(key)
        if desk is None:
            if opener is not None:
                self._make_room(opener)
            home = Home(
                swarm,
                self._boot,
                chunk_count=chunk_count,
                is_open=self._is_open,
                now=self._clock.monotonic_s(),
            )
            desk = self._desks[key] = _Desk(home, opener)
            if opener is not None:
                self._opened_by[opener] += 1
            logger.debug("home.opened", extra={"swarm": swarm})
        return desk

    def _pump(self, desk: _Desk) -> None:
        while (tell := desk.home.next_action()) is not None:
            lines = desk.listeners.get(tell.agent)
            if lines is not None:
                lines.put(tell.line)
        self._changed.set()
