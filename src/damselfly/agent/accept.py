"""Which refs peers may order, and volumes may name: none, all, or those below some prefixes.

Whoever reaches an agent's port could otherwise make it fill its disk, and read on their behalf
what only this machine can reach. So the default is none, and two kinds of refs are never taken:
what lies on the node's own disk is nobody else's to publish, and a query may be a signature, which
does not travel between agents.

Volumes are named by who may make pods. Signed refs are theirs to use, and whether a pod may name a
directory of the node is for the driver to say, which knows who speaks (`--allow-file-refs`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

PREFIXES_MAX = 256
_PREFIX = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s]+)(/[^?#\s]*)?", re.ASCII)
_PATH = re.compile(r"(?:[A-Za-z0-9/._~!$&'()*+,;=:@-]|%[0-9A-F]{2})*", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


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
        return cls(prefixes=tuple(sorted({_checked(word) for word in given})))

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
        return self.is_all or any(_is_below(location, prefix) for prefix in self.prefixes)

    def __str__(self) -> str:
        return "all" if self.is_all else ",".join(self.prefixes) or "none"


NOTHING = Accept()
EVERYTHING = Accept(is_all=True)


def _checked(word: str) -> str:
    """A prefix in the form that parsed refs have (`model/ref.py`): else it would never match."""
    scheme, mark, rest = word.partition("://")
    scheme = scheme.lower()
    shown = repr(word[:120])
    if scheme == "file":
        raise ValueError("no prefix allows a file:// ref: it lies on this node's own disk")
    match = _PREFIX.fullmatch(f"{scheme}{mark}{rest}")
    if match is None:
        raise ValueError(f"{shown} is neither none, all nor a prefix such as https://host/models/")
    _, host, path = match.groups(default="")
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"{shown} has a . or .. in it: write where it leads")
    if not _PATH.fullmatch(path):
        raise ValueError(f"{shown} has characters that refs encode: write them as %C3%BC")
    if any(_PATH.fullmatch(unquote(code)) for code in re.findall("%..", path)):
        raise ValueError(f"{shown} encodes a character that refs do not: write it as it is")
    if scheme in _DEFAULT_PORTS:
        host = host.lower().removesuffix(_DEFAULT_PORTS[scheme])
    return f"{scheme}://{host}{path}"


def _is_below(location: str, prefix: str) -> bool:
    # `https://host/models` means that directory, and not `https://host/models-of-others`.
    return f"{location}/".startswith(prefix if prefix.endswith("/") else f"{prefix}/")
