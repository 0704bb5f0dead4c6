"""What origins ask of HTTP: pages, sizes, spans of files. One for an agent, shared by its origins.

Only this file and `host_names.py` know aiohttp. Measured against a local server that answers with
`sendfile`, spans of 4 MiB cost 0.4-0.5 CPU seconds per GB here, so there is no protocol of our own.

A server may ignore ranges and always send the whole file. It is then read from the start, what lies
before the span is thrown away, and at the end of the span the stream is **parked**: whoever wants a
later span of the same file goes on from there. So such a file is read once per stream at work on
it instead of once per span; it works, it is said in the log, and nobody should build on it.

What the server says of a file (ETag, else Last-Modified, and its size) is held against the plan in
every answer. URLs may be presigned: none is shown with the values of its query, and errors of
aiohttp that repeat a URL are not passed on. Redirects are followed here, not by aiohttp, so that
what proves who asks is shown to the host of the ref and to no other.

Every request, each hop of a redirect by its own host, passes the `Gate`: it waits there while the
host asks for rest, and for its part of the host's budget. What fails for a moment is asked again a
few times, and a body that stalls, trickles or breaks off goes on at the byte where it stopped.
"""

import asyncio
import logging
import random
import re
import ssl
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import aiohttp
from yarl import URL

from damselfly import __version__
from damselfly.errors import (
    DamselflyError,
    OriginBusyError,
    OriginChangedError,
    OriginDeniedError,
    OriginNotFoundError,
    OriginUnavailableError,
    RemoteProtocolError,
)
from damselfly.model.digest import Digest
from damselfly.model.plan import VERSION_CHARS_MAX
from damselfly.origin.access import ANONYMOUS, Authorizer
from damselfly.origin.gate import Gate, rest_told_by, told_rest_s
from damselfly.origin.host_names import HostNames
from damselfly.origin.link_local import denied, is_forbidden
from damselfly.origin.low_water import LowWater, Socket
from damselfly.origin.port import OriginLimits
from damselfly.origin.proxy import proxy_for
from damselfly.origin.trust import trusted
from damselfly.waiting import waiting_for

logger = logging.getLogger(__name__)

_READ_BUFFER_BYTES = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRY_LATER = frozenset({408, 425, 429})
_UNSTEADY = frozenset({408, 425, 500, 502, 503, 504})
"""Answers that may be another one a moment later."""
_REPEATABLE = frozenset({"GET", "HEAD"})
_PROGRESS_BYTES_MIN = 64 << 10
"""Who brought less than this since it was asked again has not come further."""
_RANGELESS_MAX = 256
"""Hosts that are remembered for having been warned of: refs and redirects name any number."""

Body = bytes | Callable[[], AsyncIterable[bytes]]
"""What is sent: bytes, or parts of it that can be made anew for every try."""


class AnsweredError(RemoteProtocolError):
    """The origin answered 400: how buckets refuse a signature that they cannot read any more."""


@dataclass(frozen=True, slots=True, repr=False)
class Wanted:
    """Bytes `[start, stop)` of a file that is planned to have `size` bytes and this version."""

    url: str
    size: int
    version: str
    start: int
    stop: int
    access: Authorizer
    headers: tuple[tuple[str, str], ...] = ()
    """Said besides, to every host that it leads to: nothing secret."""


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What an API answered, whatever it is: `check_status` judges it."""

    status: int
    headers: Mapping[str, str]
    """Their names in any case."""
    body: bytes
    url: str
    """Where it was in the end."""


@dataclass(frozen=True, slots=True, repr=False)
class Page:
    """Something small, read whole; `url` is where it was in the end."""

    body: bytes
    url: str
    is_html: bool


@dataclass(frozen=True, slots=True, repr=False)
class Measured:
    """A file's size, and what the server says of its version; `url` is where it was in the end."""

    size: int
    version: str
    url: str
    is_html: bool


