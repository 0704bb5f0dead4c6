"""`http://` and `https://`: a server of files. `survey.py` finds out what there is."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from damselfly.errors import OriginDeniedError
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin import survey
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.port import OriginLimits, Resolved
from damselfly.origin.web import HTTPStream, Measured, Page, Wanted, Web, shown


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
        """Prove that `access` may read a file, by a byte of it; see `Origin`.

        Heads are answered by servers that would not hand out the file, and a page that asks people
        to log in has the status of a file.
        """
        url = _location(ref, file.path)
        if not file.bytes:
            page = await self._web.page(url, 0, access)
            is_html = page.is_html
        else:
            data = bytearray(1)
            wanted = Wanted(url, file.bytes, file.version, 0, 1, access)
            async with self._web.span(wanted) as stream:
                await stream.readinto(memoryview(data))
                is_html = stream.is_html
        if is_html and not file.path.lower().endswith((".html", ".htm", ".xhtml")):
            raise OriginDeniedError(f"{shown(url)} is a page, and not the file that was planned")

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
