"""Do many small things at once, but not all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


async def together(work: Iterable[Callable[[], Awaitable[_T]]], width: int) -> list[_T]:
    """Await the results of `work` in its order, at most `width` at a time.

    The first failure ends the rest and is raised as itself, not in a group.
    """
    jobs = list(work)
    results: dict[int, _T] = {}
    pending = iter(enumerate(jobs))

    async def worker(pending: Iterator[tuple[int, Callable[[], Awaitable[_T]]]]) -> None:
        for number, job in pending:
            results[number] = await job()

    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(width, len(jobs))):
                group.create_task(worker(pending))
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
    if failure is not None:
        raise failure  # Out here, so that it keeps its own cause and gets no context.
    return [results[number] for number in range(len(jobs))]