class Web:
    """Files behind HTTP. One session, shared by everybody; belongs to one event loop."""

    def __init__(self, limits: OriginLimits, gate: Gate | None = None) -> None:
        """Without a `gate` that is shared with other agents it has one of its own."""
        self._limits = limits
        self._gate = gate or Gate(limits.rest_patience_s)
        self._random = random.Random()  # noqa: S311 - spreads retries, hides nothing
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._names: HostNames | None = None
        self._slots = WeakValueDictionary[str, asyncio.Semaphore]()  # Of hosts that are in use.
        self._asked_s = WeakKeyDictionary[aiohttp.ClientResponse, float]()
        """When an answer was asked for, after all waiting."""
        self._parked: list[_Parked] = []
        self._rangeless: dict[str, None] = {}

    async def close(self) -> None:
        """Close every connection."""
        while self._parked:
            self._parked.pop().close()
        if self._session is not None:
            await self._session.close()
        if self._names is not None:
            await self._names.close()
        self._session = self._names = None

    # --- asking for what is small ---------------------------------------------------------------

    async def page(self, url: str, bytes_max: int, access: Authorizer) -> Page:
        """Get something small, whole."""
        doing = f"getting {shown(url)}"
        async with self._turn(url), self._asked("GET", url, {}, access, doing) as answer:
            check_status(answer, doing)
            body = await self._whole(answer, bytes_max, doing, shown(url))
            return Page(body, str(answer.url), answer.content_type == "text/html")

    async def measure(self, url: str, access: Authorizer) -> Measured:
        """Ask for the size and the version of a file, reading at most a byte of it."""
        doing = f"looking at {shown(url)}"
        async with self._turn(url):
            async with self._asked("HEAD", url, {}, access, doing) as answer:
                length = answer.headers.get("Content-Length", "")
                # A size of 0 is believed only from a GET: some servers say it in any HEAD.
                if answer.status == 200 and _LENGTH.fullmatch(length) and length.strip("0"):
                    return _measured(answer, int(length))
                # Servers that do not care for HEAD say so in many ways; these mean something.
                if answer.status in {404, 410, 500, 502, 503, 504} | _RETRY_LATER:
                    check_status(answer, doing)
            first = {"Range": "bytes=0-0"}
            async with self._asked("GET", url, first, access, doing) as answer:
                size = _range_of(answer, doing)[2]
                if answer.status == 416 and size is not None:
                    return _measured(answer, size)
                check_status(answer, doing)
                if size is None:
                    raise RemoteProtocolError(f"the origin does not say how big {shown(url)} is")
                return _measured(answer, size)

    async def read(self, wanted: Wanted) -> bytes:
        """Read a few bytes of a file that was measured."""
        data = bytearray(wanted.stop - wanted.start)
        async with self.span(wanted) as stream:
            with _told(f"reading {shown(wanted.url)}"):
                async with asyncio.timeout(self._limits.page_s):
                    await stream.readinto(memoryview(data))
        return bytes(data)

    async def send(
        self,
        method: str,
        url: str,
        *,
        access: Authorizer = ANONYMOUS,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        bytes_max: int = 1 << 20,
        follows: bool = True,
        sending_s: float = 0.0,
    ) -> Answer:
        """Ask something of an API and read its answer whole, at most `bytes_max` of it.

        Without `follows` a redirect is an answer like any other. `sending_s` is what a large body
        may take, besides the usual wait for an answer.
        """
        doing = f"{method} {shown(url)}"
        async with (
            self._turn(url),
            self._asked(
                method,
                url,
                headers or {},
                access,
                doing,
                body=body,
                follows=follows,
                sending_s=sending_s,
            ) as answer,
        ):
            told = await self._whole(answer, bytes_max, doing, f"{doing}: the answer")
            return Answer(answer.status, answer.headers, told, str(answer.url))

    async def _whole(
        self, answer: aiohttp.ClientResponse, bytes_max: int, doing: str, what: str
    ) -> bytes:
        """The body of an answer, which is small or refused; `what` is what errors call it."""
        body = bytearray()
        with _told(doing):
            async with asyncio.timeout(self._limits.page_s):
                while data := await answer.content.readany():
                    body += data
                    if len(body) > bytes_max:
                        raise RemoteProtocolError(f"{what} has more than {bytes_max} bytes")
        await self._count(answer, len(body))
        return bytes(body)

    # --- asking ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def span(self, wanted: Wanted) -> AsyncGenerator["HTTPStream"]:
        """Read a span of a file; entering and reading raise what the origin port says."""
        assert 0 <= wanted.start < wanted.stop <= wanted.size, "a span lies inside of its file"
        doing = f"reading {shown(wanted.url)}"
        async with self._turn(wanted.url):
            body = self._unparked(wanted)
            stream = HTTPStream(doing, wanted, self._limits, partial(self._reached, doing))
            try:
                await stream.begin(body)
                yield stream
            except BaseException:
                stream.close()
                raise
            body = stream.body
            if body.is_whole and body.position < wanted.size:
                self._park(wanted, body)
            else:
                body.close()

    def _counted(self, answer: aiohttp.ClientResponse) -> Callable[[int], Awaitable[None]] | None:
        """Where the bytes of a body are counted, if they are."""
        if not self._gate.counts_bytes:
            return None
        return partial(self._gate.took, _host_of(answer.url))

    async def _count(self, answer: aiohttp.ClientResponse, length: int) -> None:
        if took := self._counted(answer):
            await took(length)

    async def _reached(self, doing: str, wanted: Wanted, tries: int) -> "_Body":
        """Ask for a span, the first time at once, later after a while that grows."""
        if tries:
            with waiting_for(lambda: f"{doing} (the origin broke off, and is asked again)"):
                await self._back_off(tries)
        return await self._body(wanted, doing)

    async def _back_off(self, tries: int) -> None:
        wait_s = self._limits.back_off_s * 2 ** (tries - 1)
        await asyncio.sleep(wait_s * (0.5 + self._random.random()))

    async def _body(self, wanted: Wanted, doing: str) -> "_Body":
        url, start, stop = wanted.url, wanted.start, wanted.stop
        headers = dict(wanted.headers) | {"Range": f"bytes={start}-{stop - 1}"}
        answer = await self._answer("GET", url, headers, wanted.access, doing)
        asked_s = self._asked_s.pop(answer)
        took = self._counted(answer)
        try:
            first, last, total = _range_of(answer, doing)
            if answer.status != 416:
                check_status(answer, doing)
            if total is not None and total != wanted.size:
                raise OriginChangedError(
                    f"{shown(url)} has {total} bytes now: it had {wanted.size} when it was planned"
                )
            if answer.status == 416:
                raise RemoteProtocolError(f"the origin refuses a range inside of {shown(url)}")
            _check_version(answer, wanted.version, url)
            if answer.status == 200:
                if (start, stop) != (0, wanted.size):
                    self._warn_of_no_ranges(url)
                return _Body(answer, 0, wanted.size, took, asked_s, is_whole=True)
            if first != start or last is None or last >= stop:
                raise RemoteProtocolError(
                    f"{shown(url)}: asked for bytes {start}-{stop - 1}, got {first}-{last}"
                )
            return _Body(answer, start, last + 1, took, asked_s, is_whole=False)
        except DamselflyError:
            answer.release()
            raise

    @asynccontextmanager
    async def _asked(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        access: Authorizer,
        doing: str,
        *,
        body: Body = b"",
        follows: bool = True,
        sending_s: float = 0.0,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        answer = await self._answer(
            method,
            url,
            headers,
            access,
            doing,
            body=body,
            follows=follows,
            sending_s=sending_s,
        )
        try:
            yield answer
        finally:
            answer.release()

    async def _answer(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        access: Authorizer,
        doing: str,
        *,
        body: Body = b"",
        follows: bool = True,
        sending_s: float = 0.0,
    ) -> aiohttp.ClientResponse:
        """Ask, and follow redirects; what proves who asks goes to the first host alone."""
        first = place = URL(url, encoded=True)
        asked_s: float | None = None
        for _ in range(self._limits.redirects_max + 1):
            # aiohttp asks its resolver of names alone, so what is an address is looked at here.
            if place.host is not None and is_forbidden(place.host):
                raise denied(place.host, place.host)
            authorizer = access if place.origin() == first.origin() else ANONYMOUS

            def proved(place: URL = place, authorizer: Authorizer = authorizer) -> dict[str, str]:
                return {**headers, **authorizer.headers(method, str(place), headers)}

            answer = await self._steadily(method, place, proved, body, doing, sending_s)
            if asked_s is None:
                asked_s = self._asked_s[answer]
            try:
                target = _redirected(answer, place, doing) if follows else None
                if target is None:
                    self._asked_s[answer] = asked_s
                    # The page of an error is not read; what it says is its status.
                    is_coded = answer.headers.get("Content-Encoding", "identity") != "identity"
                    if is_coded and answer.status < 400:
                        raise RemoteProtocolError(f"{doing}: the origin insists on compressing it")
                    return answer
            except DamselflyError:
                answer.release()
                raise
            answer.release()
            place = target
        raise RemoteProtocolError(f"{doing}: redirected too often")

    async def _steadily(
        self,
        method: str,
        place: URL,
        headers: Callable[[], dict[str, str]],
        body: Body,
        doing: str,
        sending_s: float,
    ) -> aiohttp.ClientResponse:
        """Ask one host; again when it has rested, and a few times when it fails for a moment."""
        limits = self._limits
        began_s = time.monotonic()
        tries = 0
        while True:
            try:
                answer, is_busy = await self._admitted(
                    method, place, headers, body, doing, sending_s
                )
            except OriginUnavailableError as exc:
                is_silent = isinstance(exc.__context__, TimeoutError)
                is_nobody = isinstance(exc.__context__, aiohttp.ClientConnectorError)
                if is_silent or is_nobody or method not in _REPEATABLE or tries >= limits.tries_max:
                    raise
            else:
                waited_s = time.monotonic() - began_s
                if is_busy:
                    answer.release()
                    left_s = self._gate.patience_s - waited_s
                    if (wanted_s := self._gate.rest_s(_host_of(place))) > left_s:
                        told_s = told_rest_s(rest_told_by(answer.headers), time.time())
                        rest_s = wanted_s if told_s is None else told_s
                        said = f"{doing}: the origin answered {answer.status}, and wants to be left"
                        raise OriginBusyError(
                            f"{said} alone for {rest_s:.0f} s: longer than anybody waits", rest_s
                        )
                    continue  # The gate waits as long as was asked for.
                if answer.status not in _UNSTEADY or method not in _REPEATABLE:
                    return answer
                # Who says 503 means to be back: others have failed, and may be gone.
                is_patient = answer.status == 503 and waited_s < limits.unsteady_s
                if tries >= limits.tries_max and not is_patient:
                    return answer
                answer.release()
            tries += 1
            with waiting_for(
                lambda: f"origin host {_host_of(place)} (it failed, and is asked again)"
            ):
                await self._back_off(min(tries, 5))

    async def _admitted(
        self,
        method: str,
        place: URL,
        headers: Callable[[], dict[str, str]],
        body: Body,
        doing: str,
        sending_s: float,
    ) -> tuple[aiohttp.ClientResponse, bool]:
        """Ask once, when the gate lets us; tells whether the host asks for rest."""
        session = await self._opened()
        host = _host_of(place)
        await self._gate.admit(host, doing)
        asked_s = time.monotonic()
        try:
            with _told(doing):
                async with asyncio.timeout(self._limits.head_s + sending_s):
                    answer = await session.request(
                        method,
                        place,
                        headers=headers(),
                        data=(body if isinstance(body, bytes) else body()) or None,
                        allow_redirects=False,
                        proxy=proxy_for(place),
                    )
        except BaseException:
            self._gate.failed(host)
            raise
        self._asked_s[answer] = asked_s
        told = rest_told_by(answer.headers)
        return answer, self._gate.answered(host, answer.status, told)

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                limits = self._limits
                context: ssl.SSLContext = await asyncio.to_thread(trusted)
                self._names = HostNames()
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(
                        ssl=context,
                        resolver=self._names,
                        limit=0,
                        limit_per_host=limits.connections_per_host_max + limits.parked_max,
                        keepalive_timeout=30,
                    ),
                    timeout=aiohttp.ClientTimeout(
                        total=None,
                        # A proxy may take the connection and never answer CONNECT.
                        connect=limits.connect_s + limits.silence_s,
                        sock_connect=limits.connect_s,
                        sock_read=limits.silence_s,
                    ),
                    headers={
                        "Accept-Encoding": "identity",
                        "User-Agent": f"damselfly/{__version__}",
                    },
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,  # It would read ~/.netrc: the agent's secrets for everybody.
                    read_bufsize=_READ_BUFFER_BYTES,
                    max_line_size=16 << 10,
                    max_field_size=16 << 10,
                )
            return self._session

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncGenerator[None]:
        """Have one of the connections that a host gives us."""
        slot = self._slot(url)
        with waiting_for(lambda: f"origin host {URL(url, encoded=True).authority} (others first)"):
            await slot.acquire()
        try:
            yield
        finally:
            slot.release()

    def _slot(self, url: str) -> asyncio.Semaphore:
        # Parked streams hold connections too: the connector's own limit would count them, and
        # somebody who waits for one of those would wait for nothing.
        host = URL(url, encoded=True).authority
        slot = self._slots.get(host)
        if slot is None:
            slot = self._slots[host] = asyncio.Semaphore(self._limits.connections_per_host_max)
        return slot

    # --- servers without ranges -----------------------------------------------------------------

    def _warn_of_no_ranges(self, url: str) -> None:
        host = URL(url, encoded=True).authority
        if host not in self._rangeless:
            self._rangeless[host] = None
            if len(self._rangeless) > _RANGELESS_MAX:
                del self._rangeless[next(iter(self._rangeless))]
            logger.warning("origin.rangeless", extra={"host": host})

    def _unparked(self, wanted: Wanted) -> "_Body | None":
        usable = [
            parked
            for parked in self._parked
            if (parked.url, parked.version, parked.access)
            == (wanted.url, wanted.version, wanted.access)
            and parked.body.position <= wanted.start
        ]
        if not usable:
            return None
        nearest = max(usable, key=lambda parked: parked.body.position)
        self._parked.remove(nearest)
        nearest.expiry.cancel()
        return nearest.body

    def _park(self, wanted: Wanted, body: "_Body") -> None:
        def expire() -> None:
            self._parked.remove(parked)
            body.close()

        expiry = asyncio.get_running_loop().call_later(self._limits.parked_s, expire)
        parked = _Parked(wanted.url, wanted.version, wanted.access, body, expiry)
        self._parked.append(parked)
        if len(self._parked) > self._limits.parked_max:
            self._parked.pop(0).close()


