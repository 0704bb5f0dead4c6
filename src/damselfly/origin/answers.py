"""JSON that a server of somebody else's answers: read without trust, and not in the event loop.

Whoever asked has bounded its bytes. A few megabytes can still be millions of values, each of which
is an object of ours, or so deep that reading them costs the stack: both are refused.
"""

import asyncio
from functools import partial
from typing import cast

from damselfly.errors import RemoteProtocolError
from damselfly.model import canonical

VALUES_MAX = 500_000
"""Ten thousand files of a listing with fifty values each; about 50 MB of objects."""


async def decoded(data: bytes, doing: str, values_max: int = VALUES_MAX) -> object:
    """Read the JSON of an answer, in a thread.

    Raises:
        RemoteProtocolError: it is none, or has too many values.
    """
    return await asyncio.to_thread(partial(decoded_here, data, doing, values_max))


def decoded_here(data: bytes, doing: str, values_max: int = VALUES_MAX) -> object:
    """The same, at once: for a thread."""
    # Every value but the first follows one of these; those inside of texts count as well.
    if sum(data.count(mark) for mark in (b",", b"[", b"{", b":")) > values_max:
        raise RemoteProtocolError(f"{doing}: the answer has more than {values_max} values")
    try:
        return canonical.decode(data)
    except ValueError as exc:
        raise RemoteProtocolError(f"{doing}: the answer is not JSON that we can read") from exc


def fields_of(value: object, doing: str) -> dict[str, object]:
    """Let an object pass.

    Raises:
        RemoteProtocolError: it is something else.
    """
    if type(value) is not dict:
        raise RemoteProtocolError(f"{doing}: the answer is not what was asked for")
    return cast("dict[str, object]", value)
