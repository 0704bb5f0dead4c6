"""One HTTP/2 connection, client or server, without a socket and without a clock.

              bytes, now ──► next_views / received ──► take_events()
    the shell's commands ──► request respond offer reset consumed ...
                              next_output() ──► bytes, and whose DATA follows them
                     now ──► handle_timer;  next_deadline() says when

Theory of operation.

Rule 1: what the peer may not do ends in `ViolationError` out of `received` or `handle_timer`; by
then GOAWAY with the right code is queued, and nothing but `next_output` may be called any more. If
only a stream is to blame, RST_STREAM is queued and a `StreamReset` event tells the shell.

Rule 2: payload never passes through here. Inbound, `next_views` points into the stream's sink.
Outbound, the shell says how many body bytes are ready (`offer`), and `next_output` says whose and
how many are to follow the bytes that it returns. That many must follow, whatever happens to the
stream meanwhile: a frame that has begun cannot be taken back.

Rule 3: control frames go before DATA. They are few, and a window that opens late costs more than
a chunk that arrives late. What the peer makes us queue is bounded; past the bound it is flooding.

Rule 4: a stream is forgotten when both sides are done with it. Late frames on a stream that *we*
reset are no offence (the peer had not heard of it), so those numbers are remembered for a while.
Any other frame on a forgotten stream that could still do harm is STREAM_CLOSED.

Rule 5: connection credit is returned when bytes leave the core's and the shell's hands: at once for
a sink, padding and what is thrown away, upon `consumed` for the rest. So unread memory is bounded
by the windows, and a fetch of 4 MiB into a sink costs no WINDOW_UPDATE of its stream at all: the
window was made as large as the sink by the frame that followed its HEADERS.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from damselfly.errors import LocalProtocolError
from damselfly.p2p.wire import frames, headers as fields
from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.events import (
    ConnectionIdle,
    DataLanded,
    DataReceived,
    Event,
    GoAwayReceived,
    PeerSilent,
    PingAnswered,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
)
from damselfly.p2p.wire.flood import Bucket
from damselfly.p2p.wire.frames import ACK, END_HEADERS, END_STREAM, Kind
from damselfly.p2p.wire.headers import HeaderCodec, Headers
from damselfly.p2p.wire.inbox import Inbox
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from damselfly.p2p.wire.scheduler import Scheduler
from damselfly.p2p.wire.settings import RemoteSettings, Setting
from damselfly.p2p.wire.streams import Input, State, Stream
from damselfly.p2p.wire.violation import StreamViolationError, ViolationError
from damselfly.p2p.wire.windows import ReceiveWindow, widen

KEEPALIVE_PING = b"damselfl"
_STREAMS_BEFORE_SETTINGS = 100
_SMALL_DATA_BYTES = 64
_WORTHY_DATA_BYTES = 256  # a frame of ours that earns the peer its WINDOW_UPDATEs


class Role(Enum):
    """Which end we are."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Output:
    """What to send next: `head`, then `length` body bytes of `stream_id` (0: no DATA).

    `ends` when they are the stream's last.
    """

    head: bytes
    stream_id: int = 0
    length: int = 0
    ends: bool = False


