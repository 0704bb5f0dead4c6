"""Which refs peers may order this node to pull: none, all, or those below some prefixes.

Whoever reaches an agent's port could otherwise make it fill its disk, and read on their behalf
what only this machine can reach. So the default is none, and two kinds of refs are never taken:
what lies on the node's own disk is nobody else's to publish, and a query may be a signature, which
does not travel between agents.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from damselfly.errors import UsageError
from damselfly.model.ref import SCHEMES, Ref

PREFIXES_MAX = 256
_PREFIX = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s]+)(/[^?#\s]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Accept:
    """What is taken from peers: everything, or what lies at or below one of the prefixes."""

    is_all: bool = False
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Accept":
        """Read `none`, `all`, or prefixes of refs with commas between them.

        Raises:
            ValueError: It is something else, or a prefix that could never match.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        if words == ["all"]:
            return cls(is_all=True)
        if words in ([], ["none"]):
            return cls()
        if len(words) > PREFIXES_MAX:
            raise ValueError(f"more than {PREFIXES_MAX} prefixes")
        return cls(prefixes=tuple(sorted({_checked(word) for word in words})))

    def allows(self, ref: Ref) -> bool:
        """Whether a peer may order us to pull `ref`."""
        if ref.scheme == "file" or ref.query:
            return False
        place = ref.location
        return self.is_all or any(_is_below(place, prefix) for prefix in self.prefixes)

    def __str__(self) -> str:
        return "all" if self.is_all else ",".join(self.prefixes) or "none"


NOTHING = Accept()


def _checked(word: str) -> str:
    """A prefix in the form that refs have when they have been parsed."""
    scheme, mark, rest = word.partition("://")
    if scheme.lower() == "file":
        raise ValueError("peers may never order a file:// ref: it lies on this node's own disk")
    match = _PREFIX.fullmatch(f"{scheme.lower()}{mark}{rest}")
    if match is None:
        raise ValueError(
            f"{word[:120]!r} is neither none, all nor a prefix such as https://host/models/"
        )
    scheme, host, path = match.groups(default="")
    if {b".", b".."} & {unquote_to_bytes(name) for name in path.split("/")}:
        raise ValueError(f"{word[:120]!r} has a . or .. in it: write where it leads")
    if scheme not in SCHEMES:
        return f"{scheme}://{host}{path}"
    try:
        return Ref.parse(f"{scheme}://{host}{path}").location
    except UsageError as exc:
        raise ValueError("not the beginning of a ref") from exc


def _is_below(place: str, prefix: str) -> bool:
    # `https://host/models` means that directory, and not `https://host/models-of-others`.
    return place == prefix or place.startswith(prefix if prefix.endswith("/") else prefix + "/")
