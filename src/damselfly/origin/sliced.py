"""Bodies of requests that can be sent again, and do not keep the loop busy in one go."""

import base64
import hashlib
from collections.abc import AsyncIterable

from damselfly.origin.web import Body

SLICE_BYTES = 256 << 10


def sliced(data: bytes) -> Body:
    """The same bytes, as a body that is sent in slices if it is large."""
    if len(data) <= SLICE_BYTES:
        return data

    async def slices() -> AsyncIterable[bytes]:
        view = memoryview(data)
        for start in range(0, len(data), SLICE_BYTES):
            yield bytes(view[start : start + SLICE_BYTES])

    return slices


def md5_of(data: bytes) -> str:
    """What a body is, as `Content-MD5` says it (RFC 1864): against accidents alone."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
