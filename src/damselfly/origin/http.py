"""`http://` and `https://`: a server of files. `survey.py` finds out what there is."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin import survey
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.port import OriginLimits, Resolved
from damselfly.origin.web import HTTPStream, Measured, Page, Wanted, Web


class HTTPOrigin:
    """Files behind HTTP. Belongs to one event loop.

    Without a `web` that it shares with other origins it has its own.
    """

    shared = True

    def __init__(self, limits: OriginLimits, web: Web | None = None) -> None:
        self._is_own = web is None
        self._web = web or Web(limits)
        self._limits = limits

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """Find the files behind `ref` and cut them; see `Origin`."""
        return await survey.survey(_Asker(self._web, access), ref.unpinned, self._limits)

    async def prove(self, ref: Ref, file: PlannedFile, access: Access) -> None:
        """Prove that `access` may read a file, by its head or one byte of it; see `Origin`."""
        await self._web.measure(_location(ref, file.path), access)

    @asynccontextmanager
    async def open(
        self,
        ref: Ref,
        file: PlannedFile,
        start: int,
        stop: int,
        access: Access = ANONYMOUS,
    ) -> AsyncGenerator[HTTPStream]:
        """Read a span of a file; see `Origin`."""
        url = _location(ref, file.path)
        wanted = Wanted(url, file.bytes, file.version, start, stop, access)
        async with self._web.span(wanted) as stream:
            yield stream

    async def close(self) -> None:
        """Close the web, if it is its own."""
        if self._is_own:
            await self._web.close()


@dataclass(frozen=True, slots=True)
class _Asker:
    """The web as one who shows `access` sees it: what a survey asks."""

    web: Web
    access: Access

    async def page(self, url: str, bytes_max: int) -> Page:
        return await self.web.page(url, bytes_max, self.access)

    async def measure(self, url: str) -> Measured:
        return await self.web.measure(url, self.access)

    async def read(self, url: str, size: int, version: str, start: int, stop: int) -> bytes:
        return await self.web.read(Wanted(url, size, version, start, stop, self.access))


def _location(ref: Ref, path: str) -> str:
    # A ref without a slash at the end is a file, unless the plan says otherwise.
    if ref.is_directory or ref.name != path:
        return ref.as_directory.file_location(path)
    return ref.location
