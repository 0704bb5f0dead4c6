"""The gate that every request to an origin passes: rests, budgets, and saying what is waited for.

A host is left alone while it rests, whoever heard of that; what it may be asked in a second is
shared with the other agents (`Shares`). Alone, as in a push, there is nobody to share with.
"""

import asyncio
import email.utils
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from damselfly.clock import Clock, SystemClock
from damselfly.errors import OriginBusyError
from damselfly.origin.host_clock import HostClock, RestLimits
from damselfly.waiting import waiting_for

PATIENCE_S = 600.0
"""How long pulls and pushes wait for a host that asks for rest: hubs have windows of 5 min."""
CLOCKS_MAX = 1024
"""Hosts that are remembered; redirects lead to any number."""
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_USED_UP = re.compile(r"(?:^|;)\s*r=0\s*;\s*t=([0-9]{1,6})\b", re.ASCII)


class Shares(Protocol):
    """What is shared with the other agents of one host. No method fails."""

    @property
    def counts_bytes(self) -> bool:
        """Whether bytes are shared out."""
        ...

    async def joined(self, host: str) -> None:
        """Be one of those who read there: who hear of its rests. Takes a moment, the first time."""
        ...

    async def turn(self, host: str) -> None:
        """Wait until one more request is within the budget."""
        ...

    async def took(self, host: str, length: int) -> None:
        """So many bytes came; wait until more are within the budget."""
        ...

    def rested(self, host: str, rest_s: float) -> None:
        """The host told us that it wants rest."""
        ...


class Alone:
    """There are no others."""

    counts_bytes = False

    async def joined(self, host: str) -> None:
        """Nobody to join."""

    async def turn(self, host: str) -> None:
        """Nobody to wait for."""

    async def took(self, host: str, length: int) -> None:
        """Nobody to count for."""

    def rested(self, host: str, rest_s: float) -> None:
        """Nobody to tell."""


