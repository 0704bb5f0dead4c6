"""Who is there: shell around `Membership`. Lists addresses, greets them, tells of changes."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress

from damselfly.clock import Clock
from damselfly.errors import DamselflyError, PeerUnavailableError, RemoteProtocolError
from damselfly.p2p.discovery import PeerSource
from damselfly.p2p.fields import Fields
from damselfly.p2p.membership import Greet, Hello, Membership
from damselfly.p2p.messages import AGENT_PATTERN, BOOT_PATTERN, ZONE_PATTERN, AgentID
from damselfly.p2p.transport import PeerPool

logger = logging.getLogger(__name__)

GREETING_S = 5.0
HELLO_BYTES_MAX = 4096
PROTOCOL = 1


class Agents:
    """The agents believed alive. Belongs to one event loop."""

    def __init__(self, me: Hello, source: PeerSource, pool: PeerPool, clock: Clock) -> None:
        self.me = me
        self._core = Membership(me, now=clock.monotonic_s())
        self._source = source
        self._pool = pool
        self._clock = clock
        self._changed = asyncio.Event()
        self._met = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._known: tuple[int, frozenset[AgentID]] = (-1, frozenset())

    def __repr__(self) -> str:
        return repr(self._core)

    @property
    def view(self) -> Mapping[AgentID, Hello]:
        """The agents believed alive, ourselves included."""
        return self._core.view

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever the view changes; returns how to end that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def suspect(self, agent: AgentID) -> None:
        """A connection to `agent` broke: look soon whether it is still there."""
        self._core.suspected(agent, self._clock.monotonic_s())
        self._changed.set()

    def greeted_by(self, agent: AgentID, boot: str) -> bool:
        """An agent greeted us; tell whether it is in our view."""
        is_known = self._core.greeted_by(agent, boot, self._clock.monotonic_s())
        self._changed.set()
        return is_known

    def knows(self, agent: AgentID, boot: str = "") -> bool:
        """Whether this is another agent of our view; who is not, and is listed, is greeted soon."""
        if self._known[0] != self._core.version:
            others = self._core.view.keys() - {self.me.agent}
            self._known = self._core.version, frozenset(others)
        is_known = agent in self._known[1]
        if not is_known and boot and agent != self.me.agent:
            self.greeted_by(agent, boot)
        return is_known

    @property
    def has_met(self) -> bool:
        """We and the others know each other, or have waited long enough: we may act on the view."""
        return self._met.is_set()

    async def met(self) -> None:
        """Wait until `has_met`."""
        await self._met.wait()

    async def run(self) -> None:
        """List and greet, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._list())
            tasks.create_task(self._greet_all(tasks))

    async def _list(self) -> None:
        async with aclosing(self._source.changes()) as changes:
            async for addresses in changes:
                self._core.listed(addresses, self._clock.monotonic_s())
                self._changed.set()
        self._core.listing_ended(self._clock.monotonic_s())
        self._changed.set()

    async def _greet_all(self, tasks: asyncio.TaskGroup) -> None:
        version = self._core.version
        while True:
            now = self._clock.monotonic_s()
            while (action := self._core.next_action(now)) is not None:
                tasks.create_task(self._greet(action))
            if version != self._core.version:
                version = self._core.version
                logger.info("peers.changed", extra={"alive": len(self._core.view)})
                for listener in self._listeners[:]:
                    listener()
            if self._core.has_met:
                self._met.set()
            deadline = self._core.next_deadline()
            self._changed.clear()
            with suppress(TimeoutError):
                wait_s = None if deadline is None else max(0.001, deadline - now)
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    async def _greet(self, action: Greet) -> None:
        try:
            reply = await self._pool.request(
                action.address,
                "GET",
                f"/v1/hello?from={self.me.agent}&boot={self.me.boot}",
                deadline_s=GREETING_S,
            )
            if reply.status == 503:
                raise PeerUnavailableError(f"{action.address} is starting")
            if reply.status != 200:
                raise RemoteProtocolError(f"{action.address} greets with status {reply.status}")
            hello, knows_us = parse_hello(reply.body)
        except DamselflyError as exc:
            is_refused = isinstance(exc.__cause__, ConnectionError)
            self._core.failed(action.address, self._clock.monotonic_s(), is_refused=is_refused)
            if not isinstance(exc, PeerUnavailableError):
                logger.warning("peer.misbehaved", extra={"peer": action.address, "error": str(exc)})
        except Exception:
            logger.exception("greeting.broken", extra={"peer": action.address})
            self._core.failed(action.address, self._clock.monotonic_s())
        else:
            now = self._clock.monotonic_s()
            self._core.answered(action.address, hello, now, knows_us=knows_us)
        self._changed.set()


def hello_bytes(hello: Hello, version: str, knows_you: bool) -> bytes:
    """What we say of ourselves when greeted; `knows_you`: by somebody who is in our view."""
    value = {
        "agent": hello.agent,
        "boot": hello.boot,
        "zone": hello.zone,
        "protocol": PROTOCOL,
        "version": version,
        "knows_you": knows_you,
    }
    return json.dumps(value).encode()


def parse_hello(data: bytes) -> tuple[Hello, bool]:
    """Read what an agent says of itself, and whether it knows us.

    Raises:
        RemoteProtocolError: it is no agent of ours, or speaks another protocol.
    """
    fields = Fields.parse("a greeting", data, HELLO_BYTES_MAX)
    protocol = fields.integer("protocol", 0, 1 << 31)
    if protocol != PROTOCOL:
        raise RemoteProtocolError(f"a peer speaks protocol {protocol}, we speak {PROTOCOL}")
    agent = AgentID(fields.text("agent", AGENT_PATTERN))
    boot = fields.text("boot", BOOT_PATTERN)
    zone = fields.text("zone", ZONE_PATTERN) if fields.has("zone") else ""
    # An agent that does not say whether it knows us is of an older version: nothing to wait for.
    return Hello(agent, boot, zone), not fields.has("knows_you") or fields.flag("knows_you")
