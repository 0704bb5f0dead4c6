"""Shares of a pool of buffers: nobody holds so many that others get none."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest

from damselfly.p2p.transport import BufferPool, BufferShare


@pytest.fixture
async def held() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as held:
        yield held


async def _greedy(held: AsyncExitStack, share: BufferShare) -> None:
    """Somebody wants many buffers, and gives none back."""
    tasks = [asyncio.create_task(held.enter_async_context(share.buffer(1))) for _ in range(40)]
    held.callback(lambda: [task.cancel() for task in tasks])
    await asyncio.sleep(0)


async def test_one_share_holds_at_most_half_of_a_pool(held: AsyncExitStack) -> None:
    pool = BufferPool(24, 10)

    await _greedy(held, BufferShare(pool))

    assert pool.taken == 11


async def test_who_holds_none_is_served_after_others_took_what_they_could(
    held: AsyncExitStack,
) -> None:
    pool = BufferPool(24, 10)
    for _ in range(4):
        await _greedy(held, BufferShare(pool))

    async with (
        asyncio.timeout(10),
        BufferShare(pool).buffer(1),
        pool.buffer(),
        pool.buffer(),
        pool.buffer(),
    ):
        assert pool.taken <= pool.count


@pytest.mark.parametrize("count", [2, 4, 24])
async def test_shares_leave_room_for_what_comes_by_none(held: AsyncExitStack, count: int) -> None:
    pool = BufferPool(count, 10)
    for _ in range(count):
        await _greedy(held, BufferShare(pool))

    async with asyncio.timeout(10), pool.buffer():
        assert pool.taken <= count


async def test_a_buffer_that_comes_back_goes_to_who_may_have_it(held: AsyncExitStack) -> None:
    pool = BufferPool(4, 10)
    many, few = BufferShare(pool), BufferShare(pool)
    async with many.buffer(1):
        await _greedy(held, many)
        assert many.held == 2
        await _greedy(held, few)
        assert few.held == 1

    await asyncio.sleep(0)
    assert (many.held, few.held) == (1, 1)
    assert pool.taken == 2


async def test_who_is_cancelled_as_its_turn_comes_gives_it_on() -> None:
    pool = BufferPool(1, 10)
    async with pool.buffer():
        gone = asyncio.create_task(pool.buffer().__aenter__())
        next_one = asyncio.create_task(pool.buffer().__aenter__())
        await asyncio.sleep(0)
    gone.cancel()

    async with asyncio.timeout(10):
        assert len(await next_one) == 10
    with pytest.raises(asyncio.CancelledError):
        await gone
