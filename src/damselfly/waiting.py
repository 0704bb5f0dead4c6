"""What a task waits for, in words, told by whoever makes it wait.

A pull that does not move says why. The one who knows why is deep below it (the origin asked for
rest, a host's budget is used up), so what is waited for travels the other way through the task's
context: whoever wants to know enters `heard`, whoever waits says so with `waiting`. Tasks that are
started meanwhile speak to the same listener.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar


class Waiting:
    """What those who work for somebody wait for. Belongs to one event loop."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._reasons: dict[object, Callable[[], str]] = {}

    def __repr__(self) -> str:
        return f"<Waiting for {self.reason}>"

    @property
    def reason(self) -> str | None:
        """What is waited for longest, as things are now; None: nothing."""
        return next((tell() for tell in self._reasons.values()), None)

    def begin(self, key: object, tell: Callable[[], str]) -> None:
        """Somebody waits."""
        self._reasons[key] = tell
        self._changed()

    def end(self, key: object) -> None:
        """It goes on."""
        del self._reasons[key]
        self._changed()


_listener: ContextVar[Waiting | None] = ContextVar("waiting", default=None)


@contextmanager
def heard(waiting: Waiting) -> Generator[Waiting]:
    """Hear what this task, and those it starts meanwhile, wait for."""
    token = _listener.set(waiting)
    try:
        yield waiting
    finally:
        _listener.reset(token)


@contextmanager
def waiting_for(tell: Callable[[], str]) -> Generator[None]:
    """Say what is waited for until this ends; `tell` is asked whenever somebody looks."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    key = object()
    listener.begin(key, tell)
    try:
        yield
    finally:
        listener.end(key)
