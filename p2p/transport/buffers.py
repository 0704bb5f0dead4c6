"""Buffers for chunks: anonymous memory, used again and again.

Bytes that have not been verified live here and nowhere else, so the pool's size bounds what a pull
holds in memory. The memory is mapped anonymously: it goes back to the kernel as a whole, and a
buffer's pages are touched once, not once per chunk (a first touch costs more than the copy).

A buffer is held while its bytes come, and an origin may let them trickle. So those who read origins
have a `BufferShare` each: whoever holds many gets no more before others had theirs, and all of them
together leave room for what peers bring.
"""

import asyncio
import mmap
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

_SPARE_PARTS = 8
"""One buffer of so many, and at least one, is for what comes by no share."""


class BufferShare:
    """What one of several holds of a pool: never more than what is left to all of them.

    So the first one gets half, the next half of the rest, and they meet at equal parts as buffers
    come back; who holds none is served as long as there is one.
    """

    def __init__(self, pool: "BufferPool") -> None:
        self.held = 0
        self._pool = pool

    def __repr__(self) -> str:
        return f"<BufferShare {self.held} of {self._pool!r}>"

    @asynccontextmanager
    async def buffer(
        self, length: int, waits: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> AsyncGenerator[memoryview]:
        """Wait for a buffer; `waits` is entered meanwhile."""
        async with self._pool.buffer(length, self, waits) as view:
            yield view


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
        self._shared = 0
        """How many are held by shares."""
        self._shared_max = count - max(1, count // _SPARE_PARTS) if count > 1 else 1
        self._waiters: deque[tuple[BufferShare | None, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<BufferPool {self.taken} of {self.count} taken, {self.buffer_bytes} bytes each>"

    @asynccontextmanager
    async def buffer(
        self,
        length: int | None = None,
        share: BufferShare | None = None,
        waits: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> AsyncGenerator[memoryview]:
        """Wait for a buffer; give its first `length` bytes (all of it by default)."""
        length = self.buffer_bytes if length is None else length
        assert 0 <= length <= self.buffer_bytes, "a chunk larger than the pool's buffers"
        await self._take(share, waits)
        memory = self._idle.pop() if self._idle else self._make()
        whole = memoryview(memory)
        view = whole[:length]
        try:
            yield view
        finally:
            self._give_back(share)
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

    async def _take(
        self, share: BufferShare | None, waits: Callable[[], AbstractContextManager[None]]
    ) -> None:
        # Whoever waits may not have one: nobody is overtaken who could go on.
        if self._may_take(share):
            self._count(share, 1)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiters.append((share, turn))
        try:
            with waits():
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._give_back(share)  # It was ours, and we are not there any more.
            else:
                self._waiters.remove((share, turn))
            raise

    def _may_take(self, share: BufferShare | None) -> bool:
        if self.taken == self.count:
            return False
        return share is None or share.held < self._shared_max - self._shared

    def _give_back(self, share: BufferShare | None) -> None:
        self._count(share, -1)
        for waiter in list(self._waiters):
            if self.taken == self.count:
                break
            if self._may_take(waiter[0]) and not waiter[1].done():
                self._waiters.remove(waiter)
                self._count(waiter[0], 1)
                waiter[1].set_result(None)

    def _count(self, share: BufferShare | None, change: int) -> None:
        self.taken += change
        if share is not None:
            share.held += change
            self._shared += change

    def _make(self) -> mmap.mmap:
        self._made += 1
        assert self._made <= self.count
        return mmap.mmap(-1, self.buffer_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
