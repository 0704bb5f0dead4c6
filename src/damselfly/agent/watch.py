"""Watching something that goes on whether it is watched or not."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

PROGRESS_INTERVAL_S = 0.2

_T = TypeVar("_T")


async def watched(ended: asyncio.Event, look: Callable[[], _T]) -> AsyncGenerator[_T]:
    """What `look` sees: at once, and then some times a second until it has ended."""
    while not ended.is_set():
        yield look()
        waiter = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait({waiter}, timeout=PROGRESS_INTERVAL_S)
        finally:
            waiter.cancel()
