"""The `h2` package as a stranger: a strict client for our server, a wilful server for our pool."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from damselfly.errors import PeerUnavailableError, RemoteProtocolError
from damselfly.p2p.transport import Limits, PeerPool, PeerServer
from damselfly.p2p.wire import limits as wire
from tests.fakes.peers import Library, nobody_else, serving, until

CONTENT = os.urandom(1 << 19) * 4
Codes = h2.settings.SettingCodes


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(CONTENT) as library:
        yield library
        assert library.opened == library.closed


@pytest.fixture
async def pool() -> AsyncIterator[PeerPool]:
    pool = PeerPool()
    yield pool
    await pool.close()
    await until(nobody_else)


class Endpoint:
    """An h2 connection on asyncio streams; h2 itself raises when the other side breaks a rule."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        )
        self.bodies: dict[int, bytearray] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.gone: int | None = None

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def step(self, *, acknowledge: bool = True) -> list[h2.events.Event]:
        """Read once, and note what came."""
        async with asyncio.timeout(20):
            data = await self.reader.read(65536)
        if not data:
            raise ConnectionError("hung up")
        events = self.h2.receive_data(data)
        for event in events:
            self.note(event, acknowledge=acknowledge)
        await self.flush()
        return events

    def note(self, event: h2.events.Event, *, acknowledge: bool) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=int(stream_id), headers=list(headers)):
                self.headers[stream_id] = {str(name): str(value) for name, value in headers}
            case h2.events.DataReceived(stream_id=int(stream_id), data=bytes(data)):
                self.bodies.setdefault(stream_id, bytearray()).extend(data)
                if acknowledge:
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
            case h2.events.StreamEnded(stream_id=int(stream_id)):
                self.ended.add(stream_id)
            case h2.events.StreamReset(stream_id=int(stream_id), error_code=int(code)):
                self.resets[stream_id] = code
            case h2.events.ConnectionTerminated(error_code=int(code)):
                self.gone = code
            case _:
                pass


class Client(Endpoint):
    """A client of our server."""

    @classmethod
    @asynccontextmanager
    async def dial(
        cls, server: PeerServer, settings: dict[h2.settings.SettingCodes | int, int] | None = None
    ) -> AsyncGenerator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        client = cls(reader, writer, client=True)
        client.h2.initiate_connection()
        if settings:
            client.h2.update_settings(settings)
        await client.flush()
        try:
            yield client
        finally:
            writer.close()

    def ask(
        self, path: str, *headers: tuple[str, str], method: str = "GET", ended: bool = True
    ) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a")]
        self.h2.send_headers(stream_id, [*fields, *headers], end_stream=ended)
        return stream_id

    async def finish(self, *stream_ids: int) -> None:
        await self.flush()
        while not self.ended.issuperset(stream_ids):
            await self.step()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {Codes.INITIAL_WINDOW_SIZE: 4000},
        {Codes.MAX_FRAME_SIZE: 1 << 20, Codes.INITIAL_WINDOW_SIZE: 1 << 22},
        {Codes.HEADER_TABLE_SIZE: 0},
        {Codes.INITIAL_WINDOW_SIZE: 1 << 20, Codes.MAX_FRAME_SIZE: 16_385},
    ],
)
async def test_an_h2_client_fetches_chunks(
    settings: dict[h2.settings.SettingCodes | int, int], library: Library
) -> None:
    async with serving(library) as server, Client.dial(server, settings) as client:
        streams = [client.ask(f"/file?start={start}&stop=300000") for start in (0, 1, 299_999)]

        await client.finish(*streams)

        for stream_id, start in zip(streams, (0, 1, 299_999), strict=True):
            assert client.bodies[stream_id] == CONTENT[start:300_000]
            assert client.headers[stream_id][":status"] == "200"


async def test_an_h2_client_posts_padded_data_and_trailers(library: Library) -> None:
    async with serving(library) as server, Client.dial(server) as client:
        stream_id = client.ask("/echo", method="POST", ended=False)
        for at in range(0, 200_000, 1000):
            while client.h2.local_flow_control_window(stream_id) < 1256:
                await client.flush()
                await client.step()
            client.h2.send_data(stream_id, CONTENT[at : at + 1000], pad_length=at % 256)
        client.h2.send_headers(stream_id, [("x-sum", "1")], end_stream=True)

        await client.finish(stream_id)

        assert client.bodies[stream_id] == CONTENT[:200_000]


async def test_cancelled_streams_do_not_disturb_the_others(library: Library) -> None:
    async with serving(library) as server, Client.dial(server) as client:
        for _ in range(20):
            doomed, kept = client.ask("/file"), client.ask("/file?stop=50000")
            await client.flush()
            while not client.bodies.get(doomed):
                await client.step()
            client.h2.reset_stream(doomed, h2.errors.ErrorCodes.CANCEL)

            await client.finish(kept)

            assert client.bodies[kept] == CONTENT[:50_000]
        await until(lambda: library.opened == library.closed == 40)
        assert server.connection_count == 1


