"""What each side may do, and what it gets for doing something else (RFC 9113)."""

import pytest

from damselfly.errors import LocalProtocolError
from damselfly.p2p.wire import frames
from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.connection import Role
from damselfly.p2p.wire.events import (
    ConnectionIdle,
    DataLanded,
    DataReceived,
    GoAwayReceived,
    PeerSilent,
    PingAnswered,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
)
from damselfly.p2p.wire.frames import ACK, END_HEADERS, END_STREAM, PADDED, PRIORITY_FLAG, Kind
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from damselfly.p2p.wire.settings import Setting
from damselfly.p2p.wire.violation import ViolationError
from tests.fakes.wire import GET, HELLO, OK, POST, End, Frame, Stranger

CODE = ErrorCode
SERVER, CLIENT = Role.SERVER, Role.CLIENT


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    return frames.frame(kind, flags, stream_id, payload)


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def only(sent: list[Frame], kind: Kind) -> Frame:
    found = [one for one in sent if one.kind == kind]
    assert len(found) == 1, sent
    return found[0]


# --- what ends the connection ------------------------------------------------------------------

S = Stranger  # a fresh compression state for each row
AFTER_REQUEST = S().headers(1, POST, ended=False)
CONNECTION_ERRORS = {
    "a frame larger than we allow": (
        frames.frame_header((1 << 20) + 1, 0x33, 0, 0),
        CODE.FRAME_SIZE_ERROR,
    ),
    "DATA on stream 0": (S.data(0, b"x"), CODE.PROTOCOL_ERROR),
    "DATA on an idle stream": (S.data(1, b"x"), CODE.PROTOCOL_ERROR),
    "DATA padded longer than itself": (
        AFTER_REQUEST + frame(Kind.DATA, PADDED, 1, b"\x05abc"),
        CODE.PROTOCOL_ERROR,
    ),
    "DATA padded without a length": (
        AFTER_REQUEST + frame(Kind.DATA, PADDED, 1),
        CODE.FRAME_SIZE_ERROR,
    ),
    "HEADERS on stream 0": (S().headers(0), CODE.PROTOCOL_ERROR),
    "HEADERS on an even stream": (S().headers(2), CODE.PROTOCOL_ERROR),
    "HEADERS padded longer than itself": (
        frame(Kind.HEADERS, PADDED | END_HEADERS, 1, b"\xff\x82"),
        CODE.PROTOCOL_ERROR,
    ),
    "HEADERS too short for its priority": (
        frame(Kind.HEADERS, PRIORITY_FLAG | END_HEADERS, 1, b"\x00\x00"),
        CODE.FRAME_SIZE_ERROR,
    ),
    "a field block that is not HPACK": (
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff\xff"),
        CODE.COMPRESSION_ERROR,
    ),
    "a field block that names what is not in the table": (
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, b"\xfe"),
        CODE.COMPRESSION_ERROR,
    ),
    "a table size above ours": (
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe2\x1f\x82"),
        CODE.COMPRESSION_ERROR,
    ),
    "CONTINUATION without HEADERS": (
        frame(Kind.CONTINUATION, END_HEADERS, 1, b"\x82"),
        CODE.PROTOCOL_ERROR,
    ),
    "CONTINUATION of another stream": (
        S().headers(1, done=False) + frame(Kind.CONTINUATION, END_HEADERS, 3, b""),
        CODE.PROTOCOL_ERROR,
    ),
    "PING within a field block": (
        S().headers(1, done=False) + frames.ping_frame(bytes(8)),
        CODE.PROTOCOL_ERROR,
    ),
    "DATA within a field block": (
        S().headers(1, done=False) + S.data(1, b"x"),
        CODE.PROTOCOL_ERROR,
    ),
    "an unknown frame within a field block": (
        S().headers(1, done=False) + frame(0x55),
        CODE.PROTOCOL_ERROR,
    ),
    "PRIORITY on stream 0": (frame(Kind.PRIORITY, 0, 0, bytes(5)), CODE.PROTOCOL_ERROR),
    "RST_STREAM on stream 0": (frame(Kind.RST_STREAM, 0, 0, u32(8)), CODE.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frame(Kind.RST_STREAM, 0, 1, u32(8)), CODE.PROTOCOL_ERROR),
    "RST_STREAM of three bytes": (
        AFTER_REQUEST + frame(Kind.RST_STREAM, 0, 1, bytes(3)),
        CODE.FRAME_SIZE_ERROR,
    ),
    "SETTINGS on a stream": (frame(Kind.SETTINGS, 0, 1), CODE.PROTOCOL_ERROR),
    "SETTINGS of seven bytes": (frame(Kind.SETTINGS, 0, 0, bytes(7)), CODE.FRAME_SIZE_ERROR),
    "SETTINGS with ACK and content": (
        frame(Kind.SETTINGS, ACK, 0, bytes(6)),
        CODE.FRAME_SIZE_ERROR,
    ),
    "ENABLE_PUSH of 2": (
        frames.settings_frame([(Setting.ENABLE_PUSH, 2)]),
        CODE.PROTOCOL_ERROR,
    ),
    "INITIAL_WINDOW_SIZE of 2^31": (
        frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 1 << 31)]),
        CODE.FLOW_CONTROL_ERROR,
    ),
    "MAX_FRAME_SIZE of 16383": (
        frames.settings_frame([(Setting.MAX_FRAME_SIZE, 16383)]),
        CODE.PROTOCOL_ERROR,
    ),
    "MAX_FRAME_SIZE of 2^24": (
        frames.settings_frame([(Setting.MAX_FRAME_SIZE, 1 << 24)]),
        CODE.PROTOCOL_ERROR,
    ),
    "NO_RFC7540_PRIORITIES of 7": (
        frames.settings_frame([(Setting.NO_RFC7540_PRIORITIES, 7)]),
        CODE.PROTOCOL_ERROR,
    ),
    "INITIAL_WINDOW_SIZE that overflows an open stream": (
        AFTER_REQUEST
        + frames.window_update_frame(1, (1 << 31) - 1 - 65535)
        + frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 65536)]),
        CODE.FLOW_CONTROL_ERROR,
    ),
    "PUSH_PROMISE": (frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), CODE.PROTOCOL_ERROR),
    "PING on a stream": (frame(Kind.PING, 0, 1, bytes(8)), CODE.PROTOCOL_ERROR),
    "PING of six bytes": (frame(Kind.PING, 0, 0, bytes(6)), CODE.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (frame(Kind.GOAWAY, 0, 1, bytes(8)), CODE.PROTOCOL_ERROR),
    "GOAWAY of four bytes": (frame(Kind.GOAWAY, 0, 0, bytes(4)), CODE.FRAME_SIZE_ERROR),
    "GOAWAY that takes another back": (
        frames.goaway_frame(1, 0) + frames.goaway_frame(3, 0),
        CODE.PROTOCOL_ERROR,
    ),
    "WINDOW_UPDATE of 0 on the connection": (
        frame(Kind.WINDOW_UPDATE, 0, 0, u32(0)),
        CODE.PROTOCOL_ERROR,
    ),
    "WINDOW_UPDATE of three bytes": (
        frame(Kind.WINDOW_UPDATE, 0, 0, bytes(3)),
        CODE.FRAME_SIZE_ERROR,
    ),
    "WINDOW_UPDATE on an idle stream": (
        frame(Kind.WINDOW_UPDATE, 0, 1, u32(1)),
        CODE.PROTOCOL_ERROR,
    ),
    "a connection window of 2^31": (
        frame(Kind.WINDOW_UPDATE, 0, 0, u32((1 << 31) - 1)),
        CODE.FLOW_CONTROL_ERROR,
    ),
    "HEADERS on a stream that has ended": (
        S().headers(3) + S().headers(1),
        CODE.STREAM_CLOSED,
    ),
    "PRIORITY_UPDATE on a stream": (
        frame(Kind.PRIORITY_UPDATE, 0, 1, u32(1)),
        CODE.PROTOCOL_ERROR,
    ),
    "PRIORITY_UPDATE of three bytes": (
        frame(Kind.PRIORITY_UPDATE, 0, 0, bytes(3)),
        CODE.FRAME_SIZE_ERROR,
    ),
    "PRIORITY_UPDATE for a stream of ours": (
        frame(Kind.PRIORITY_UPDATE, 0, 0, u32(2)),
        CODE.PROTOCOL_ERROR,
    ),
    "a PRIORITY frame of four bytes on an idle stream": (
        frame(Kind.PRIORITY, 0, 1, bytes(4)),
        CODE.FRAME_SIZE_ERROR,
    ),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
@pytest.mark.parametrize("step", [None, 1])
def test_a_connection_error_ends_in_goaway_with_its_code(name: str, step: int | None) -> None:
    data, code = CONNECTION_ERRORS[name]
    server = End.greeted()

    with pytest.raises(ViolationError) as caught:
        server.feed(data, step)

    assert caught.value.error_code is code
    assert only(server.sent(), Kind.GOAWAY).payload[4:8] == u32(code)
    assert server.core.stream_count == 0


def test_data_on_a_stream_that_ended_both_ways_is_a_connection_error() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1))
    server.core.respond(1, OK, ended=True)

    with pytest.raises(ViolationError) as caught:
        server.feed(Stranger.data(1, b"late"))

    assert caught.value.error_code is CODE.STREAM_CLOSED
    assert caught.value.stream_id == 1


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", CODE.PROTOCOL_ERROR),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", CODE.PROTOCOL_ERROR),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", CODE.PROTOCOL_ERROR),
        (frames.PREFACE + frames.ping_frame(bytes(8)), CODE.PROTOCOL_ERROR),
        (frames.PREFACE + Stranger.data(1, b"x"), CODE.PROTOCOL_ERROR),
        (frames.PREFACE + frame(0x77, 0, 0, b"x"), CODE.PROTOCOL_ERROR),
        (frames.PREFACE + frames.SETTINGS_ACK, CODE.PROTOCOL_ERROR),
    ],
)
@pytest.mark.parametrize("step", [None, 1])
def test_whoever_does_not_begin_as_a_client_is_sent_away(
    first: bytes, code: ErrorCode, step: int | None
) -> None:
    server = End()

    with pytest.raises(ViolationError) as caught:
        server.feed(first, step)

    assert caught.value.error_code is code
    sent = server.sent()
    assert sent[0].kind == Kind.SETTINGS
    assert sent[-1].kind == Kind.GOAWAY


