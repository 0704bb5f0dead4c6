"""Do we understand ourselves? The pool against the server, on loopback sockets."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from damselfly.errors import PeerUnavailableError, RemoteProtocolError, UsageError
from damselfly.p2p.transport import (
    BufferPool,
    Certificates,
    FileBody,
    Limits,
    PeerPool,
    PeerServer,
    Request,
    Response,
)
from damselfly.p2p.transport.exchange import Body
from damselfly.p2p.transport.pool import split_address
from damselfly.p2p.wire import limits as wire
from tests.fakes.authority import Authority
from tests.fakes.peers import (
    Library,
    Security,
    address_of,
    free_port,
    made_pool,
    nobody_else,
    serving,
    until,
)

CONTENT = os.urandom(1 << 20) * 6


@pytest.fixture(params=["plain", "tls"], autouse=True)
def _security(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if request.param == "tls":
        certificates = Certificates(Authority().write(tmp_path / "tls"))
        monkeypatch.setattr(Security, "certificates", certificates)


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(CONTENT) as library:
        yield library
        assert library.running == 0


@pytest.fixture
async def pool() -> AsyncIterator[PeerPool]:
    pool = made_pool()
    yield pool
    await pool.close()
    assert pool.connection_count == 0
    await until(nobody_else)


async def test_a_chunk_comes_through(library: Library, pool: PeerPool) -> None:
    buffer = memoryview(bytearray(5 << 20))
    heard: list[int] = []
    async with serving(library) as server:
        reply = await pool.fetch_into(
            address_of(server),
            "/file?start=1000&stop=4195304",
            buffer,
            stall_s=10,
            on_bytes=heard.append,
        )

    assert (reply.status, reply.length, reply.body) == (200, 4 << 20, b"")
    assert reply.header("content-length") == str(4 << 20)
    assert buffer[: 4 << 20] == CONTENT[1000:4195304]
    assert sum(heard) == 4 << 20
    assert (library.opened, library.closed) == (1, 1)


async def test_many_chunks_share_one_connection(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:

        async def fetch(number: int) -> bool:
            buffer = memoryview(bytearray(1 << 18))
            start = number << 16
            path = f"/file?start={start}&stop={start + (1 << 18)}"
            reply = await pool.fetch_into(address_of(server), path, buffer, stall_s=10)
            return bool(reply.length == 1 << 18 and buffer == CONTENT[start : start + (1 << 18)])

        right = await asyncio.gather(*(fetch(number) for number in range(80)))

        assert all(right)
        assert server.connection_count == pool.connection_count == 1
    assert library.opened == library.closed == 80


async def test_a_refusal_leaves_the_buffer_alone(library: Library, pool: PeerPool) -> None:
    buffer = memoryview(bytearray(100))
    async with serving(library) as server:
        reply = await pool.fetch_into(address_of(server), "/nothing", buffer, stall_s=10)

    assert (reply.status, reply.length, reply.body) == (404, 0, b"not here")
    assert bytes(buffer) == bytes(100)


@pytest.mark.parametrize("length", [0, 1, 70_000, 3 << 20])
async def test_a_body_goes_there_and_back(length: int, library: Library, pool: PeerPool) -> None:
    body = CONTENT[:length]
    async with serving(library) as server:
        reply = await pool.request(address_of(server), "POST", "/echo", body=body, deadline_s=20)

    assert reply.status == 200
    assert reply.body == body == library.bodies[0]
    assert reply.header("x-method") == "POST"


async def test_a_body_too_large_is_413(library: Library, pool: PeerPool) -> None:
    async with serving(library, Limits(request_bytes_max=100_000)) as server:
        reply = await pool.request(
            address_of(server), "POST", "/echo", body=bytes(2 << 20), deadline_s=20
        )
        again = await pool.request(address_of(server), "GET", "/nothing", deadline_s=20)

    assert reply.status == 413
    assert again.status == 404


async def test_a_reply_too_large_is_the_peers_fault(library: Library) -> None:
    pool = made_pool(Limits(reply_bytes_max=1000))
    async with serving(library) as server:
        with pytest.raises(RemoteProtocolError):
            await pool.request(address_of(server), "GET", "/file", deadline_s=20)
        await pool.close()
        await until(lambda: library.closed == 1)


async def test_lines_come_as_they_are_made(library: Library, pool: PeerPool) -> None:
    async with (
        serving(library) as server,
        pool.stream(address_of(server), "GET", "/lines?count=3&hang=1", stall_s=20) as reply,
    ):
        assert reply.status == 200
        assert dict(reply.headers)["x-kind"] == "lines"
        lines = reply.lines()
        first = [await anext(lines) for _ in range(3)]
        assert first == [b'{"line":0}', b'{"line":1}', b'{"line":2}']
        library.release.set()
        assert [line async for line in lines] == []


async def test_whoever_stops_reading_lines_stops_their_making(
    library: Library, pool: PeerPool
) -> None:
    async with serving(library) as server:
        async with pool.stream(address_of(server), "GET", "/lines?count=1&hang=1") as reply:
            assert await anext(reply.lines()) == b'{"line":0}'

        await until(lambda: library.closed == 1)


async def test_an_unread_stream_of_lines_waits_in_the_handler(pool: PeerPool) -> None:
    made = 0

    async def endless(_request: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            nonlocal made
            while True:
                made += 1
                yield bytes(1000)

        return Response(200, (), lines())

    async with serving(endless) as server, pool.stream(address_of(server), "GET", "/") as reply:
        await until(lambda: made > 200)
        before = -1
        while made != before:  # It comes to rest when windows and sockets are full.
            before = made
            await asyncio.sleep(0.05)
        assert made < 10_000
        read = 0
        async for block in reply:
            read += len(block)
            if read > 20_000_000:
                break
    assert made > 20_000


async def test_a_failing_handler_is_500_and_is_logged(
    library: Library, pool: PeerPool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(library) as server:
        reply = await pool.request(address_of(server), "GET", "/fail", deadline_s=20)

    assert reply.status == 500
    assert "a bug in a handler" in caplog.text


async def test_a_cancelled_fetch_cancels_the_handler_and_writes_no_more(
    library: Library, pool: PeerPool
) -> None:
    async with serving(library) as server:
        fetch = asyncio.create_task(
            pool.fetch_into(address_of(server), "/hang", memoryview(bytearray(100)), stall_s=20)
        )
        await until(lambda: library.running == 1)

        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch

        await until(lambda: library.cancelled == 1)
        assert (await pool.request(address_of(server), "GET", "/x", deadline_s=20)).status == 404
        assert server.connection_count == 1


async def test_a_fetch_cancelled_half_way_gives_its_buffer_back(
    library: Library, pool: PeerPool
) -> None:
    async with serving(library) as server:
        for _ in range(10):
            buffer = bytearray(6 << 20)
            arrived = asyncio.Event()
            fetch = asyncio.create_task(
                pool.fetch_into(
                    address_of(server),
                    "/file",
                    memoryview(buffer),
                    stall_s=20,
                    on_bytes=lambda _, arrived=arrived: arrived.set(),  # type: ignore[misc]
                )
            )
            await arrived.wait()

            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            before = bytes(buffer)
            reply = await pool.request(address_of(server), "GET", "/nothing", deadline_s=20)

            assert reply.status == 404
            assert bytes(buffer) == before
        await until(lambda: library.closed == 10)
        assert pool.connection_count == 1


async def test_a_peer_that_brings_nothing_is_given_up(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        with pytest.raises(PeerUnavailableError, match="nothing came for"):
            await pool.fetch_into(
                address_of(server), "/hang", memoryview(bytearray(100)), stall_s=0.05
            )

        await until(lambda: library.cancelled == 1)


async def test_a_request_keeps_its_deadline(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        with pytest.raises(PeerUnavailableError):
            await pool.request(address_of(server), "GET", "/hang", deadline_s=0.05)

        await until(lambda: library.cancelled == 1)


async def test_nobody_listens(pool: PeerPool) -> None:
    with pytest.raises(PeerUnavailableError, match="dialling"):
        await pool.request(f"127.0.0.1:{free_port()}", "GET", "/", deadline_s=20)

    assert pool.connection_count == 0


async def test_a_name_without_an_address(pool: PeerPool) -> None:
    with pytest.raises(PeerUnavailableError):
        await pool.request("no-such-host.invalid:1", "GET", "/", deadline_s=20)


async def test_callers_at_the_same_time_share_a_dial(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        asks = [pool.request(address_of(server), "GET", "/x", deadline_s=20) for _ in range(20)]
        impatient = asyncio.create_task(asks.pop())
        others = asyncio.gather(*asks)
        await asyncio.sleep(0)
        impatient.cancel()

        replies = await others

        assert {reply.status for reply in replies} == {404}
        assert server.connection_count == 1
        with pytest.raises(asyncio.CancelledError):
            await impatient


async def test_a_restarted_peer_is_dialled_again(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        port = server.port
        await pool.request(address_of(server), "GET", "/x", deadline_s=20)
    await until(lambda: pool.connection_count == 0)
    again = PeerServer(library, certificates=Security.certificates)
    await again.start("127.0.0.1", port)

    reply = await pool.request(f"127.0.0.1:{port}", "GET", "/x", deadline_s=20)

    assert reply.status == 404
    await again.close()


async def test_a_peer_that_dies_fails_what_is_under_way(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        ask = asyncio.create_task(pool.request(address_of(server), "GET", "/hang", deadline_s=20))
        await until(lambda: library.running == 1)

        await server.close()

        with pytest.raises(PeerUnavailableError, match="connection lost"):
            await ask


async def test_draining_lets_what_is_under_way_end(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        ask = asyncio.create_task(pool.request(address_of(server), "GET", "/hang", deadline_s=20))
        await until(lambda: library.running == 1)

        drain = asyncio.create_task(server.drain(20))
        await until(lambda: not any(end.is_usable for end in pool._open))
        with pytest.raises(PeerUnavailableError):
            await pool.request(address_of(server), "GET", "/x", deadline_s=20)
        library.release.set()

        assert (await ask).body == b"at last"
        await drain


async def test_draining_ends_at_its_deadline(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        ask = asyncio.create_task(pool.request(address_of(server), "GET", "/hang", deadline_s=20))
        await until(lambda: library.running == 1)

        await server.drain(0.01)

        with pytest.raises(PeerUnavailableError):
            await ask
        assert library.cancelled == 1


async def test_closing_the_pool_fails_what_is_under_way(library: Library) -> None:
    pool = made_pool()
    async with serving(library) as server:
        ask = asyncio.create_task(pool.request(address_of(server), "GET", "/hang", deadline_s=20))
        await until(lambda: library.running == 1)

        await pool.close()

        with pytest.raises(PeerUnavailableError):
            await ask
        with pytest.raises(PeerUnavailableError):
            await pool.request(address_of(server), "GET", "/x", deadline_s=20)
        await until(lambda: server.connection_count == 0)


async def test_more_requests_than_the_peer_takes_wait_for_their_turn(
    library: Library, pool: PeerPool
) -> None:
    limits = Limits(server_wire=wire.Limits(streams_max=2))
    async with serving(library, limits) as server:
        await pool.request(address_of(server), "GET", "/x", deadline_s=20)
        asks = [
            asyncio.create_task(pool.request(address_of(server), "GET", "/hang", deadline_s=20))
            for _ in range(6)
        ]
        await until(lambda: library.running == 2)
        asks[0].cancel()
        asks[4].cancel()
        await until(lambda: library.cancelled == 1 and library.running == 2)

        library.release.set()
        replies = await asyncio.gather(*asks, return_exceptions=True)

    assert [type(reply).__name__ for reply in replies] == [
        "CancelledError",
        "Reply",
        "Reply",
        "Reply",
        "CancelledError",
        "Reply",
    ]


async def test_the_least_recently_used_connection_makes_room(library: Library) -> None:
    pool = made_pool(Limits(pooled_max=2))
    async with serving(library) as one, serving(library) as two, serving(library) as three:
        for server in (one, two, one, three):
            await pool.request(address_of(server), "GET", "/x", deadline_s=20)

        await until(lambda: two.connection_count == 0)
        assert one.connection_count == three.connection_count == 1
        await until(lambda: pool.connection_count == 2)
        await pool.close()


async def test_a_pool_whose_connections_are_all_in_use_says_so(library: Library) -> None:
    pool = made_pool(Limits(pooled_max=1))
    async with serving(library) as one, serving(library) as two:
        async with pool.stream(address_of(one), "GET", "/lines?count=1&hang=1"):
            with pytest.raises(PeerUnavailableError, match="in use"):
                await pool.request(address_of(two), "GET", "/x", deadline_s=20)
        await pool.close()


@pytest.mark.parametrize("side", ["client", "server"])
async def test_idle_connections_are_closed_by_either_side(side: str, library: Library) -> None:
    quick = wire.Limits(idle_s=0.05)
    ours = Limits(client_wire=quick) if side == "client" else Limits()
    theirs = Limits(server_wire=quick) if side == "server" else Limits()
    pool = made_pool(ours)
    async with serving(library, theirs) as server:
        await pool.request(address_of(server), "GET", "/x", deadline_s=20)

        await until(lambda: pool.connection_count == server.connection_count == 0)
        await pool.close()


async def test_a_peer_that_falls_silent_is_found_out() -> None:
    silent = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        silent.set()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = made_pool(Limits(client_wire=wire.Limits(ping_after_s=0.03, dead_after_s=0.06)))

    with pytest.raises(PeerUnavailableError):
        await pool.request(f"127.0.0.1:{port}", "GET", "/", deadline_s=20)

    await silent.wait()
    assert pool.connection_count == 0
    server.close()
    await server.wait_closed()


async def test_a_slow_handler_keeps_the_connection_alive_by_pings(library: Library) -> None:
    pool = made_pool(Limits(client_wire=wire.Limits(ping_after_s=0.02, dead_after_s=5)))
    async with serving(library) as server:
        ask = asyncio.create_task(pool.request(address_of(server), "GET", "/hang", deadline_s=20))
        await asyncio.sleep(0.2)
        library.release.set()

        assert (await ask).status == 200
        assert server.connection_count == 1
        await pool.close()


async def test_a_file_that_shrank_resets_its_stream_and_nothing_else(
    library: Library, pool: PeerPool
) -> None:
    library.truncate(1 << 20)
    buffer = memoryview(bytearray(6 << 20))
    async with serving(library) as server:
        with pytest.raises(PeerUnavailableError, match="INTERNAL_ERROR"):
            await pool.fetch_into(address_of(server), "/file", buffer, stall_s=20)
        reply = await pool.request(address_of(server), "GET", "/x", deadline_s=20)

        assert reply.status == 404
        assert server.connection_count == 1
    assert library.opened == library.closed == 1


async def test_head_gets_headers_and_the_body_is_closed(library: Library, pool: PeerPool) -> None:
    async with serving(library) as server:
        reply = await pool.request(address_of(server), "HEAD", "/file", deadline_s=20)

    assert (reply.status, reply.body) == (200, b"")
    assert reply.header("content-length") == str(len(CONTENT))
    assert library.closed == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body(status: int, pool: PeerPool) -> None:
    async def handler(_request: Request) -> Response:
        return Response(status)

    async with serving(handler) as server:
        reply = await pool.request(address_of(server), "GET", "/", deadline_s=20)

    assert (reply.status, reply.body) == (status, b"")


async def test_a_body_is_closed_once_if_the_peer_hung_up_meanwhile(pool: PeerPool) -> None:
    closed = 0
    begun, release = asyncio.Event(), asyncio.Event()

    async def stubborn(_request: Request) -> Response:
        nonlocal closed

        def close() -> None:
            nonlocal closed
            closed += 1

        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await release.wait()  # It will not be cancelled, and still gets its body closed.
        body: Body = FileBody(0, 0, 5, close)
        return Response(200, (), body)

    async with serving(stubborn) as server:
        ask = asyncio.create_task(pool.request(address_of(server), "GET", "/", deadline_s=20))
        await begun.wait()
        ask.cancel()
        await until(lambda: closed == 1)


async def test_paths_and_queries_are_decoded(pool: PeerPool) -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> Response:
        seen.append(request)
        return Response(200)

    async with serving(handler) as server:
        await pool.request(
            address_of(server),
            "GET",
            "/a%20b/%C3%A9?x=1%262&y=&x=3",
            headers=(("x-a", "1"),),
            deadline_s=20,
        )

    assert seen[0].path == "/a b/é"
    assert seen[0].query == {"x": "3", "y": ""}
    assert seen[0].header("x-a") == "1"
    assert seen[0].header("host") == address_of(server)
    assert seen[0].remote[0] == "127.0.0.1"


async def test_an_urgent_chunk_overtakes(library: Library, pool: PeerPool) -> None:
    order: list[str] = []

    async def fetch(server: PeerServer, name: str, urgency: int) -> None:
        buffer = memoryview(bytearray(6 << 20))
        await pool.fetch_into(
            address_of(server),
            "/file",
            buffer,
            headers=(("priority", f"u={urgency}"),),
            stall_s=20,
        )
        order.append(name)

    async with serving(library) as server:
        await pool.request(address_of(server), "GET", "/x", deadline_s=20)
        names = [f"bulk {number}" for number in range(6)]
        await asyncio.gather(
            *(fetch(server, name, 3) for name in names), fetch(server, "urgent", 0)
        )

    assert order[0] == "urgent"
    assert order[1:] == names


async def test_a_buffer_is_used_again_unless_a_thread_still_reads_it() -> None:
    buffers = BufferPool(2, 1000)
    async with buffers.buffer() as first:
        first[:4] = b"mark"
    async with buffers.buffer(4) as again:
        assert bytes(again) == b"mark"
        held = memoryview(again)[1:]
    async with buffers.buffer() as other, buffers.buffer() as another:
        assert bytes(other) == bytes(another) == bytes(1000)
        assert buffers.taken == 2
    assert bytes(held) == b"ark"


async def test_a_buffer_has_to_be_waited_for() -> None:
    buffers = BufferPool(1, 10)
    async with buffers.buffer():
        waiting = asyncio.create_task(buffers.buffer().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
    assert len(await waiting) == 10


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(UsageError):
        split_address(address)


def test_an_address_may_be_ipv6() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
