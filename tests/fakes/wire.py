"""A core with memory for a socket: tests of the wire push bytes in and read frames out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpack import Encoder

from damselfly.p2p.wire import frames
from damselfly.p2p.wire.connection import Connection, Role
from damselfly.p2p.wire.events import DataLanded, DataReceived, Event
from damselfly.p2p.wire.frames import Kind
from damselfly.p2p.wire.limits import Limits

GET = ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a:1"))
POST = ((":method", "POST"), *GET[1:])
OK = ((":status", "200"),)
HELLO = frames.PREFACE + frames.settings_frame([])


@dataclass(frozen=True)
class Frame:
    """A frame as it was on the wire."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def number(self) -> int:
        """The last four bytes: an error code or an increment."""
        return int.from_bytes(self.payload[:8][-4:], "big")


def parse_frames(data: bytes) -> list[Frame]:
    """Cut bytes into frames; the client's preface is skipped."""
    at = len(frames.PREFACE) if data.startswith(frames.PREFACE) else 0
    found: list[Frame] = []
    while at < len(data):
        length, kind, flags, stream_id = frames.parse_header(memoryview(data), at)
        at += frames.HEADER_BYTES
        found.append(Frame(kind, flags, stream_id, data[at : at + length]))
        assert len(found[-1].payload) == length, "a frame that is cut off"
        at += length
    return found


class Stranger:
    """Writes frames as a peer would, right or wrong."""

    def __init__(self) -> None:
        self._encoder = Encoder()

    def block(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """Compress a field list, whatever it says."""
        return self._encoder.encode(
            [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        )

    def headers(
        self,
        stream_id: int,
        headers: Iterable[tuple[str, str]] = GET,
        *,
        ended: bool = True,
        done: bool = True,
    ) -> bytes:
        """HEADERS, with END_HEADERS if `done`."""
        flags = (frames.END_STREAM if ended else 0) | (frames.END_HEADERS if done else 0)
        return frames.frame(Kind.HEADERS, flags, stream_id, self.block(headers))

    @staticmethod
    def data(
        stream_id: int, data: bytes = b"", *, ended: bool = False, pad: int | None = None
    ) -> bytes:
        """DATA, padded if asked for."""
        flags = frames.END_STREAM if ended else 0
        if pad is not None:
            flags |= frames.PADDED
            data = bytes([pad]) + data + bytes(pad)
        return frames.frame(Kind.DATA, flags, stream_id, data)


@dataclass
class End:
    """One end of a connection under test, at a time that the test sets."""

    role: Role = Role.SERVER
    limits: Limits = field(default_factory=Limits)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.core = Connection(self.role, self.limits, self.now)
        self.bodies: dict[int, bytearray] = {}
        self.events: list[Event] = []

    @classmethod
    def greeted(cls, role: Role = Role.SERVER, limits: Limits | None = None) -> "End":
        """An end that has had the other side's SETTINGS, and whose own are sent."""
        end = cls(role, limits or Limits())
        settings = frames.settings_frame([])
        end.feed((frames.PREFACE if role is Role.SERVER else b"") + settings + frames.SETTINGS_ACK)
        end.drain()
        return end

    def feed(self, data: bytes, step: int | None = None) -> list[Event]:
        """Receive `data` by `step` bytes; a violation comes out, `events` has the rest."""
        at = 0
        self.events = []
        try:
            while at < len(data):
                piece = memoryview(data)[at : at + (step or len(data))]
                count = fill(self.core.next_views(), piece)
                self.core.received(count, self.now)
                at += count
        finally:
            self.events = merged(self.events + self.core.take_events())
        return self.events

    def drain(self) -> bytes:
        """Send everything that may be sent now; bodies that were not given are zeros."""
        sent = bytearray()
        while (output := self.core.next_output()) is not None:
            sent += output.head
            if output.length:
                body = self.bodies.setdefault(output.stream_id, bytearray())
                sent += bytes(body[: output.length]).ljust(output.length, b"\0")
                del body[: output.length]
        return bytes(sent)

    def sent(self) -> list[Frame]:
        """Drain, as frames."""
        return parse_frames(self.drain())

    def offer(self, stream_id: int, data: bytes, *, final: bool = True) -> None:
        """Give body bytes to be sent."""
        self.bodies.setdefault(stream_id, bytearray()).extend(data)
        self.core.offer(stream_id, len(data), final=final)


def fill(views: Sequence[memoryview], data: memoryview) -> int:
    """Do what `recvmsg_into` does."""
    filled = 0
    for view in views:
        count = min(len(view), len(data) - filled)
        view[:count] = data[filled : filled + count]
        filled += count
        if filled == len(data):
            break
    return filled


def merged(events: list[Event]) -> list[Event]:
    """Join neighbouring pieces of one body, so that it does not matter how bytes were cut."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if (
            isinstance(event, DataReceived)
            and isinstance(last, DataReceived)
            and last.stream_id == event.stream_id
        ):
            out[-1] = DataReceived(event.stream_id, last.data + event.data)
        elif (
            isinstance(event, DataLanded)
            and isinstance(last, DataLanded)
            and last.stream_id == event.stream_id
        ):
            out[-1] = DataLanded(event.stream_id, last.count + event.count)
        else:
            out.append(event)
    return out
