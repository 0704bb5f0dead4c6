"""Sessions of a push that nobody gives a name but we: a name tells what the session is to become.

Whoever goes on with a killed push finds the name in the journal, and needs nothing else.
"""

import re
import secrets

from damselfly.origin.bucket_push import Marks

_SESSION = re.compile(r"[0-9a-f]{32},([a-z0-9]{1,16}:[0-9a-f]{64}),([0-9a-f]{64})", re.ASCII)


def session_of(marks: Marks) -> str:
    """A new name for a session that is to become what `marks` say."""
    return f"{secrets.token_hex(16)},{marks.content},{marks.sha256}"


def marks_of(session: str) -> Marks | None:
    """What a session is to become; None if it is none that `session_of` named."""
    match = _SESSION.fullmatch(session)
    return None if match is None else Marks(match[1], match[2])