_Reach = Callable[[Wanted, int], Awaitable["_Body"]]
"""Asks for a span, after so many tries that brought nothing."""


class HTTPStream:
    """A span of a file as its bytes arrive. Belongs to one task.

    What stalls or breaks off is asked for again from the byte on where it stopped, a few times.
    """

    def __init__(self, doing: str, wanted: Wanted, limits: OriginLimits, reach: _Reach) -> None:
        self.first_byte_s: float | None = None
        self._doing = doing
        self._wanted = wanted
        self._limits = limits
        self._reach = reach
        self._opened: _Body | None = None
        self._tries = 0
        """Since the latest bytes that count."""
        self._resumes = 0
        self._resumed_at = 0
        self._floor_bytes = 0
        self._floor_s = 0.0
        """What came since the floor was reached last, and how long the origin was waited for."""

    @property
    def body(self) -> "_Body":
        """The body that is being read."""
        assert self._opened is not None, "a stream that has begun has a body"
        return self._opened

    async def begin(self, parked: "_Body | None") -> None:
        """Ask for it, or go on with a body that was parked."""
        self._opened = parked or await self._reach(self._wanted, 0)
        await self._skip(self._wanted.start)

    def close(self) -> None:
        """Read no more of it."""
        if self._opened is not None:
            self._opened.close()

    @property
    def is_html(self) -> bool:
        """Whether the server calls it a page."""
        return self.body.is_html

    async def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes; see `OriginStream`."""
        assert len(view) <= self._wanted.stop - self.body.position, "within the span"
        done = 0
        while done < len(view):
            data = await self._next(len(view) - done)
            view[done : done + len(data)] = data
            done += len(data)

    async def _skip(self, start: int) -> None:
        """Throw away what comes before byte `start` of the file."""
        while (missing := start - self.body.position) > 0:
            await self._next(missing)

    async def _next(self, bytes_max: int) -> memoryview:
        while True:
            body = self.body
            try:
                data = await self._received(body, bytes_max)
            except OriginUnavailableError as exc:
                await self._resume(body.position, exc)
                continue
            if self.first_byte_s is None:
                self.first_byte_s = time.monotonic() - body.asked_s
            if self._tries and body.position - self._resumed_at >= _PROGRESS_BYTES_MIN:
                self._tries = 0
            return data

    async def _received(self, body: "_Body", bytes_max: int) -> memoryview:
        place = f"{self._doing} at byte {body.position}"
        if body.has_bytes:
            return await body.next(bytes_max)
        limits = self._limits
        began_s = time.monotonic()
        with _told(place):
            left_s = limits.body_floor_s - self._floor_s
            turn = asyncio.timeout(min(limits.body_silence_s, left_s))
            try:
                async with turn:
                    data = await body.next(bytes_max)
            except TimeoutError:
                if self._floor_bytes and turn.expired():
                    raise OriginUnavailableError(
                        f"{place}: the origin sends too little, {self._floor_bytes} bytes while"
                        f" it was waited for {limits.body_floor_s:g} s"
                    ) from None
                raise aiohttp.SocketTimeoutError from None
        self._floor_s += time.monotonic() - began_s
        self._floor_bytes += body.fresh
        if self._floor_bytes >= limits.body_floor_bytes:
            self._floor_bytes, self._floor_s = 0, 0.0
        await body.count()
        if not data:
            raise OriginUnavailableError(
                f"{self._doing}: the origin broke off at byte {body.position},"
                f" {self._wanted.stop - body.position} bytes short"
            )
        return data

    async def _resume(self, position: int, failure: OriginUnavailableError) -> None:
        """Go on at `position` with a new request, if there is hope."""
        limits = self._limits
        former = self.body
        former.close()
        self._floor_bytes, self._floor_s = 0, 0.0
        if former.is_whole and (self._wanted.start, self._wanted.stop) != (0, self._wanted.size):
            raise failure  # It would have to be read again from its beginning.
        start = max(position, self._wanted.start)
        while self._tries < limits.resumes_max and self._resumes < limits.resumes_total_max:
            self._tries += 1
            self._resumes += 1
            self._resumed_at = position
            try:
                body = await self._reach(replace(self._wanted, start=start), self._tries)
            except OriginBusyError:
                raise
            except OriginUnavailableError as exc:
                failure = exc
                continue
            except (OriginDeniedError, OriginNotFoundError, RemoteProtocolError) as exc:
                # What opened it may be over by now, a signed address above all. Whether it is
                # refused for good says a request for what is left, with a fresh one.
                raise failure from exc
            self._opened = body
            if former.version and body.version and former.version != body.version:
                raise OriginChangedError(f"{self._doing}: the file changed while it was read")
            logger.info("origin.resumed", extra={"doing": self._doing, "byte": start})
            await self._skip(position)
            return
        raise failure


class _Body:
    """The body of an answer, and how far into the file it has come."""

    def __init__(
        self,
        answer: aiohttp.ClientResponse,
        position: int,
        stop: int,
        took: Callable[[int], Awaitable[None]] | None,
        asked_s: float,
        *,
        is_whole: bool,
    ) -> None:
        """`took` hears of bytes where they are counted, and waits until there may be more."""
        self.position = position
        self.is_whole = is_whole
        self.asked_s = asked_s
        self.version = _version_of(answer)
        self.place = str(answer.url)
        self._took = took
        self._fresh = 0
        """Bytes that came, and were not counted yet."""
        self._start = position
        self._stop = stop
        self._answer = answer
        self.is_html = answer.content_type == "text/html"
        self._rest = memoryview(b"")
        self._low_water = LowWater(_socket_of(answer))
        # A body may be shorter than its range says, and its connection be kept all the same.
        length = answer.content_length
        self._told_stop = stop if length is None else min(stop, position + length)

    @property
    def has_bytes(self) -> bool:
        """`next` need not wait."""
        return bool(self._rest)

    async def next(self, bytes_max: int) -> memoryview:
        """Wait for some bytes, at most so many; none at the end."""
        if not self._rest:
            self._low_water.expect(self.position - self._start, self._told_stop - self.position)
            self._rest = memoryview(await self._answer.content.readany())
            self._fresh = len(self._rest)
        data, self._rest = self._rest[:bytes_max], self._rest[bytes_max:]
        self.position += len(data)
        if self.position == self._stop:
            self._low_water.end()
        return data

    @property
    def fresh(self) -> int:
        """How many bytes came by the latest `next` that waited."""
        return self._fresh

    async def count(self) -> None:
        """Count what came; wait until there may be more."""
        fresh, self._fresh = self._fresh, 0
        if self._took is not None and fresh:
            await self._took(fresh)

    def close(self) -> None:
        """Keep the connection if the answer was read to its end, else drop it."""
        self._low_water.end()
        self._answer.release()


def _socket_of(answer: aiohttp.ClientResponse) -> Socket | None:
    connection = answer.connection
    if connection is None or connection.transport is None:
        return None  # All of it came with the headers.
    return cast("Socket | None", connection.transport.get_extra_info("socket"))


@dataclass(frozen=True, slots=True, repr=False)
class _Parked:
    url: str
    version: str
    access: Authorizer
    body: _Body
    expiry: asyncio.TimerHandle

    def close(self) -> None:
        self.expiry.cancel()
        self.body.close()


def _host_of(place: URL) -> str:
    """What budgets know a host by: servers on other ports are others."""
    return place.host_port_subcomponent or ""


def shown(url: str) -> str:
    """Show a URL to people: whatever its query says may be a secret."""
    return url.partition("?")[0]


@contextmanager
def _told(doing: str) -> Generator[None]:
    """Tell what went wrong while `doing`, without any text of aiohttp's that repeats a URL."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise OriginUnavailableError(f"{doing}: no connection in time") from None
    except aiohttp.ServerTimeoutError:
        raise OriginUnavailableError(f"{doing}: the origin fell silent") from None
    except TimeoutError:
        raise OriginUnavailableError(f"{doing}: the origin takes too long to answer") from None
    except aiohttp.InvalidURL:
        raise RemoteProtocolError(f"{doing}: redirected to what is no HTTP address") from None
    except aiohttp.ClientHttpProxyError as exc:
        kind = OriginDeniedError if exc.status in {403, 407} else OriginUnavailableError
        raise kind(f"{doing}: the proxy answered {exc.status}") from None
    except aiohttp.ClientResponseError as exc:
        raise RemoteProtocolError(f"{doing}: not HTTP: {exc.message[:120]!a}") from None
    except aiohttp.ClientPayloadError:
        raise OriginUnavailableError(f"{doing}: the origin broke off") from None
    except aiohttp.ClientConnectorError as exc:
        # Its own text speaks of aiohttp's settings, and repeats its cause.
        cause: Exception
        if isinstance(exc, aiohttp.ClientConnectorCertificateError):
            cause = exc.certificate_error  # It has no other.
        else:
            cause = exc.os_error
        where = f"[{exc.host}]" if ":" in exc.host else exc.host
        raise OriginUnavailableError(f"{doing}: no connection to {where}:{exc.port}") from cause
    except OSError as exc:
        raise OriginUnavailableError(doing) from exc
    except aiohttp.ClientError as exc:
        raise OriginUnavailableError(f"{doing}: {type(exc).__name__}") from None


