"""Our end of a connection to one peer, and the exchanges on it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from damselfly.errors import PeerUnavailableError, RemoteProtocolError
from damselfly.p2p.transport.channel import Channel
from damselfly.p2p.transport.driver import Driver
from damselfly.p2p.transport.limits import Limits
from damselfly.p2p.transport.outbox import BytesOutbox
from damselfly.p2p.wire.codes import ErrorCode, name_of
from damselfly.p2p.wire.connection import Connection, Role
from damselfly.p2p.wire.events import (
    DataLanded,
    DataReceived,
    Event,
    GoAwayReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
)

logger = logging.getLogger(__name__)


class RefusedError(PeerUnavailableError):
    """The peer has not looked at the request: it may be sent again, to it or to another."""


class ClientEnd:
    """One connection that we dialled: its streams, and who waits for one."""

    def __init__(
        self,
        address: str,
        channel: Channel,
        limits: Limits,
        on_gone: Callable[["ClientEnd"], None],
        *,
        scheme: str = "http",
    ) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.limits = limits
        self.core = Connection(Role.CLIENT, limits.client_wire, loop.time())
        self.driver = Driver(channel, self.core, self, limits)
        self.exchanges: dict[int, Exchange] = {}
        self._on_gone = on_gone
        self._scheme = scheme
        self._cause: Exception | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<ClientEnd {self.address} {self.driver!r}>"

    @property
    def is_usable(self) -> bool:
        """New requests may be made here, perhaps after a wait."""
        return not self.driver.is_lost and not self.core.is_leaving

    @property
    def is_idle(self) -> bool:
        """Nobody uses it or waits for it."""
        return not self.exchanges and not self._waiting

    async def open(self, ask: "Ask") -> "Exchange":
        """Send a request as soon as the peer allows one more.

        Raises:
            RefusedError: the connection takes no more requests.
            RemoteProtocolError: the peer broke the rules before we could ask.
        """
        while not self.core.may_request or self.driver.is_lost:
            if isinstance(self._cause, RemoteProtocolError):
                raise RemoteProtocolError(f"{ask}: not HTTP/2") from self._cause
            if not self.is_usable:
                raise RefusedError(f"{ask} on a connection that ends") from self._cause
            await self._wait_turn()
        fields = [
            (":method", ask.method),
            (":scheme", self._scheme),
            (":path", ask.path),
            (":authority", ask.address),
            *ask.headers,
        ]
        if ask.body:
            fields.append(("content-length", str(len(ask.body))))
        now = asyncio.get_running_loop().time()
        stream_id = self.core.request(fields, now, ended=not ask.body, sink=ask.sink)
        if ask.body:
            outbox = BytesOutbox()
            outbox.push(ask.body)
            self.driver.send_body(stream_id, outbox)
            self.core.offer(stream_id, len(ask.body), final=True)
        exchange = Exchange(self, stream_id, ask)
        self.exchanges[stream_id] = exchange
        self.driver.poke()
        return exchange

    async def _wait_turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._wake()  # It was our turn, and we are not going to use it.
            raise

    def forget(self, stream_id: int) -> None:
        """An exchange is over on both sides."""
        if self.exchanges.pop(stream_id, None) is not None:
            self._wake()

    # --- what the driver tells us -----------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Something happened on the wire."""
        match event:
            case SettingsReceived():
                self._wake(len(self._waiting))
            case GoAwayReceived(error_code=code, reason=reason):
                if code:
                    logger.warning("%s sent us away: %s %s", self.address, name_of(code), reason)
                self._wake(len(self._waiting))
            case (
                DataLanded(stream_id=stream_id)
                | DataReceived(stream_id=stream_id)
                | ResponseReceived(stream_id=stream_id)
                | StreamEnded(stream_id=stream_id)
                | StreamReset(stream_id=stream_id)
            ):
                exchange = self.exchanges.get(stream_id)
                if exchange is not None:
                    exchange.handle(event)
                elif isinstance(event, DataReceived):
                    self.core.consumed(stream_id, len(event.data))
                if isinstance(event, StreamEnded | StreamReset):
                    self.driver.drop_body(stream_id)
                    self._pass_on(stream_id)
                    self._wake()
            case _:
                pass

    def lost(self, cause: Exception | None) -> None:
        """Every stream is over."""
        self._cause = cause
        for exchange in list(self.exchanges.values()):
            failure: Exception
            if isinstance(cause, RemoteProtocolError):
                failure = RemoteProtocolError(f"{exchange}: not HTTP/2")
            else:
                failure = PeerUnavailableError(f"{exchange}: connection lost")
            failure.__cause__ = cause
            exchange.fail(failure)
        self._wake(len(self._waiting))

    def gone(self) -> None:
        """The socket is closed."""
        self._on_gone(self)

    # --- within -----------------------------------------------------------------------------

    def _pass_on(self, stream_id: int) -> None:
        """Start the patience of those that waited behind this one (see `Exchange.wait_end`)."""
        now = asyncio.get_running_loop().time()
        for other in self.exchanges.values():
            if other.stream_id > stream_id:
                other.progress_at = max(other.progress_at, now)

    def _wake(self, count: int = 1) -> None:
        while self._waiting and count:
            slot = self._waiting.popleft()
            if not slot.done():
                slot.set_result(None)
                count -= 1


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request of ours. `sink` takes the body of a 200 or 206; `on_bytes` hears of bytes in it."""

    address: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    sink: memoryview | None = None
    on_bytes: Callable[[int], None] | None = None

    def __str__(self) -> str:
        return f"asking {self.address} for {self.method} {self.path}"


class Exchange:
    """One request and what comes back; belongs to the task that opened it, which closes it."""

    def __init__(self, end: ClientEnd, stream_id: int, ask: Ask) -> None:
        self.stream_id = stream_id
        self.response: ResponseReceived | None = None
        self.landed_bytes = 0
        self.is_finished = False
        self.data = bytearray()
        self.progress_at = asyncio.get_running_loop().time()
        self._end = end
        self._ask = ask
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return str(self._ask)

    # --- what the connection tells us -------------------------------------------------------

    def handle(
        self, event: DataLanded | DataReceived | ResponseReceived | StreamEnded | StreamReset
    ) -> None:
        """Something happened on our stream."""
        self.progress_at = asyncio.get_running_loop().time()
        match event:
            case DataLanded(count=count):
                self.landed_bytes += count
                if self._ask.on_bytes is not None:
                    self._ask.on_bytes(count)
                return  # Nobody waits for less than all of it.
            case DataReceived(data=data):
                self.data += data
            case ResponseReceived():
                self.response = event
            case StreamEnded():
                self.is_finished = True
            case StreamReset():
                self._failure = self._failure or self._reason(event)
        self._wake()

    def _reason(self, event: StreamReset) -> Exception:
        if event.error_code == ErrorCode.REFUSED_STREAM:
            return RefusedError(f"{self}: refused")
        if event.violation is None:
            return PeerUnavailableError(f"{self}: reset with {name_of(event.error_code)}")
        failure = RemoteProtocolError(f"{self}: a malformed answer")
        failure.__cause__ = event.violation
        return failure

    def fail(self, failure: Exception) -> None:
        """There will be no more of it; what is complete already stays so."""
        if self._failure is None and not self.is_finished:
            self._failure = failure
            self._wake()

    # --- for the task that waits ------------------------------------------------------------

    async def wait(self) -> None:
        """Wait for anything new.

        Raises:
            PeerUnavailableError: the exchange has failed.
            RemoteProtocolError: the peer broke the rules.
        """
        if self._failure is None:
            assert self._waiter is None, "two tasks wait for one exchange"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self.check()

    def check(self) -> None:
        """Raise what the exchange has failed of, if it has."""
        if self._failure is not None:
            raise self._failure

    async def wait_response(self) -> ResponseReceived:
        """Wait for the headers."""
        while self.response is None:
            await self.wait()
        return self.response

    async def gather(self, bytes_max: int) -> bytes:
        """Collect the body.

        Raises:
            RemoteProtocolError: it is longer than `bytes_max`.
        """
        credited = 0
        while True:
            if len(self.data) > bytes_max:
                raise RemoteProtocolError(f"{self}: a body of more than {bytes_max} bytes")
            self.credit(len(self.data) - credited)
            credited = len(self.data)
            if self.is_finished:
                return bytes(self.data)
            await self.wait()

    def credit(self, count: int) -> None:
        """Allow the peer so many bytes more, which somebody has taken."""
        if count and not self._end.driver.is_lost:
            self._end.core.consumed(self.stream_id, count)
            self._end.driver.poke()

    def watch(self, stall_s: float) -> None:
        """Fail when nothing comes for `stall_s`.

        A peer sends chunks one after another, so a fetch also makes progress when one that was
        asked for earlier does: on a slow link the eighth waits for seven.
        """
        loop = asyncio.get_running_loop()
        self._stall_timer = loop.call_at(self.progress_at + stall_s, self._check_stall, stall_s)

    def close(self) -> None:
        """End it: nothing is written into the sink after this, nothing more is wanted."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        end = self._end
        if not self.is_finished:
            end.driver.reset(self.stream_id, ErrorCode.CANCEL)
        end.forget(self.stream_id)

    def _check_stall(self, stall_s: float) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._due_at(stall_s):
            self._end.driver.look()
        if self.is_finished or self._failure is not None:
            return
        due_at = self._due_at(stall_s)
        if loop.time() >= due_at:
            self.fail(PeerUnavailableError(f"{self}: nothing came for {stall_s:g} s"))
        else:
            self._stall_timer = loop.call_at(due_at, self._check_stall, stall_s)

    def _due_at(self, stall_s: float) -> float:
        progress_at = self.progress_at
        for other in self._end.exchanges.values():
            if other.stream_id < self.stream_id and other.landed_bytes:
                progress_at = max(progress_at, other.progress_at)
        return progress_at + stall_s

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