CLIENT_CONNECTION_ERRORS = {
    "HEADERS on a stream that was never asked for": S().headers(1, OK),
    "HEADERS on a stream of its own": S().headers(2, OK),
    "DATA on a stream that was never asked for": S.data(1, b"x"),
    "a server that allows push": frames.settings_frame([(Setting.ENABLE_PUSH, 1)]),
    "PRIORITY_UPDATE from a server": frame(Kind.PRIORITY_UPDATE, 0, 0, u32(1)),
    "PUSH_PROMISE": frame(Kind.PUSH_PROMISE, END_HEADERS, 1, u32(2)),
}


@pytest.mark.parametrize("name", CLIENT_CONNECTION_ERRORS)
def test_a_server_that_oversteps_is_sent_away(name: str) -> None:
    client = End.greeted(CLIENT)

    with pytest.raises(ViolationError) as caught:
        client.feed(CLIENT_CONNECTION_ERRORS[name])

    assert caught.value.error_code is CODE.PROTOCOL_ERROR
    assert client.sent()[-1].kind == Kind.GOAWAY


# --- what ends a stream ------------------------------------------------------------------------

MALFORMED_REQUESTS = {
    "an upper-case name": (*GET, ("Accept", "x")),
    "a name with a space": (*GET, ("a b", "x")),
    "an empty name": (*GET, ("", "x")),
    "a name beyond ASCII": (*GET, ("caf\xe9", "x")),
    "a line feed in a value": (*GET, ("a", "x\ny")),
    "a carriage return in a value": (*GET, ("a", "x\ry")),
    "a zero byte in a value": (*GET, ("a", "x\0y")),
    "white space before a value": (*GET, ("a", " x")),
    "white space after a value": (*GET, ("a", "x\t")),
    "connection": (*GET, ("connection", "close")),
    "keep-alive": (*GET, ("keep-alive", "5")),
    "proxy-connection": (*GET, ("proxy-connection", "close")),
    "transfer-encoding": (*GET, ("transfer-encoding", "chunked")),
    "upgrade": (*GET, ("upgrade", "h2c")),
    "te other than trailers": (*GET, ("te", "gzip")),
    "a pseudo-header after a header": (*GET[:3], ("a", "b"), GET[3]),
    "a pseudo-header twice": (*GET, (":path", "/")),
    "a pseudo-header of a response": (*GET, (":status", "200")),
    "an unknown pseudo-header": (*GET, (":proto", "x")),
    "no method": GET[1:],
    "an empty method": ((":method", ""), *GET[1:]),
    "a method with a space": ((":method", "GE T"), *GET[1:]),
    "no scheme": (GET[0], *GET[2:]),
    "no path": GET[:2],
    "an empty path": (*GET[:2], (":path", "")),
    "a path without a slash": (*GET[:2], (":path", "a")),
    "a path with a space": (*GET[:2], (":path", "/a b")),
    "CONNECT with a path": ((":method", "CONNECT"), *GET[1:]),
    "a content-length that is no number": (*GET, ("content-length", "+3")),
    "a content-length of many digits": (*GET, ("content-length", "9" * 30)),
    "two content-lengths": (*POST, ("content-length", "1"), ("content-length", "2")),
    "a content-length with no body": (*GET, ("content-length", "1")),
}


