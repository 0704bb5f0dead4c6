"""Who is there: shell around `Membership`. Lists addresses, greets them, tells of changes."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

from damselfly.clock import Clock
from damselfly.errors import DamselflyError, PeerUnavailableError, RemoteProtocolError
from damselfly.p2p.discovery import PeerSource
from damselfly.p2p.membership import Greet, Hello, Membership
from damselfly.p2p.messages import AGENT_PATTERN, BOOT_PATTERN, ZONE_PATTERN, AgentID
from damselfly.p2p.transport import PeerPool

logger = logging.getLogger(__name__)

GREETING_S = 5.0
PROTOCOL = 1


class Agents:
    """The agents believed alive. Belongs to one event loop."""

    def __init__(self, me: Hello, source: PeerSource, pool: PeerPool, clock: Clock) -> None:
        self.me = me
        self._core = Membership(me)
        self._source = source
        self._pool = pool
        self._clock = clock
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

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

    def greeted_by(self, agent: AgentID) -> None:
        """An agent greeted us."""
        self._core.greeted_by(agent, self._clock.monotonic_s())
        self._changed.set()

    async def settled(self) -> None:
        """Wait until every address listed at first has answered or failed once."""
        await self._settled.wait()

    async def run(self) -> None:
        """List and greet, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._list())
            tasks.create_task(self._greet_all(tasks))

    async def _list(self) -> None:
        while True:
            addresses = await self._source.addresses()
            self._core.listed(addresses, self._clock.monotonic_s())
            self._tell()
            if not addresses:
                self._settled.set()
            await asyncio.sleep(self._source.poll_interval_s)

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
                f"/v1/hello?from={self.me.agent}",
                deadline_s=GREETING_S,
            )
            if reply.status == 503:
                raise PeerUnavailableError(f"{action.address} is starting")
            if reply.status != 200:
                raise RemoteProtocolError(f"{action.address} greets with status {reply.status}")
            hello = parse_hello(reply.body)
        except DamselflyError as exc:
            is_refused = isinstance(exc.__cause__, ConnectionError)
            self._core.failed(action.address, self._clock.monotonic_s(), is_refused=is_refused)
            if not isinstance(exc, PeerUnavailableError):
                logger.warning("peer.misbehaved", extra={"peer": action.address, "error": str(exc)})
        else:
            self._core.answered(action.address, hello, self._clock.monotonic_s())
        self._tell()

    def _tell(self) -> None:
        if self._core.is_settled:
            self._settled.set()
        self._changed.set()


def hello_bytes(hello: Hello, version: str) -> bytes:
    """What we say of ourselves when greeted."""
    value = {
        "agent": hello.agent,
        "boot": hello.boot,
        "zone": hello.zone,
        "protocol": PROTOCOL,
        "version": version,
    }
    return json.dumps(value).encode()


def parse_hello(data: bytes) -> Hello:
    """Read what an agent says of itself.

    Raises:
        RemoteProtocolError: it is no agent of ours, or speaks another protocol.
    """
    try:
        value: object = json.loads(data)
    except ValueError as exc:
        raise RemoteProtocolError("a greeting is not JSON") from exc
    if not isinstance(value, dict):
        raise RemoteProtocolError("a greeting is no object")
    fields = cast("dict[str, object]", value)
    if fields.get("protocol") != PROTOCOL:
        raise RemoteProtocolError(f"a peer speaks protocol {fields.get('protocol')!r:.20}")
    agent, boot, zone = fields.get("agent"), fields.get("boot"), fields.get("zone", "")
    if (
        not isinstance(agent, str)
        or not isinstance(boot, str)
        or not isinstance(zone, str)
        or not AGENT_PATTERN.fullmatch(agent)
        or not BOOT_PATTERN.fullmatch(boot)
        or not ZONE_PATTERN.fullmatch(zone)
    ):
        raise RemoteProtocolError("a greeting names no agent")
    return Hello(AgentID(agent), boot, zone)
