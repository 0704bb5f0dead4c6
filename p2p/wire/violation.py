"""What the wire raises when the other side breaks the rules."""

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.wire.codes import ErrorCode


class ViolationError(RemoteProtocolError):
    """The peer broke RFC 9113: the connection ends with `error_code`.

    `stream_id` is the stream that it happened on, 0 for the connection itself.
    """

    def __init__(
        self,
        message: str,
        *,
        error_code: ErrorCode = ErrorCode.PROTOCOL_ERROR,
        stream_id: int = 0,
    ) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.stream_id = stream_id


class StreamViolationError(ViolationError):
    """The same for one stream: that stream is reset, the connection goes on.

    It never leaves the core, which turns it into RST_STREAM and a `StreamReset` event.
    """
