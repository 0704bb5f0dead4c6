"""Threads for work that blocks and writes into the caller's buffer."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Threads:
    """A pool of threads; whoever waits for work in it is only let go when the work has ended."""

    def __init__(self, thread_count: int) -> None:
        self._pool = ThreadPoolExecutor(thread_count, "origin")

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do `work` in a thread.

        A cancelled caller waits until the thread is done: it may be writing to a buffer that goes
        back to its pool as soon as we return.
        """
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()  # Seen: nobody is left to be told.
            raise

    def close(self) -> None:
        """Take no more work; threads end when theirs is done."""
        self._pool.shutdown(wait=False)
