"""One step at a time for each key, and no step left half done because its caller hung up."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Exclusive:
    """Runs steps in tasks of its own while the context is entered. Belongs to one event loop.

    The kubelet cancels a call at its deadline, and the wire tells us by cancelling the handler.
    A step that mounts or unmounts goes on regardless, and keeps its key until it is done.
    """

    def __init__(self, threads: int) -> None:
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="mounting")
        self._tasks = asyncio.TaskGroup()
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._tasks.__aexit__(exc_type, exc, traceback)
        finally:
            self._workers.shutdown()

    async def work(self, blocking: Callable[[], T]) -> T:
        """Run what blocks in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, blocking)

    async def step(self, key: str, run: Callable[[], Awaitable[T]]) -> T:
        """Run one step when it is this key's turn; cancelling the caller does not stop it."""
        # An exception in a task of a group would end the whole group: it is handed over instead.
        result, error = await asyncio.shield(self._tasks.create_task(self._caught(key, run)))
        if error is not None:
            raise error
        assert result is not None
        return result[0]

    def start(self, key: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a step that nobody waits for; what goes wrong is logged."""
        self._tasks.create_task(self._alone(key, run))

    async def _alone(self, key: str, run: Callable[[], Awaitable[None]]) -> None:
        _, error = await self._caught(key, run)
        if error is not None:
            logger.warning("step.failed", extra={"target_path": key, "error": error})

    async def _caught(
        self, key: str, run: Callable[[], Awaitable[T]]
    ) -> tuple[tuple[T] | None, Exception | None]:
        async with self._turn(key):
            try:
                return (await run(),), None
            except Exception as exc:
                return None, exc

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncGenerator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1