@pytest.mark.parametrize("name", MALFORMED_REQUESTS)
def test_a_malformed_request_is_reset_and_the_connection_goes_on(name: str) -> None:
    server, stranger = End.greeted(), Stranger()

    events = server.feed(stranger.headers(1, MALFORMED_REQUESTS[name]))

    reset = events[-1]
    assert isinstance(reset, StreamReset)
    assert reset.violation is not None
    assert only(server.sent(), Kind.RST_STREAM).payload == u32(CODE.PROTOCOL_ERROR)
    assert server.feed(stranger.headers(3))[0] == RequestReceived(3, GET, ended=True)


MALFORMED_RESPONSES = {
    "no status": (("a", "b"),),
    "a status of two digits": ((":status", "20"),),
    "a status of letters": ((":status", "abc"),),
    "101": ((":status", "101"),),
    "a pseudo-header of a request": ((":status", "200"), (":path", "/")),
    "an upper-case name": ((":status", "200"), ("Server", "x")),
    "a content-length with no body": ((":status", "200"), ("content-length", "5")),
}


@pytest.mark.parametrize("name", MALFORMED_RESPONSES)
def test_a_malformed_response_is_reset(name: str) -> None:
    client = End.greeted(CLIENT)
    client.core.request(GET, 0.0)
    client.drain()

    events = client.feed(Stranger().headers(1, MALFORMED_RESPONSES[name]))

    assert isinstance(events[-1], StreamReset)
    assert only(client.sent(), Kind.RST_STREAM).payload == u32(CODE.PROTOCOL_ERROR)
    assert client.core.stream_count == 0


