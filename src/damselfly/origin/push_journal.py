"""What a push to a bucket notes beside the files: who is at it, and what is half sent.

The note is an object of its own, below the prefix, which readers skip. Whoever pushes writes it
first, over that of an earlier push: so a push that was killed is gone on from at once, and one that
still runs finds out that it is no longer its own. It is read back from a place where others may
write, so whatever breaks a rule counts as no note at all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from damselfly.model import canonical
from damselfly.model.paths import PUSH_DIRECTORY

JOURNAL_NAME = f"{PUSH_DIRECTORY}/journal.json"
JOURNAL_BYTES_MAX = 1 << 20
SESSIONS_MAX = 256
_FORMAT = "damselfly-push/1"
_LINE = re.compile(r"[!-~]{1,2048}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Session:
    """An object that is being sent in parts: what the server calls it, what and how it is sent."""

    name: str
    content: str
    part_bytes: int


@dataclass(frozen=True, slots=True)
class Journal:
    """`owner` is made up anew by every push; `sessions` are by path."""

    owner: str
    sessions: Mapping[str, Session] = field(default_factory=dict[str, Session])

    def canonical(self) -> bytes:
        """Write it as bytes."""
        return canonical.encode(
            {
                "format": _FORMAT,
                "owner": self.owner,
                "sessions": {
                    path: {
                        "content": session.content,
                        "name": session.name,
                        "part_bytes": session.part_bytes,
                    }
                    for path, session in self.sessions.items()
                },
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "Journal":
        """Read it from a place where others may write.

        Raises:
            ValueError: it is not one.
        """
        fields = _object(canonical.decode(data))
        if fields.keys() != {"format", "owner", "sessions"} or fields["format"] != _FORMAT:
            raise ValueError("the note of a push has the wrong fields")
        sessions = _object(fields["sessions"])
        if len(sessions) > SESSIONS_MAX:
            raise ValueError("the note of a push has too many sessions")
        return cls(
            _line(fields["owner"]), {path: _session(each) for path, each in sessions.items()}
        )


def _session(value: object) -> Session:
    fields = _object(value)
    if fields.keys() != {"content", "name", "part_bytes"}:
        raise ValueError("a session in the note of a push has the wrong fields")
    part_bytes = canonical.expect(fields["part_bytes"], int, "part_bytes")
    if part_bytes < 1:
        raise ValueError("parts without bytes")
    return Session(_line(fields["name"]), _line(fields["content"]), part_bytes)


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", canonical.expect(value, dict, "the note of a push"))


def _line(value: object) -> str:
    text = canonical.expect(value, str, "a line in the note of a push")
    if not _LINE.fullmatch(text):
        raise ValueError("a line in the note of a push is too long, or not ASCII")
    return text
