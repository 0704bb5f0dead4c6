"""What a connection tells its shell, in the past tense."""

from dataclasses import dataclass

from damselfly.p2p.wire.headers import Headers
from damselfly.p2p.wire.violation import ViolationError


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A peer asks for something; `ended` when no body follows."""

    stream_id: int
    headers: Headers
    ended: bool


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The final response headers to a request of ours; `ended` when no body follows."""

    stream_id: int
    status: int
    headers: Headers
    ended: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Body bytes of a stream without a sink.

    They count against the peer's windows until the shell says `consumed`.
    """

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DataLanded:
    """So many more body bytes are in the stream's sink."""

    stream_id: int
    count: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer has sent all of this stream; `trailers` are mostly empty."""

    stream_id: int
    trailers: Headers


@dataclass(frozen=True, slots=True)
class StreamReset:
    """A stream is no more: the peer reset or refused it, or broke a rule on it (`violation`)."""

    stream_id: int
    error_code: int
    violation: ViolationError | None = None


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no new streams; ours above `last_stream_id` came back as StreamReset."""

    last_stream_id: int
    error_code: int
    reason: str


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """The peer's settings changed, `streams_max` perhaps among them."""

    streams_max: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The peer answered a ping of ours."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """Nothing came for `dead_after_s` while we waited: the connection is to be dropped."""


@dataclass(frozen=True, slots=True)
class ConnectionIdle:
    """No stream for `idle_s`: GOAWAY is queued, the connection is to be closed."""


Event = (
    RequestReceived
    | ResponseReceived
    | DataReceived
    | DataLanded
    | StreamEnded
    | StreamReset
    | GoAwayReceived
    | SettingsReceived
    | PingAnswered
    | PeerSilent
    | ConnectionIdle
)
