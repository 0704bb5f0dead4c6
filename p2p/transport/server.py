"""PeerServer: answers peers' requests by a handler."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl, unquote

from damselfly.errors import CapacityError, PeerUnavailableError, RemoteProtocolError, explain
from damselfly.p2p.address import join_address
from damselfly.p2p.transport.certificates import Certificates
from damselfly.p2p.transport.channel import Channel
from damselfly.p2p.transport.driver import Driver
from damselfly.p2p.transport.exchange import (
    Body,
    BodyTooLargeError,
    FileBody,
    Handler,
    Request,
    Response,
)
from damselfly.p2p.transport.handshake import accepted, plain
from damselfly.p2p.transport.limits import Limits
from damselfly.p2p.transport.listener import Listener
from damselfly.p2p.transport.outbox import BytesOutbox, FileOutbox, Outbox
from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.connection import Connection, Role
from damselfly.p2p.wire.events import (
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from damselfly.p2p.wire.priority import Priority

logger = logging.getLogger(__name__)

# Streams of lines are tiny and people wait for them: before chunks (3), after urgent ones (0).
_LINES_PRIORITY = Priority(urgency=1, incremental=True)


class PeerServer:
    """Listens, and runs `handler` in a task of its own for each request.

    A task ends with its request: when the peer resets the stream or hangs up, it is cancelled.
    With `certificates` it speaks TLS, and to nobody who has none of the same authority.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits or Limits()
        self._certificates = certificates
        self._handshakes: dict[asyncio.Task[None], str] = {}
        self.body_bytes = 0  # of requests that are being read
        self._listener: Listener | None = None
        self._ends: set[_ServerEnd] = set()
        self._changed = asyncio.Event()
        self._is_draining = False

    def __repr__(self) -> str:
        return f"<PeerServer {len(self._ends)} connections>"

    @property
    def port(self) -> int:
        """The port we listen on; valid after `start`."""
        assert self._listener is not None
        return self._listener.port

    @property
    def connection_count(self) -> int:
        """How many sockets are open."""
        return len(self._ends)

    async def start(self, host: str, port: int) -> None:
        """Listen on `host:port` (0: any free port). Raises OSError when that is not possible."""
        assert self._listener is None
        self._listener = await Listener.open(host, port, self.limits.backlog, self._accepted)

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new, let what is under way end for so long, then close."""
        self._is_draining = True
        if self._listener is not None:
            self._listener.close()
        for end in list(self._ends):
            end.driver.leave(ErrorCode.NO_ERROR, "the agent is stopping")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self._ends:
                    self._changed.clear()
                    await self._changed.wait()
        await self.close()

    async def close(self) -> None:
        """Close every connection at once and wait for the handlers."""
        self._is_draining = True
        if self._listener is not None:
            self._listener.close()
        tasks = [*self._handshakes, *(task for end in self._ends for task in end.tasks())]
        for handshake in self._handshakes:
            handshake.cancel()
        for end in list(self._ends):
            end.driver.abort()
        if tasks:
            await asyncio.wait(tasks)

    def _accepted(self, sock: socket.socket, remote: tuple[str, int]) -> None:
        if self._is_draining or not self._has_room_for(remote[0]):
            sock.close()
            return
        if self._certificates is None:
            with contextlib.suppress(OSError):
                self._ends.add(_ServerEnd(self, plain(sock), remote))
            return
        shake = self._shake_hands(sock, remote, self._certificates)
        task = asyncio.get_running_loop().create_task(shake)
        self._handshakes[task] = remote[0]
        task.add_done_callback(self._handshakes.pop)

    async def _shake_hands(
        self, sock: socket.socket, remote: tuple[str, int], certificates: Certificates
    ) -> None:
        who = join_address(*remote)
        try:
            async with asyncio.timeout(self.limits.handshake_s):
                channel = await accepted(sock, who, certificates)
        except (PeerUnavailableError, OSError) as exc:  # A TimeoutError is among them.
            logger.warning("peer.refused", extra={"peer": who, "error": explain(exc)})
            return
        if self._is_draining:
            channel.close()
            return
        self._ends.add(_ServerEnd(self, channel, remote))

    def _has_room_for(self, host: str) -> bool:
        limits = self.limits
        shaking = [each == host for each in self._handshakes.values()]
        open_ = [end.remote[0] == host for end in self._ends]
        return _is_room(
            sum(shaking), len(shaking), limits.handshakes_per_address_max, limits.handshakes_max
        ) and _is_room(
            sum(shaking) + sum(open_),
            len(shaking) + len(open_),
            limits.connections_per_address_max,
            limits.connections_max,
        )

    def forget(self, end: "_ServerEnd") -> None:
        """A connection's socket is closed."""
        self._ends.discard(end)
        self._changed.set()


