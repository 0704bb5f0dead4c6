"""One step at a time for each key, whoever hangs up."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from damselfly.csi.exclusive import Exclusive


@pytest.fixture
async def exclusive() -> AsyncIterator[Exclusive]:
    async with Exclusive(2) as exclusive:
        yield exclusive


async def test_steps_of_one_key_come_one_after_another(exclusive: Exclusive) -> None:
    running = 0
    most = 0

    async def step() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await asyncio.gather(*(exclusive.step("k", step) for _ in range(10)))

    assert most == 1
    assert exclusive._locks == {}


async def test_steps_of_other_keys_do_not_wait(exclusive: Exclusive) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        await held.wait()

    async def let_go() -> None:
        held.set()

    await asyncio.wait_for(
        asyncio.gather(exclusive.step("a", hold), exclusive.step("b", let_go)), 5
    )


async def test_a_step_whose_caller_hung_up_is_finished_before_the_next(
    exclusive: Exclusive,
) -> None:
    may_end = threading.Event()
    done: list[str] = []

    async def slow() -> None:
        await exclusive.work(may_end.wait)
        done.append("first")

    async def next_one() -> None:
        done.append("second")

    first = asyncio.create_task(exclusive.step("k", slow))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(exclusive.step("k", next_one))
    await asyncio.sleep(0)
    may_end.set()
    await second

    assert done == ["first", "second"]


async def test_an_error_is_the_callers_and_ends_nothing_else(exclusive: Exclusive) -> None:
    async def fail() -> None:
        raise ValueError("mine")

    async def succeed() -> int:
        return 3

    with pytest.raises(ValueError, match="mine"):
        await exclusive.step("k", fail)

    assert await exclusive.step("k", succeed) == 3


async def test_an_error_that_nobody_waits_for_is_logged(
    exclusive: Exclusive, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("mine")

    async def nothing() -> None:
        return

    exclusive.start("k", fail)
    await exclusive.step("k", nothing)

    assert [record.message for record in caplog.records] == ["step.failed"]