@dataclass(slots=True)
class _Host:
    clock: HostClock
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Lets requests pass, host by host. Belongs to one event loop."""

    def __init__(
        self,
        patience_s: float = PATIENCE_S,
        limits: RestLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`patience_s` is how long a request waits for a host that rests."""
        self.shares: Shares = Alone()
        self.counted: Callable[[str], None] = lambda outcome: None
        """Hears how each request ended."""
        self.patience_s = patience_s
        self._limits = limits or RestLimits()
        self._clock = clock or SystemClock()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._random = random.Random()  # noqa: S311 - spreads requests, hides nothing

    def __repr__(self) -> str:
        return f"<Gate {len(self._hosts)} hosts>"

    @property
    def counts_bytes(self) -> bool:
        """Whether `took` has to be told of bytes."""
        return self.shares.counts_bytes

    async def admit(self, host: str, doing: str) -> None:
        """Wait until one request to `host` may leave; then `answered` or `failed` must be told.

        Raises:
            OriginBusyError: it asks for rest, or its budget has no turn, for longer than anybody
                waits.
        """
        deadline_s = self._now() + self.patience_s
        await self.shares.joined(host)
        while True:
            await self._rested(host, doing, deadline_s)
            await self._had_turn(host, doing, deadline_s)
            found = self._host(host)
            if found.clock.may_begin(self._now()):
                found.clock.begun()
                return

    def failed(self, host: str) -> None:
        """A request that was admitted was not answered."""
        found = self._host(host)
        found.clock.failed()
        found.changed.set()
        self.counted("failed")

    def answered(self, host: str, status: int, retry_after: str | None) -> bool:
        """A request that was admitted was answered; tells whether the host asks for rest."""
        found = self._host(host)
        now = self._now()
        rest_s = told_rest_s(retry_after, self._clock.wall_ns() / 1e9)
        is_busy = status == 429 or (status == 503 and rest_s is not None)
        if is_busy:
            told_s = found.clock.asked_for_rest(rest_s, self._random.random(), now)
            self.shares.rested(host, told_s)
            self.counted("busy")
        else:
            found.clock.answered(now)
            self.counted(_outcome_of(status))
        found.changed.set()
        return is_busy

    def told_to_rest(self, host: str, rest_s: float) -> None:
        """Another agent says that the host asks for rest."""
        found = self._host(host)
        if found.clock.told(rest_s, self._now()):
            found.changed.set()

    def own_rest_s(self, host: str) -> float:
        """How long the host wants rest from now on, as it told ourselves."""
        found = self._hosts.get(host)
        return max(0.0, found.clock.own_until_s - self._now()) if found is not None else 0.0

    def rest_s(self, host: str) -> float:
        """How long the host is left alone from now on."""
        found = self._hosts.get(host)
        return found.clock.left_s(self._now()) if found is not None else 0.0

    async def took(self, host: str, length: int) -> None:
        """So many bytes of a body came; wait until more may."""
        with waiting_for(lambda: f"origin host {host} (its budget of bytes is used up for now)"):
            await self.shares.took(host, length)

    async def _had_turn(self, host: str, doing: str, deadline_s: float) -> None:
        """Wait until one more request is within the budget, as long as anybody waits."""
        with waiting_for(lambda: f"origin host {host} (its budget is used up for now)"):
            try:
                async with asyncio.timeout(max(0.0, deadline_s - self._now())):
                    await self.shares.turn(host)
            except TimeoutError:
                raise OriginBusyError(
                    f"{doing}: the budget of {host} had no turn in {self.patience_s:.0f} s, and"
                    " that is as long as anybody waits"
                ) from None

    async def _rested(self, host: str, doing: str, deadline_s: float) -> None:
        """Wait while the host rests, and while those who went first have no answer yet."""
        found = self._host(host)
        while not found.clock.may_begin(now := self._now()):
            whole_s = found.clock.left_s(now)
            if now + whole_s > deadline_s or now >= deadline_s:
                raise OriginBusyError(
                    f"{doing}: {host} asks for rest, {whole_s:.0f} s more, and that is"
                    " longer than anybody waits",
                    whole_s,
                )
            left_s = found.clock.rests_until_s - now
            found.changed.clear()
            with waiting_for(lambda: self._said(host)):
                try:
                    async with asyncio.timeout(left_s if left_s > 0 else deadline_s - now):
                        await found.changed.wait()
                except TimeoutError:
                    pass

    def _said(self, host: str) -> str:
        left_s = self.rest_s(host)
        rest = f"it asked for rest, {left_s:.0f} s left" if left_s else "it asked for rest"
        return f"origin host {host} ({rest})"

    def _host(self, host: str) -> _Host:
        found = self._hosts.get(host)
        if found is None:
            now = self._now()
            if len(self._hosts) >= CLOCKS_MAX:
                for name, each in list(self._hosts.items()):
                    if each.clock.is_idle(now):
                        del self._hosts[name]
            found = self._hosts[host] = _Host(HostClock(self._limits))
        return found

    def _now(self) -> float:
        return self._clock.monotonic_s()


def _outcome_of(status: int) -> str:
    if status < 400:
        return "answered"
    if status in {401, 403, 407}:
        return "denied"
    return "failed" if status >= 500 else "refused"


def rest_told_by(headers: Mapping[str, str]) -> str | None:
    """The header that says when a host wants to be asked again, as a Retry-After would say it.

    Hubs say it with the `RateLimit` of the IETF's draft-ietf-httpapi-ratelimit-headers too:
    nothing remains (`r=0`) until the window ends (`t=` seconds).
    """
    if told := headers.get("Retry-After"):
        return told
    match = _USED_UP.search(headers.get("RateLimit", "")[:400])
    return match[1] if match else None


def told_rest_s(text: str | None, wall_s: float) -> float | None:
    """What a Retry-After means: seconds, or a date; None where it is absent, or means nothing."""
    text = (text or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if not text or len(text) > 64:
        return None
    try:
        date = email.utils.parsedate_to_datetime(text)
        # A date is whole seconds: the one it names is over when the next begins.
        return max(0.0, date.timestamp() - wall_s) + 1.0
    except (ValueError, OverflowError):
        return None