STREAM_ERRORS = {
    "a window of 2^31": (
        frame(Kind.WINDOW_UPDATE, 0, 1, u32((1 << 31) - 1)),
        CODE.FLOW_CONTROL_ERROR,
    ),
    "WINDOW_UPDATE of 0": (frame(Kind.WINDOW_UPDATE, 0, 1, u32(0)), CODE.PROTOCOL_ERROR),
    "a PRIORITY frame of four bytes": (
        frame(Kind.PRIORITY, 0, 1, bytes(4)),
        CODE.FRAME_SIZE_ERROR,
    ),
    "trailers that do not end": (
        S().headers(1, (("a", "b"),), ended=False),
        CODE.PROTOCOL_ERROR,
    ),
    "trailers with a pseudo-header": (S().headers(1, ((":path", "/"),)), CODE.PROTOCOL_ERROR),
    "a body longer than its content-length": (S.data(1, b"12345"), CODE.PROTOCOL_ERROR),
    "a body shorter than its content-length": (S.data(1, b"12", ended=True), CODE.PROTOCOL_ERROR),
    "trailers after a body that is too short": (S().headers(1, ()), CODE.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
@pytest.mark.parametrize("step", [None, 1])
def test_a_stream_error_resets_that_stream_only(name: str, step: int | None) -> None:
    data, code = STREAM_ERRORS[name]
    server = End.greeted()
    server.feed(Stranger().headers(1, (*POST, ("content-length", "4")), ended=False))

    events = server.feed(data, step)

    reset = events[-1]
    assert isinstance(reset, StreamReset)
    assert (reset.stream_id, reset.error_code) == (1, code)
    assert only(server.sent(), Kind.RST_STREAM) == Frame(Kind.RST_STREAM, 0, 1, u32(code))
    assert server.core.violation is None
    assert server.feed(frames.ping_frame(b"12345678")) == []
    assert only(server.sent(), Kind.PING).flags == ACK


def test_data_after_the_request_has_ended_is_stream_closed() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1))

    events = server.feed(Stranger.data(1, b"x"))

    assert isinstance(events[0], StreamReset)
    assert only(server.sent(), Kind.RST_STREAM).payload == u32(CODE.STREAM_CLOSED)


def test_more_data_than_the_window_is_a_flow_control_error() -> None:
    limits = Limits(stream_window_bytes=65535)
    server = End.greeted(limits=limits)
    server.feed(Stranger().headers(1, POST, ended=False))
    server.feed(Stranger.data(1, bytes(65535)))

    events = server.feed(Stranger.data(1, b"x"))

    assert isinstance(events[0], StreamReset)
    assert events[0].error_code == CODE.FLOW_CONTROL_ERROR


def test_more_data_than_the_connection_window_ends_the_connection() -> None:
    limits = Limits(stream_window_bytes=1 << 20, connection_window_bytes=65535)
    server = End.greeted(limits=limits)
    server.feed(Stranger().headers(1, POST, ended=False))

    with pytest.raises(ViolationError) as caught:
        server.feed(Stranger.data(1, bytes(65536)))

    assert caught.value.error_code is CODE.FLOW_CONTROL_ERROR


def test_one_stream_too_many_is_refused_and_its_fields_still_count_for_compression() -> None:
    server, stranger = End.greeted(limits=Limits(streams_max=1)), Stranger()
    named = (*GET, ("x-name", "value"))
    server.feed(stranger.headers(1))

    refused = server.feed(stranger.headers(3, named))
    server.core.respond(1, OK, ended=True)
    accepted = server.feed(stranger.headers(5, named))

    assert refused == []
    reset = [one for one in server.sent() if one.kind == Kind.RST_STREAM]
    assert reset == [Frame(Kind.RST_STREAM, 0, 3, u32(CODE.REFUSED_STREAM))]
    assert accepted == [RequestReceived(5, named, ended=True)]


def test_data_before_the_response_headers_resets_the_stream() -> None:
    client = End.greeted(CLIENT)
    client.core.request(GET, 0.0)

    events = client.feed(Stranger.data(1, b"x"))

    assert isinstance(events[0], StreamReset)
    assert events[0].error_code == CODE.PROTOCOL_ERROR


# --- what goes well ----------------------------------------------------------------------------