class _ServerEnd:
    """Our end of one peer's connection: its requests."""

    def __init__(self, server: PeerServer, channel: Channel, remote: tuple[str, int]) -> None:
        limits = server.limits
        loop = asyncio.get_running_loop()
        core = Connection(Role.SERVER, limits.server_wire, loop.time())
        self.server = server
        self.remote = remote
        self.driver = Driver(channel, core, self, limits)
        self._bodies: dict[int, _RequestBody] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # Tasks that were cancelled and have not ended yet.
        self._ending: set[asyncio.Task[None]] = set()

    def tasks(self) -> list[asyncio.Task[None]]:
        """The handlers that still run."""
        return [*self._tasks.values(), *self._ending]

    # --- what the driver tells us -----------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Something happened on the wire."""
        match event:
            case RequestReceived(stream_id=stream_id):
                self._begin(event)
            case DataReceived(stream_id=stream_id, data=data):
                body = self._bodies.get(stream_id)
                if body is None:
                    self.driver.core.consumed(stream_id, len(data))
                else:
                    body.feed(data)
            case StreamEnded(stream_id=stream_id):
                if stream_id in self._bodies:
                    self._bodies[stream_id].end()
            case StreamReset(stream_id=stream_id):
                self._cancel(stream_id)
                self.driver.drop_body(stream_id)
            case _:
                pass

    def lost(self, cause: Exception | None) -> None:
        """Every stream is over."""
        if cause is not None:
            logger.debug("connection from %s:%d lost: %s", *self.remote, cause)
        for stream_id in list(self._tasks):
            self._cancel(stream_id)

    def gone(self) -> None:
        """The socket is closed."""
        self.server.forget(self)

    # --- one request ------------------------------------------------------------------------

    def _begin(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        body = _RequestBody(self, stream_id, ended=event.ended)
        self._bodies[stream_id] = body
        task = asyncio.get_running_loop().create_task(self._serve(event, body))
        self._tasks[stream_id] = task
        task.add_done_callback(lambda done: self._ended(stream_id, done))

    def _ended(self, stream_id: int, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if self._tasks.get(stream_id) is task:
            del self._tasks[stream_id]
        body = self._bodies.pop(stream_id, None)
        if body is not None:
            body.discard()
        if not task.cancelled() and task.exception() is not None:
            logger.error("serving stream %d failed", stream_id, exc_info=task.exception())
            self.driver.reset(stream_id, ErrorCode.INTERNAL_ERROR)

    def _cancel(self, stream_id: int) -> None:
        task = self._tasks.pop(stream_id, None)
        if task is not None:
            self._ending.add(task)
            task.cancel()

    async def _serve(self, event: RequestReceived, body: "_RequestBody") -> None:
        request = _request_of(event, self.remote, body)
        try:
            response = await self.server.handler(request)
        except BodyTooLargeError:
            response = Response(413)
        except RemoteProtocolError as exc:
            response = Response(400, body=str(exc).encode())
        except (CapacityError, TimeoutError) as exc:
            logger.warning("handling %s %s: %r", request.method, request.path, exc)
            response = Response(503)
        except Exception:
            logger.exception("handling %s %s failed", request.method, request.path)
            response = Response(500)
        await self._respond(event.stream_id, response, is_head=request.method == "HEAD")

    async def _respond(self, stream_id: int, response: Response, *, is_head: bool) -> None:
        """Send headers, and see that the body is closed whatever becomes of it."""
        core, body = self.driver.core, response.body
        headers = [(":status", str(response.status)), *response.headers]
        length = _length_of(body)
        if length is not None and response.status not in {204, 304}:
            headers.append(("content-length", str(length)))
        handed_over = False
        try:
            if self.driver.is_lost or not core.is_alive(stream_id):
                return
            if is_head or length == 0:
                core.respond(stream_id, headers, ended=True)
                return
            core.respond(stream_id, headers)
            if isinstance(body, FileBody):
                self._send(stream_id, FileOutbox(body.fd, body.offset, body.close), body.length)
                handed_over = True
            elif isinstance(body, bytes):
                outbox = BytesOutbox()
                outbox.push(body)
                self._send(stream_id, outbox, len(body))
            else:
                await self._pump(stream_id, body)
        finally:
            self.driver.poke()
            if not handed_over:
                await _give_back(body)

    def _send(self, stream_id: int, outbox: Outbox, length: int) -> None:
        self.driver.send_body(stream_id, outbox)
        self.driver.core.offer(stream_id, length, final=True)

    async def _pump(self, stream_id: int, items: AsyncIterator[bytes]) -> None:
        core = self.driver.core
        core.prioritise(stream_id, _LINES_PRIORITY)
        outbox = BytesOutbox()
        self.driver.send_body(stream_id, outbox)
        self.driver.poke()
        async for item in items:
            if item:
                outbox.push(item)
                core.offer(stream_id, len(item), final=False)
                self.driver.poke()
                await outbox.drained()
        core.offer(stream_id, 0, final=True)


class _RequestBody:
    """A request's body as it comes in; the peer's window stays shut until somebody reads."""

    def __init__(self, end: _ServerEnd, stream_id: int, *, ended: bool) -> None:
        self._end = end
        self._stream_id = stream_id
        self._data = bytearray()
        self._unread = 0  # bytes of `_data` for which the peer has no credit back
        self._ended = ended
        self._changed = asyncio.Event()
        self._is_read = False

    async def read(self) -> bytes:
        """Gather all of it.

        Raises:
            BodyTooLargeError: it is longer than the limits allow.
            CapacityError: all bodies that are being read are.
            TimeoutError: nothing came for too long.
        """
        limits = self._end.server.limits
        self._is_read = True
        while True:
            self._release()
            if len(self._data) > limits.request_bytes_max:
                raise BodyTooLargeError(f"a request body of more than {limits.request_bytes_max}")
            if self._ended:
                return bytes(self._data)
            if self._end.server.body_bytes > limits.requests_bytes_max:
                raise CapacityError("more request bodies at once than there is room for")
            self._changed.clear()
            async with asyncio.timeout(limits.request_body_s):
                await self._changed.wait()

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        self._data += data
        self._unread += len(data)
        self._end.server.body_bytes += len(data)
        self._changed.set()

    def end(self) -> None:
        """That was all."""
        self._ended = True
        self._changed.set()

    def discard(self) -> None:
        """Nobody reads it any more."""
        self._release()
        self._end.server.body_bytes -= len(self._data)
        self._data.clear()

    def _release(self) -> None:
        if self._unread:
            count, self._unread = self._unread, 0
            self._end.driver.core.consumed(self._stream_id, count)
            self._end.driver.poke()


def _is_room(theirs: int, all_: int, theirs_max: int, all_max: int) -> bool:
    """Whether one more fits: one address gets its share once half of all is taken."""
    return all_ < all_max // 2 or (all_ < all_max and theirs < theirs_max)


def _request_of(event: RequestReceived, remote: tuple[str, int], body: _RequestBody) -> Request:
    method = target = ""
    fields: list[tuple[str, str]] = []
    for name, value in event.headers:
        if name == ":method":
            method = value
        elif name == ":path":
            target = value
        elif name == ":authority":
            fields.append(("host", value))
        elif not name.startswith(":"):
            fields.append((name, value))
    path, _, query = target.partition("?")
    return Request(
        method=method,
        path=unquote(path),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        headers=tuple(fields),
        remote=remote,
        body=body,
    )


def _length_of(body: Body) -> int | None:
    if isinstance(body, FileBody):
        return body.length
    return len(body) if isinstance(body, bytes) else None


async def _give_back(body: object) -> None:
    """Close a body that is not to be sent, or not to its end."""
    if isinstance(body, FileBody):
        body.close()
    else:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
