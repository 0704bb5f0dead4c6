"""Which refs peers may order, and volumes may name: none, all, or those below some prefixes.

Whoever reaches an agent's port could otherwise make it fill its disk, and read on their behalf
what only this machine can reach. So the default is none, and two kinds of refs are never taken:
what lies on the node's own disk is nobody else's to publish, and a query may be a signature, which
does not travel between agents.

Volumes are named by who may make pods. Signed refs are theirs to use, and whether a pod may name a
directory of the node is for the driver to say, which knows who speaks (`--allow-file-refs`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from damselfly.model.prefix import PREFIXES_MAX, checked, is_below


@dataclass(frozen=True, slots=True)
class Accept:
    """What is taken from others: everything, or what lies at or below one of the prefixes."""

    is_all: bool = False
    prefixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: Iterable[str]) -> "Accept":
        """Read `none`, `all`, or some prefixes of refs.

        Raises:
            ValueError: It is something else, or a prefix that no ref could have.
        """
        given = [word.strip() for word in words if word.strip()]
        if given == ["all"]:
            return cls(is_all=True)
        if given in ([], ["none"]):
            return cls()
        if len(given) > PREFIXES_MAX:
            raise ValueError(f"more than {PREFIXES_MAX} prefixes")
        return cls(prefixes=tuple(sorted({checked(word) for word in given})))

    def allows(self, location: str) -> bool:
        """Whether a peer may order us to pull what a parsed ref has as its location."""
        if location.startswith("file:") or "?" in location:
            return False
        return self._covers(location)

    def allows_volume(self, location: str) -> bool:
        """Whether a volume may name what a parsed ref has as its location."""
        if location.startswith("file:"):
            return self.is_all or bool(self.prefixes)
        return self._covers(location.partition("?")[0])

    def _covers(self, location: str) -> bool:
        return self.is_all or any(is_below(location, prefix) for prefix in self.prefixes)

    def __str__(self) -> str:
        return "all" if self.is_all else ",".join(self.prefixes) or "none"


NOTHING = Accept()
EVERYTHING = Accept(is_all=True)