def test_a_request_and_its_body_come_through() -> None:
    server = End.greeted()

    events = server.feed(
        Stranger().headers(1, POST, ended=False)
        + Stranger.data(1, b"ab", pad=3)
        + Stranger.data(1, b"cd", ended=True, pad=0)
    )

    assert events == [
        RequestReceived(1, POST, ended=False),
        DataReceived(1, b"abcd"),
        StreamEnded(1, ()),
    ]


def test_trailers_end_a_body() -> None:
    server = End.greeted()

    events = server.feed(
        Stranger().headers(1, POST, ended=False)
        + Stranger.data(1, b"ab")
        + Stranger().headers(1, (("checksum", "7"),))
    )

    assert events[-1] == StreamEnded(1, (("checksum", "7"),))


def test_a_field_block_may_come_in_pieces() -> None:
    stranger = Stranger()
    block = stranger.block((*GET, ("x-long", "a" * 300)))
    server = End.greeted()

    events = server.feed(
        frame(
            Kind.HEADERS,
            END_STREAM | PADDED | PRIORITY_FLAG,
            1,
            b"\x02" + bytes(5) + block[:7] + b"\0\0",
        )
        + frame(Kind.CONTINUATION, 0, 1, block[7:20])
        + frame(Kind.CONTINUATION, END_HEADERS, 1, block[20:])
    )

    assert events == [RequestReceived(1, (*GET, ("x-long", "a" * 300)), ended=True)]


def test_interim_responses_are_passed_over() -> None:
    client = End.greeted(CLIENT)
    client.core.request(GET, 0.0)
    stranger = Stranger()

    events = client.feed(
        stranger.headers(1, ((":status", "103"), ("link", "</a>")), ended=False)
        + stranger.headers(1, OK)
    )

    assert events == [ResponseReceived(1, 200, OK, ended=True), StreamEnded(1, ())]


def test_unknown_frames_and_settings_are_ignored() -> None:
    server = End.greeted()

    events = server.feed(
        frame(0x42, 0xFF, 7, bytes(70_000))
        + frames.settings_frame([(0xF00, 5)])
        + frame(Kind.PRIORITY, 0, 5, bytes(5))
        + Stranger().headers(1),
        step=1000,
    )

    assert [type(one) for one in events] == [SettingsReceived, RequestReceived]


def test_late_frames_on_a_stream_that_we_reset_are_no_offence() -> None:
    server, stranger = End.greeted(), Stranger()
    server.feed(stranger.headers(1, POST, ended=False))
    server.core.reset(1, CODE.CANCEL)

    events = server.feed(
        Stranger.data(1, b"late")
        + frames.window_update_frame(1, 5)
        + stranger.headers(1, (("x-trailer", "1"),))
        + frames.rst_stream_frame(1, CODE.CANCEL)
        + stranger.headers(3, (*GET, ("x-trailer", "1")))
    )

    assert events == [RequestReceived(3, (*GET, ("x-trailer", "1")), ended=True)]


def test_a_response_without_reading_the_request_ends_with_no_error() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1, POST, ended=False))
    server.core.respond(1, ((":status", "413"),))
    server.offer(1, b"too large")

    sent = server.sent()

    assert [(one.kind, one.payload) for one in sent[-2:]] == [
        (Kind.DATA, b"too large"),
        (Kind.RST_STREAM, u32(CODE.NO_ERROR)),
    ]


def test_an_answer_that_comes_before_the_request_is_sent_stops_the_request() -> None:
    client = End.greeted(CLIENT)
    stream_id = client.core.request(POST, 0.0, ended=False)
    client.core.offer(stream_id, 1 << 20, final=True)
    client.drain()

    events = client.feed(Stranger().headers(1, ((":status", "413"),)))

    assert events[-1] == StreamEnded(1, ())
    assert client.sent() == [Frame(Kind.RST_STREAM, 0, 1, u32(CODE.CANCEL))]


def test_a_ping_is_answered_with_its_payload() -> None:
    server = End.greeted()

    server.feed(frames.ping_frame(b"payload!"))

    assert server.sent() == [Frame(Kind.PING, ACK, 0, b"payload!")]


def test_our_ping_is_answered() -> None:
    client = End.greeted(CLIENT)
    client.core.ping(b"a-nonce!")
    assert client.sent() == [Frame(Kind.PING, 0, 0, b"a-nonce!")]

    events = client.feed(frames.ping_frame(b"a-nonce!", ack=True))

    assert events == [PingAnswered(b"a-nonce!")]


def test_settings_are_acknowledged_and_obeyed() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1))
    server.core.respond(1, OK)
    server.offer(1, bytes(100_000))
    server.feed(
        frames.settings_frame([(Setting.MAX_FRAME_SIZE, 20_000), (Setting.INITIAL_WINDOW_SIZE, 50)])
    )

    sent = server.sent()

    assert sent[0].kind == Kind.HEADERS
    assert sent[1] == Frame(Kind.SETTINGS, ACK, 0, b"")
    assert [len(one.payload) for one in sent[2:]] == [50]


