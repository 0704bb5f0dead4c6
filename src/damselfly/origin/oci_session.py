"""Sending one blob to a registry: a session is begun, fed in parts, and ended with the digest.

Whatever breaks, the session's own status says how far it came, and the next part begins there. One
that the registry has forgotten is begun anew, unless the blob has arrived meanwhile.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from urllib.parse import quote, urljoin, urlsplit

from damselfly.errors import (
    DamselflyError,
    OriginBusyError,
    OriginDeniedError,
    OriginUnavailableError,
    RemoteProtocolError,
    UsageError,
)
from damselfly.model.oci_name import OCIName
from damselfly.origin.access import Access
from damselfly.origin.bearer import PUSH
from damselfly.origin.oci_client import Registry
from damselfly.origin.oci_manifest import Blob
from damselfly.origin.patience import Patience, Sleep
from damselfly.origin.web import Answer, Body, check_status

PART_BYTES = 16 << 20
"""Sent by one request: what is sent twice at most where a registry keeps no half of one. Some want
larger ones, and say so."""
PART_BYTES_MAX = 1 << 30
READ_BYTES = 1 << 20
SLOW_BYTES_PER_S = 125_000
"""A link of 1 Mbit/s may take its time."""

_SESSIONS = "/blobs/up" + "loads/"  # The specification's word, which means serving here.
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})", re.ASCII)
_RETRIED = frozenset({408, 425, 429})
_GONE = frozenset({404, 410})

Read = Callable[[int, int], Awaitable[bytes]]


class BlobSession:
    """One blob on its way. Belongs to one task."""

    def __init__(
        self,
        registry: Registry,
        name: OCIName,
        access: Access,
        blob: Blob,
        read: Read,
        advance: Callable[[int], None],
        sleep: Sleep,
    ) -> None:
        """`read(start, stop)` reads a few bytes; `advance` is told of bytes that the registry has.

        `read(0, 0)` checks that what is sent is still the same.
        """
        self._registry = registry
        self._name = name
        self._access = access
        self._blob = blob
        self._read = read
        self._advance = advance
        self._patience = Patience(sleep)
        self._place: str | None = None
        self._offset = 0
        self._is_sure = True
        """Whether `_offset` is what the registry has of it."""
        self._is_astray = False
        self._part_bytes = PART_BYTES
        self._told = 0
        self._unreadable: DamselflyError | None = None

    async def run(self) -> None:
        """Bring the blob there, if it is not.

        Raises:
            OriginChangedError: what is sent is no longer what was hashed.
            OriginDeniedError, OriginUnavailableError, UsageError: as their names say.
        """
        while True:
            before = self._told
            try:
                if await self._step():
                    self._reached(self._blob.size)
                    return
            except OriginUnavailableError as exc:
                if self._unreadable is not None:
                    raise self._unreadable from None
                self._is_sure = False
                await self._patience.wait(exc)
            if self._told > before:
                self._patience.progressed()

    async def _step(self) -> bool:
        """Do the next thing; tells whether all is done."""
        if self._place is None:
            if await has_blob(self._registry, self._name, self._access, self._blob):
                return True
            await self._begin()
        elif not self._is_sure:
            await self._ask_status()
        elif self._offset < self._blob.size:
            await self._send_part()
        else:
            return await self._end()
        return False

    async def _begin(self) -> None:
        answer = await self._sent("POST", self._registry.place(self._name) + _SESSIONS)
        if answer.status in _GONE:
            raise UsageError(f"there is no repository {self._name.shown} that takes a push")
        self._check(answer, "beginning to send")
        least = answer.headers.get("OCI-Chunk-Min-Length", "").strip()
        if re.fullmatch(r"[0-9]{1,10}", least, re.ASCII):
            self._part_bytes = min(max(PART_BYTES, int(least)), PART_BYTES_MAX)
        self._offset, self._is_sure = 0, True
        self._moved(answer)
        if self._place is None:
            raise RemoteProtocolError(f"{self._doing('beginning to send')}: it does not say where")

    async def _ask_status(self) -> None:
        assert self._place is not None
        answer = await self._sent("GET", self._place)
        if 400 <= answer.status < 500 and answer.status not in {401, 403, *_RETRIED}:
            self._place = None  # Forgotten, or ended: the next step finds out which.
            return
        self._check(answer, "asking how far it came with")
        self._moved(answer)
        self._offset = self._stop_of(answer, 0)
        self._is_sure = True
        self._reached(self._offset)

    async def _send_part(self) -> None:
        assert self._place is not None
        start, stop = self._offset, min(self._offset + self._part_bytes, self._blob.size)
        answer = await self._sent(
            "PATCH",
            self._place,
            {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(stop - start),
                "Content-Range": f"{start}-{stop - 1}",
            },
            lambda: self._parts(start, stop),
            (stop - start) / SLOW_BYTES_PER_S,
        )
        if answer.status in {*_GONE, 416}:
            # One that says twice that it is elsewhere than its status says is begun anew.
            if self._is_astray:
                self._place = None
            self._is_astray = True
            raise OriginUnavailableError(
                f"{self._doing('sending')}: the registry answered {answer.status}"
            )
        self._is_astray = False
        self._check(answer, "sending")
        self._moved(answer)
        self._offset = self._stop_of(answer, stop)
        self._reached(self._offset)

    async def _end(self) -> bool:
        assert self._place is not None
        mark = "&" if urlsplit(self._place).query else "?"
        url = f"{self._place}{mark}digest={quote(self._blob.digest, safe='')}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": "0"}
        answer = await self._sent("PUT", url, headers)
        if answer.status in {*_GONE, 416}:
            raise OriginUnavailableError(
                f"{self._doing('ending')}: the registry answered {answer.status}"
            )
        if answer.status == 400:
            await self._read(0, 0)
        self._check(answer, "ending")
        return True

    async def _sent(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        body: Body = b"",
        sending_s: float = 0.0,
    ) -> Answer:
        return await self._registry.send(
            method,
            url,
            self._name,
            self._access,
            actions=PUSH,
            headers=headers,
            body=body,
            follows=False,
            sending_s=sending_s,
        )

    def _parts(self, start: int, stop: int) -> AsyncIterable[bytes]:
        async def read() -> AsyncGenerator[bytes]:
            try:
                for at in range(start, stop, READ_BYTES):
                    yield await self._read(at, min(at + READ_BYTES, stop))
            except DamselflyError as exc:
                self._unreadable = exc  # Who sends it knows only that it broke.
                raise

        return read()

    def _moved(self, answer: Answer) -> None:
        """Note where the session is now."""
        location = answer.headers.get("Location", "")
        if not location:
            return
        doing = self._doing("sending")
        try:
            place = urljoin(answer.url, location)
            parts = urlsplit(place)
            is_address = parts.scheme in {"http", "https"} and bool(parts.hostname)
            is_address = is_address and parts.port != 0  # One that cannot be raises.
        except ValueError:
            is_address, place, parts = False, "", urlsplit("")
        if not is_address or not place.isascii() or not place.isprintable() or "@" in parts.netloc:
            raise RemoteProtocolError(f"{doing}: it goes on at what is no address")
        if answer.url.startswith("https:") and parts.scheme != "https":
            raise OriginDeniedError(f"{doing}: sent on from https to http")
        self._place = place.partition("#")[0]

    def _stop_of(self, answer: Answer, otherwise: int) -> int:
        """How many bytes the registry has."""
        match = _RANGE.fullmatch(answer.headers.get("Range", "").strip())
        if match is None:
            return otherwise
        last = int(match[1])
        if last >= max(self._blob.size, 1):
            raise RemoteProtocolError(f"{self._doing('sending')}: it has more than was sent")
        if last == 0 and otherwise == 0:
            # It says the same of one byte as of none: of one, where a part from 0 on was refused.
            return min(1 if self._is_astray else 0, self._blob.size)
        return min(last + 1, self._blob.size)

    def _reached(self, offset: int) -> None:
        if offset > self._told:
            self._advance(offset - self._told)
            self._told = offset

    def _check(self, answer: Answer, doing: str) -> None:
        check_answer(answer, self._doing(doing))

    def _doing(self, doing: str) -> str:
        return f"{doing} {self._blob.digest} to {self._name.shown}"


async def has_blob(registry: Registry, name: OCIName, access: Access, blob: Blob) -> bool:
    """Whether a registry has a blob."""
    url = registry.blob_place(name, blob.digest)
    answer = await registry.send("HEAD", url, name, access, actions=PUSH, follows=False)
    if answer.status in _GONE:
        return False
    if answer.status not in {301, 302, 303, 307, 308}:
        check_answer(answer, f"looking for {blob.digest} in {name.shown}")
    return True


def check_answer(answer: Answer, doing: str) -> None:
    """Raise what the status of an answer means, and when to ask again.

    Raises:
        OriginBusyError, OriginUnavailableError, OriginDeniedError, RemoteProtocolError
    """
    told = answer.headers.get("Retry-After", "").strip()
    if answer.status in {429, 503} and re.fullmatch(r"[0-9]{1,6}", told, re.ASCII):
        raise OriginBusyError(f"{doing}: the registry answered {answer.status}", float(told))
    check_status(answer, doing)