async def test_a_reader_that_pauses_gets_the_rest_when_it_goes_on(library: Library) -> None:
    async with serving(library) as server, Client.dial(server) as client:
        stream_id = client.ask("/file")
        await client.flush()
        while len(client.bodies.get(stream_id, b"")) < 65535:
            await client.step(acknowledge=False)
        client.h2.increment_flow_control_window(1 << 22)
        client.h2.increment_flow_control_window(1 << 22, stream_id)
        await client.flush()
        while stream_id not in client.ended:
            await client.step(acknowledge=False)

        assert client.bodies[stream_id] == CONTENT


async def test_an_interleaved_stream_of_lines_arrives_beside_a_chunk(library: Library) -> None:
    async with serving(library) as server, Client.dial(server) as client:
        chunk = client.ask("/file")
        lines = client.ask("/lines?count=50")

        await client.finish(lines)

        assert client.bodies[lines].count(b"\n") == 50
        await client.finish(chunk)
        assert client.bodies[chunk] == CONTENT


async def test_an_h2_client_reads_our_goaway(library: Library) -> None:
    async with serving(library) as server, Client.dial(server) as client:
        stream_id = client.ask("/x")
        await client.finish(stream_id)

        drain = asyncio.create_task(server.drain(10))
        while client.gone is None:
            await client.step()

        assert client.gone == h2.errors.ErrorCodes.NO_ERROR
        client.writer.close()
        await drain


# --- our pool against a server made of h2 -------------------------------------------------------

Answer = Callable[["Server", int, dict[str, str]], Coroutine[None, None, None]]


class Server(Endpoint):
    """One connection of an h2 server that answers as a test wants."""

    async def serve(self, answer: Answer) -> None:
        self.h2.initiate_connection()
        await self.flush()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    events = await self.step()
                except (ConnectionError, TimeoutError):
                    break
                for event in events:
                    if isinstance(event, h2.events.RequestReceived):
                        assert event.stream_id is not None
                        assert event.headers is not None
                        headers = {str(name): str(value) for name, value in event.headers}
                        group.create_task(answer(self, event.stream_id, headers))

    async def send(self, stream_id: int, body: bytes, frame: int, pad: int | None = None) -> None:
        """Send DATA in frames of at most so many bytes, as the window allows."""
        at = 0
        while at < len(body):
            overhead = 0 if pad is None else pad + 1
            room = self.h2.local_flow_control_window(stream_id) - overhead
            count = min(frame - overhead, room, self.h2.max_outbound_frame_size - overhead)
            count = min(count, len(body) - at)
            if count <= 0:
                await asyncio.sleep(0)
                continue
            self.h2.send_data(stream_id, body[at : at + count], pad_length=pad)
            at += count
            await self.flush()

    def respond(self, stream_id: int, *headers: tuple[str, str], ended: bool = False) -> None:
        self.h2.send_headers(stream_id, [(":status", "200"), *headers], end_stream=ended)


