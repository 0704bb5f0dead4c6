"""What goes wrong between the pool and a server: named errors, and nothing half-dead is left."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from damselfly.errors import CapacityError, PeerUnavailableError, RemoteProtocolError
from damselfly.p2p.transport import Limits, PeerPool, PeerServer, Request, Response
from damselfly.p2p.transport.listener import Listener
from damselfly.p2p.wire import frames, limits as wire
from damselfly.p2p.wire.codes import ErrorCode
from tests.fakes.peers import Library, RawPeer, address_of, nobody_else, serving, until
from tests.fakes.wire import OK, Stranger

CONTENT = os.urandom(1 << 18)


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(CONTENT) as library:
        yield library
        assert library.running == 0


@pytest.fixture
async def pool() -> AsyncIterator[PeerPool]:
    pool = PeerPool()
    yield pool
    await pool.close()
    assert pool.connection_count == 0
    await until(nobody_else)


class Script:
    """A server that says what a test has written down, and listens to nothing."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.settings_frame([]))
        await reader.readexactly(len(frames.PREFACE))
        heard = await reader.read(65536)
        while Stranger().block([(":path", "/x")])[1:] not in heard:
            heard += await reader.read(65536)
        for part in self.parts:
            writer.write(part)
        while await reader.read(65536):
            pass
        writer.close()


async def ask(pool: PeerPool, address: str) -> None:
    await pool.fetch_into(address, "/x", memoryview(bytearray(100)), stall_s=20)


@pytest.mark.parametrize(
    "parts",
    [
        (
            Stranger().headers(1, (*OK, ("content-length", "10")), ended=False),
            Stranger.data(1, b"short", ended=True),
        ),
        (Stranger().headers(1, (*OK, ("content-length", "101")), ended=False),),
        (Stranger().headers(1, OK, ended=False), Stranger.data(1, bytes(101))),
        (Stranger().headers(1, ((":status", "103"),)),),
        (Stranger().headers(1, (("x", "no status"),)),),
    ],
)
async def test_a_malformed_answer_is_the_peers_fault_and_costs_one_stream(
    parts: tuple[bytes, ...], pool: PeerPool
) -> None:
    async with Script(*parts) as address:
        with pytest.raises(RemoteProtocolError, match="a malformed answer"):
            await ask(pool, address)

        assert pool.connection_count == 1
        await pool.close()


async def test_a_peer_that_breaks_the_rules_is_dropped(pool: PeerPool) -> None:
    async with Script(Stranger().headers(2, OK)) as address:
        with pytest.raises(RemoteProtocolError, match="not HTTP/2"):
            await ask(pool, address)

        await until(lambda: pool.connection_count == 0)


async def test_a_peer_that_sends_us_away_is_named_in_the_log(
    pool: PeerPool, caplog: pytest.LogCaptureFixture
) -> None:
    goaway = frames.goaway_frame(1, ErrorCode.ENHANCE_YOUR_CALM, "too many of you")
    async with Script(goaway, frames.rst_stream_frame(1, ErrorCode.CANCEL)) as address:
        with pytest.raises(PeerUnavailableError):
            await ask(pool, address)

    assert "ENHANCE_YOUR_CALM too many of you" in caplog.text


async def test_a_line_that_does_not_end_is_the_peers_fault() -> None:
    async def handler(_request: Request) -> Response:
        return Response(200, (), b"x" * 5000)

    pool = PeerPool(Limits(line_bytes_max=1000))
    async with serving(handler) as server:
        async with pool.stream(address_of(server), "GET", "/") as reply:
            lines = reply.lines()
            with pytest.raises(RemoteProtocolError, match="does not end"):
                await anext(lines)
        await pool.close()


async def test_the_last_line_may_lack_its_end(pool: PeerPool) -> None:
    async def handler(_request: Request) -> Response:
        return Response(200, (), b"one\n\ntwo")

    async with serving(handler) as server, pool.stream(address_of(server), "GET", "/") as reply:
        assert [line async for line in reply.lines()] == [b"one", b"", b"two"]


async def test_no_turn_comes_within_the_patience_of_a_fetch(library: Library) -> None:
    pool = PeerPool()
    limits = Limits(server_wire=wire.Limits(streams_max=1))
    async with serving(library, limits) as server:
        await pool.request(address_of(server), "GET", "/x", deadline_s=20)
        async with pool.stream(address_of(server), "GET", "/lines?count=1&hang=1"):
            with pytest.raises(PeerUnavailableError, match="no stream for"):
                await pool.fetch_into(
                    address_of(server), "/x", memoryview(bytearray(1)), stall_s=0.05
                )
        await pool.close()
        await until(lambda: library.closed == 1)


