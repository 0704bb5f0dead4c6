"""The small parts of the wire: windows, priorities, buckets, frames, the table of states."""

import pytest

from damselfly.p2p.wire import frames
from damselfly.p2p.wire.codes import ErrorCode, name_of
from damselfly.p2p.wire.flood import Bucket
from damselfly.p2p.wire.headers import HeaderCodec
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from damselfly.p2p.wire.streams import TRANSITIONS, Input, State, Stream
from damselfly.p2p.wire.violation import StreamViolationError, ViolationError
from damselfly.p2p.wire.windows import ReceiveWindow, widen
from tests.fakes.wire import parse_frames


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Priority(3, incremental=False)),
        ("u=0", Priority(0, incremental=False)),
        ("u=7, i", Priority(7, incremental=True)),
        ("i=?0, u=2", Priority(2, incremental=False)),
        ("i=?1", Priority(3, incremental=True)),
        ("u=8", Priority(3, incremental=False)),
        ("u=-1", Priority(3, incremental=False)),
        ("u=1;x=2, foo=bar", Priority(1, incremental=False)),
        ("???", Priority(3, incremental=False)),
    ],
)
def test_a_priority_is_read_as_rfc_9218_says(text: str, expected: Priority) -> None:
    assert Priority.parse(text) == expected


def test_a_priority_reads_back_what_it_writes() -> None:
    for urgency in range(8):
        for incremental in (False, True):
            priority = Priority(urgency, incremental)

            assert Priority.parse(str(priority)) == priority


def test_a_window_pays_its_debt_when_half_is_owed() -> None:
    window = ReceiveWindow(100)
    window.take(50)

    payments = [window.give(count) for count in (30, 19, 1)]

    assert payments == [0, 0, 50]
    assert window.left == 100


@pytest.mark.parametrize("sink", [10, 5000, 60_000, 65_535, 300_000])
@pytest.mark.parametrize("pad", [1, 256])
def test_a_fetch_of_padded_frames_never_stands_still(sink: int, pad: int) -> None:
    window = ReceiveWindow(65_535)
    window.fit(sink)
    left = sink

    while left:
        count = min(left, 1000)
        assert window.left >= count + pad
        window.take(count + pad)
        left -= count
        window.give(pad)


def test_a_reader_in_small_pieces_does_not_make_small_updates() -> None:
    window = ReceiveWindow(1000)
    window.take(1000)

    payments = [window.give(10) for _ in range(100)]

    assert [one for one in payments if one] == [500, 500]


def test_a_window_that_is_overrun_tells_whose_it_is() -> None:
    with pytest.raises(StreamViolationError):
        ReceiveWindow(100, stream_id=1).take(101)
    with pytest.raises(ViolationError) as caught:
        ReceiveWindow(100).take(101)
    assert not isinstance(caught.value, StreamViolationError)
    assert caught.value.error_code is ErrorCode.FLOW_CONTROL_ERROR


def test_a_window_can_be_widened_to_its_limit_and_not_beyond() -> None:
    assert widen(0, frames.WINDOW_MAX, 0) == frames.WINDOW_MAX
    with pytest.raises(StreamViolationError):
        widen(1, frames.WINDOW_MAX, 1)


def test_a_bucket_allows_its_burst_and_then_its_rate() -> None:
    bucket = Bucket("things", 3, 2.0, now=0.0)
    for _ in range(3):
        bucket.spend(0.0)
    with pytest.raises(ViolationError) as caught:
        bucket.spend(0.4)
    assert caught.value.error_code is ErrorCode.ENHANCE_YOUR_CALM

    bucket.spend(0.5)
    with pytest.raises(ViolationError):
        bucket.spend(0.5)
    bucket.earn(1)
    bucket.spend(0.5)


def test_a_closed_stream_stays_closed() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is State.CLOSED]


def test_every_open_state_can_be_reset_from_both_sides() -> None:
    for state in (State.OPEN, State.HALF_CLOSED_LOCAL, State.HALF_CLOSED_REMOTE):
        assert TRANSITIONS[state, Input.SEND_RST] is State.CLOSED
        assert TRANSITIONS[state, Input.RECV_RST] is State.CLOSED


def test_what_is_not_in_the_table_is_stream_closed() -> None:
    stream = Stream(1, 0, 0)
    stream.did(Input.SEND_HEADERS)
    stream.suffered(Input.RECV_END)

    with pytest.raises(StreamViolationError) as caught:
        stream.suffered(Input.RECV_DATA)

    assert caught.value.error_code is ErrorCode.STREAM_CLOSED
    assert caught.value.stream_id == 1


def test_a_large_field_block_is_cut_into_continuations() -> None:
    block = bytes(range(256)) * 200

    found = parse_frames(frames.header_frames(7, block, 16384, ended=True))

    assert [one.kind for one in found] == [1, 9, 9, 9]
    assert [one.flags for one in found] == [frames.END_STREAM, 0, 0, frames.END_HEADERS]
    assert b"".join(one.payload for one in found) == block


def test_header_values_keep_their_octets() -> None:
    codec, other = HeaderCodec(Limits()), HeaderCodec(Limits())
    fields = ((":path", "/\xff"), ("x", "\xe9\t!"), ("empty", ""))

    assert other.decode(codec.encode(fields)) == fields


def test_the_encoder_obeys_a_smaller_table() -> None:
    codec, other = HeaderCodec(Limits()), HeaderCodec(Limits())
    codec.limit_encoder(0)
    fields = (("x-name", "value"),)

    first, second = codec.encode(fields), codec.encode(fields)

    assert first[0] == 0x20  # The size update comes first.
    assert len(second) > 5  # Nothing was remembered.
    assert other.decode(first) == other.decode(second) == fields


def test_codes_have_names() -> None:
    assert name_of(0xB) == "ENHANCE_YOUR_CALM"
    assert name_of(0xFF) == "error code 0xff"
