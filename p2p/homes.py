"""The homes this agent keeps for others: shell around the `Home` cores and their live streams."""

import asyncio
import logging
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
    idle_s: float = 600.0
    lines_waiting_max: int = 1024
    """A listener that is so far behind is cut off; it comes back and is told everything."""


@dataclass(slots=True)
class _Desk:
    home: Home
    listeners: dict[AgentID, Lines[LiveLine]] = field(
        default_factory=dict[AgentID, Lines[LiveLine]]
    )
    hashes: HashDesk | None = None
    """Who reads which files again; where an origin published digests of them."""


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
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Homes {len(self._desks)}>"

    def opened(self) -> None:
        """Our agent has met the others: homes may grant what they have."""
        self._is_open = True
        for desk in self._desks.values():
            desk.home.opened(self._clock.monotonic_s())
            self._pump(desk)

    def report(self, swarm: SwarmID, report: Report) -> Reply:
        """Hand a member's report to the home of `swarm`.

        Raises:
            RemoteProtocolError: the home does not take it, or there are too many homes.
        """
        desk = self._desk(swarm, report.chunk_count)
        reply = desk.home.reported(report, self._clock.monotonic_s())
        self._pump(desk)
        return reply

    def hashed(self, swarm: SwarmID, chunk_count: int, report: HashReport) -> HashReply:
        """Hand what a member says of whole files to the desk of `swarm`.

        Raises:
            RemoteProtocolError: the desk does not take it, or there are too many homes.
        """
        desk = self._desk(swarm, chunk_count)
        if desk.hashes is None:
            desk.hashes = HashDesk(swarm, report.file_count)
        return desk.hashes.reported(report, self._clock.monotonic_s())

    async def live(
        self, swarm: SwarmID, agent: AgentID, chunk_count: int
    ) -> AsyncGenerator[LiveLine]:
        """The live stream of one member; it ends when the member is cut off or comes anew."""
        desk = self._desk(swarm, chunk_count)
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
        for lines in self._desks.pop(key).listeners.values():
            lines.cut()

    def _desk(self, swarm: SwarmID, chunk_count: int) -> _Desk:
        key = (swarm, chunk_count)
        desk = self._desks.get(key)
        if desk is None:
            if len(self._desks) >= self._limits.homes_max:
                raise RemoteProtocolError(f"{len(self._desks)} swarms have their home here already")
            home = Home(
                swarm,
                self._boot,
                chunk_count=chunk_count,
                is_open=self._is_open,
                now=self._clock.monotonic_s(),
            )
            desk = self._desks[key] = _Desk(home)
            logger.debug("home.opened", extra={"swarm": swarm})
        return desk

    def _pump(self, desk: _Desk) -> None:
        while (tell := desk.home.next_action()) is not None:
            lines = desk.listeners.get(tell.agent)
            if lines is not None:
                lines.put(tell.line)
        self._changed.set()
