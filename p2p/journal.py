"""Where each chunk of a pull came from, when, and why: a few bytes a chunk, for `explain`."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

_HOWS_MAX = 65_535


@dataclass(frozen=True, slots=True)
class How:
    """How chunks came: `source` is origin, peer, store or copied, `by` who served them."""

    source: str
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One chunk: how it came, when it was asked for (since the pull began), how long it took."""

    index: int
    how: How
    asked_s: float
    took_s: float


class Journal:
    """What is known of the chunks of one pull. The latest word on a chunk counts."""

    def __init__(self) -> None:
        self._hows: dict[How, int] = {}
        self._how = array("H")
        self._asked_s = array("f")
        self._took_s = array("f")

    def __repr__(self) -> str:
        return f"<Journal of {len(self._how)} chunks>"

    def __len__(self) -> int:
        return len(self._how)

    def grow(self, chunk_count: int) -> None:
        """Have room for so many chunks."""
        missing = chunk_count - len(self._how)
        if missing > 0:
            self._how.extend(array("H", bytes(2 * missing)))
            self._asked_s.extend(array("f", bytes(4 * missing)))
            self._took_s.extend(array("f", bytes(4 * missing)))

    def note(self, index: int, how: How, asked_s: float, took_s: float) -> None:
        """Write down how a chunk came."""
        if index >= len(self._how) or (how not in self._hows and len(self._hows) >= _HOWS_MAX):
            return
        self._how[index] = self._hows.setdefault(how, len(self._hows) + 1)
        self._asked_s[index] = asked_s
        self._took_s[index] = took_s

    def entries(self, indexes: range) -> Iterator[Entry]:
        """What is known of these chunks; those that have not come are left out."""
        hows = list(self._hows)
        for index in indexes:
            if index < len(self._how) and (number := self._how[index]):
                how = hows[number - 1]
                yield Entry(index, how, self._asked_s[index], self._took_s[index])
