"""The grammar of `hf://` refs, for all who read them: which of their names mean what.

It judges nothing: `hub_ref.py` says what the hub would call nothing, and has the grammar in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("models", "datasets", "spaces")
"""Models are what is meant where nothing is said."""
SPECIAL = frozenset({"pr", "convert"})
"""What follows `refs/` in a revision that the hub made itself."""


@dataclass(frozen=True, slots=True)
class HubParts:
    """`repository` has one name or two, and none where a ref ends before; `revision` may be ''."""

    kind: str
    repository: tuple[str, ...]
    revision: str
    has_revision: bool
    inside: tuple[str, ...]

    @classmethod
    def of(cls, given: Sequence[str]) -> "HubParts":
        """Read the names of a ref, from the one that stands where others have a host."""
        names = [name for name in given if name]
        kind = names.pop(0) if names and names[0] in KINDS else KINDS[0]
        taken = 1 if len(names) == 1 or (names and "@" in names[0]) else 2
        *organisation, last = names[:taken] or [""]
        name, at, revision = last.partition("@")
        rest = names[taken:]
        if revision == "refs" and len(rest) > 1 and rest[0] in SPECIAL:
            revision = "/".join([revision, *rest[:2]])
            rest = rest[2:]
        repository = (*organisation, name) if names else ()
        return cls(kind, repository, revision, bool(at), tuple(rest))