async def test_a_pool_that_is_closed_gives_up_its_dials() -> None:
    with socket.socket() as deaf:
        # Nobody accepts: the first connections fill the backlog, and then dials hang.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        pools = [PeerPool(Limits(connect_s=30)) for _ in range(8)]
        asks = [
            asyncio.create_task(pool.request(address, "GET", "/", deadline_s=30)) for pool in pools
        ]
        await asyncio.sleep(0.05)

        for pool in pools:
            await pool.close()

        for failed in await asyncio.gather(*asks, return_exceptions=True):
            assert isinstance(failed, PeerUnavailableError)
        await until(nobody_else)


async def test_a_dial_that_nobody_answers_ends_at_its_limit() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        pools = [PeerPool(Limits(connect_s=0.2)) for _ in range(4)]

        asks = [pool.request(address, "GET", "/", deadline_s=0.5) for pool in pools]
        failures = await asyncio.gather(*asks, return_exceptions=True)

        assert all(isinstance(failure, PeerUnavailableError) for failure in failures)
        assert any("dialling" in str(failure) for failure in failures)
        for pool in pools:
            await pool.close()


async def test_a_bug_in_a_callback_ends_the_connection_and_is_told(
    library: Library, pool: PeerPool
) -> None:
    told: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    def buggy(_count: int) -> None:
        raise ZeroDivisionError

    async with serving(library) as server:
        with pytest.raises(PeerUnavailableError):
            await pool.fetch_into(
                address_of(server),
                "/file",
                memoryview(bytearray(1 << 18)),
                stall_s=20,
                on_bytes=buggy,
            )
        assert pool.connection_count == 0
        await until(lambda: server.connection_count == 0)

    assert [type(one) for one in told] == [ZeroDivisionError]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RemoteProtocolError("nonsense"), 400),
        (CapacityError("no room"), 503),
        (TimeoutError(), 503),
        (OSError("disk"), 500),
    ],
)
async def test_what_a_handler_raises_becomes_a_status(
    failure: Exception, status: int, pool: PeerPool
) -> None:
    async def handler(_request: Request) -> Response:
        raise failure

    async with serving(handler) as server:
        reply = await pool.request(address_of(server), "GET", "/", deadline_s=20)

    assert reply.status == status


@pytest.mark.parametrize("breaks", ["headers", "items"])
async def test_a_response_that_cannot_be_sent_is_reset_and_closed(
    breaks: str, pool: PeerPool, caplog: pytest.LogCaptureFixture
) -> None:
    closed = 0

    async def handler(_request: Request) -> Response:
        async def items() -> AsyncIterator[bytes]:
            nonlocal closed
            try:
                yield b"one"
                if breaks == "items":
                    raise ValueError("no more")
                yield b"two"
            finally:
                closed += 1

        return Response(200, (("x", "\u2603" if breaks == "headers" else "y"),), items())

    async with serving(handler) as server:
        with pytest.raises(PeerUnavailableError, match="INTERNAL_ERROR"):
            await pool.request(address_of(server), "GET", "/", deadline_s=20)

        assert server.connection_count == 1
    assert closed == (breaks == "items")  # A generator that was never begun has nothing to close.
    assert "failed" in caplog.text


async def test_a_port_that_is_taken_is_an_os_error(library: Library) -> None:
    async with serving(library) as server:
        other = PeerServer(library)

        with pytest.raises(OSError, match="in use"):
            await other.start("127.0.0.1", server.port)

        await other.close()


class Tired(socket.socket):
    """A listening socket whose first accepts fail."""

    failures: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise OSError(self.failures.pop(0), "not now")
        return super().accept()


async def test_an_exhausted_machine_rests_and_accepts_again() -> None:
    accepted: list[socket.socket] = []
    take: Callable[[socket.socket, tuple[str, int]], None] = lambda sock, _: accepted.append(sock)  # noqa: E731
    sock = Tired()
    sock.failures = [errno.ECONNABORTED, errno.EMFILE]
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    listener = Listener(sock, take)

    async with RawPeer.dial(listener.port, greets=False):
        await until(lambda: len(accepted) == 1)

    assert not sock.failures
    accepted[0].close()
    listener.close()


async def test_a_listener_can_be_closed_while_it_rests() -> None:
    sock = Tired()
    sock.failures = [errno.EMFILE] * 10
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    listener = Listener(sock, lambda taken, _: taken.close())
    async with RawPeer.dial(listener.port, greets=False):
        await until(lambda: len(sock.failures) < 10)

    listener.close()

    assert sock.fileno() == -1


async def test_things_show_how_they_are(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        async with pool.stream(address_of(server), "GET", "/lines?count=1&hang=1") as reply:
            assert repr(server) == "<PeerServer 1 connections>"
            assert repr(pool) == "<PeerPool 1 connections, 0 being dialled>"
            assert repr(reply).startswith("<ReplyStream 200 asking 127.0.0.1:")
            (end,) = pool._open
            assert "<Driver open <Connection client open 1 streams>>" in repr(end)
        await until(lambda: library.closed == 1)
