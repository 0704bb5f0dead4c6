"""What a server that answers 401 wants to be shown: the header `WWW-Authenticate`. Pure."""

import re
from dataclasses import dataclass

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_VALUE = r"\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<bare>[^ \t,\"]+)"
_PART = re.compile(
    rf"[ \t,]*(?:(?P<key>{_WORD})[ \t]*=[ \t]*(?:{_VALUE})|(?P<scheme>{_WORD})(?=[ \t,]|$))",
    re.ASCII,
)
_CHARS_MAX = 8192


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove oneself; what it does not say is empty."""

    scheme: str
    """In lower case: `bearer`, `basic`."""
    realm: str = ""
    """For `bearer`: the URL of the service that gives tokens."""
    service: str = ""
    scope: str = ""


def parse_challenges(header: str) -> list[Challenge]:
    """Read the header, up to where it makes no sense any more; a huge one makes none at all."""
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while len(header) <= _CHARS_MAX and (match := _PART.match(header, position)):
        position = match.end()
        if match["scheme"] is not None:
            found.append((match["scheme"].lower(), {}))
        elif found:
            quoted = match["quoted"]
            value = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(match["key"].lower(), value)
    return [
        Challenge(
            scheme, fields.get("realm", ""), fields.get("service", ""), fields.get("scope", "")
        )
        for scheme, fields in found
    ]
