r"""The life of a stream (RFC 9113 §5.1).

                       SEND_HEADERS / RECV_HEADERS
                     IDLE ─────────────────────► OPEN
                                               /      \
                                     SEND_END /        \ RECV_END
                                             ▼          ▼
                             HALF_CLOSED_LOCAL          HALF_CLOSED_REMOTE
                                             \          /
                                     RECV_END \        / SEND_END
                                               ▼      ▼
                     any ── SEND_RST, RECV_RST ► CLOSED

Rule 1: the table is all there is. A pair that is not in it is forbidden: to us by an assertion, to
the peer by STREAM_CLOSED. Rule 2: the table knows nothing of roles; who may open a stream is the
connection's business. There are no reserved states, for nobody may push to us, and we never do.
"""

from enum import IntEnum

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.priority import DEFAULT_PRIORITY, Priority
from damselfly.p2p.wire.violation import StreamViolationError
from damselfly.p2p.wire.windows import ReceiveWindow


class State(IntEnum):
    """Where a stream stands."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED_LOCAL = 2  # we have sent all of ours
    HALF_CLOSED_REMOTE = 3  # they have sent all of theirs
    CLOSED = 4


class Input(IntEnum):
    """What can happen to it."""

    SEND_HEADERS = 0
    SEND_DATA = 1
    SEND_END = 2
    SEND_RST = 3
    RECV_HEADERS = 4
    RECV_DATA = 5
    RECV_END = 6
    RECV_RST = 7


TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.IDLE, Input.SEND_HEADERS): State.OPEN,
    (State.IDLE, Input.RECV_HEADERS): State.OPEN,
    (State.OPEN, Input.SEND_HEADERS): State.OPEN,
    (State.OPEN, Input.SEND_DATA): State.OPEN,
    (State.OPEN, Input.SEND_END): State.HALF_CLOSED_LOCAL,
    (State.OPEN, Input.SEND_RST): State.CLOSED,
    (State.OPEN, Input.RECV_HEADERS): State.OPEN,
    (State.OPEN, Input.RECV_DATA): State.OPEN,
    (State.OPEN, Input.RECV_END): State.HALF_CLOSED_REMOTE,
    (State.OPEN, Input.RECV_RST): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Input.SEND_RST): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Input.RECV_HEADERS): State.HALF_CLOSED_LOCAL,
    (State.HALF_CLOSED_LOCAL, Input.RECV_DATA): State.HALF_CLOSED_LOCAL,
    (State.HALF_CLOSED_LOCAL, Input.RECV_END): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Input.RECV_RST): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Input.SEND_HEADERS): State.HALF_CLOSED_REMOTE,
    (State.HALF_CLOSED_REMOTE, Input.SEND_DATA): State.HALF_CLOSED_REMOTE,
    (State.HALF_CLOSED_REMOTE, Input.SEND_END): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Input.SEND_RST): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Input.RECV_RST): State.CLOSED,
}


class Stream:
    """One stream: its state, both windows, what is to be sent and where what comes goes."""

    __slots__ = (
        "blocked_since",
        "body_claimed",
        "body_seen",
        "final",
        "id",
        "is_head",
        "landed",
        "pending",
        "priority",
        "receive_window",
        "responded",
        "send_window",
        "sink",
        "state",
        "turn",
        "uses_sink",
    )

    def __init__(self, stream_id: int, send_window: int, receive_bytes: int) -> None:
        self.id = stream_id
        self.state = State.IDLE
        self.send_window = send_window
        self.receive_window = ReceiveWindow(receive_bytes, stream_id)
        # Sending: `pending` body bytes are ready with the shell; `final` when no more follow.
        self.pending = 0
        self.final = False
        self.priority: Priority = DEFAULT_PRIORITY
        self.turn = 0
        self.blocked_since: float | None = None
        # Receiving: `sink` takes the body of a successful response, `landed` bytes so far.
        self.sink: memoryview | None = None
        self.uses_sink = False
        self.landed = 0
        self.is_head = False
        self.responded = False  # the final response headers have been sent or received
        self.body_claimed: int | None = None
        self.body_seen = 0

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.state.name} {self.pending} to send>"

    def did(self, what: Input) -> None:
        """Follow something that we do."""
        after = TRANSITIONS.get((self.state, what))
        assert after is not None, f"{what.name} on {self!r}"
        self.state = after

    def suffered(self, what: Input) -> None:
        """Follow something that the peer does.

        Raises:
            StreamViolationError: it may not.
        """
        after = TRANSITIONS.get((self.state, what))
        if after is None:
            raise StreamViolationError(
                f"{what.name} on a stream that is {self.state.name}",
                error_code=ErrorCode.STREAM_CLOSED,
                stream_id=self.id,
            )
        self.state = after

    @property
    def is_sending(self) -> bool:
        """We have not sent all of ours."""
        return self.state in {State.OPEN, State.HALF_CLOSED_REMOTE}

    @property
    def is_receiving(self) -> bool:
        """They have not sent all of theirs."""
        return self.state in {State.OPEN, State.HALF_CLOSED_LOCAL}
