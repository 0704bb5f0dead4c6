"""Blocking questions, in threads that a process does not wait for when it ends.

The client of the agent blocks, for up to a minute if the agent hangs. A thread of a pool would be
joined at exit, and SIGTERM would take that minute too.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def in_background(run: Callable[[], None]) -> None:
    """Run in a thread of its own; `run` tells by itself how it ended."""
    threading.Thread(target=run, name="asking", daemon=True).start()


async def answered(question: Callable[[], T]) -> T:
    """Ask in a thread; cancelling the caller does not stop it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Callable[[], T]] = loop.create_future()

    def run() -> None:
        outcome = _outcome(question)
        with suppress(RuntimeError):  # The loop is closed: nobody is left to tell.
            loop.call_soon_threadsafe(_tell, future, outcome)

    in_background(run)
    return (await future)()


def _outcome(question: Callable[[], T]) -> Callable[[], T]:
    """The answer, or the error, to be had by calling it."""
    try:
        answer = question()
    except Exception as exc:
        error = exc

        def fail() -> T:
            raise error

        return fail
    return lambda: answer


def _tell(future: "asyncio.Future[Callable[[], T]]", outcome: Callable[[], T]) -> None:
    if not future.cancelled():
        future.set_result(outcome)
