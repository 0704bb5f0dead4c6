"""How aiohttp resolves the names of origins: as the machine does, less what is forbidden."""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from damselfly.origin.link_local import denied, is_forbidden


class HostNames(AbstractResolver):
    """Names by the machine's own resolver. Belongs to one event loop."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses behind a name, where a model may live.

        Raises:
            OriginDeniedError: there are only others.
            OSError: the name is unknown.
        """
        try:
            found = await self._resolver.resolve(host, port, family)
        except UnicodeError:
            # A redirect may name what no name server could: an empty label, or one too long.
            raise OSError(f"{host[:80]!r} is no name of a host") from None
        allowed = [each for each in found if not is_forbidden(each["host"])]
        if found and not allowed:
            raise denied(host, found[0]["host"])
        return allowed

    async def close(self) -> None:
        """Nothing is held."""
