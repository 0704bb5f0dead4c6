"""Requests and responses, as handlers and callers see them."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from damselfly.errors import CapacityError


class BodyTooLargeError(CapacityError):
    """A request's body is longer than we take; uncaught by the handler, it is a 413."""


HeaderPairs = Iterable[tuple[str, str]]


def header_of(headers: HeaderPairs, name: str) -> str | None:
    """Find the first field called `name` (lower case)."""
    for key, value in headers:
        if key == name:
            return value
    return None


class BodySource(Protocol):
    """Where a request's body comes from."""

    async def read(self) -> bytes:
        """Gather all of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a peer asks. `path` and `query` are percent-decoded; `query` keeps a name's last value.

    Belongs to the handler's task, and is of no use after the handler has returned.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: tuple[tuple[str, str], ...]
    remote: tuple[str, int]
    body: BodySource

    def header(self, name: str) -> str | None:
        """Find a header by its lower-case name."""
        return header_of(self.headers, name)

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            BodyTooLargeError: it is longer than `Limits.request_bytes_max`; let it pass, it is 413.
        """
        return await self.body.read()


@dataclass(frozen=True, slots=True)
class FileBody:
    """`length` bytes of the open file `fd` from `offset`, sent by the kernel.

    `close` is called once, when the last byte is with the kernel or the response has failed.
    """

    fd: int
    offset: int
    length: int
    close: Callable[[], None]


Body = bytes | FileBody | AsyncIterator[bytes]


@dataclass(frozen=True)
class Response:
    """What a handler answers.

    Items of an AsyncIterator are sent at once, interleaved with others; the iterator is asked for
    the next when the peer has room for it, and closed when the peer hangs up.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: Body = b""

    @classmethod
    def json(cls, value: object, status: int = 200) -> "Response":
        """Answer with a JSON value."""
        body = json.dumps(value, separators=(",", ":")).encode()
        return cls(status, (("content-type", "application/json"),), body)


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Reply:
    """What a peer answered. `length` counts bytes put into a buffer, `body` has the others."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    length: int = 0

    def header(self, name: str) -> str | None:
        """Find a header by its lower-case name."""
        return header_of(self.headers, name)