def test_a_window_that_shrank_below_zero_has_to_be_worked_off() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1))
    server.core.respond(1, OK)
    server.offer(1, bytes(70_000))
    server.drain()  # All of the 65535.
    server.feed(frames.window_update_frame(0, 100_000))
    server.feed(frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 5)]))

    server.feed(frames.window_update_frame(1, 65530))
    before = [one for one in server.sent() if one.kind == Kind.DATA]
    server.feed(frames.window_update_frame(1, 3))
    after = server.sent()

    assert before == []
    assert [len(one.payload) for one in after] == [3]


# --- sinks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 1, 7, 5000])
def test_a_body_lands_in_its_sink(step: int | None) -> None:
    client = End.greeted(CLIENT)
    body = bytes(range(256)) * 400
    sink = memoryview(bytearray(len(body) + 5))
    client.core.request(GET, 0.0, sink=sink)
    pieces = (
        Stranger.data(1, body[:40_000], pad=9) + Stranger.data(1) + Stranger.data(1, body[40_000:])
    )

    data = Stranger().headers(1, OK, ended=False) + pieces + Stranger.data(1, ended=True)
    events = client.feed(data, step)

    landed = sum(one.count for one in events if isinstance(one, DataLanded))
    assert landed == len(body)
    assert sink[:landed] == body
    assert bytes(sink[landed:]) == bytes(5)
    assert events[-1] == StreamEnded(1, ())


def test_the_window_of_a_fetch_is_its_sink_and_a_little_for_padding() -> None:
    client = End.greeted(CLIENT)
    sink = memoryview(bytearray(4 << 20))

    client.core.request(GET, 0.0, sink=sink)

    update = only(client.sent(), Kind.WINDOW_UPDATE)
    assert update.stream_id == 1
    assert client.limits.stream_window_bytes + update.number == len(sink) + 4096


def test_the_body_of_a_refusal_does_not_touch_the_sink() -> None:
    client = End.greeted(CLIENT)
    sink = memoryview(bytearray(100))
    client.core.request(GET, 0.0, sink=sink)

    events = client.feed(
        Stranger().headers(1, ((":status", "404"),), ended=False)
        + Stranger.data(1, b"not here", ended=True)
    )

    assert DataReceived(1, b"not here") in events
    assert bytes(sink) == bytes(100)


@pytest.mark.parametrize("claims", [True, False])
def test_a_body_that_does_not_fit_its_sink_is_cancelled(claims: bool) -> None:
    client = End.greeted(CLIENT)
    sink = memoryview(bytearray(10))
    client.core.request(GET, 0.0, sink=sink)
    headers = (*OK, ("content-length", "11")) if claims else OK

    events = client.feed(Stranger().headers(1, headers, ended=False) + Stranger.data(1, bytes(11)))

    reset = [one for one in events if isinstance(one, StreamReset)]
    assert [one.error_code for one in reset] == [CODE.CANCEL]
    assert only(client.sent()[1:], Kind.RST_STREAM).payload == u32(CODE.CANCEL)


def test_nothing_lands_in_the_sink_after_a_cancel() -> None:
    client = End.greeted(CLIENT)
    sink = memoryview(bytearray(100))
    client.core.request(GET, 0.0, sink=sink)
    data = Stranger.data(1, b"a" * 50) + Stranger.data(1, b"b" * 50)
    client.feed(Stranger().headers(1, OK, ended=False) + data[:30])

    client.core.reset(1, CODE.CANCEL)
    before = bytes(sink)
    events = client.feed(data[30:])

    assert events == []
    assert bytes(sink) == before
    assert client.feed(frames.ping_frame(bytes(8))) == []


# --- flow control ------------------------------------------------------------------------------


def test_credit_for_a_body_without_a_sink_comes_when_it_is_consumed() -> None:
    limits = Limits(stream_window_bytes=65536, connection_window_bytes=65536)
    server = End.greeted(limits=limits)
    server.feed(Stranger().headers(1, POST, ended=False) + Stranger.data(1, bytes(40_000)))
    assert server.sent() == []

    server.core.consumed(1, 40_000)

    assert [(one.stream_id, one.number) for one in server.sent()] == [(0, 40_000), (1, 40_000)]


def test_credit_for_a_forgotten_stream_still_goes_to_the_connection() -> None:
    limits = Limits(stream_window_bytes=65536, connection_window_bytes=65536)
    server = End.greeted(limits=limits)
    server.feed(Stranger().headers(1, POST, ended=False))
    server.core.reset(1, CODE.CANCEL)
    server.drain()

    server.feed(Stranger.data(1, bytes(40_000)))

    assert [(one.stream_id, one.number) for one in server.sent()] == [(0, 40_000)]