def _redirected(answer: aiohttp.ClientResponse, place: URL, doing: str) -> URL | None:
    """Where an answer sends us; None: nowhere, it is one."""
    location = location_of(answer)
    return redirected(place, location, doing) if location else None


def location_of(answer: Answer | aiohttp.ClientResponse) -> str:
    """Where an answer sends whoever asked, as it says it; empty: nowhere."""
    return answer.headers.get("Location", "") if answer.status in _REDIRECTS else ""


def redirected(place: URL, location: str, doing: str) -> URL:
    """The address that `place` redirects to, if it is one that may be followed.

    Raises:
        OriginDeniedError: it is less safe than `place`.
        RemoteProtocolError: it is no HTTP address.
    """
    try:
        # A signature may be of the very bytes of the address: another spelling could break it.
        is_spelt = location.isascii() and location.isprintable() and " " not in location
        target = place.join(URL(location, encoded=is_spelt)).with_user(None).with_fragment(None)
        is_web = target.scheme in {"http", "https"} and bool(target.host)
    except ValueError:
        is_web, target = False, place
    if not is_web:
        raise RemoteProtocolError(f"{doing}: redirected to what is no HTTP address")
    if place.scheme == "https" != target.scheme:
        raise OriginDeniedError(f"{doing}: redirected from https to {target.scheme}")
    return target


