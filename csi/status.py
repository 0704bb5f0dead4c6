"""Which gRPC status an error becomes, and what the kubelet makes of it. Pure.

The kubelet retries after any status at the same pace, but it cleans up by the code:

- *Not final* (ABORTED, UNAVAILABLE, RESOURCE_EXHAUSTED; and CANCELLED and DEADLINE_EXCEEDED, which
  the wire itself makes): the volume is "uncertain". When the pod goes, NodeUnpublishVolume is
  called, whether or not there is anything at the target.
- *Final* (all others): the kubelet removes its own directory and forgets. No NodeUnpublishVolume
  comes, so whoever answers with a final code must have left nothing behind.

Hence the rule: as long as a pull, a lease, a record or a mount may be there, the code is not final.
"""

import errno
from enum import Enum

from damselfly.errors import (
    CancelledError,
    CapacityError,
    DamselflyError,
    DeniedError,
    IntegrityError,
    LeaseHeldError,
    LocalProtocolError,
    NotFoundError,
    ProtocolError,
    StoreFullError,
    StoreInUseError,
    UnavailableError,
    UnsupportedFormatError,
    UsageError,
)

MESSAGE_CHARS_MAX = 1000
"""An event of a pod holds 1024 characters, and the kubelet puts words of its own around ours."""


class Code(Enum):
    """The numbers of gRPC's statuses, as far as we answer with them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15

    @property
    def is_final(self) -> bool:
        """The kubelet forgets a volume whose publish ended with this, and calls no unpublish."""
        return self not in _NOT_FINAL


_NOT_FINAL = frozenset(
    {
        Code.CANCELLED,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.ABORTED,
        Code.UNAVAILABLE,
    }
)


class CSIError(DamselflyError):
    """What CSI has a code for and the rest of Damselfly has no class for."""

    code = Code.INTERNAL


class ConflictError(CSIError):
    """The same target or name was asked for with other arguments."""

    code = Code.ALREADY_EXISTS


class PendingError(CSIError):
    """It is being worked on; the same call will be answered later."""

    code = Code.ABORTED
    retryable = True


class PreconditionError(CSIError):
    """Something must be different before this call can be answered: a capability, a target."""

    code = Code.FAILED_PRECONDITION


class RangeError(CSIError):
    """A size that cannot be."""

    code = Code.OUT_OF_RANGE


class KernelError(CSIError):
    """The system refuses a step of ours. INTERNAL: somebody must look."""


class VolumeNotFoundError(CSIError):
    """No such volume here."""

    code = Code.NOT_FOUND


# The first class that an error is an instance of decides.
_CODES: tuple[tuple[type[DamselflyError], Code], ...] = (
    (UsageError, Code.INVALID_ARGUMENT),
    (NotFoundError, Code.NOT_FOUND),
    (UnsupportedFormatError, Code.FAILED_PRECONDITION),
    (IntegrityError, Code.DATA_LOSS),
    (UnavailableError, Code.UNAVAILABLE),
    # Not for lack of room: somebody holds what must be given up first, and will.
    (LeaseHeldError, Code.ABORTED),
    (StoreInUseError, Code.UNAVAILABLE),
    (CapacityError, Code.RESOURCE_EXHAUSTED),
    (LocalProtocolError, Code.INTERNAL),
    # The other side may be in the middle of an upgrade; it is asked again either way.
    (ProtocolError, Code.UNAVAILABLE),
    (DeniedError, Code.PERMISSION_DENIED),
    # A person stopped the pull; the kubelet's next call starts it again.
    (CancelledError, Code.ABORTED),
)


def code_of(error: BaseException) -> Code:
    """The status of an error; what is none of ours is INTERNAL."""
    if isinstance(error, CSIError):
        return error.code
    for cls, code in _CODES:
        if isinstance(error, cls):
            return code
    return Code.INTERNAL


def system_error(what: str, exc: OSError) -> DamselflyError:
    """The error of a step that the system refused: raise it from `exc`."""
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFullError(what)
    if exc.errno == errno.ENOENT:
        return PreconditionError(what)
    return KernelError(what)


def shortened(message: str) -> str:
    """A message as it fits an event: the end gives way, the beginning says what was being done."""
    if len(message) <= MESSAGE_CHARS_MAX:
        return message
    return message[: MESSAGE_CHARS_MAX - 3] + "..."
