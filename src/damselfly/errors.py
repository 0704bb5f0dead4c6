"""Every error a caller may meet, its exit code, and how a chain of them is told.

    DamselflyError                       1
      UsageError                         2    the caller asked for nonsense
        ConfigError                      3
      NotFoundError                     10
        ArtifactNotFoundError           11
        ChunkNotFoundError              12
        OriginNotFoundError             13
        JobNotFoundError                14
      IntegrityError                    20
        DigestMismatchError             21
        ManifestError                   22
        HeaderError                     23
        OriginChangedError              24
        UnsupportedFormatError          25
        SignatureError                  26
      UnavailableError   retryable      30
        OriginUnavailableError          31
          OriginBusyError               34
        PeerUnavailableError            32
        AgentUnavailableError           33
      CapacityError                     40
        StoreFullError                  41
        LeaseHeldError                  42
        StoreInUseError                 43
      ProtocolError                     50
        LocalProtocolError              51   our bug
        RemoteProtocolError             52   their bug
      DeniedError                       60
        OriginDeniedError               61
      CancelledError                    70   somebody called `damselfly cancel`
      PartialError                      80   of many nodes, some are done and some failed
        StillRunningError               81   nobody waits any more, and the work goes on

A class exists when a caller behaves differently; what happened is in its attributes. A message
says what was being done to what and never repeats its cause: `raise X(...) from exc`, and
`explain` prints the chain once. Assertion failures are not DamselflyErrors and are not caught.
"""

from typing import cast


class DamselflyError(Exception):
    """Anything that can go wrong here and has a name."""

    exit_code = 1
    retryable = False


class UsageError(DamselflyError):
    """The caller asked for something that makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown, or its value cannot be used."""

    exit_code = 3


class NotFoundError(DamselflyError):
    """What was asked for is not there."""

    exit_code = 10


class ArtifactNotFoundError(NotFoundError):
    """No such artifact in this store or swarm."""

    exit_code = 11


class ChunkNotFoundError(NotFoundError):
    """No such chunk in this store or swarm."""

    exit_code = 12


class OriginNotFoundError(NotFoundError):
    """The origin says that there is no such file or directory."""

    exit_code = 13


class JobNotFoundError(NotFoundError):
    """No pull of that name is running."""

    exit_code = 14


class IntegrityError(DamselflyError):
    """Bytes are not what they are said to be."""

    exit_code = 20


class DigestMismatchError(IntegrityError):
    """Bytes from `source` have the digest `actual`, not `expected`."""

    exit_code = 21

    def __init__(self, expected: str, actual: str, source: str) -> None:
        super().__init__(f"bytes from {source} are {actual}, not {expected}")
        self.expected = expected
        self.actual = actual
        self.source = source


class ManifestError(IntegrityError):
    """A manifest breaks its own rules: paths, sizes, digests, limits."""

    exit_code = 22


class HeaderError(IntegrityError):
    """A safetensors header breaks the format's rules."""

    exit_code = 23


class OriginChangedError(IntegrityError):
    """A file at the origin changed while it was being read."""

    exit_code = 24


class UnsupportedFormatError(IntegrityError):
    """Made by a newer Damselfly than this one: it names what we lack."""

    exit_code = 25


class SignatureError(IntegrityError):
    """A signature is missing where one is required, is wrong, or is nobody's that is trusted."""

    exit_code = 26


class UnavailableError(DamselflyError):
    """Not now; the same request may succeed later."""

    exit_code = 30
    retryable = True


class OriginUnavailableError(UnavailableError):
    """The origin cannot be reached, or says that it is overloaded."""

    exit_code = 31


class OriginBusyError(OriginUnavailableError):
    """The origin says that it is asked too much; `retry_after_s` is when it wants to be asked."""

    exit_code = 34

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PeerUnavailableError(UnavailableError):
    """A peer cannot be reached, or is busy."""

    exit_code = 32


class AgentUnavailableError(UnavailableError):
    """The agent's socket does not answer."""

    exit_code = 33


class CapacityError(DamselflyError):
    """There is no room, or what is there may not be taken away."""

    exit_code = 40


class StoreFullError(CapacityError):
    """The store cannot make room for what a pull needs."""

    exit_code = 41


class LeaseHeldError(CapacityError):
    """An artifact is in use: a lease or a pin keeps it."""

    exit_code = 42


class StoreInUseError(CapacityError):
    """Another agent has this store open."""

    exit_code = 43


class ProtocolError(DamselflyError):
    """Somebody broke the rules of a protocol."""

    exit_code = 50


class LocalProtocolError(ProtocolError):
    """We broke them: a bug of ours.

    What strangers say drives pulls, swarms, homes and greetings. So an exception that nobody
    expected in one of them, a failed assertion too, ends that one and is logged with its trace:
    one bad message must not take down a node. Everywhere else it ends the agent.
    """

    exit_code = 51

    @classmethod
    def found(cls, doing: str, cause: Exception) -> "LocalProtocolError":
        """What the one that ends because of `cause` says of it."""
        error = cls(doing)
        error.__cause__ = cause
        return error


class RemoteProtocolError(ProtocolError):
    """The other side broke them."""

    exit_code = 52


class DeniedError(DamselflyError):
    """Credentials are missing or not enough; never retried."""

    exit_code = 60


class OriginDeniedError(DeniedError):
    """The origin answered 401 or 403."""

    exit_code = 61


class CancelledError(DamselflyError):
    """Somebody cancelled the pull."""

    exit_code = 70


class PartialError(DamselflyError):
    """Some nodes did what was asked, others did not."""

    exit_code = 80


class StillRunningError(PartialError):
    """The time to wait is over, and the work goes on."""

    exit_code = 81


def explain(error: BaseException) -> str:
    """Tell an error and its causes, outermost first, in one line.

    An `ExceptionGroup` speaks through its first member: the others ended because of it.
    """
    parts: list[str] = []
    seen: set[int] = set()  # An error raised from a group that it is in is its own cause.
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(parts) < 8:
        seen.add(id(current))
        while isinstance(current, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", current)
            current = group.exceptions[0]
        text = str(current) or type(current).__name__
        if text not in parts:
            parts.append(text)
        current = current.__cause__
    return ": ".join(parts)


def error_classes() -> dict[str, type[DamselflyError]]:
    """Every class above by its name: how an error crosses the agent's socket and comes back."""
    found: dict[str, type[DamselflyError]] = {}
    pending: list[type[DamselflyError]] = [DamselflyError]
    while pending:
        cls = pending.pop()
        if cls.__module__ == __name__:  # A room may have finer ones, for itself.
            found[cls.__name__] = cls
            pending.extend(cls.__subclasses__())
    return found


def class_name(error: DamselflyError) -> str:
    """What an error is called outside of its room: the nearest class above that it is."""
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == __name__)
