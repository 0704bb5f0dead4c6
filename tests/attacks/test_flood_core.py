"""Floods, bombs and dribbles, each by its name: cut off with the right code, and little is kept."""

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from damselfly.p2p.wire import frames
from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.connection import Role
from damselfly.p2p.wire.frames import ACK, END_HEADERS, END_STREAM, Kind
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.settings import Setting
from damselfly.p2p.wire.violation import ViolationError
from tests.fakes.wire import GET, OK, POST, End, Stranger

CALM = ErrorCode.ENHANCE_YOUR_CALM
Attack = Callable[[], Iterator[bytes]]


def rapid_reset() -> Iterator[bytes]:
    """CVE-2023-44487: ask and cancel, for ever."""
    stranger = Stranger()
    for stream_id in count(1, 2):
        yield stranger.headers(stream_id) + frames.rst_stream_frame(stream_id, ErrorCode.CANCEL)


def made_you_reset() -> Iterator[bytes]:
    """CVE-2025-8671: ask, and break a rule so that the server cancels."""
    stranger = Stranger()
    for stream_id in count(1, 2):
        yield stranger.headers(stream_id)
        yield frames.frame(Kind.WINDOW_UPDATE, 0, stream_id, bytes(4))


def malformed_requests() -> Iterator[bytes]:
    stranger = Stranger()
    for stream_id in count(1, 2):
        yield stranger.headers(stream_id, (*GET, ("connection", "close")))


def too_many_streams() -> Iterator[bytes]:
    stranger = Stranger()
    for stream_id in count(1, 2):
        yield stranger.headers(stream_id)


def settings_flood() -> Iterator[bytes]:
    """CVE-2019-9515: every SETTINGS wants an answer."""
    while True:
        yield frames.settings_frame([])


def settings_window_flood() -> Iterator[bytes]:
    for size in count():
        yield frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, size % 2)] * 100)


def settings_ack_flood() -> Iterator[bytes]:
    while True:
        yield frames.SETTINGS_ACK


def ping_flood() -> Iterator[bytes]:
    """CVE-2019-9512."""
    while True:
        yield frames.ping_frame(bytes(8))


def ping_ack_flood() -> Iterator[bytes]:
    while True:
        yield frames.frame(Kind.PING, ACK, 0, bytes(8))


def priority_flood() -> Iterator[bytes]:
    """CVE-2019-9513: reshuffle the tree."""
    for stream_id in count(1, 2):
        yield frames.frame(Kind.PRIORITY, 0, stream_id, bytes(5))


def priority_update_flood() -> Iterator[bytes]:
    for stream_id in count(1, 2):
        yield frames.priority_update_frame(stream_id, "u=0")


def unknown_frame_flood() -> Iterator[bytes]:
    while True:
        yield frames.frame(0xFE, 0, 0, b"")


def empty_data_flood() -> Iterator[bytes]:
    """CVE-2019-9518."""
    yield Stranger().headers(1, POST, ended=False)
    while True:
        yield Stranger.data(1)


def padding_flood() -> Iterator[bytes]:
    yield Stranger().headers(1, POST, ended=False)
    while True:
        yield Stranger.data(1, pad=200)


def tiny_data_flood() -> Iterator[bytes]:
    yield Stranger().headers(1, POST, ended=False)
    while True:
        yield Stranger.data(1, b"x")


def window_update_flood() -> Iterator[bytes]:
    yield Stranger().headers(1)
    while True:
        yield frames.window_update_frame(1, 1)


def goaway_flood() -> Iterator[bytes]:
    while True:
        yield frames.goaway_frame(5, 0, "x" * 100)


def continuation_flood() -> Iterator[bytes]:
    """CVE-2024-27316: a field block that never ends."""
    yield Stranger().headers(1, done=False)
    while True:
        yield frames.frame(Kind.CONTINUATION, 0, 1, bytes(1000))


def empty_continuation_flood() -> Iterator[bytes]:
    yield Stranger().headers(1, done=False)
    while True:
        yield frames.frame(Kind.CONTINUATION, 0, 1, b"")


def header_bomb() -> Iterator[bytes]:
    """CVE-2016-6581: a field of 4000 bytes, and then a thousand one-byte references to it."""
    block = Stranger().block([*GET, ("x-bomb", "a" * 4000)]) + b"\xbe" * 4000
    yield frames.frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, block)


def many_fields() -> Iterator[bytes]:
    block = Stranger().block(GET) + b"\x84" * 500
    yield frames.frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, block)


def huge_headers() -> Iterator[bytes]:
    yield frames.frame_header(1 << 20, Kind.HEADERS, END_HEADERS, 1)


