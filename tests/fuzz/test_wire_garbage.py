"""Whatever bytes come: events, or ViolationError, and never anything else.

And it does not matter how the bytes were cut: whole, byte by byte, or with a tail that has not come
completely, the same events happen and the same error ends it.
"""

import contextlib

import pytest
from hpack import Encoder
from hypothesis import example, given, settings, strategies as st

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.wire import frames
from damselfly.p2p.wire.connection import Role
from damselfly.p2p.wire.events import Event
from damselfly.p2p.wire.frames import Kind
from damselfly.p2p.wire.headers import HeaderCodec
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from tests.fakes.wire import GET, HELLO, End, merged

LIMITS = Limits(stream_window_bytes=65535, connection_window_bytes=65535, streams_max=3)


def begun(role: Role) -> End:
    """An end with something under way."""
    if role is Role.SERVER:
        end = End(role, LIMITS)
        end.feed(HELLO)
        return end
    end = End(role, LIMITS)
    end.core.request(GET, 0.0)
    end.core.request(GET, 0.0, sink=memoryview(bytearray(500)))
    end.core.request((*GET, ("priority", "u=0")), 0.0, ended=False)
    end.feed(frames.settings_frame([]))
    return end


def outcome(role: Role, data: bytes, step: int | None) -> tuple[list[str], str]:
    """Feed `data`: what happened, and what ended it."""
    end = begun(role)
    events: list[Event] = []
    fault = ""
    step = step or max(1, len(data))
    for at in range(0, len(data), step):
        try:
            end.feed(data[at : at + step])
        except RemoteProtocolError as exc:
            fault = f"{end.core.violation!r} {exc}"
        events += end.events
        if fault:
            break
    end.drain()
    return [repr(event) for event in merged(events)], fault


def one_frame() -> st.SearchStrategy[bytes]:
    field = st.tuples(
        st.sampled_from(
            [":method", ":path", ":status", ":scheme", "content-length", "te", "x", "X"]
        ),
        st.sampled_from(["GET", "/", "200", "http", "3", "trailers", "", "a\n"]),
    )
    block = st.one_of(
        st.just(Encoder().encode(GET)),
        st.just(Encoder().encode([(":status", "200")])),
        st.lists(field, max_size=6).map(lambda pairs: bytes(Encoder().encode(pairs))),
        st.binary(max_size=40),
    )
    payload = st.one_of(
        block,
        st.binary(max_size=30),
        st.sampled_from([bytes(4), bytes(8), b"\0\0\0\5", b"\0\4\0\0\0\1", b"\x7f\xff\xff\xff"]),
        st.integers(0, 700).map(bytes),
    )
    return st.builds(
        frames.frame,
        st.one_of(st.sampled_from([int(kind) for kind in Kind]), st.integers(0, 255)),
        st.one_of(st.sampled_from([0, 1, 4, 5, 0x25, 8, 9]), st.integers(0, 255)),
        st.sampled_from([0, 1, 2, 3, 5, 7, 9, (1 << 31) - 1]),
        payload,
    )


def conversation() -> st.SearchStrategy[bytes]:
    parts = st.lists(
        st.one_of(one_frame(), one_frame(), one_frame(), st.binary(max_size=12)), max_size=14
    )
    return parts.map(b"".join)


@pytest.mark.parametrize("role", Role)
@settings(max_examples=400, deadline=None)
@given(data=conversation(), step=st.integers(2, 50))
@example(data=frames.header_frames(1, Encoder().encode(GET), 16384, ended=False), step=2)
def test_frames_in_any_order_give_the_same_however_they_are_cut(
    role: Role, data: bytes, step: int
) -> None:
    whole = outcome(role, data, None)

    assert outcome(role, data, 1) == whole
    assert outcome(role, data, step) == whole


@pytest.mark.parametrize("role", Role)
@settings(max_examples=200, deadline=None)
@given(data=conversation(), tail=st.binary(min_size=1, max_size=8))
def test_a_tail_changes_nothing_before_it(role: Role, data: bytes, tail: bytes) -> None:
    events, fault = outcome(role, data, None)

    longer, _ = outcome(role, data + tail, None)

    if not fault:
        assert longer[: len(events) - 1] == events[:-1]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_the_first_bytes_may_be_anything(data: bytes) -> None:
    for prefix in (b"", frames.PREFACE, HELLO):
        for step in (None, 1):
            end = End(Role.SERVER, LIMITS)
            try:
                end.feed(prefix + data, step)
            except RemoteProtocolError:
                assert end.drain().endswith(end_of_goaway(end))


def end_of_goaway(end: End) -> bytes:
    assert end.core.violation is not None
    return frames.goaway_frame(0, end.core.violation.error_code, str(end.core.violation))[-3:]


@settings(max_examples=500, deadline=None)
@given(block=st.binary(max_size=200))
@example(block=b"\x00")
@example(block=b"\x00\x81")
@example(block=b"\x40\x01a\x83\xff\xff\xff")
@example(block=b"\x7f" + b"\xff" * 60)
def test_a_field_block_is_fields_or_a_violation(block: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        HeaderCodec(LIMITS).decode(block)


@given(text=st.text(max_size=300))
def test_any_priority_is_a_priority(text: str) -> None:
    assert 0 <= Priority.parse(text).urgency <= 7
