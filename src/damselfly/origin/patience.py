"""How long a push bears with a destination that fails for a moment, or asks for rest."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from damselfly.errors import OriginBusyError, OriginUnavailableError

TRIES_MAX = 8
"""In a row, without any progress: with the waits below about a minute and a half. Who says when to
come back is not one that fails."""
BACK_OFF_S = 0.5
BACK_OFF_MAX_S = 30.0
PATIENCE_S = 900.0
"""Altogether, also where the destination itself says how long."""

Sleep = Callable[[float], Awaitable[None]]


class Patience:
    """Waits between tries of one thing. Belongs to one task."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self._sleep = sleep
        self._random = random.Random()  # noqa: S311 - spreads retries, hides nothing
        self._tries = 0
        self._waited_s = 0.0

    def progressed(self) -> None:
        """What comes now is a first try again."""
        self._tries = 0

    async def wait(self, error: OriginUnavailableError) -> None:
        """Wait as long as the destination wants, else a while that doubles.

        Raises:
            OriginUnavailableError: `error`, where patience is at its end.
        """
        asked_s = error.retry_after_s if isinstance(error, OriginBusyError) else None
        if asked_s is None or asked_s < 1:
            self._tries += 1
        back_off_s = min(BACK_OFF_MAX_S, BACK_OFF_S * 2.0**self._tries)
        delay_s = back_off_s * self._random.uniform(0.5, 1.0)
        if asked_s is not None:
            delay_s = asked_s + self._random.uniform(0.0, BACK_OFF_S)
        if self._tries > TRIES_MAX or self._waited_s + delay_s > PATIENCE_S:
            raise error
        self._waited_s += delay_s
        await self._sleep(delay_s)
