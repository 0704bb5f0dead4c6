"""PeerPool: asks peers, over one connection each."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

from damselfly.errors import PeerUnavailableError, RemoteProtocolError, UsageError
from damselfly.p2p.transport.certificates import Certificates
from damselfly.p2p.transport.client import Ask, ClientEnd, Exchange, RefusedError
from damselfly.p2p.transport.exchange import HeaderPairs, Reply
from damselfly.p2p.transport.handshake import dialled
from damselfly.p2p.transport.limits import Limits
from damselfly.p2p.wire.headers import Headers

_ATTEMPTS = 3  # of a request that was refused unseen


class ReplyStream:
    """A reply that is read as it comes: by blocks (`async for`), or by `lines`."""

    def __init__(self, exchange: Exchange, limits: Limits) -> None:
        assert exchange.response is not None
        self.status = exchange.response.status
        self.headers = _regular(exchange.response.headers)
        self._exchange = exchange
        self._limits = limits

    def __repr__(self) -> str:
        return f"<ReplyStream {self.status} {self._exchange}>"

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.blocks()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Give bytes as they come, in blocks of any size.

        Raises:
            PeerUnavailableError: the stream stalled or broke off.
        """
        exchange = self._exchange
        while True:
            if exchange.data:
                block = bytes(exchange.data)
                exchange.data.clear()
                exchange.credit(len(block))
                yield block
            elif exchange.is_finished:
                return
            else:
                await exchange.wait()

    async def lines(self) -> AsyncIterator[bytes]:
        r"""Give lines without their `\n`; a last one that lacks it counts.

        Raises:
            PeerUnavailableError: the stream stalled or broke off.
            RemoteProtocolError: a line is longer than the limits allow.
        """
        rest = bytearray()
        async for block in self.blocks():
            rest += block
            *whole, tail = rest.split(b"\n")
            for line in whole:
                yield bytes(line)
            rest = tail
            if len(rest) > self._limits.line_bytes_max:
                raise RemoteProtocolError(f"{self._exchange}: a line that does not end")
        if rest:
            yield bytes(rest)


