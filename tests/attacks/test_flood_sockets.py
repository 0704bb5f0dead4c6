"""The same over sockets: the attacker is sent away, the others are served, and nothing is left."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from damselfly.p2p.transport import Limits, PeerPool, PeerServer, Request, Response
from damselfly.p2p.wire import frames, limits as wire
from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.frames import Kind
from damselfly.p2p.wire.settings import Setting
from tests.fakes.peers import Library, RawPeer, address_of, serving, until

CONTENT = os.urandom(1 << 16)


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(CONTENT) as library:
        yield library
        assert library.running == 0
        assert library.opened == library.closed


async def is_served(server: PeerServer) -> bool:
    """An honest peer comes and gets what it asks for."""
    pool = PeerPool()
    buffer = memoryview(bytearray(len(CONTENT)))
    reply = await pool.fetch_into(address_of(server), "/file", buffer, stall_s=10)
    await pool.close()
    return reply.length == len(CONTENT) and bool(buffer == CONTENT)


async def code_of_goaway(peer: RawPeer) -> int:
    frame = await peer.frame_of(Kind.GOAWAY)
    return int.from_bytes(frame.payload[4:8], "big")


async def test_rapid_reset_is_cut_and_every_handler_ended(library: Library) -> None:
    async with serving(library) as server, RawPeer.dial(server.port) as peer:
        for number in range(2000):
            stream_id = 2 * number + 1
            headers = ((":method", "GET"), (":scheme", "http"), (":path", "/hang"))
            peer.send(
                peer.stranger.headers(stream_id, headers)
                + frames.rst_stream_frame(stream_id, ErrorCode.CANCEL)
            )

        assert await code_of_goaway(peer) == ErrorCode.ENHANCE_YOUR_CALM
        assert await peer.ended()
        await until(lambda: library.running == 0 and server.connection_count == 0)
        assert library.begun <= server.limits.server_wire.reset_burst + 1
        assert await is_served(server)


@pytest.mark.parametrize(
    "part",
    [
        frames.ping_frame(bytes(8)),
        frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 1000)]),
        frames.frame(0xAB, 0, 0, b""),
    ],
)
async def test_a_flood_from_somebody_who_reads_nothing(part: bytes, library: Library) -> None:
    async with serving(library) as server, RawPeer.dial(server.port) as peer:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                peer.send(part * 1000)
                await peer.writer.drain()

        await until(lambda: server.connection_count == 0)
        assert await is_served(server)


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\0" * 100, os.urandom(1 << 20), b"PRI * HTTP/1"],
)
async def test_whoever_does_not_speak_http_2_is_sent_away(first: bytes, library: Library) -> None:
    async with serving(library) as server, RawPeer.dial(server.port, greets=False) as peer:
        peer.send(first)

        assert await code_of_goaway(peer) == ErrorCode.PROTOCOL_ERROR
        peer.writer.close()
        await until(lambda: server.connection_count == 0)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"", ErrorCode.SETTINGS_TIMEOUT),
        (frames.PREFACE[:7], ErrorCode.SETTINGS_TIMEOUT),
        (frames.PREFACE, ErrorCode.SETTINGS_TIMEOUT),
        (frames.PREFACE + frames.settings_frame([])[:4], ErrorCode.SETTINGS_TIMEOUT),
        (
            frames.PREFACE + frames.settings_frame([]) + frames.ping_frame(bytes(8))[:11],
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
    ],
)
async def test_slow_loris_runs_out_of_time(first: bytes, code: ErrorCode, library: Library) -> None:
    greets = code is ErrorCode.ENHANCE_YOUR_CALM
    limits = Limits(server_wire=wire.Limits(settings_s=10 if greets else 0.05, frame_s=0.05))
    async with serving(library, limits) as server:
        async with RawPeer.dial(server.port, greets=False) as peer:
            peer.send(first)

            assert await code_of_goaway(peer) == code
            assert await peer.ended()
        await until(lambda: server.connection_count == 0)


async def test_a_reader_with_a_shut_window_loses_its_stream(library: Library) -> None:
    quick = wire.Limits(blocked_s=0.05)
    async with (
        serving(library, Limits(server_wire=quick)) as server,
        RawPeer.dial(server.port) as peer,
    ):
        peer.send(frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 0)]))
        headers = ((":method", "GET"), (":scheme", "http"), (":path", "/file"))
        peer.send(peer.stranger.headers(1, headers))

        reset = await peer.frame_of(Kind.RST_STREAM)

        assert (reset.stream_id, reset.number) == (1, ErrorCode.CANCEL)
        await until(lambda: library.closed == 1)


async def test_a_reader_whose_kernel_is_full_is_dropped() -> None:
    async def endless(_request: Request) -> Response:
        async def items() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1 << 16)

        return Response(200, (), items())

    async with (
        serving(endless, Limits(write_stall_s=0.1)) as server,
        RawPeer.dial(server.port) as peer,
    ):
        huge = (1 << 31) - 1
        peer.send(frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, huge)]))
        peer.send(frames.window_update_frame(0, huge - 65535))
        peer.send(peer.stranger.headers(1))

        await until(lambda: server.connection_count == 1)
        await until(lambda: server.connection_count == 0)


async def test_a_body_that_never_comes_is_given_up(library: Library) -> None:
    async with (
        serving(library, Limits(request_body_s=0.05)) as server,
        RawPeer.dial(server.port) as peer,
    ):
        headers = ((":method", "POST"), (":scheme", "http"), (":path", "/echo"))
        peer.send(peer.stranger.headers(1, headers, ended=False))
        peer.send(peer.stranger.data(1, b"a beginning"))

        answer = await peer.frame_of(Kind.HEADERS)

        assert answer.stream_id == 1
        await until(lambda: library.running == 0)


async def test_bodies_of_many_requests_share_one_limit(library: Library) -> None:
    limits = Limits(requests_bytes_max=100_000)
    async with serving(library, limits) as server, RawPeer.dial(server.port) as peer:
        headers = ((":method", "POST"), (":scheme", "http"), (":path", "/echo"))
        for stream_id in range(1, 21, 2):
            peer.send(peer.stranger.headers(stream_id, headers, ended=False))
            peer.send(peer.stranger.data(stream_id, bytes(12_000)))

        refused = await peer.frame_of(Kind.HEADERS)

        await until(lambda: server.body_bytes <= 100_000)
        # Those who were let in can end, and whoever was refused is not heard any more.
        kept = [one for one in range(1, 21, 2) if one != refused.stream_id]
        for stream_id in range(1, 21, 2):
            peer.send(peer.stranger.data(stream_id, b"the end", ended=True))
        answered = {(await peer.frame_of(Kind.HEADERS)).stream_id for _ in kept}
        assert answered == set(kept)
        await until(lambda: server.body_bytes == 0)


async def test_more_connections_than_the_limit_are_turned_away(library: Library) -> None:
    async with serving(library, Limits(connections_max=2)) as server:
        async with RawPeer.dial(server.port) as one, RawPeer.dial(server.port) as two:
            await one.frame()
            await two.frame()
            async with RawPeer.dial(server.port) as three:
                assert await three.ended()
            assert server.connection_count == 2
        await until(lambda: server.connection_count == 0)
        assert await is_served(server)


async def test_a_client_that_resets_its_connection_leaves_nothing(library: Library) -> None:
    async with serving(library) as server:
        for _ in range(20):
            async with RawPeer.dial(server.port) as peer:
                headers = ((":method", "GET"), (":scheme", "http"), (":path", "/hang"))
                peer.send(peer.stranger.headers(1, headers))
                await peer.frame()
                peer.writer.transport.abort()
        await until(lambda: server.connection_count == 0 and library.running == 0)
        assert await is_served(server)


async def test_an_honest_peer_is_served_while_others_attack(library: Library) -> None:
    async with serving(library) as server:

        async def attack() -> None:
            async with RawPeer.dial(server.port) as peer:
                with contextlib.suppress(ConnectionError):
                    for _ in range(50):
                        peer.send(peer.stranger.data(1, b"x" * 100) * 10)
                        peer.send(frames.ping_frame(bytes(8)) * 100)
                        await peer.writer.drain()

        attacks = asyncio.gather(*(attack() for _ in range(10)))
        served = await asyncio.gather(*(is_served(server) for _ in range(10)))
        await attacks

        assert all(served)
        await until(lambda: server.connection_count == 0)


async def test_who_idles_on_many_connections_leaves_room_for_the_others(library: Library) -> None:
    limits = Limits(connections_max=8, connections_per_address_max=2)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(library, limits))
        idle = [
            await stack.enter_async_context(RawPeer.dial(server.port, greets=False))
            for _ in range(12)
        ]

        refused = [await peer.ended() for peer in idle[4:]]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, local_addr=("127.0.0.2", 0)
        )
        stack.callback(writer.close)
        honest = RawPeer(reader, writer)
        honest.send(frames.PREFACE + frames.settings_frame([]))

        assert all(refused)
        assert server.connection_count == 5
        assert (await honest.frame()).kind == Kind.SETTINGS
