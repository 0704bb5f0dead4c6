"""How every target tries a parser: it reads, or refuses by name in one readable line."""

from collections.abc import Callable
from typing import TypeVar

from damselfly.errors import DamselflyError, explain

_T = TypeVar("_T")


def tried(read: Callable[[], _T], *errors: type[DamselflyError]) -> _T | None:
    """Read something; None if it was refused, in one readable line, with one of `errors`."""
    try:
        return read()
    except errors as exc:
        told = explain(exc)
    assert told.isprintable()
    return None
