"""Flow control of RFC 9113 §5.2: what we may still receive, and when to allow more."""

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.frames import WINDOW_MAX
from damselfly.p2p.wire.violation import StreamViolationError, ViolationError


class ReceiveWindow:
    """How much the peer may send us, for a stream or the connection.

    1. A frame takes its whole length, padding included, when its header arrives.
    2. What was consumed is owed to the peer.
    3. The debt is paid in one WINDOW_UPDATE when it reaches half of the window, so that a window
       of 64 MiB costs two frames per 64 MiB and the peer never stands still.
    4. It is paid earlier when less than it is left. A fetch never gives back what fills its sink,
       only padding: that may stay below half for ever, and yet be what the last bytes lack.
    """

    __slots__ = ("left", "owed", "size", "stream_id")

    def __init__(self, size: int, stream_id: int = 0) -> None:
        self.size = size
        self.left = size
        self.owed = 0
        self.stream_id = stream_id

    def take(self, count: int) -> None:
        """Account for a frame that has begun to arrive.

        Raises:
            ViolationError: the peer sent more than it may.
        """
        self.left -= count
        if self.left < 0:
            kind = StreamViolationError if self.stream_id else ViolationError
            raise kind(
                f"{-self.left} bytes more than the window allows",
                error_code=ErrorCode.FLOW_CONTROL_ERROR,
                stream_id=self.stream_id,
            )

    def give(self, count: int) -> int:
        """Note consumption; return the increment to announce now, or 0."""
        self.owed += count
        return self.pay()

    def pay(self) -> int:
        """Return the increment to announce now, or 0."""
        if self.owed * 2 < self.size and self.owed <= self.left:
            return 0
        increment, self.owed = self.owed, 0
        self.left += increment
        return increment

    def enlarge(self, size: int) -> int:
        """Raise the window to `size`; return the increment to announce, or 0."""
        increment = max(0, size - self.size)
        self.size += increment
        self.left += increment
        return increment


def widen(window: int, increment: int, stream_id: int) -> int:
    """Add a peer's increment to a window of ours to send in.

    Raises:
        ViolationError: the sum is more than RFC 9113 §6.9.1 allows.
    """
    window += increment
    if window > WINDOW_MAX:
        kind = StreamViolationError if stream_id else ViolationError
        raise kind(
            "a window of more than 2^31-1",
            error_code=ErrorCode.FLOW_CONTROL_ERROR,
            stream_id=stream_id,
        )
    return window