class PeerPool:
    """Connections to peers, dialled when first wanted; belongs to one event loop.

    An address has one connection. Callers who come while it is being dialled share the dial and its
    outcome. A request that the peer has not looked at (GOAWAY, REFUSED_STREAM) is sent again; any
    other failure is the caller's to judge. With `certificates` it speaks TLS, and nothing else.
    """

    def __init__(
        self, limits: Limits | None = None, certificates: Certificates | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._certificates = certificates
        # Least recently used first.
        self._ends: dict[str, ClientEnd] = {}
        # Every connection whose socket is open, those that take no more requests included.
        self._open: set[ClientEnd] = set()
        self._dials: dict[str, asyncio.Task[ClientEnd]] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<PeerPool {len(self._open)} connections, {len(self._dials)} being dialled>"

    @property
    def connection_count(self) -> int:
        """How many sockets are open."""
        return len(self._open)

    async def request(
        self,
        address: str,
        method: str,
        path: str,
        *,
        headers: HeaderPairs = (),
        body: bytes = b"",
        deadline_s: float,
    ) -> Reply:
        """Ask and gather the whole answer, in `deadline_s` at most.

        Raises:
            PeerUnavailableError: the peer cannot be reached, hung up, or took too long.
            RemoteProtocolError: it broke the rules, or sent too much.
        """
        ask = Ask(address=address, method=method, path=path, headers=tuple(headers), body=body)
        try:
            async with asyncio.timeout(deadline_s), self._exchange(ask) as exchange:
                gathered = await exchange.gather(self.limits.reply_bytes_max)
                return _reply_of(exchange, gathered)
        except TimeoutError as exc:
            raise PeerUnavailableError(f"{ask}: no answer for {deadline_s:g} s") from exc

    async def fetch_into(
        self,
        address: str,
        path: str,
        buffer: memoryview,
        *,
        headers: HeaderPairs = (),
        stall_s: float,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Reply:
        """GET a body straight into `buffer`; `Reply.length` says how much of it was filled.

        Only the body of a 200 or 206 goes there; another status has a small `Reply.body`. Nothing
        is written into `buffer` once this has returned or raised. `on_bytes` hears of new bytes.

        Raises:
            PeerUnavailableError: the peer cannot be reached, hung up, or stalled.
            RemoteProtocolError: it broke the rules, or sent more than fits.
        """
        ask = Ask(
            address=address,
            method="GET",
            path=path,
            headers=tuple(headers),
            sink=buffer,
            on_bytes=on_bytes,
        )
        async with self._exchange(ask, stall_s) as exchange:
            return _reply_of(exchange, await exchange.gather(self.limits.refusal_bytes_max))

    @asynccontextmanager
    async def stream(
        self,
        address: str,
        method: str,
        path: str,
        *,
        headers: HeaderPairs = (),
        body: bytes = b"",
        stall_s: float | None = None,
    ) -> AsyncGenerator[ReplyStream]:
        """Ask, and read the answer as it comes; leaving the block hangs up.

        Raises:
            PeerUnavailableError: the peer cannot be reached, hung up, or stalled.
            RemoteProtocolError: it broke the rules.
        """
        ask = Ask(address=address, method=method, path=path, headers=tuple(headers), body=body)
        async with self._exchange(ask, stall_s) as exchange:
            yield ReplyStream(exchange, self.limits)

    async def close(self) -> None:
        """Hang up on everybody; what is under way fails with PeerUnavailableError."""
        self._is_closed = True
        dials = list(self._dials.values())
        for dial in dials:
            dial.cancel()
        if dials:
            await asyncio.wait(dials)
        for end in list(self._open):
            end.driver.abort()

    # --- within -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _exchange(self, ask: Ask, stall_s: float | None = None) -> AsyncGenerator[Exchange]:
        """Open an exchange, wait until its response headers are here, and end it afterwards."""
        for attempt in range(1, _ATTEMPTS + 1):
            end = await self._connection(ask.address)
            try:
                async with asyncio.timeout(stall_s):
                    exchange = await end.open(ask)
            except TimeoutError as exc:
                raise PeerUnavailableError(f"{ask}: no stream for {stall_s:g} s") from exc
            except RefusedError:
                if attempt == _ATTEMPTS:
                    raise
                continue
            try:
                if stall_s is not None:
                    exchange.watch(stall_s)
                try:
                    await exchange.wait_response()
                except RefusedError:
                    if attempt == _ATTEMPTS:
                        raise
                    continue
                yield exchange
            finally:
                exchange.close()
            return

    async def _connection(self, address: str) -> ClientEnd:
        if self._is_closed:
            raise PeerUnavailableError(f"asking {address} with a pool that is closed")
        end = self._ends.pop(address, None)
        if end is not None and end.is_usable:
            self._ends[address] = end
            return end
        dial = self._dials.get(address)
        if dial is None:
            dial = asyncio.get_running_loop().create_task(self._dial(address))
            self._dials[address] = dial
            dial.add_done_callback(lambda done: self._dialled(address, done))
        try:
            return await asyncio.shield(dial)
        except asyncio.CancelledError:
            if dial.cancelled():
                raise PeerUnavailableError(f"dialling {address} was given up") from None
            raise

    def _dialled(self, address: str, dial: asyncio.Task[ClientEnd]) -> None:
        del self._dials[address]
        if not dial.cancelled():
            dial.exception()  # Those who waited have it; if nobody did, nobody misses it.

    async def _dial(self, address: str) -> ClientEnd:
        self._make_room()
        limits = self.limits
        try:
            async with asyncio.timeout(limits.connect_s):
                sock = await _connect(address)
                channel = await dialled(sock, address, self._certificates)
        except TimeoutError as exc:
            raise PeerUnavailableError(
                f"dialling {address}: no answer for {limits.connect_s:g} s"
            ) from exc
        except (OSError, UnicodeError, UsageError) as exc:
            # What is no address, or no name, is a peer that cannot be reached, and no bug of ours.
            raise PeerUnavailableError(f"dialling {address}") from exc
        scheme = "http" if self._certificates is None else "https"
        end = ClientEnd(address, channel, limits, self._gone, scheme=scheme)
        self._ends[address] = end
        self._open.add(end)
        return end

    def _make_room(self) -> None:
        """Close the connection that has not been used for longest, if there are too many."""
        if len(self._open) + len(self._dials) <= self.limits.pooled_max:
            return
        for end in self._ends.values():
            if end.is_idle and not end.core.is_leaving:
                end.driver.leave()
                return
        raise PeerUnavailableError(f"all {self.limits.pooled_max} connections are in use")

    def _gone(self, end: ClientEnd) -> None:
        self._open.discard(end)
        if self._ends.get(end.address) is end:
            del self._ends[end.address]


def split_address(address: str) -> tuple[str, int]:
    """Read `host:port`, or `[host]:port`.

    Raises:
        UsageError: it is neither.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{address!r} is no host:port")
    return host, int(port)


async def _connect(address: str) -> socket.socket:
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, target in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, target)
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(f"no address for {address}")


def _regular(headers: Headers) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if not name.startswith(":"))


def _reply_of(exchange: Exchange, body: bytes) -> Reply:
    assert exchange.response is not None
    response = exchange.response
    return Reply(response.status, _regular(response.headers), body, exchange.landed_bytes)
