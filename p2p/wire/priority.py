"""Priorities of RFC 9218: urgency 0 (first) to 7, and whether to interleave."""

import re
from dataclasses import dataclass

_MEMBER = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)(?:=([^;,\s]*))?(?:;[^,]*)?[ \t]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Priority:
    """How soon a response is wanted. The defaults are the RFC's."""

    urgency: int = 3
    incremental: bool = False

    @classmethod
    def parse(cls, value: str) -> "Priority":
        """Read a `priority` field; what cannot be read counts as absent (RFC 9218 §4)."""
        urgency, incremental = 3, False
        for member in value[:256].split(","):
            found = _MEMBER.fullmatch(member)
            if found is None:
                return cls()
            key, text = found[1], found[2]
            if key == "u" and text is not None and re.fullmatch("[0-7]", text):
                urgency = int(text)
            elif key == "i":
                incremental = text is None or text == "?1"
        return cls(urgency, incremental)

    def __str__(self) -> str:
        return f"u={self.urgency}" + (", i" if self.incremental else "")


DEFAULT_PRIORITY = Priority()
