"""Lines for one listener, who may be slow."""

import asyncio
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Lines(Generic[_T]):
    """At most so many lines that wait for one listener, who is cut off rather than waited for.

    Whoever is cut off comes back, and is told everything. Belongs to one event loop.
    """

    def __init__(self, waiting_max: int) -> None:
        self._queue: asyncio.Queue[_T | None] = asyncio.Queue(waiting_max)

    def put(self, line: _T) -> None:
        """Add a line, or cut the listener off if there is no room for it."""
        try:
            self._queue.put_nowait(line)
        except asyncio.QueueFull:
            self.cut()

    def cut(self) -> None:
        """End them; what waits is still told as far as there is room for the end."""
        while self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def next(self) -> _T | None:
        """Wait for the next line; None at the end."""
        return await self._queue.get()
