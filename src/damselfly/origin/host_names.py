"""How aiohttp resolves the names of origins: as the machine does, less what is forbidden.

The machine's look-ups block a thread, cannot be cancelled, and take as long as a name server likes.
So they have threads of their own: nothing else waits behind a name whose server never answers. Who
asks for a name that is being looked up waits for that look-up. Names that were found before have a
few threads for themselves, so that new ones, of which anybody can make up any number, do not end
the pulls under way.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from damselfly.errors import OriginUnavailableError
from damselfly.origin.link_local import denied, is_forbidden

LOOKUP_S = 10.0
"""Two name servers, asked twice for 2 s each, and a little: who is slower serves no origin."""
NEW_THREADS = 8
KNOWN_THREADS = 4
LOOKUPS_MAX = 256
"""Under way or waiting; more than there may be pulls that begin at once."""
KNOWN_MAX = 1024

_Found = list[tuple[socket.AddressFamily, int, str]]
"""Family, protocol and address."""


class HostNames(AbstractResolver):
    """Names by the machine's own resolver. Belongs to one event loop."""

    def __init__(self, lookup_s: float | None = None) -> None:
        self._lookup_s = LOOKUP_S if lookup_s is None else lookup_s
        self._new = ThreadPoolExecutor(NEW_THREADS, "names")
        self._again = ThreadPoolExecutor(KNOWN_THREADS, "known-names")
        self._known: dict[str, None] = {}
        self._lookups: dict[tuple[str, socket.AddressFamily], asyncio.Future[_Found]] = {}

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
                # Others may wait for the same, and its thread ends no sooner.
                found = await asyncio.shield(self._lookup(host, family))
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

    def _lookup(self, host: str, family: socket.AddressFamily) -> "asyncio.Future[_Found]":
        key = host, family
        lookup = self._lookups.get(key)
        if lookup is not None:
            return lookup
        if len(self._lookups) >= LOOKUPS_MAX:
            raise OriginUnavailableError(
                f"looking up the host {host[:80]!r}: {LOOKUPS_MAX} other names are looked up"
            )
        threads = self._again if host in self._known else self._new
        work: Callable[[], _Found] = partial(_found, host, family)
        lookup = asyncio.get_running_loop().run_in_executor(threads, work)
        self._lookups[key] = lookup
        lookup.add_done_callback(partial(self._ended, key))
        return lookup

    def _ended(
        self, key: tuple[str, socket.AddressFamily], lookup: "asyncio.Future[_Found]"
    ) -> None:
        del self._lookups[key]
        host = key[0]
        self._known.pop(host, None)
        # Asking for the failure marks it as seen: those who waited may be gone.
        if lookup.cancelled() or lookup.exception() is not None:
            return
        self._known[host] = None
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]

    async def close(self) -> None:
        """Look up no more; threads end when theirs is done."""
        for threads in (self._new, self._again):
            threads.shutdown(wait=False, cancel_futures=True)


def _found(host: str, family: socket.AddressFamily) -> _Found:
    entries = socket.getaddrinfo(
        host, 0, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [(kind, proto, str(address[0])) for kind, _, proto, _, address in entries]
