"""Asking the agent for a volume, in a thread that outlives the call that began it.

A publish that gives up waiting stops nothing: the next one finds the opening and waits on. The
thread only reads what the agent says, and the pull is the agent's own, so that a driver that dies
takes nothing with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Protocol

from damselfly.client.answers import Opened, Progress, VolumeRequest
from damselfly.clock import Clock
from damselfly.csi.asking import in_background
from damselfly.csi.options import Limits
from damselfly.csi.pace import Pace
from damselfly.csi.volume import Wish
from damselfly.errors import (
    AgentUnavailableError,
    DamselflyError,
    LocalProtocolError,
    RemoteProtocolError,
    explain,
)

logger = logging.getLogger(__name__)


class Agent(Protocol):
    """What an opening needs from the agent. Blocks; may be shared by threads."""

    def open_volume(self, request: VolumeRequest) -> Generator[Progress | Opened]:
        """Prove, pull, lease and show; `Opened` is the last."""
        ...


class Opening:
    """One volume being opened. Belongs to an event loop; only `_read` runs in the thread.

    `ended` is set once either `opened` or `error` says how. Abandoned, it ends without anybody
    looking: `on_end` is told, and takes away a lease that came too late.
    """

    def __init__(
        self,
        wish: Wish,
        request: VolumeRequest,
        agent: Agent,
        clock: Clock,
        limits: Limits,
        on_end: Callable[["Opening"], None],
    ) -> None:
        self.wish = wish
        self.lease = request.lease
        self.ended = asyncio.Event()
        self.opened: Opened | None = None
        self.error: DamselflyError | None = None
        self.is_abandoned = False
        self.asked_for_s = clock.monotonic_s()
        """When somebody wanted it last."""
        self.waiting = 0
        self._request = request
        self._agent = agent
        self._clock = clock
        self._limits = limits
        self._on_end = on_end
        self._pace = Pace()
        self._heard_s = self.asked_for_s
        self._absence: DamselflyError | None = None
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Opening {self.wish.volume_id}: {self.told()}>"

    @property
    def is_over(self) -> bool:
        """It has ended, and opened nothing."""
        return self.ended.is_set() and self.opened is None

    def begin(self) -> None:
        """Start to ask."""
        in_background(self._run)

    def told(self) -> str:
        """How far it is, in words."""
        if (absence := self._absence) is not None:
            return explain(absence)
        return self._pace.text(self._clock.monotonic_s())

    async def wait(self, ends_at_s: float) -> bool:
        """Wait for the end, until a time of the monotonic clock; False: it is not there yet."""
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, ends_at_s - self._clock.monotonic_s())):
                await self.ended.wait()
        except TimeoutError:
            return self.ended.is_set()  # Both may come in the same turn of the loop.
        finally:
            self.waiting -= 1
            self.asked_for_s = self._clock.monotonic_s()
        return True

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        opened, error = None, None
        try:
            opened = self._ask()
        except DamselflyError as exc:
            error = exc
        except Exception as exc:
            logger.exception("opening.crashed", extra={"volume_id": self.wish.volume_id})
            error = LocalProtocolError(f"opening {self.wish.volume_id}")
            error.__cause__ = exc
        with suppress(RuntimeError):  # The loop is closed: nobody is left to tell.
            self._loop.call_soon_threadsafe(self._end, opened, error)

    def _ask(self) -> Opened | None:
        """Ask until there is an answer; an agent that is away for a moment is waited for."""
        while True:
            try:
                return self._read()
            except (AgentUnavailableError, RemoteProtocolError) as exc:
                self._absence = exc  # It may also have died amid a line, and be back soon.
                pause_s = self._limits.agent_retry_s
                away_s = self._clock.monotonic_s() - self._heard_s + pause_s
                if self.is_abandoned or away_s > self._limits.absence_max_s:
                    raise
            time.sleep(pause_s)

    def _read(self) -> Opened | None:
        with closing(self._agent.open_volume(self._request)) as answers:
            for item in answers:
                self._heard_s = self._clock.monotonic_s()
                self._absence = None
                if isinstance(item, Opened):
                    return item
                if self.is_abandoned:
                    return None  # Hanging up leaves the pull going.
                self._pace.progressed(item, self._heard_s)
        raise RemoteProtocolError("the agent ended its answer without saying what it opened")

    # --- in the loop --------------------------------------------------------------------------

    def _end(self, opened: Opened | None, error: DamselflyError | None) -> None:
        self.opened, self.error = opened, error
        self.ended.set()
        self._on_end(self)