def huge_settings() -> Iterator[bytes]:
    yield frames.frame_header(60_000, Kind.SETTINGS, 0, 0)


def interim_flood() -> Iterator[bytes]:
    stranger = Stranger()
    while True:
        yield stranger.headers(1, ((":status", "103"),), ended=False)


SERVER_ATTACKS: list[Attack] = [
    rapid_reset,
    made_you_reset,
    malformed_requests,
    too_many_streams,
    settings_flood,
    settings_window_flood,
    settings_ack_flood,
    ping_flood,
    ping_ack_flood,
    priority_flood,
    priority_update_flood,
    unknown_frame_flood,
    empty_data_flood,
    padding_flood,
    tiny_data_flood,
    window_update_flood,
    goaway_flood,
    continuation_flood,
    empty_continuation_flood,
    header_bomb,
    many_fields,
    huge_headers,
    huge_settings,
]
CLIENT_ATTACKS: list[Attack] = [
    settings_flood,
    ping_flood,
    unknown_frame_flood,
    interim_flood,
    goaway_flood,
]


def suffer(end: End, attack: Attack, *, reads: bool) -> tuple[int, ViolationError]:
    """Let an attack go on until it is cut; return what it took, and how it ended."""
    taken = 0
    for part in attack():
        taken += len(part)
        assert taken < 4 << 20, "nobody stops it"
        try:
            end.feed(part)
        except ViolationError as exc:
            return taken, exc
        if reads:
            end.drain()
    raise AssertionError("it ended by itself")


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("attack", SERVER_ATTACKS)
def test_a_server_cuts_it_off(attack: Attack, reads: bool) -> None:
    server = End.greeted()

    _, fault = suffer(server, attack, reads=reads)

    assert fault.error_code is CALM
    last = server.sent()[-1]
    assert last.kind == Kind.GOAWAY
    assert last.payload[4:8] == CALM.to_bytes(4, "big")


@pytest.mark.parametrize("attack", CLIENT_ATTACKS)
def test_a_client_cuts_it_off(attack: Attack) -> None:
    client = End.greeted(Role.CLIENT)
    for _ in range(3):
        client.core.request(GET, 0.0)

    _, fault = suffer(client, attack, reads=False)

    assert fault.error_code is CALM


@pytest.mark.parametrize("attack", SERVER_ATTACKS)
def test_little_is_kept_of_an_attack_that_goes_slowly(attack: Attack) -> None:
    server = End.greeted()
    tracemalloc.start()
    try:
        for number, part in enumerate(attack()):
            server.now += 0.05  # Slow enough for most buckets to refill.
            try:
                server.feed(part)
            except ViolationError:
                break
            if number % 2:
                server.drain()
            if number == 3000:
                break
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 1 << 20


def test_answers_that_nobody_reads_are_bounded() -> None:
    limits = Limits(control_burst=1 << 30, control_queue_bytes_max=10_000)
    server = End.greeted(limits=limits)

    taken, fault = suffer(server, ping_flood, reads=False)

    assert fault.error_code is CALM
    assert taken <= 10_100
    assert len(server.drain()) < 11_000


def test_a_field_as_large_as_the_limit_still_passes() -> None:
    server = End.greeted()
    headers = (*GET, ("x-large", "~" * 8000))

    events = server.feed(Stranger().headers(1, headers))

    assert len(events) == 1
    assert server.core.violation is None


def test_an_ordinary_day_is_no_flood() -> None:
    """A stranger with frames of 16 KiB, two WINDOW_UPDATEs for each, and a PING now and then."""
    server, stranger = End.greeted(), Stranger()
    for number in range(300):
        stream_id = 2 * number + 1
        server.feed(stranger.headers(stream_id))
        server.core.respond(stream_id, OK)
        server.core.offer(stream_id, 1 << 20, final=True)
        for _ in range(64):
            server.drain()
            if server.core.is_alive(stream_id):
                server.feed(
                    frames.window_update_frame(stream_id, 16_384)
                    + frames.window_update_frame(0, 16_384)
                )
            else:
                server.feed(frames.window_update_frame(0, 16_384))
        server.now += 0.01
        if number % 10 == 0:
            server.feed(frames.ping_frame(bytes(8)))

    assert server.core.violation is None
    assert server.core.stream_count == 0


def test_a_peer_that_gives_up_some_asks_is_no_flood() -> None:
    server, stranger = End.greeted(), Stranger()
    for number in range(1000):
        stream_id = 2 * number + 1
        server.feed(stranger.headers(stream_id))
        server.feed(frames.rst_stream_frame(stream_id, ErrorCode.CANCEL))
        server.now += 0.04

    assert server.core.violation is None
