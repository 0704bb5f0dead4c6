"""How aiohttp resolves the names of origins: as the machine does, less what is forbidden.

The machine's look-ups block a thread, cannot be cancelled, and take as long as a name server likes.
So they have threads of their own: nothing else waits behind a name whose server never answers. Who
asks for a name that is being looked up waits for that look-up. Names that were found before have a
few threads for themselves, so that new ones, of which anybody can make up any number, do not end
the pulls under way; and new names of one domain have only some of the others.
"""

import asyncio
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from aiohttp.abc import AbstractResolver, ResolveResult

from damselfly.errors import OriginUnavailableError
from damselfly.origin.link_local import denied, is_forbidden

LOOKUP_S = 10.0
"""Two name servers, asked twice for 2 s each, and a little: who is slower serves no origin."""
NEW_THREADS = 32
KNOWN_THREADS = 4
NEIGHBOURS_MAX = 4
"""New names of one domain (their last two labels) that are looked up at once: who makes up names
seldom has more than a few domains, each with a server that never answers."""
LOOKUPS_MAX = 256
"""Under way or waiting; more than there may be pulls that begin at once."""
KNOWN_MAX = 1024

_Found = list[tuple[socket.AddressFamily, int, str]]
"""Family, protocol and address."""


_Key = tuple[str, socket.AddressFamily]


@dataclass
class _Lookup:
    """One look-up, and how many wait for it."""

    waiting: int = 0
    task: asyncio.Task[_Found] | None = None
    job: Future[_Found] | None = None
    """What a thread does, or will do."""

    def drop(self) -> bool:
        """Nobody waits any more: if no thread has begun, none needs to. Tells whether it ends."""
        is_running = self.job is not None and not self.job.cancel()
        return not is_running and self.task is not None and self.task.cancel()


class HostNames(AbstractResolver):
    """Names by the machine's own resolver. Belongs to one event loop."""

    def __init__(self, lookup_s: float | None = None) -> None:
        self._lookup_s = LOOKUP_S if lookup_s is None else lookup_s
        self._new = ThreadPoolExecutor(NEW_THREADS, "names")
        self._again = ThreadPoolExecutor(KNOWN_THREADS, "known-names")
        self._known: dict[str, None] = {}
        self._lookups: dict[_Key, _Lookup] = {}
        self._turns = WeakValueDictionary[str, asyncio.Semaphore]()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses behind a name, where a model may live.

        Raises:
            OriginDeniedError: there are only others.
            OriginUnavailableError: it takes too long, or too many names are looked up.
            OSError: the name is unknown.
        """
        try:
            async with asyncio.timeout(self._lookup_s):
                found = await self._joined((host, family))
        except TimeoutError:
            raise OriginUnavailableError(
                f"looking up the host {host[:80]!r}: no answer in {self._lookup_s:g} s"
            ) from None
        except UnicodeError:
            # A redirect may name what no name server could: an empty label, or one too long.
            raise OSError(f"{host[:80]!r} is no name of a host") from None
        allowed = [each for each in found if not is_forbidden(each[2])]
        if found and not allowed:
            raise denied(host, found[0][2])
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, proto, address in allowed
        ]

    async def _joined(self, key: _Key) -> _Found:
        """Wait for a look-up, with all others who want it."""
        lookup = self._lookups.get(key)
        if lookup is None:
            if len(self._lookups) >= LOOKUPS_MAX:
                raise OriginUnavailableError(
                    f"looking up the host {key[0][:80]!r}: {LOOKUPS_MAX} other names are looked up"
                )
            lookup = self._lookups[key] = _Lookup()
            lookup.task = asyncio.create_task(self._found(key, lookup))
            lookup.task.add_done_callback(partial(self._ended, key, lookup))
        assert lookup.task is not None
        lookup.waiting += 1
        try:
            return await asyncio.shield(lookup.task)
        finally:
            lookup.waiting -= 1
            if not lookup.waiting and lookup.drop():
                self._lookups.pop(key, None)  # Whoever comes next begins anew.

    async def _found(self, key: _Key, lookup: _Lookup) -> _Found:
        host, family = key
        if host in self._known:
            lookup.job = self._again.submit(_found, host, family)
            return await asyncio.wrap_future(lookup.job)
        domain = ".".join(host.rstrip(".").lower().rsplit(".", 2)[-2:])
        turn = self._turns.setdefault(domain, asyncio.Semaphore(NEIGHBOURS_MAX))
        async with turn:
            lookup.job = self._new.submit(_found, host, family)
            return await asyncio.wrap_future(lookup.job)

    def _ended(self, key: _Key, lookup: _Lookup, task: asyncio.Task[_Found]) -> None:
        if self._lookups.get(key) is lookup:
            del self._lookups[key]
        host = key[0]
        self._known.pop(host, None)
        # Asking for the failure marks it as seen: those who waited may be gone.
        if task.cancelled() or task.exception() is not None:
            return
        self._known[host] = None
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]

    async def close(self) -> None:
        """Look up no more; threads end when theirs is done."""
        for lookup in self._lookups.values():
            lookup.drop()
        for threads in (self._new, self._again):
            threads.shutdown(wait=False, cancel_futures=True)


def _found(host: str, family: socket.AddressFamily) -> _Found:
    entries = socket.getaddrinfo(
        host, 0, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [(kind, proto, str(address[0])) for kind, _, proto, _, address in entries]
