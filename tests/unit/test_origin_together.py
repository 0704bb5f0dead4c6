"""Many small things at once, but not all of them."""

import asyncio
from functools import partial

import pytest

from damselfly.errors import HeaderError, ManifestError, explain
from damselfly.origin.together import together


async def test_results_come_in_the_order_of_the_work_and_never_too_many_at_once() -> None:
    at_once = most = 0

    async def job(number: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(number % 3):
            await asyncio.sleep(0)
        at_once -= 1
        return number

    assert await together([partial(job, number) for number in range(20)], 3) == list(range(20))
    assert most == 3


async def test_the_first_failure_ends_the_rest_and_is_raised_with_its_cause() -> None:
    ended = asyncio.Event()

    async def fails() -> None:
        raise HeaderError("the failure") from ManifestError("the cause")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(HeaderError) as caught:
        await together([waits, fails], 2)

    assert explain(caught.value) == "the failure: the cause"
    assert ended.is_set()


async def test_nothing_to_do_is_done() -> None:
    assert await together([], 4) == []
