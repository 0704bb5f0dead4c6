"""Frames of RFC 9113 §4 and §6, and PRIORITY_UPDATE of RFC 9218 §7.1, to and from bytes.

Free functions on bytes and memoryviews. A parser checks what can be checked by looking at one
frame alone; what depends on the connection is checked there.
"""

from enum import IntEnum, IntFlag
from struct import Struct

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.violation import StreamViolationError, ViolationError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
STREAM_ID_MAX = (1 << 31) - 1
WINDOW_MAX = (1 << 31) - 1
FRAME_BYTES_DEFAULT = 16384
FRAME_BYTES_LARGEST = (1 << 24) - 1


class Kind(IntEnum):
    """Frame types; a type that is not here is skipped."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9
    PRIORITY_UPDATE = 0x10


class Flag(IntFlag):
    """Flags by type; ACK and END_STREAM share a bit."""

    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


# Plain integers for the hot path: an IntFlag operation costs a microsecond.
ACK = 0x1
END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

_HEADER = Struct(">BHBBL")
_U32 = Struct(">L")
_SETTING = Struct(">HL")
_TWO_U32 = Struct(">LL")


def parse_header(buffer: bytearray | memoryview, at: int) -> tuple[int, int, int, int]:
    """Read nine bytes at `at`: length, kind, flags, stream id (the reserved bit is ignored)."""
    high, low, kind, flags, stream_id = _HEADER.unpack_from(buffer, at)
    return high << 16 | low, kind, flags, stream_id & STREAM_ID_MAX


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Nine bytes in front of `length` bytes of payload."""
    return _HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A whole frame."""
    return frame_header(len(payload), kind, flags, stream_id) + payload


def header_frames(stream_id: int, block: bytes, frame_bytes_max: int, *, ended: bool) -> bytes:
    """HEADERS and as many CONTINUATION frames as the block needs."""
    parts: list[bytes] = []
    kind, flags = int(Kind.HEADERS), END_STREAM if ended else 0
    at = 0
    while True:
        payload = block[at : at + frame_bytes_max]
        at += len(payload)
        last = at >= len(block)
        parts.append(frame(kind, flags | (END_HEADERS if last else 0), stream_id, payload))
        if last:
            return b"".join(parts)
        kind, flags = int(Kind.CONTINUATION), 0


def settings_frame(pairs: list[tuple[int, int]]) -> bytes:
    """SETTINGS with these values."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


SETTINGS_ACK = frame(Kind.SETTINGS, ACK, 0, b"")


def ping_frame(payload: bytes, *, ack: bool = False) -> bytes:
    """PING, or the answer to one."""
    assert len(payload) == 8
    return frame(Kind.PING, ACK if ack else 0, 0, payload)


def goaway_frame(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """GOAWAY; the reason is for people."""
    debug = reason.encode("utf-8", "replace")[:200]
    return frame(Kind.GOAWAY, 0, 0, _TWO_U32.pack(last_stream_id, code) + debug)


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(Kind.RST_STREAM, 0, stream_id, _U32.pack(code))


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    assert 0 < increment <= WINDOW_MAX
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def priority_update_frame(stream_id: int, value: str) -> bytes:
    """PRIORITY_UPDATE: a new priority for a request that is under way."""
    return frame(Kind.PRIORITY_UPDATE, 0, 0, _U32.pack(stream_id) + value.encode("ascii"))


def parse_settings(payload: memoryview) -> list[tuple[int, int]]:
    """Read the pairs of a SETTINGS frame.

    Raises:
        ViolationError: the length is no multiple of six.
    """
    if len(payload) % _SETTING.size:
        raise ViolationError(
            f"a SETTINGS frame of {len(payload)} bytes", error_code=ErrorCode.FRAME_SIZE_ERROR
        )
    return [_SETTING.unpack_from(payload, at) for at in range(0, len(payload), _SETTING.size)]


def parse_ping(payload: memoryview) -> bytes:
    """Read the eight bytes of a PING."""
    _require_length("PING", payload, 8)
    return bytes(payload)


def parse_goaway(payload: memoryview) -> tuple[int, int, str]:
    """Read last stream id, error code and the reason, made printable."""
    if len(payload) < _TWO_U32.size:
        _require_length("GOAWAY", payload, _TWO_U32.size)
    last_stream_id, code = _TWO_U32.unpack_from(payload)
    debug = bytes(payload[_TWO_U32.size : _TWO_U32.size + 200]).decode("ascii", "replace")
    reason = "".join(letter if letter.isprintable() else "?" for letter in debug)
    return last_stream_id & STREAM_ID_MAX, code, reason


def parse_rst_stream(payload: memoryview) -> int:
    """Read the error code."""
    _require_length("RST_STREAM", payload, 4)
    return int(_U32.unpack_from(payload)[0])


def parse_window_update(stream_id: int, payload: memoryview) -> int:
    """Read the increment; zero is an error of the stream, or of the connection for stream 0."""
    _require_length("WINDOW_UPDATE", payload, 4)
    increment = int(_U32.unpack_from(payload)[0]) & WINDOW_MAX
    if not increment:
        kind = StreamViolationError if stream_id else ViolationError
        raise kind("a WINDOW_UPDATE of 0", stream_id=stream_id)
    return increment


def check_window_update(payload: memoryview) -> None:
    """Check the length of a WINDOW_UPDATE that means nothing any more."""
    _require_length("WINDOW_UPDATE", payload, 4)


def check_priority(stream_id: int, payload: memoryview) -> None:
    """Check a PRIORITY frame, whose content RFC 9113 §5.3.2 ignores."""
    if len(payload) != 5:
        raise StreamViolationError(
            f"a PRIORITY frame of {len(payload)} bytes",
            error_code=ErrorCode.FRAME_SIZE_ERROR,
            stream_id=stream_id,
        )


def parse_priority_update(payload: memoryview) -> tuple[int, str]:
    """Read the stream id and the field value."""
    if len(payload) < 4:
        _require_length("PRIORITY_UPDATE", payload, 4)
    stream_id = int(_U32.unpack_from(payload)[0]) & STREAM_ID_MAX
    return stream_id, bytes(payload[4:]).decode("ascii", "replace")


def header_fragment(flags: int, payload: memoryview, stream_id: int) -> memoryview:
    """Take the field block fragment out of a HEADERS payload: no padding, no old priority."""
    start, padding = 0, 0
    if flags & PADDED:
        if not len(payload):
            _too_short(stream_id)
        start, padding = 1, payload[0]
    if flags & PRIORITY_FLAG:
        start += 5
        if start > len(payload):
            _too_short(stream_id)
    if start + padding > len(payload):
        raise ViolationError("padding longer than its HEADERS frame", stream_id=stream_id)
    return payload[start : len(payload) - padding]


def _too_short(stream_id: int) -> None:
    raise ViolationError(
        "a HEADERS frame too short for its flags",
        error_code=ErrorCode.FRAME_SIZE_ERROR,
        stream_id=stream_id,
    )


def _require_length(name: str, payload: memoryview, length: int) -> None:
    if len(payload) != length:
        raise ViolationError(
            f"a {name} frame of {len(payload)} bytes", error_code=ErrorCode.FRAME_SIZE_ERROR
        )
