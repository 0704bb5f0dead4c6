"""Flow control of RFC 9113 §5.2: what we may still receive, and when to allow more."""

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.frames import WINDOW_MAX
from damselfly.p2p.wire.violation import StreamViolationError, ViolationError

# What a fetch's window has above its length. A frame's padding takes 256 bytes at most.
PADDING_ROOM_BYTES = 4096


class ReceiveWindow:
    """How much the peer may send us, for a stream or the connection.

    1. A frame takes its whole length, padding included, when its header arrives.
    2. What was consumed is owed to the peer.
    3. The debt is paid in one WINDOW_UPDATE when it reaches half of the window, so that a window
       of 64 MiB costs two frames per 64 MiB and the peer never stands still.
    4. A fetch (`fit`) never gives back what fills its sink, only padding, and half a window of that
       might never be owed while the last bytes lack it. So such a window is a little larger than
       the sink, and debts of half of that are paid. Paying whenever little is left would do too,
       and make a peer that fills its window send ever smaller frames.
    """

    __slots__ = ("_pays_at", "left", "owed", "size", "stream_id")

    def __init__(self, size: int, stream_id: int = 0) -> None:
        self.size = size
        self.left = size
        self.owed = 0
        self.stream_id = stream_id
        self._pays_at = (size + 1) // 2

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
        if self.owed < self._pays_at:
            return 0
        increment, self.owed = self.owed, 0
        self.left += increment
        return increment

    def fit(self, length: int) -> int:
        """Make room for a body that goes into a sink; return the increment to announce, or 0."""
        increment = max(0, length + PADDING_ROOM_BYTES - self.size)
        self._pays_at = PADDING_ROOM_BYTES // 2
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
