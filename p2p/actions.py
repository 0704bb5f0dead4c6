"""What the planner tells its shell to do, and how the shell says that something failed."""

from dataclasses import dataclass
from enum import Enum, StrEnum

from damselfly.model.digest import Digest
from damselfly.p2p.messages import AgentID, Report, Run


class AskFailure(Enum):
    """Why an ask brought no chunk."""

    BUSY = "busy"
    """503: every serve slot is taken."""
    MISSING = "missing"
    """404: not held there (any more)."""
    DEAD = "dead"
    """Refused, reset, closed: nobody answers there."""
    STALLED = "stalled"
    """The transfer stopped moving and was given up."""
    CORRUPT = "corrupt"
    """The bytes are not the chunk's."""


class OriginFailure(Enum):
    """Why a run could not be read from the origin."""

    DENIED = "denied"
    """401 or 403: our credentials are not good for it."""
    FAILED = "failed"
    """Unreachable, overloaded, stalled, cut short: may go better later."""
    CHANGED = "changed"
    """Bytes, length or version are not those of the plan."""


class ReportFailure(Enum):
    """Why a report was not answered."""

    UNREACHABLE = "unreachable"
    """Refused, reset, closed."""
    SILENT = "silent"
    """No answer within `SendReport.patience_s`."""
    REFUSED = "refused"
    """Answered with an error, or with nonsense."""


class GiveUpReason(Enum):
    """Why a pull cannot end well."""

    DENIED = "denied"
    """The origin refused us, and nobody else can fetch what is missing."""
    CHANGED = "changed"
    """The origin's bytes are not those of the plan or the manifest."""
    NO_ORIGIN = "no_origin"
    """Nobody in the swarm can read the origin, and nobody holds what is missing."""


@dataclass(frozen=True, slots=True)
class SendReport:
    """Send `report` to `home`; answer with `reply_received` or `report_failed`.

    `home` may be ourselves: then the shell hands it to its own home core. One is under way at most.
    """

    home: AgentID
    report: Report
    patience_s: float


@dataclass(frozen=True, slots=True)
class OpenLive:
    """Open the live stream from `home`; feed `live_received`, and `live_lost` when it ends."""

    home: AgentID


@dataclass(frozen=True, slots=True)
class CloseLive:
    """Close the live stream from `home`; say nothing about it any more."""

    home: AgentID


@dataclass(frozen=True, slots=True)
class Follow:
    """Open the have stream from `peer`; feed `peer_told`, and `peer_lost` when it ends."""

    peer: AgentID


@dataclass(frozen=True, slots=True)
class Unfollow:
    """Close the have stream from `peer`; say nothing about it any more."""

    peer: AgentID


@dataclass(frozen=True, slots=True)
class Ask:
    """Fetch a chunk from `peer` and verify it against `digest`.

    Answer with `chunk_arrived` once it is verified and kept, or with `ask_failed`. The shell may
    first look whether its own store holds `digest` in another file, and answer as if it had come.
    """

    ask_id: int
    peer: AgentID
    index: int
    digest: Digest
    is_urgent: bool = False
    is_hedge: bool = False
    """Somebody else was asked for it already, and is late."""


@dataclass(frozen=True, slots=True)
class CancelAsk:
    """Stop an ask; say nothing about it any more."""

    ask_id: int
    peer: AgentID
    index: int


class OriginReason(StrEnum):
    """Why the origin is asked for a chunk."""

    CLAIM = "claim"
    """The home granted it: nobody holds it, and nobody else is at it."""
    LACKING = "lacking"
    """The home granted it: nobody of those who say they hold it could give it to us."""
    ALONE = "alone"
    """There are no other agents in the swarm."""
    ALWAYS = "always"
    """We are told to read everything from the origin."""


@dataclass(frozen=True, slots=True)
class FetchOrigin:
    """Read a run of chunks from the origin by one ranged request, in order.

    Tell `origin_progressed` some times a second, `origin_chunk_arrived` for each chunk hashed,
    verified where its digest is known, and kept; `origin_failed` if the rest will not come.
    A run may cross the end of a file.
    """

    run_id: int
    run: Run
    why: OriginReason = OriginReason.CLAIM
    peers_tried: int = 0
    """How many peers were asked before, where none of them had it."""


@dataclass(frozen=True, slots=True)
class CancelOrigin:
    """Stop reading a run; say nothing about it any more."""

    run_id: int


@dataclass(frozen=True, slots=True)
class TellCorrupt:
    """Tell `peer` that its bytes for a chunk do not verify, so that it looks at its disk."""

    peer: AgentID
    index: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Finish:
    """Every wanted chunk is held. Said once for each time that this becomes true."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The pull cannot end well as things stand. Said once; the shell decides."""

    reason: GiveUpReason


Action = (
    SendReport
    | OpenLive
    | CloseLive
    | Follow
    | Unfollow
    | Ask
    | CancelAsk
    | FetchOrigin
    | CancelOrigin
    | TellCorrupt
    | Finish
    | GiveUp
)