class Connection:
    """The state of one connection; belongs to one shell in one thread."""

    def __init__(self, role: Role, limits: Limits, now: float) -> None:
        self.role = role
        self.limits = limits
        self.remote = RemoteSettings()
        self.violation: ViolationError | None = None
        self.is_leaving = False  # a GOAWAY went either way: no new streams
        self._is_client = role is Role.CLIENT
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._last_peer_id = 0
        self._last_accepted_id: int | None = None  # after our GOAWAY
        self._goaway_last_id: int | None = None  # after theirs
        self._reset_by_us: dict[int, None] = {}
        self._codec = HeaderCodec(limits)
        self._scheduler = Scheduler()
        self._inbox = Inbox(self, limits, expects_preface=not self._is_client)
        self._events: list[Event] = []
        self._control = bytearray()
        self._send_window = 65535
        self._window = ReceiveWindow(limits.connection_window_bytes)
        self._data_stream: Stream | None = None
        # The header block that is under way: stream, HEADERS flags, fragments.
        self._block: bytearray | None = None
        self._block_id = 0
        self._block_ends = False
        self._block_frames = 0
        # Time.
        self._now = now
        self._started_at = now
        self._heard_at = now
        self._waiting_since = now
        self._idle_since: float | None = now
        self._block_since: float | None = None
        self._amid_since: float | None = None
        self._frame_count = 0
        self._pinged = False
        self._has_settings = False
        self._acks_due = 1
        self._blocked_check_at: float | None = None
        self._controls = Bucket("control frames", limits.control_burst, limits.control_per_s, now)
        self._resets = Bucket("reset streams", limits.reset_burst, limits.reset_per_s, now)
        self._updates = Bucket(
            "WINDOW_UPDATE frames", limits.window_update_burst, limits.window_update_per_s, now
        )
        self._empties = Bucket(
            "empty DATA frames", limits.empty_data_burst, limits.empty_data_per_s, now
        )
        self._smalls = Bucket(
            "small DATA frames", limits.small_data_burst, limits.small_data_per_s, now
        )
        self._greet()

    def __repr__(self) -> str:
        state = "failed" if self.violation else "leaving" if self.is_leaving else "open"
        return f"<Connection {self.role.value} {state} {len(self._streams)} streams>"

    # --- bytes in ---------------------------------------------------------------------------

    def next_views(self) -> Sequence[memoryview]:
        """Give the memory that the next bytes belong into, in order; never empty."""
        return self._inbox.next_views()

    @property
    def payload_due(self) -> int:
        """How many bytes for a sink come before anything else can: the rest of a DATA frame."""
        return self._inbox.payload_due

    def received(self, count: int, now: float) -> None:
        """Read `count` bytes that the shell put into `next_views`.

        Raises:
            ViolationError: the peer broke a rule, and the connection is over.
        """
        assert self.violation is None
        self._now = now
        self._heard_at = now
        self._pinged = False
        frame_count = self._frame_count
        try:
            self._inbox.received(count)
        except ViolationError as exc:
            self._fail(exc)
            raise
        if not self._inbox.is_amid_frame:
            self._amid_since = None
        elif self._amid_since is None or self._frame_count != frame_count:
            self._amid_since = now

    def take_events(self) -> list[Event]:
        """Hand over what has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    # --- time -------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When to call `handle_timer`, if nothing happens before; None once it is over."""
        if self.violation is not None:
            return None
        limits = self.limits
        due: list[float] = []
        if not self._has_settings:
            due.append(self._started_at + limits.settings_s)
        elif self._acks_due:
            due.append(self._started_at + limits.settings_ack_s)
        if self._block_since is not None:
            due.append(self._block_since + limits.frame_s)
        if self._amid_since is not None:
            due.append(self._amid_since + limits.frame_s)
        if self._streams:
            silent_since = max(self._heard_at, self._waiting_since)
            patience = limits.dead_after_s if self._pinged else limits.ping_after_s
            due.append(silent_since + patience)
        if self._idle_since is not None:
            due.append(self._idle_since + limits.idle_s)
        if self._blocked_check_at is not None:
            due.append(self._blocked_check_at)
        return min(due, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due.

        Raises:
            ViolationError: the peer took too long over something, and the connection is over.
        """
        assert self.violation is None
        self._now = now
        try:
            self._check_patience(now)
        except ViolationError as exc:
            self._fail(exc)
            raise
        limits = self.limits
        silent_since = max(self._heard_at, self._waiting_since)
        if self._streams and now >= silent_since + limits.ping_after_s:
            if not self._pinged:
                self._pinged = True
                self._control += frames.ping_frame(KEEPALIVE_PING)
            elif now >= silent_since + limits.dead_after_s:
                self._events.append(PeerSilent())
        if self._idle_since is not None and now >= self._idle_since + limits.idle_s:
            self._idle_since = None
            self.go_away(ErrorCode.NO_ERROR, "idle")
            self._events.append(ConnectionIdle())

    def _check_patience(self, now: float) -> None:
        limits = self.limits
        if not self._has_settings:
            if now >= self._started_at + limits.settings_s:
                raise ViolationError("no SETTINGS", error_code=ErrorCode.SETTINGS_TIMEOUT)
        elif self._acks_due and now >= self._started_at + limits.settings_ack_s:
            raise ViolationError("no answer to SETTINGS", error_code=ErrorCode.SETTINGS_TIMEOUT)
        for since in (self._block_since, self._amid_since):
            if since is not None and now >= since + limits.frame_s:
                raise ViolationError(
                    "a frame or field block that does not end",
                    error_code=ErrorCode.ENHANCE_YOUR_CALM,
                )
        if self._blocked_check_at is not None and now >= self._blocked_check_at:
            self._check_blocked(now)

    def _check_blocked(self, now: float) -> None:
        """Reset streams whose reader keeps its window shut."""
        for stream in list(self._scheduler.waiting.values()):
            if not stream.pending or (stream.send_window > 0 and self._send_window > 0):
                stream.blocked_since = None
            elif stream.blocked_since is None:
                stream.blocked_since = now
            elif now >= stream.blocked_since + self.limits.blocked_s:
                self._stream_failed(
                    stream.id,
                    StreamViolationError(
                        "a window that stays shut",
                        error_code=ErrorCode.CANCEL,
                        stream_id=stream.id,
                    ),
                )
        waits = bool(self._scheduler.waiting)
        self._blocked_check_at = now + self.limits.blocked_s / 4 if waits else None

    # --- commands ---------------------------------------------------------------------------

    @property
    def stream_count(self) -> int:
        """How many streams are alive."""
        return len(self._streams)

    @property
    def may_request(self) -> bool:
        """Whether `request` would be allowed now."""
        return (
            self._is_client
            and not self.is_leaving
            and self.violation is None
            and len(self._streams) < self._streams_allowed
            and self._next_id <= frames.STREAM_ID_MAX
        )

    @property
    def _streams_allowed(self) -> int:
        # Until the peer has said how many it takes, we guess what every server takes.
        return self.remote.streams_max if self._has_settings else _STREAMS_BEFORE_SETTINGS

    def is_alive(self, stream_id: int) -> bool:
        """Whether commands about this stream still mean something."""
        return stream_id in self._streams

    def request(
        self,
        headers: Iterable[tuple[str, str]],
        now: float,
        *,
        ended: bool = True,
        sink: memoryview | None = None,
    ) -> int:
        """Open a stream and return its number; `sink` takes the body of a 200 or 206.

        Raises:
            LocalProtocolError: `may_request` is false.
        """
        if not self.may_request:
            raise LocalProtocolError(f"opening a stream on {self!r}")
        self._now = now
        stream = self._open(self._next_id)
        self._next_id += 2
        stream.did(Input.SEND_HEADERS)
        pairs = tuple(headers)
        stream.is_head = (":method", "HEAD") in pairs
        self._send_headers(stream, pairs, ended=ended)
        if sink is not None:
            stream.sink = sink
            increment = stream.receive_window.fit(len(sink))
            if increment:
                self._control += frames.window_update_frame(stream.id, increment)
        return stream.id

    def respond(
        self, stream_id: int, headers: Iterable[tuple[str, str]], *, ended: bool = False
    ) -> None:
        """Send the final response headers.

        Raises:
            LocalProtocolError: the stream is gone, or has its headers already.
        """
        stream = self._sending(stream_id)
        if stream.responded:
            raise LocalProtocolError(f"responding twice on {stream!r}")
        stream.responded = True
        stream.did(Input.SEND_HEADERS)
        self._send_headers(stream, tuple(headers), ended=ended)

    def offer(self, stream_id: int, count: int, *, final: bool) -> None:
        """Say that `count` more body bytes are ready; `final` when no more follow.

        Raises:
            LocalProtocolError: the stream is gone, or its body had ended.
        """
        stream = self._sending(stream_id)
        if stream.final:
            raise LocalProtocolError(f"more body on {stream!r}")
        stream.pending += count
        stream.final = final
        if stream.pending or final:
            self._scheduler.add(stream)
            if self._blocked_check_at is None:
                self._blocked_check_at = self._now + self.limits.blocked_s / 4

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Give a stream up; nothing happens if it is gone. No event follows."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._reset(stream, code)

    def consumed(self, stream_id: int, count: int) -> None:
        """Return credit for bytes of a `DataReceived`, whether or not the stream still lives."""
        if self.violation is not None:
            return
        self._give(count)
        stream = self._streams.get(stream_id)
        if stream is not None and stream.is_receiving:
            self._give_stream(stream, count)

    def prioritise(self, stream_id: int, priority: Priority) -> None:
        """Change the order in which we send a stream's body."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.priority = priority

    def ask_priority(self, stream_id: int, priority: Priority) -> None:
        """Ask the peer to change the order (PRIORITY_UPDATE)."""
        if stream_id in self._streams:
            self._control += frames.priority_update_frame(stream_id, str(priority))

    def priority_of(self, stream_id: int) -> Priority:
        """Tell a live stream's priority."""
        return self._streams[stream_id].priority

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; `PingAnswered` follows."""
        self._control += frames.ping_frame(payload)

    def go_away(self, code: ErrorCode, reason: str = "") -> None:
        """Take no new streams; those that are open may end."""
        self.is_leaving = True
        if self._last_accepted_id is None:
            self._last_accepted_id = self._last_peer_id
        self._control += frames.goaway_frame(self._last_accepted_id, code, reason)

    # --- bytes out --------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """A cheap guess: False means that `next_output` has nothing."""
        return bool(self._control or self._scheduler.waiting)

    def next_output(self) -> Output | None:
        """Give what to send next; all of it must be sent before the next call."""
        control = bytes(self._control)
        self._control.clear()
        stream = None
        if self._scheduler.waiting and self.violation is None:
            stream = self._scheduler.pick(self._send_window)
        if stream is None:
            return Output(control) if control else None
        length = min(
            stream.pending,
            self.remote.frame_bytes_max,
            self.limits.frame_bytes_max,
            max(0, stream.send_window),
            max(0, self._send_window),
        )
        ends = stream.final and length == stream.pending
        head = frames.frame_header(length, Kind.DATA, END_STREAM if ends else 0, stream.id)
        stream.pending -= length
        stream.send_window -= length
        self._send_window -= length
        stream.blocked_since = None
        if length >= _WORTHY_DATA_BYTES:
            self._updates.earn(4)
        stream.did(Input.SEND_DATA)
        if not stream.pending:
            self._scheduler.remove(stream)
        if ends:
            self._finish_sending(stream)
        return Output(control + head, stream.id, length, ends)

    # --- sending, within --------------------------------------------------------------------

    def _greet(self) -> None:
        limits = self.limits
        pairs = [
            (int(Setting.MAX_CONCURRENT_STREAMS), limits.streams_max),
            (int(Setting.INITIAL_WINDOW_SIZE), limits.stream_window_bytes),
            (int(Setting.MAX_FRAME_SIZE), limits.frame_bytes_max),
            (int(Setting.MAX_HEADER_LIST_SIZE), limits.header_list_bytes_max),
            (int(Setting.NO_RFC7540_PRIORITIES), 1),
        ]
        if self._is_client:
            pairs.insert(0, (int(Setting.ENABLE_PUSH), 0))
            self._control += frames.PREFACE
        self._control += frames.settings_frame(pairs)
        if limits.connection_window_bytes > 65535:
            self._control += frames.window_update_frame(0, limits.connection_window_bytes - 65535)

    def _send_headers(self, stream: Stream, pairs: Headers, *, ended: bool) -> None:
        block = self._codec.encode(pairs)
        self._control += frames.header_frames(
            stream.id, block, self.remote.frame_bytes_max, ended=ended
        )
        if ended:
            stream.final = True
            self._finish_sending(stream)

    def _finish_sending(self, stream: Stream) -> None:
        stream.did(Input.SEND_END)
        if stream.state is State.CLOSED:
            self._forget(stream)
        elif not self._is_client:
            # The response is complete and nobody wants the rest of the request (RFC 9113 §8.1).
            self._reset(stream, ErrorCode.NO_ERROR)

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        stream.did(Input.SEND_RST)
        self._forget(stream)
        self._remember_reset(stream.id)
        self._control += frames.rst_stream_frame(stream.id, code)

    def _reply(self, frame: bytes) -> None:
        """Queue what the peer made us say."""
        self._control += frame
        if len(self._control) > self.limits.control_queue_bytes_max:
            raise ViolationError(
                "more questions than the peer reads answers",
                error_code=ErrorCode.ENHANCE_YOUR_CALM,
            )

    def _give(self, count: int) -> None:
        increment = self._window.give(count)
        if increment:
            self._control += frames.window_update_frame(0, increment)

    def _give_stream(self, stream: Stream, count: int) -> None:
        increment = stream.receive_window.give(count)
        if increment:
            self._control += frames.window_update_frame(stream.id, increment)

    def _sending(self, stream_id: int) -> Stream:
        stream = self._streams.get(stream_id)
        if stream is None or not stream.is_sending or self.violation is not None:
            raise LocalProtocolError(f"sending on stream {stream_id} of {self!r}")
        return stream

    # --- streams, within --------------------------------------------------------------------

    def _open(self, stream_id: int) -> Stream:
        if not self._streams:
            self._waiting_since = self._now
            self._idle_since = None
        stream = Stream(stream_id, self.remote.initial_window, self.limits.stream_window_bytes)
        self._streams[stream_id] = stream
        return stream

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self._scheduler.remove(stream)
        stream.pending = 0
        stream.sink = None
        if stream is self._data_stream:
            self._data_stream = None
            self._inbox.divert()
        if not self._streams:
            self._idle_since = self._now

    def _remember_reset(self, stream_id: int) -> None:
        self._reset_by_us[stream_id] = None
        if len(self._reset_by_us) > self.limits.resets_remembered:
            del self._reset_by_us[next(iter(self._reset_by_us))]

    def _is_idle_id(self, stream_id: int) -> bool:
        """Nobody has opened this stream yet."""
        ours = bool(stream_id % 2) == self._is_client
        if ours:
            return stream_id >= self._next_id or not self._is_client
        return stream_id > self._last_peer_id

    def _closed(self, stream_id: int, what: str) -> None:
        """Judge a frame on a stream that we do not have."""
        if self._is_idle_id(stream_id):
            raise ViolationError(f"{what} on an idle stream", stream_id=stream_id)
        if stream_id not in self._reset_by_us:
            raise ViolationError(
                f"{what} on a closed stream",
                error_code=ErrorCode.STREAM_CLOSED,
                stream_id=stream_id,
            )

    def _stream_failed(self, stream_id: int, violation: StreamViolationError) -> None:
        """Reset a stream that the peer broke a rule on; too many of those are a flood as well."""
        self._resets.spend(self._now)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.did(Input.SEND_RST)
            self._forget(stream)
            self._events.append(StreamReset(stream_id, violation.error_code, violation))
        self._remember_reset(stream_id)
        self._reply(frames.rst_stream_frame(stream_id, violation.error_code))

    def _fail(self, violation: ViolationError) -> None:
        self.violation = violation
        self.is_leaving = True
        if len(self._control) > self.limits.control_queue_bytes_max:
            self._control.clear()
        self._control += frames.goaway_frame(
            self._last_peer_id, violation.error_code, str(violation)
        )
        for stream in list(self._streams.values()):
            self._forget(stream)

    # --- frames in (the inbox's handler) ----------------------------------------------------

    def data_began(
        self, stream_id: int, length: int, data_length: int, *, ends_stream: bool
    ) -> memoryview | None:
        """A DATA frame's header: check all that can be checked, and say where its bytes go."""
        self._frame_count += 1
        self._check_order(Kind.DATA, stream_id)
        if not stream_id:
            raise ViolationError("DATA on stream 0")
        self._window.take(length)
        if length > data_length:
            self._give(length - data_length)
        if data_length < _SMALL_DATA_BYTES and not ends_stream:
            (self._smalls if data_length else self._empties).spend(self._now)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._closed(stream_id, "DATA")
            return None
        try:
            self._check_data(stream, length, data_length)
        except StreamViolationError as exc:
            self._stream_failed(stream_id, exc)
            return None
        self._data_stream = stream
        if length > data_length and not ends_stream:
            self._give_stream(stream, length - data_length)
        if not stream.uses_sink:
            return None
        assert stream.sink is not None
        return stream.sink[stream.landed : stream.landed + data_length]

    def _check_data(self, stream: Stream, length: int, data_length: int) -> None:
        stream.suffered(Input.RECV_DATA)
        if self._is_client and not stream.responded:
            raise StreamViolationError("DATA before a response", stream_id=stream.id)
        stream.receive_window.take(length)
        stream.body_seen += data_length
        if stream.body_claimed is not None and stream.body_seen > stream.body_claimed:
            raise StreamViolationError(
                f"a body longer than its content-length of {stream.body_claimed}",
                stream_id=stream.id,
            )
        if stream.uses_sink:
            self._check_sink(stream, stream.body_seen)

    @staticmethod
    def _check_sink(stream: Stream, length: int) -> None:
        if stream.sink is not None and length > len(stream.sink):
            raise StreamViolationError(
                f"a body longer than the {len(stream.sink)} bytes that were asked for",
                error_code=ErrorCode.CANCEL,
                stream_id=stream.id,
            )

    def data_landed(self, count: int) -> None:
        """Bytes went straight into a sink."""
        stream = self._data_stream
        assert stream is not None
        stream.landed += count
        self._give(count)
        events = self._events
        if events:
            last = events[-1]
            if type(last) is DataLanded and last.stream_id == stream.id:
                events[-1] = DataLanded(stream.id, last.count + count)
                return
        events.append(DataLanded(stream.id, count))

    def data_came(self, data: memoryview) -> None:
        """Bytes of a stream without a sink, or of one that is gone."""
        stream = self._data_stream
        if stream is None:
            self._give(len(data))
        else:
            self._events.append(DataReceived(stream.id, bytes(data)))

    def data_ended(self, *, ends_stream: bool) -> None:
        """The end of a DATA frame."""
        stream, self._data_stream = self._data_stream, None
        if stream is not None and ends_stream:
            try:
                self._finish_receiving(stream, ())
            except StreamViolationError as exc:
                self._stream_failed(stream.id, exc)

    def frame_skipped(self, kind: int) -> None:
        """A frame of a type that nobody has told us of (RFC 9113 §5.5)."""
        self._frame_count += 1
        self._check_order(kind, 0)
        self._controls.spend(self._now)

    def frame_came(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        """Any frame but DATA."""
        self._frame_count += 1
        self._check_order(kind, stream_id, flags)
        try:
            match kind:
                case Kind.HEADERS:
                    self._headers_came(flags, stream_id, payload)
                case Kind.CONTINUATION:
                    self._continuation_came(flags, payload)
                case Kind.RST_STREAM:
                    self._rst_stream_came(stream_id, payload)
                case Kind.WINDOW_UPDATE:
                    self._window_update_came(stream_id, payload)
                case Kind.SETTINGS:
                    self._settings_came(flags, stream_id, payload)
                case Kind.PING:
                    self._ping_came(flags, stream_id, payload)
                case Kind.GOAWAY:
                    self._goaway_came(stream_id, payload)
                case Kind.PRIORITY:
                    self._priority_came(stream_id, payload)
                case Kind.PRIORITY_UPDATE:
                    self._priority_update_came(stream_id, payload)
                case _:
                    assert kind == Kind.PUSH_PROMISE
                    raise ViolationError("PUSH_PROMISE, which nobody may send", stream_id=stream_id)
        except StreamViolationError as exc:
            self._stream_failed(exc.stream_id, exc)

    def _check_order(self, kind: int, stream_id: int, flags: int = 0) -> None:
        """Check what must come first, and what must not come between."""
        if not self._has_settings and (kind != Kind.SETTINGS or flags & ACK):
            raise ViolationError(f"a frame of type {kind} before SETTINGS")
        if self._block is not None:
            if kind != Kind.CONTINUATION or stream_id != self._block_id:
                raise ViolationError(f"a frame of type {kind} within a field block")
        elif kind == Kind.CONTINUATION:
            raise ViolationError("CONTINUATION without a field block", stream_id=stream_id)

    # --- field blocks -----------------------------------------------------------------------

    def _headers_came(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if not stream_id:
            raise ViolationError("HEADERS on stream 0")
        fragment = frames.header_fragment(flags, payload, stream_id)
        self._block = bytearray(fragment)
        self._block_id = stream_id
        self._block_ends = bool(flags & END_STREAM)
        self._block_frames = 0
        self._block_since = self._now
        if flags & END_HEADERS:
            self._block_complete()

    def _continuation_came(self, flags: int, payload: memoryview) -> None:
        assert self._block is not None
        self._block += payload
        self._block_frames += 1
        limits = self.limits
        if (
            len(self._block) > limits.header_block_bytes_max
            or self._block_frames > limits.continuation_frames_max
        ):
            raise ViolationError(
                "a field block that does not end",
                error_code=ErrorCode.ENHANCE_YOUR_CALM,
                stream_id=self._block_id,
            )
        if flags & END_HEADERS:
            self._block_complete()

    def _block_complete(self) -> None:
        assert self._block is not None
        block, self._block = bytes(self._block), None
        self._block_since = None
        # Decoded in any case: the compression state is the connection's.
        headers = self._codec.decode(block)
        stream_id, ended = self._block_id, self._block_ends
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.suffered(Input.RECV_HEADERS)
            if self._is_client and not stream.responded:
                self._response_came(stream, headers, ended=ended)
            else:
                self._trailers_came(stream, headers, ended=ended)
        elif not self._is_client and self._is_idle_id(stream_id):
            self._request_came(stream_id, headers, ended=ended)
        else:
            self._closed(stream_id, "HEADERS")

    def _request_came(self, stream_id: int, headers: Headers, *, ended: bool) -> None:
        if not stream_id % 2:
            raise ViolationError("a request on an even stream", stream_id=stream_id)
        self._last_peer_id = stream_id
        if self._last_accepted_id is not None:
            self._remember_reset(stream_id)  # Our GOAWAY was on its way: the peer tries elsewhere.
            return
        if len(self._streams) >= self.limits.streams_max:
            raise StreamViolationError(
                "more streams than we allow",
                error_code=ErrorCode.REFUSED_STREAM,
                stream_id=stream_id,
            )
        stream = self._open(stream_id)
        stream.suffered(Input.RECV_HEADERS)
        fields.check_request(headers, stream_id)
        stream.body_claimed = fields.content_length(headers, stream_id)
        for name, value in headers:
            if name == "priority":
                stream.priority = Priority.parse(value)
            elif name == ":method":
                stream.is_head = value == "HEAD"
        if ended:
            self._check_length(stream)
            stream.suffered(Input.RECV_END)
        self._events.append(RequestReceived(stream_id, headers, ended))

    def _response_came(self, stream: Stream, headers: Headers, *, ended: bool) -> None:
        status = fields.check_response(headers, stream.id)
        if status < 200:
            if ended:
                raise StreamViolationError("an interim response that ends", stream_id=stream.id)
            self._controls.spend(self._now)
            return
        stream.responded = True
        stream.body_claimed = fields.content_length(headers, stream.id)
        if stream.is_head or status in {204, 304}:
            stream.body_claimed = 0
        if stream.sink is not None and status in {200, 206}:
            stream.uses_sink = True
            self._check_sink(stream, stream.body_claimed or 0)
        self._events.append(ResponseReceived(stream.id, status, headers, ended))
        if ended:
            self._finish_receiving(stream, ())

    def _trailers_came(self, stream: Stream, headers: Headers, *, ended: bool) -> None:
        if not ended:
            raise StreamViolationError("trailers that do not end", stream_id=stream.id)
        fields.check_trailers(headers, stream.id)
        self._finish_receiving(stream, headers)

    def _check_length(self, stream: Stream) -> None:
        if stream.body_claimed is not None and stream.body_claimed != stream.body_seen:
            raise StreamViolationError(
                f"a body of {stream.body_seen} bytes with a content-length of"
                f" {stream.body_claimed}",
                stream_id=stream.id,
            )

    def _finish_receiving(self, stream: Stream, trailers: Headers) -> None:
        self._check_length(stream)
        stream.suffered(Input.RECV_END)
        self._events.append(StreamEnded(stream.id, trailers))
        if stream.state is State.CLOSED:
            self._forget(stream)
        elif self._is_client:
            # The answer is complete: the rest of the request interests nobody.
            self._reset(stream, ErrorCode.CANCEL)

    # --- other frames -----------------------------------------------------------------------

    def _rst_stream_came(self, stream_id: int, payload: memoryview) -> None:
        code = frames.parse_rst_stream(payload)
        if not stream_id or self._is_idle_id(stream_id):
            raise ViolationError("RST_STREAM on an idle stream", stream_id=stream_id)
        self._resets.spend(self._now)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.suffered(Input.RECV_RST)
            self._forget(stream)
            self._events.append(StreamReset(stream_id, code))

    def _window_update_came(self, stream_id: int, payload: memoryview) -> None:
        self._updates.spend(self._now)
        if stream_id and stream_id not in self._streams:
            if self._is_idle_id(stream_id):
                raise ViolationError("WINDOW_UPDATE on an idle stream", stream_id=stream_id)
            frames.check_window_update(payload)
            return  # It crossed the end of the stream.
        increment = frames.parse_window_update(stream_id, payload)
        if not stream_id:
            self._send_window = widen(self._send_window, increment, 0)
            return
        stream = self._streams[stream_id]
        stream.send_window = widen(stream.send_window, increment, stream_id)

    def _settings_came(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id:
            raise ViolationError("SETTINGS on a stream", stream_id=stream_id)
        self._controls.spend(self._now)
        if flags & ACK:
            if len(payload):
                raise ViolationError(
                    "SETTINGS with ACK and content", error_code=ErrorCode.FRAME_SIZE_ERROR
                )
            self._acks_due = 0
            return
        window_before = self.remote.initial_window
        for identifier, value in frames.parse_settings(payload):
            self.remote.apply(identifier, value, from_server=self._is_client)
        self._has_settings = True
        self._codec.limit_encoder(self.remote.header_table_bytes)
        shift = self.remote.initial_window - window_before
        if shift:
            for stream in self._streams.values():
                # Every stream's window moves; RFC 9113 §6.9.2 makes too large a connection error.
                stream.send_window = widen(stream.send_window, shift, 0)
        self._reply(frames.SETTINGS_ACK)
        self._events.append(SettingsReceived(self.remote.streams_max))

    def _ping_came(self, flags: int, stream_id: int, payload: memoryview) -> None:
        data = frames.parse_ping(payload)
        if stream_id:
            raise ViolationError("PING on a stream", stream_id=stream_id)
        self._controls.spend(self._now)
        if flags & ACK:
            if data != KEEPALIVE_PING:
                self._events.append(PingAnswered(data))
        else:
            self._reply(frames.ping_frame(data, ack=True))

    def _goaway_came(self, stream_id: int, payload: memoryview) -> None:
        if stream_id:
            raise ViolationError("GOAWAY on a stream", stream_id=stream_id)
        self._controls.spend(self._now)
        last_id, code, reason = frames.parse_goaway(payload)
        if self._goaway_last_id is not None and last_id > self._goaway_last_id:
            raise ViolationError("a GOAWAY that takes an earlier one back")
        self._goaway_last_id = last_id
        self.is_leaving = True
        if self._is_client:
            for stream in [one for one in self._streams.values() if one.id > last_id]:
                self._forget(stream)
                self._remember_reset(stream.id)
                self._events.append(StreamReset(stream.id, ErrorCode.REFUSED_STREAM))
        self._events.append(GoAwayReceived(last_id, code, reason))

    def _priority_came(self, stream_id: int, payload: memoryview) -> None:
        if not stream_id:
            raise ViolationError("PRIORITY on stream 0")
        self._controls.spend(self._now)
        if len(payload) != 5 and self._is_idle_id(stream_id):
            # RST_STREAM must not be sent on an idle stream.
            raise ViolationError(
                f"a PRIORITY frame of {len(payload)} bytes", error_code=ErrorCode.FRAME_SIZE_ERROR
            )
        frames.check_priority(stream_id, payload)

    def _priority_update_came(self, stream_id: int, payload: memoryview) -> None:
        if stream_id or self._is_client:
            raise ViolationError("PRIORITY_UPDATE out of place", stream_id=stream_id)
        self._controls.spend(self._now)
        target, value = frames.parse_priority_update(payload)
        if not target % 2:
            raise ViolationError("PRIORITY_UPDATE for a stream that is no request")
        # For a stream that has not begun it is ignored: such a memory could be made to grow.
        self.prioritise(target, Priority.parse(value))
