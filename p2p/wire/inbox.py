"""Where the next bytes from the socket go, and what frames they make.

    shell: recv_into(inbox.next_views())          one system call may fill both views
           inbox.received(n) ──► handler          frames, in order

A frame header and every frame but DATA goes through a scratch buffer. Once a DATA header has been
read, the rest of its payload goes straight into the stream's sink, where there is one: the second
view is then the nine bytes of scratch that the next header needs. Frames below `DIRECT_BYTES_MIN`
are not worth a system call of their own, so a large scratch follows them, and what lands in it is
copied into the sink: a memory copy of 16 KiB costs less than a system call.
"""

from collections.abc import Sequence
from typing import Protocol

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.frames import (
    END_STREAM,
    HEADER_BYTES,
    PADDED,
    PREFACE,
    Kind,
    parse_header,
)
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.violation import ViolationError

SCRATCH_BYTES = 64 * 1024
DIRECT_BYTES_MIN = 32 * 1024
_KNOWN = frozenset(int(kind) for kind in Kind) - {int(Kind.DATA)}


class FrameHandler(Protocol):
    """Who makes sense of frames. Every method may raise ViolationError, which ends it all."""

    def data_began(
        self, stream_id: int, length: int, data_length: int, *, ends_stream: bool
    ) -> memoryview | None:
        """A DATA frame of `length` bytes; give a view of `data_length` to receive into, or None."""
        ...

    def data_landed(self, count: int) -> None:
        """So many bytes are in the view."""
        ...

    def data_came(self, data: memoryview) -> None:
        """Bytes for which there is no view; they are gone after the call."""
        ...

    def data_ended(self, *, ends_stream: bool) -> None:
        """The DATA frame is complete."""
        ...

    def frame_came(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        """Any other frame that RFC 9113 knows."""
        ...

    def frame_skipped(self, kind: int) -> None:
        """A frame of an unknown type has begun and will be skipped."""
        ...


class Inbox:
    """Bytes into frames, for one connection."""

    __slots__ = (
        "_data_left",
        "_direct",
        "_end",
        "_ends_stream",
        "_handler",
        "_in_data",
        "_limits",
        "_preface_at",
        "_scratch",
        "_sink",
        "_skip_left",
        "_start",
        "_view",
    )

    def __init__(self, handler: FrameHandler, limits: Limits, *, expects_preface: bool) -> None:
        assert limits.control_frame_bytes_max + HEADER_BYTES <= SCRATCH_BYTES
        self._handler = handler
        self._limits = limits
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        # Bytes [start, end) of the scratch have not been read yet.
        self._start = 0
        self._end = 0
        self._preface_at = 0 if expects_preface else len(PREFACE)
        # The DATA frame that is under way: its data, then padding to skip.
        self._in_data = False
        self._ends_stream = False
        self._data_left = 0
        self._skip_left = 0
        self._sink: memoryview | None = None  # what is left of the frame's view
        self._direct = 0  # bytes of the sink that the last `next_views` gave out

    @property
    def is_amid_frame(self) -> bool:
        """Part of a frame header or control frame is here and the rest is not."""
        return self._end > self._start or 0 < self._preface_at < len(PREFACE)

    @property
    def payload_due(self) -> int:
        """How many bytes for a sink come before anything else can."""
        return self._data_left if self._sink is not None else 0

    def next_views(self) -> Sequence[memoryview]:
        """Give the memory that the next bytes belong into, in order; never empty."""
        if self._sink is not None:
            assert self._start == self._end
            self._direct = self._data_left
            if self._data_left >= DIRECT_BYTES_MIN and not self._skip_left:
                return self._sink, self._view[:HEADER_BYTES]
            return self._sink, self._view
        self._direct = 0
        if self._start:
            rest = self._end - self._start
            self._view[:rest] = self._view[self._start : self._end]
            self._start, self._end = 0, rest
        return (self._view[self._end :],)

    def received(self, count: int) -> None:
        """Read the `count` bytes that were put into `next_views`.

        Raises:
            ViolationError: they are no HTTP/2.
        """
        if self._direct:
            landed = min(count, self._direct)
            assert self._sink is not None
            self._direct = 0
            self._data_left -= landed
            self._sink = self._sink[landed:] if self._data_left else None
            self._end = count - landed
            self._start = 0
            self._handler.data_landed(landed)
        else:
            self._end += count
        assert self._end <= SCRATCH_BYTES
        if self._preface_at < len(PREFACE) and not self._read_preface():
            return
        while self._step():
            pass
        if self._start == self._end:
            self._start = self._end = 0

    def divert(self) -> None:
        """Let go of the sink of the DATA frame that is under way: its stream is gone."""
        self._sink = None

    def _step(self) -> bool:
        """Read one thing; False when more bytes are needed for the next."""
        if self._in_data:
            return self._step_data()
        available = self._end - self._start
        if self._skip_left:
            skipped = min(available, self._skip_left)
            self._skip_left -= skipped
            self._start += skipped
            return skipped > 0
        if available < HEADER_BYTES:
            return False
        length, kind, flags, stream_id = parse_header(self._scratch, self._start)
        if length > self._limits.frame_bytes_max:
            raise ViolationError(
                f"a frame of {length} bytes", error_code=ErrorCode.FRAME_SIZE_ERROR
            )
        if kind == Kind.DATA:
            return self._begin_data(length, flags, stream_id)
        if kind in _KNOWN:
            if length > self._limits.control_frame_bytes_max:
                raise ViolationError(
                    f"a frame of type {kind} and {length} bytes",
                    error_code=ErrorCode.ENHANCE_YOUR_CALM,
                    stream_id=stream_id,
                )
            if available < HEADER_BYTES + length:
                return False
            at = self._start + HEADER_BYTES
            self._start = at + length
            self._handler.frame_came(kind, flags, stream_id, self._view[at : at + length])
            return True
        self._start += HEADER_BYTES
        self._skip_left = length
        self._handler.frame_skipped(kind)
        return True

    def _begin_data(self, length: int, flags: int, stream_id: int) -> bool:
        padding = 0
        if flags & PADDED:
            if not length:
                raise ViolationError(
                    "a padded DATA frame of 0 bytes",
                    error_code=ErrorCode.FRAME_SIZE_ERROR,
                    stream_id=stream_id,
                )
            if self._end - self._start <= HEADER_BYTES:
                return False
            padding = self._scratch[self._start + HEADER_BYTES] + 1
            if padding > length:
                raise ViolationError("padding longer than its DATA frame", stream_id=stream_id)
            self._start += 1
        self._start += HEADER_BYTES
        self._in_data = True
        self._ends_stream = bool(flags & END_STREAM)
        self._data_left = length - padding
        self._skip_left = max(0, padding - 1)
        self._sink = self._handler.data_began(
            stream_id, length, self._data_left, ends_stream=self._ends_stream
        )
        if not self._data_left:
            self._sink = None
        return True

    def _step_data(self) -> bool:
        available = self._end - self._start
        if self._data_left:
            count = min(available, self._data_left)
            if not count:
                return False
            data = self._view[self._start : self._start + count]
            self._start += count
            self._data_left -= count
            if self._sink is None:
                self._handler.data_came(data)
            else:
                self._sink[:count] = data
                self._sink = self._sink[count:] if self._data_left else None
                self._handler.data_landed(count)
            return True
        if self._skip_left:
            count = min(available, self._skip_left)
            self._skip_left -= count
            self._start += count
            if self._skip_left:
                return False
        self._in_data = False
        self._handler.data_ended(ends_stream=self._ends_stream)
        return True

    def _read_preface(self) -> bool:
        """Compare what is here of the preface; True when all of it is."""
        count = min(len(PREFACE) - self._preface_at, self._end - self._start)
        expected = PREFACE[self._preface_at : self._preface_at + count]
        if bytes(self._view[self._start : self._start + count]) != expected:
            raise ViolationError("no HTTP/2: the connection preface is missing")
        self._start += count
        self._preface_at += count
        if self._start == self._end:
            self._start = self._end = 0
        return self._preface_at == len(PREFACE)