@asynccontextmanager
async def stranger(answer: Answer) -> AsyncGenerator[str]:
    """An h2 server on loopback; gives its address."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Server(reader, writer, client=False).serve(answer)
        finally:
            writer.close()

    async with talking(connected) as address:
        yield address


@asynccontextmanager
async def talking(
    connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[str]:
    running: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await connected(reader, writer)
        finally:
            running.discard(task)

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in running:
            task.cancel()
        await until(lambda: not running)


@pytest.mark.parametrize(
    ("frame", "pad"), [(16_384, None), (1 << 20, None), (1000, None), (5000, 255), (16_384, 0)]
)
async def test_our_pool_fetches_from_an_h2_server(
    frame: int, pad: int | None, pool: PeerPool
) -> None:
    async def answer(server: Server, stream_id: int, headers: dict[str, str]) -> None:
        body = CONTENT[int(headers[":path"][1:]) :]
        server.respond(stream_id, ("content-length", str(len(body))))
        await server.send(stream_id, body, frame, pad)
        server.h2.end_stream(stream_id)
        await server.flush()

    async with stranger(answer) as address:

        async def fetch(start: int) -> None:
            buffer = memoryview(bytearray(len(CONTENT)))
            reply = await pool.fetch_into(address, f"/{start}", buffer, stall_s=20)
            assert reply.length == len(CONTENT) - start
            assert buffer[: reply.length] == CONTENT[start:]

        await asyncio.gather(*(fetch(start) for start in (0, 5, 1_900_000, len(CONTENT))))
        assert pool.connection_count == 1
        await pool.close()


async def test_interim_responses_and_trailers_are_taken(pool: PeerPool) -> None:
    async def answer(server: Server, stream_id: int, _headers: dict[str, str]) -> None:
        server.h2.send_headers(stream_id, [(":status", "103"), ("link", "</a>")])
        server.respond(stream_id)
        server.h2.send_data(stream_id, b"body")
        server.h2.send_headers(stream_id, [("x-sum", "1")], end_stream=True)
        await server.flush()

    async with stranger(answer) as address:
        buffer = memoryview(bytearray(10))
        reply = await pool.fetch_into(address, "/", buffer, stall_s=20)
        await pool.close()

    assert (reply.status, reply.length, bytes(buffer[:4])) == (200, 4, b"body")


async def test_a_body_cut_short_is_the_peers_fault(pool: PeerPool) -> None:
    async def answer(server: Server, stream_id: int, _headers: dict[str, str]) -> None:
        server.respond(stream_id, ("content-length", "10"))
        server.h2.send_data(stream_id, b"short")
        server.h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        await server.flush()

    async with stranger(answer) as address:
        with pytest.raises(PeerUnavailableError):
            await pool.fetch_into(address, "/", memoryview(bytearray(10)), stall_s=20)
        await pool.close()


async def test_a_reset_fetch_fails_and_the_connection_goes_on(pool: PeerPool) -> None:
    async def answer(server: Server, stream_id: int, headers: dict[str, str]) -> None:
        server.respond(stream_id)
        if headers[":path"] == "/reset":
            server.h2.send_data(stream_id, b"some")
            server.h2.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            server.h2.send_data(stream_id, b"whole", end_stream=True)
        await server.flush()

    async with stranger(answer) as address:
        with pytest.raises(PeerUnavailableError, match="INTERNAL_ERROR"):
            await pool.fetch_into(address, "/reset", memoryview(bytearray(10)), stall_s=20)
        reply = await pool.request(address, "GET", "/", deadline_s=20)

        assert reply.body == b"whole"
        assert pool.connection_count == 1
        await pool.close()


async def test_a_request_that_a_goaway_left_out_is_asked_again(pool: PeerPool) -> None:
    connections: list[Server] = []

    async def answer(server: Server, stream_id: int, _headers: dict[str, str]) -> None:
        if server not in connections:
            connections.append(server)
        if server is connections[0] and stream_id > 1:
            server.h2.close_connection(last_stream_id=1)
        else:
            server.respond(stream_id)
            server.h2.send_data(stream_id, b"answer", end_stream=True)
        await server.flush()

    async with stranger(answer) as address:
        first = await pool.request(address, "GET", "/", deadline_s=20)
        second = await pool.request(address, "GET", "/", deadline_s=20)
        await pool.close()

    assert first.body == second.body == b"answer"
    assert len(connections) == 2


async def test_a_server_that_always_refuses_is_not_asked_for_ever(pool: PeerPool) -> None:
    asked = 0

    async def answer(server: Server, stream_id: int, _headers: dict[str, str]) -> None:
        nonlocal asked
        asked += 1
        server.h2.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
        await server.flush()

    async with stranger(answer) as address:
        with pytest.raises(PeerUnavailableError, match="refused"):
            await pool.request(address, "GET", "/", deadline_s=20)
        await pool.close()

    assert asked == 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        bytes(100),
        os.urandom(100_000),
    ],
)
async def test_a_server_that_talks_garbage_is_a_protocol_error(garbage: bytes) -> None:
    pool = PeerPool(Limits(client_wire=wire.Limits(settings_s=0.1)))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        while await reader.read(1000):
            pass
        writer.close()

    async with talking(connected) as address:
        with pytest.raises(RemoteProtocolError):
            await pool.request(address, "GET", "/", deadline_s=20)
        await until(lambda: pool.connection_count == 0)


async def test_a_server_that_stops_in_the_middle_is_found_out() -> None:
    pool = PeerPool(Limits(client_wire=wire.Limits(ping_after_s=5, dead_after_s=10)))

    async def answer(server: Server, stream_id: int, _headers: dict[str, str]) -> None:
        server.respond(stream_id, ("content-length", "10"))
        server.h2.send_data(stream_id, b"half")
        await server.flush()

    async with stranger(answer) as address:
        with pytest.raises(PeerUnavailableError, match="nothing came"):
            await pool.fetch_into(address, "/", memoryview(bytearray(10)), stall_s=0.05)
        await pool.close()


async def test_bytes_too_few_to_be_woken_for_still_count_as_progress() -> None:
    async def answer(server: Server, stream_id: int, _headers: dict[str, str]) -> None:
        server.respond(stream_id)
        # A frame that comes in drops, each of them below what the pool has itself woken for.
        server.h2.send_data(stream_id, CONTENT[:16_000], end_stream=True)
        data = server.h2.data_to_send()
        for at in range(0, len(data), 1600):
            server.writer.write(data[at : at + 1600])
            await server.writer.drain()
            await asyncio.sleep(0.3)

    pool = PeerPool(Limits(wake_bytes=1 << 20, wake_bytes_min=1))
    async with stranger(answer) as address:
        buffer = memoryview(bytearray(16_000))
        reply = await pool.fetch_into(address, "/", buffer, stall_s=2.0)
        await pool.close()

    assert reply.length == 16_000
    assert buffer == CONTENT[:16_000]