def check_status(answer: Answer | aiohttp.ClientResponse, doing: str) -> None:
    """Raise what the status of an answer means, as the origin port says; nothing where it is one.

    Raises:
        OriginDeniedError, OriginNotFoundError, OriginUnavailableError, OriginChangedError,
        RemoteProtocolError
    """
    status = answer.status
    said = f"{doing}: the origin answered {status}"
    match status:
        case 200 | 201 | 202 | 204 | 206:
            return
        case 401 | 403 | 407:
            raise OriginDeniedError(said)
        case 404 | 410:
            raise OriginNotFoundError(said)
        case 412:
            raise OriginChangedError(f"{doing}: it is not the version that was planned any more")
        case 429:
            raise OriginBusyError(said)
        case _ if status in _RETRY_LATER or status >= 500:
            raise OriginUnavailableError(said)
        case 400:
            raise AnsweredError(said)
        case _:
            raise RemoteProtocolError(said)


def _range_of(
    answer: aiohttp.ClientResponse, doing: str
) -> tuple[int | None, int | None, int | None]:
    """Read which bytes the body is: first, last, and the size of the file, as far as it is said."""
    if answer.status == 200:
        length = answer.headers.get("Content-Length", "")
        size = int(length) if _LENGTH.fullmatch(length) else None
        return 0, None, size
    if answer.status not in {206, 416}:
        return None, None, None
    text = answer.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None or (answer.status == 206) != (match[1] is not None):
        raise RemoteProtocolError(f"{doing}: {answer.status} with the Content-Range {text[:80]!a}")
    first, last, total = (
        int(group) if group is not None and group != "*" else None for group in match.groups()
    )
    return first, last, total


def _version_of(answer: aiohttp.ClientResponse) -> str:
    if etag := answer.headers.get("ETag", "").strip():
        version = f"etag:{etag}"
    elif modified := answer.headers.get("Last-Modified", "").strip():
        version = f"modified:{modified}"
    else:
        return ""
    # One that is long or strange is still one version: only sameness counts.
    if len(version) > VERSION_CHARS_MAX or not version.isprintable():
        kind = version.partition(":")[0]
        return f"{kind}:{Digest.of(version.encode(errors='surrogateescape'))}"
    return version


def _check_version(answer: aiohttp.ClientResponse, version: str, url: str) -> None:
    found = _version_of(answer)
    kind = version.partition(":")[0]
    # An answer that says nothing of this kind proves nothing.
    if version and found.startswith(f"{kind}:") and found != version:
        raise OriginChangedError(
            f"{shown(url)} changed after it was planned: it was {version}, it is {found}"
        )


def _measured(answer: aiohttp.ClientResponse, size: int) -> Measured:
    return Measured(size, _version_of(answer), str(answer.url), answer.content_type == "text/html")
