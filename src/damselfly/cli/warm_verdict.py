"""What a warm-up comes to: nothing to complain of, or the error that its exit code tells."""

from collections import Counter
from collections.abc import Sequence

from damselfly.client.answers import WarmNode
from damselfly.errors import (
    DamselflyError,
    JobNotFoundError,
    PartialError,
    StillRunningError,
    error_classes,
)

TROUBLES = ("unreachable", "failed", "cancelled")


def judge(nodes: Sequence[WarmNode]) -> DamselflyError | None:
    """Judge a warm-up that has ended.

    Some nodes done and others not is a PartialError. None done is the error that all of them met,
    or the nearest class above if they met different ones.
    """
    return _judged(nodes, frozenset({"done"}), "hold it")


def judge_order(nodes: Sequence[WarmNode]) -> DamselflyError | None:
    """Judge a warm-up of which it is enough that every node has begun."""
    return _judged(nodes, frozenset({"done", "pulling"}), "have begun")


def judge_wait(nodes: Sequence[WarmNode], waited: str) -> DamselflyError:
    """Judge a warm-up that was not waited for to the end."""
    return StillRunningError(f"after {waited}, {_counted(nodes)}; what runs goes on")


def judge_cancellation(nodes: Sequence[WarmNode]) -> DamselflyError | None:
    """Judge what became of a cancellation: it is well if something was cancelled, or is idle."""
    if all(node.state == "idle" for node in nodes):
        return JobNotFoundError("no warm-up with this ref and these filters runs there")
    return _judged(nodes, frozenset({"cancelled", "idle"}), "have ended it")


def _judged(nodes: Sequence[WarmNode], good: frozenset[str], what: str) -> DamselflyError | None:
    bad = [node for node in nodes if node.state not in good]
    if not bad:
        return None
    if len(nodes) == 1:
        return _error(_common_class(bad), bad[0].message or bad[0].state)
    if len(bad) < len(nodes):
        return PartialError(f"{len(nodes) - len(bad)} of {len(nodes)} nodes {what}")
    return _error(_common_class(bad), f"none of {len(nodes)} nodes {what}")


def _counted(nodes: Sequence[WarmNode]) -> str:
    counts = Counter(node.state for node in nodes)
    states = (state for state in ("pulling", "waiting", "trying", *TROUBLES) if counts[state])
    return ", ".join(
        (f"{counts['done']} of {len(nodes)} done", *(f"{counts[s]} {s}" for s in states))
    )


def _common_class(nodes: Sequence[WarmNode]) -> type[DamselflyError]:
    """The nearest class that every node's error is of."""
    known = error_classes()
    met = [known.get(node.error or "", DamselflyError) for node in nodes]
    return next(
        cls
        for cls in met[0].__mro__
        if issubclass(cls, DamselflyError) and all(issubclass(other, cls) for other in met)
    )


def _error(cls: type[DamselflyError], message: str) -> DamselflyError:
    # Some classes build their message from parts, and only the message crossed the socket.
    error = cls.__new__(cls)
    error.args = (message,)
    return error
