"""The agent's own bearer tokens for a cloud: its SDK makes them, in a thread, before they end.

An SDK speaks for itself when it makes a token: with the cloud's token service, or with the node's
metadata service, which no ref can make us ask. It is asked for the agent's own requests alone.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from damselfly.clock import Clock, SystemClock
from damselfly.errors import DamselflyError, OriginUnavailableError
from damselfly.origin.access import ANONYMOUS, Access

logger = logging.getLogger(__name__)

RENEW_S = 300.0
"""A token is renewed so long before it ends: clocks differ, and a span takes a while."""
NONE_S = 60.0
"""How long it is believed that there are no credentials: looking for them may take seconds."""
MAKING_S = 60.0


@dataclass(frozen=True, slots=True, repr=False)
class CloudToken:
    """A token, and when it ends in seconds since 1970; None: never."""

    value: str
    ends_s: float | None


class CloudTokens:
    """Keeps the token of one cloud. Belongs to one event loop.

    `make` blocks. It returns None where there are no credentials, and raises errors of ours.
    """

    def __init__(
        self, cloud: str, make: Callable[[], CloudToken | None], clock: Clock | None = None
    ) -> None:
        self._cloud = cloud
        self._make = make
        self._clock = clock or SystemClock()
        self._making = asyncio.Lock()
        self._token: CloudToken | None = None
        self._looked_s: float | None = None

    async def access(self) -> Access:
        """What the agent may show now; nothing where it has no credentials.

        Raises:
            ConfigError, OriginDeniedError, OriginUnavailableError: as `make` says.
            UsageError: the SDK is not installed.
        """
        async with self._making:
            token = self._token
            if token is None or self._left_s(token) < RENEW_S:
                token = await self._renewed(token)
        return ANONYMOUS if token is None else Access(token=token.value)

    def spoil(self) -> None:
        """The origin refuses what it was shown: the next request gets a new token."""
        self._token = None
        self._looked_s = None

    async def _renewed(self, old: CloudToken | None) -> CloudToken | None:
        now_s = self._clock.monotonic_s()
        if old is None and self._looked_s is not None and now_s - self._looked_s < NONE_S:
            return None
        try:
            async with asyncio.timeout(MAKING_S):
                self._token = await asyncio.to_thread(self._make)
        except (DamselflyError, TimeoutError) as exc:
            if old is not None and self._left_s(old) > 0:
                logger.warning("token.not_renewed", extra={"cloud": self._cloud})
                return old
            if isinstance(exc, TimeoutError):
                raise OriginUnavailableError(
                    f"making a token for {self._cloud}: no answer in {MAKING_S:g} s"
                ) from None
            raise
        if self._token is None:
            self._looked_s = now_s
            logger.info("token.none", extra={"cloud": self._cloud})
        return self._token

    def _left_s(self, token: CloudToken) -> float:
        if token.ends_s is None:
            return float("inf")
        return token.ends_s - self._clock.wall_ns() / 1e9
