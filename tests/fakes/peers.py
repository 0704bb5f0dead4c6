"""Peers on loopback: a server with a handler of the test's, and a socket that speaks raw frames."""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Self

from damselfly.p2p.transport import (
    Certificates,
    FileBody,
    Handler,
    Limits,
    PeerPool,
    PeerServer,
    Request,
    Response,
)
from damselfly.p2p.wire import frames
from tests.fakes.wire import Frame, Stranger


class Security:
    """What the servers and pools made here speak TLS with; None: they speak plainly."""

    certificates: ClassVar[Certificates | None] = None


def made_pool(limits: Limits | None = None) -> PeerPool:
    """Make a pool that speaks as servers do here."""
    return PeerPool(limits, Security.certificates)


@asynccontextmanager
async def serving(handler: Handler, limits: Limits | None = None) -> AsyncGenerator[PeerServer]:
    """Run a server, and see that nothing of it is left."""
    server = PeerServer(handler, limits, Security.certificates)
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close()
        assert server.connection_count == 0
        assert server.body_bytes == 0


def address_of(server: PeerServer) -> str:
    return f"127.0.0.1:{server.port}"


async def until(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    """Wait for a state."""
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.001)


def nobody_else() -> bool:
    """No task is left but the test's own."""
    return len(asyncio.all_tasks()) == 1


@dataclass
class Library:
    """A handler that serves an open file in chunks, and a few other things that tests ask for."""

    content: bytes
    opened: int = 0
    closed: int = 0
    running: int = 0
    begun: int = 0
    cancelled: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[bytes] = field(default_factory=list[bytes])

    def __post_init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.write(self.content)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def truncate(self, length: int) -> None:
        os.truncate(self._file.fileno(), length)

    async def __call__(self, request: Request) -> Response:
        self.running += 1
        self.begun += 1
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: Request) -> Response:
        match request.path:
            case "/file":
                start = int(request.query.get("start", "0"))
                stop = int(request.query.get("stop", str(len(self.content))))
                self.opened += 1
                return Response(
                    200, (), FileBody(self._file.fileno(), start, stop - start, self._close)
                )
            case "/echo":
                body = await request.read()
                self.bodies.append(body)
                return Response(200, (("x-method", request.method),), body)
            case "/lines":
                return Response(200, (("x-kind", "lines"),), self._lines(request))
            case "/hang":
                await self.release.wait()
                return Response(200, (), b"at last")
            case "/fail":
                raise RuntimeError("a bug in a handler")
            case _:
                return Response(404, (), b"not here")

    async def _lines(self, request: Request) -> AsyncIterator[bytes]:
        for number in range(int(request.query["count"])):
            yield f'{{"line":{number}}}\n'.encode()
        if "hang" in request.query:
            try:
                await self.release.wait()
            finally:
                self.closed += 1

    def _close(self) -> None:
        self.closed += 1


class RawPeer:
    """A client that sends any bytes, and reads frames one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.stranger = Stranger()

    @classmethod
    @asynccontextmanager
    async def dial(cls, port: int, *, greets: bool = True) -> AsyncGenerator["RawPeer"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = cls(reader, writer)
        if greets:
            peer.send(frames.PREFACE + frames.settings_frame([]) + frames.SETTINGS_ACK)
        try:
            yield peer
        finally:
            writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> Frame:
        """Read the next frame."""
        async with asyncio.timeout(10):
            header = await self.reader.readexactly(frames.HEADER_BYTES)
            length, kind, flags, stream_id = frames.parse_header(memoryview(header), 0)
            return Frame(kind, flags, stream_id, await self.reader.readexactly(length))

    async def frame_of(self, kind: int) -> Frame:
        """Read on until a frame of this kind comes."""
        while (found := await self.frame()).kind != kind:
            pass
        return found

    async def ended(self) -> bool:
        """Read until the server hangs up."""
        async with asyncio.timeout(10):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
            return True


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
