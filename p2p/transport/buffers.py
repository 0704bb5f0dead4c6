"""Buffers for chunks: anonymous memory, used again and again.

Bytes that have not been verified live here and nowhere else, so the pool's size bounds what a pull
holds in memory. The memory is mapped anonymously: it goes back to the kernel as a whole, and a
buffer's pages are touched once, not once per chunk (a first touch costs more than the copy).
"""

import asyncio
import mmap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class BufferPool:
    """At most `count` buffers of `buffer_bytes` each; belongs to one event loop.

    Buffers are made when first wanted and handed out last in, first out, so that few are warm.
    """

    def __init__(self, count: int, buffer_bytes: int) -> None:
        assert count > 0
        assert buffer_bytes > 0
        self.count = count
        self.buffer_bytes = buffer_bytes
        self.taken = 0
        self._idle: list[mmap.mmap] = []
        self._made = 0
        self._slots = asyncio.Semaphore(count)

    def __repr__(self) -> str:
        return f"<BufferPool {self.taken} of {self.count} taken, {self.buffer_bytes} bytes each>"

    @asynccontextmanager
    async def buffer(self, length: int | None = None) -> AsyncGenerator[memoryview]:
        """Wait for a buffer; give its first `length` bytes (all of it by default)."""
        length = self.buffer_bytes if length is None else length
        assert 0 <= length <= self.buffer_bytes, "a chunk larger than the pool's buffers"
        await self._slots.acquire()
        memory = self._idle.pop() if self._idle else self._make()
        self.taken += 1
        whole = memoryview(memory)
        view = whole[:length]
        try:
            yield view
        finally:
            self.taken -= 1
            self._slots.release()
            try:
                view.release()
                whole.release()
                # Slices of the view do not keep it from being released, but they keep the mapping
                # from being resized: even to the size that it has.
                memory.resize(self.buffer_bytes)
            except BufferError:
                # A thread of a cancelled task still reads these bytes. It may finish in peace:
                # nobody else gets this buffer, and the next one is a new one.
                self._made -= 1
            else:
                self._idle.append(memory)

    def _make(self) -> mmap.mmap:
        self._made += 1
        assert self._made <= self.count
        return mmap.mmap(-1, self.buffer_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
