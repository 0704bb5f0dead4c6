"""What a stream can show: width, colours, characters; and text that is safe to show."""

import os
from typing import TextIO

RESET = "\x1b[0m"
BOLD = "1"
DIM = "2"
RED = "31"
GREEN = "32"
YELLOW = "33"
BLUE = "34"


def is_terminal(stream: TextIO) -> bool:
    """Tell whether somebody looks, on something that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in {"", "dumb"}


def is_coloured(stream: TextIO) -> bool:
    """Tell whether colours are welcome (`NO_COLOR` says that they are not)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def is_unicode(stream: TextIO) -> bool:
    """Tell whether more than ASCII can be written."""
    try:
        "━…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def columns(stream: TextIO) -> int:
    """How wide the terminal is now; 80 where nobody knows."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def rows(stream: TextIO) -> int:
    """How high the terminal is now; 24 where nobody knows."""
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24
    except (OSError, ValueError):
        return 24


def paint(text: str, code: str, *, coloured: bool) -> str:
    """Text in a colour, if colours are welcome."""
    return f"\x1b[{code}m{text}{RESET}" if coloured and code and text else text


def plain(text: str) -> str:
    """Text from elsewhere without the characters that command a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def safe_ref(ref: str) -> str:
    """A ref for people: what its query holds may be a signature, and screens are looked at."""
    place, question, rest = ref.partition("?")
    _, hash_, pin = rest.partition("#")
    return f"{place}?...{hash_}{pin}" if question else ref


def shorten(text: str, width: int) -> str:
    """Text of at most `width` characters: its middle is what is left out."""
    if len(text) <= width:
        return text
    if width <= 3:
        return text[: max(0, width)]
    head = (width - 1) // 2
    return f"{text[:head]}~{text[len(text) - (width - 1 - head) :]}"
