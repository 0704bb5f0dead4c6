"""What a worker makes for a task: held by one of the two at every moment, never by neither."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


async def handed_over(workers: Executor, make: Callable[[], _T], close: Callable[[_T], None]) -> _T:
    """Run `make` in a worker; if the task is cancelled meanwhile, `close` what it makes.

    A call that has begun in a worker cannot be stopped: what it returns to a task that has gone
    would be held for as long as the process lives. It is closed in the worker that made it.
    """
    work = workers.submit(make)
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        work.add_done_callback(partial(_close_made, close))
        raise


def _close_made(close: Callable[[_T], None], work: "Future[_T]") -> None:
    if not work.cancelled() and work.exception() is None:
        close(work.result())
