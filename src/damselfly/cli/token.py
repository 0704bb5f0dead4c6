"""Secrets from files: never from the command line, which everybody on the machine can read."""

import sys

from damselfly.client.answers import Credentials
from damselfly.errors import UsageError

TOKEN_BYTES_MAX = 16 * 1024


def read_token(path: str) -> Credentials:
    """Read the token in a file (`-`: from standard input); the line's end is not part of it.

    Raises:
        UsageError: it cannot be read, or cannot be a token.
    """
    token = read_secret(path, "token")
    if not token.isascii() or len(token.split()) != 1:
        raise UsageError(f"{path} has not one word in it, as a token is")
    return Credentials(token=token)


def read_secret(path: str, what: str) -> str:
    """Read a token or a password from a file (`-`: from standard input), without the line's end.

    Raises:
        UsageError: it cannot be read, or there is none in it.
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read(TOKEN_BYTES_MAX + 1)
        else:
            with open(path, "rb") as file:  # noqa: PTH123 - pathlib takes 5 ms of a start
                data = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as exc:
        raise UsageError(f"reading the {what} in {path}") from exc
    if len(data) > TOKEN_BYTES_MAX:
        raise UsageError(f"{path} has more than {TOKEN_BYTES_MAX} bytes: that is no {what}")
    text = data.decode("utf-8", "replace").strip()
    if not text:
        raise UsageError(f"{path} has no {what} in it")
    return text