def test_frames_are_as_large_as_the_peer_allows_and_no_larger_than_ours() -> None:
    server = End.greeted()
    server.feed(
        frames.settings_frame(
            [(Setting.MAX_FRAME_SIZE, (1 << 24) - 1), (Setting.INITIAL_WINDOW_SIZE, 1 << 22)]
        )
        + frames.window_update_frame(0, 1 << 22)
        + Stranger().headers(1)
    )
    server.core.respond(1, OK)
    server.offer(1, bytes((5 << 20) // 2))

    sizes = [len(one.payload) for one in server.sent() if one.kind == Kind.DATA]

    assert sizes == [1 << 20, 1 << 20, 1 << 19]


# --- order -------------------------------------------------------------------------------------


def order_of(server: End) -> list[int]:
    return [one.stream_id for one in server.sent() if one.kind == Kind.DATA]


def test_chunks_go_one_after_another_and_an_urgent_one_overtakes() -> None:
    server, stranger = End.greeted(), Stranger()
    server.feed(frames.window_update_frame(0, 1 << 20))
    for stream_id in (1, 3):
        server.feed(stranger.headers(stream_id))
        server.core.respond(stream_id, OK)
        server.offer(stream_id, bytes(40_000))
    server.feed(stranger.headers(5, (*GET, ("priority", "u=0"))))
    server.core.respond(5, OK)
    server.offer(5, bytes(20_000))

    assert order_of(server) == [5, 5, 1, 1, 1, 3, 3, 3]


def test_a_priority_update_overtakes_between_frames() -> None:
    server, stranger = End.greeted(), Stranger()
    server.feed(frames.window_update_frame(0, 1 << 20))
    for stream_id in (1, 3):
        server.feed(stranger.headers(stream_id))
        server.core.respond(stream_id, OK)
        server.offer(stream_id, bytes(40_000))
    first = server.core.next_output()
    assert first is not None
    assert first.stream_id == 1

    server.feed(frames.priority_update_frame(3, "u=1"))

    assert order_of(server) == [3, 3, 3, 1, 1]


def test_incremental_streams_take_turns() -> None:
    server, stranger = End.greeted(), Stranger()
    server.feed(frames.window_update_frame(0, 1 << 20))
    for stream_id in (1, 3, 5):
        server.feed(stranger.headers(stream_id))
        server.core.respond(stream_id, OK)
        server.core.prioritise(stream_id, Priority(1, incremental=stream_id != 5))
        server.offer(stream_id, bytes(40_000))

    order = order_of(server)

    assert order == [1, 3, 5, 1, 3, 5, 1, 3, 5]


def test_a_stream_with_a_shut_window_does_not_hold_up_the_others() -> None:
    server, stranger = End.greeted(), Stranger()
    server.feed(
        frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 0)])
        + stranger.headers(1)
        + stranger.headers(3)
        + frames.window_update_frame(3, 100)
    )
    for stream_id in (1, 3):
        server.core.respond(stream_id, OK)
        server.offer(stream_id, bytes(100))

    assert order_of(server) == [3]


def test_an_empty_end_needs_no_window() -> None:
    server = End.greeted()
    server.feed(frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 0)]) + Stranger().headers(1))
    server.core.respond(1, OK)

    server.core.offer(1, 0, final=True)

    assert server.sent()[-1] == Frame(Kind.DATA, END_STREAM, 1, b"")


# --- leaving -----------------------------------------------------------------------------------


def test_requests_above_the_last_of_a_goaway_come_back_refused() -> None:
    client = End.greeted(CLIENT)
    for _ in range(3):
        client.core.request(GET, 0.0)

    events = client.feed(frames.goaway_frame(1, 0, "bye\n"))

    assert events == [
        StreamReset(3, CODE.REFUSED_STREAM),
        StreamReset(5, CODE.REFUSED_STREAM),
        GoAwayReceived(1, 0, "bye?"),
    ]
    assert not client.core.may_request
    assert client.core.is_alive(1)


def test_requests_that_crossed_our_goaway_are_passed_over() -> None:
    server, stranger = End.greeted(), Stranger()
    server.feed(stranger.headers(1))
    server.core.go_away(CODE.NO_ERROR)

    events = server.feed(stranger.headers(3, POST, ended=False) + Stranger.data(3, b"x"))

    assert events == []
    assert only(server.sent(), Kind.GOAWAY).payload[:4] == u32(1)
    server.core.respond(1, OK, ended=True)
    assert server.core.stream_count == 0


def test_using_a_stream_that_is_gone_is_our_own_fault() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1) + frames.rst_stream_frame(1, CODE.CANCEL))

    with pytest.raises(LocalProtocolError):
        server.core.respond(1, OK)
    with pytest.raises(LocalProtocolError):
        server.core.offer(1, 5, final=True)
    with pytest.raises(LocalProtocolError):
        server.core.request(GET, 0.0)


def test_a_reset_stream_sends_no_more() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1))
    server.core.respond(1, OK)
    server.offer(1, bytes(1 << 20))
    assert server.core.next_output() is not None

    events = server.feed(frames.rst_stream_frame(1, CODE.CANCEL))

    assert events == [StreamReset(1, CODE.CANCEL)]
    assert server.sent() == []


# --- time --------------------------------------------------------------------------------------


def tick(end: End) -> float:
    """Go to the next deadline and handle it."""
    deadline = end.core.next_deadline()
    assert deadline is not None
    end.now = max(end.now, deadline)
    end.core.handle_timer(end.now)
    return end.now


def test_a_silent_peer_is_pinged_and_then_given_up() -> None:
    client = End.greeted(CLIENT)
    client.core.request(GET, 0.0)
    client.drain()

    assert tick(client) == client.limits.ping_after_s
    assert only(client.sent(), Kind.PING).flags == 0
    assert tick(client) == client.limits.dead_after_s

    assert client.core.take_events() == [PeerSilent()]


def test_a_peer_that_answers_pings_is_kept() -> None:
    client = End.greeted(CLIENT)
    client.core.request(GET, 0.0)
    client.drain()

    for _ in range(5):
        tick(client)
        ping = only(client.sent(), Kind.PING)
        assert client.feed(frames.ping_frame(ping.payload, ack=True)) == []

    assert client.now == 5 * client.limits.ping_after_s


def test_silence_before_the_first_request_is_not_held_against_the_peer() -> None:
    client = End.greeted(CLIENT)

    client.core.request(GET, 100.0)

    assert client.core.next_deadline() == 100.0 + client.limits.ping_after_s


def test_an_idle_connection_says_goodbye() -> None:
    server = End.greeted()

    assert tick(server) == server.limits.idle_s

    assert server.core.take_events() == [ConnectionIdle()]
    assert only(server.sent(), Kind.GOAWAY).payload[4:8] == u32(CODE.NO_ERROR)


@pytest.mark.parametrize("first", [b"", HELLO[:10], HELLO[:-1]])
def test_whoever_sends_no_settings_is_sent_away(first: bytes) -> None:
    server = End()
    server.feed(first)

    with pytest.raises(ViolationError) as caught:
        tick(server)

    assert caught.value.error_code is CODE.SETTINGS_TIMEOUT
    assert server.now == server.limits.settings_s


def test_whoever_never_acknowledges_settings_is_sent_away() -> None:
    server = End()
    server.feed(HELLO)

    with pytest.raises(ViolationError) as caught:
        tick(server)

    assert caught.value.error_code is CODE.SETTINGS_TIMEOUT
    assert server.now == server.limits.settings_ack_s


@pytest.mark.parametrize(
    "part",
    [
        frames.ping_frame(bytes(8))[:5],
        frames.ping_frame(bytes(8))[:12],
        Stranger().headers(1)[:-1],
        Stranger().headers(1, done=False),
    ],
)
def test_a_frame_or_field_block_that_does_not_end_is_slow_loris(part: bytes) -> None:
    server = End.greeted()
    server.feed(part)

    with pytest.raises(ViolationError) as caught:
        tick(server)

    assert caught.value.error_code is CODE.ENHANCE_YOUR_CALM
    assert server.now == server.limits.frame_s


def test_a_field_block_that_trickles_does_not_gain_time() -> None:
    server = End.greeted()
    server.feed(Stranger().headers(1, done=False))
    for _ in range(5):
        server.now += 1.0
        server.feed(frame(Kind.CONTINUATION, 0, 1, b""))

    deadline = server.core.next_deadline()

    assert deadline == server.limits.frame_s


def test_a_reader_that_keeps_its_window_shut_is_reset() -> None:
    server = End.greeted(limits=Limits(ping_after_s=1000.0, dead_after_s=2000.0))
    server.feed(frames.settings_frame([(Setting.INITIAL_WINDOW_SIZE, 0)]) + Stranger().headers(1))
    server.core.respond(1, OK)
    server.offer(1, bytes(100))
    server.drain()

    while not (events := server.core.take_events()):
        tick(server)

    assert isinstance(events[0], SettingsReceived | StreamReset)
    assert isinstance(events[-1], StreamReset)
    assert server.now < 2 * server.limits.blocked_s
    assert only(server.sent(), Kind.RST_STREAM).payload == u32(CODE.CANCEL)
    assert server.core.stream_count == 0


def test_a_chunk_that_waits_for_its_turn_is_not_blocked() -> None:
    limits = Limits(ping_after_s=1000.0, dead_after_s=2000.0)
    server, stranger = End.greeted(limits=limits), Stranger()
    server.feed(frames.window_update_frame(0, 1 << 30))
    for stream_id in (1, 3):
        server.feed(stranger.headers(stream_id) + frames.window_update_frame(stream_id, 1 << 24))
        server.core.respond(stream_id, OK)
        server.offer(stream_id, bytes(1 << 20))

    for _ in range(10):
        tick(server)
        output = server.core.next_output()
        assert output is not None
        assert output.stream_id == 1

    assert server.core.is_alive(3)
