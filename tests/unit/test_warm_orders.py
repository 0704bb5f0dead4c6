"""Orders on the node that takes them: one pull, kept when it has come, whoever goes on watching."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from damselfly.agent.orders import OrderLimits, Orders, Running
from damselfly.client.answers import PullRequest
from damselfly.errors import (
    CancelledError,
    OriginDeniedError,
    StoreFullError,
    UnavailableError,
    UsageError,
)
from damselfly.p2p.orders import Order
from tests.fakes.puller import FakePuller

ORDER = Order(ref="https://host/models/x/", include=("*.json",))
REQUEST = PullRequest(ref=ORDER.ref, include=ORDER.include)


class Desk:
    """Orders of a fake node, and the outcomes that were counted."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.node = FakePuller()
        self.counted: list[str] = []
        limits = OrderLimits(orders_max=2, tell_interval_s=0.005)
        self.orders = Orders(self.node, tasks, self.counted.append, limits)

    async def until_pulling(self) -> None:
        await until(lambda: self.node.is_pulling(REQUEST))


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as tasks:
        desk = Desk(tasks)
        yield desk
        desk.node.release()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def ended(running: Running) -> None:
    async with asyncio.timeout(10):
        await running.ended.wait()


async def test_what_was_ordered_is_pulled_and_kept(desk: Desk) -> None:
    desk.node.release()

    running = desk.orders.take(Order(ref=ORDER.ref, ttl_s=60.0))
    await ended(running)

    assert running.pulled is not None
    assert desk.node.kept == [(False, running.order.lease_id, 60.0)]
    assert desk.counted == ["completed"]


async def test_the_same_order_is_joined_and_another_shares_its_pull(desk: Desk) -> None:
    first = desk.orders.take(ORDER)
    await desk.until_pulling()

    same = desk.orders.take(ORDER)
    pinned = desk.orders.take(Order(ref=ORDER.ref, include=ORDER.include, pin=True))
    await until(lambda: desk.node.watchers.get(REQUEST) == 2)
    desk.node.release()
    await ended(first)
    await ended(pinned)

    assert same is first
    assert (first.is_owner, pinned.is_owner) == (True, False)
    assert desk.node.pull_count == 1
    assert desk.counted == ["completed", "completed"]


async def test_watchers_are_told_how_far_it_is_until_it_has_ended(desk: Desk) -> None:
    running = desk.orders.take(ORDER)
    await desk.until_pulling()
    moments = desk.orders.watch(running)

    first = await anext(moments)
    desk.node.release()
    rest = [moment async for moment in moments]

    assert first.bytes_done == 1
    assert rest
    assert running.ended.is_set()


async def test_what_is_evicted_before_it_could_be_kept_is_pulled_again(desk: Desk) -> None:
    desk.node.evictions = 2
    desk.node.release()

    running = desk.orders.take(ORDER)
    await ended(running)

    assert running.pulled is not None
    assert desk.node.pull_count == 3


async def test_what_is_evicted_each_time_has_no_room(desk: Desk) -> None:
    desk.node.evictions = 99
    desk.node.release()

    running = desk.orders.take(ORDER)
    await ended(running)

    assert isinstance(running.failure, StoreFullError)
    assert desk.node.pull_count == desk.orders.limits.attempts_max
    assert desk.counted == ["failed"]


async def test_what_the_pull_failed_of_is_what_the_order_failed_of(desk: Desk) -> None:
    desk.node.failure = OriginDeniedError("not for you")
    desk.node.release()

    running = desk.orders.take(ORDER)
    await ended(running)

    assert isinstance(running.failure, OriginDeniedError)


async def test_a_node_with_its_hands_full_says_not_now(desk: Desk) -> None:
    desk.orders.take(Order(ref="https://host/a"))
    desk.orders.take(Order(ref="https://host/b"))

    with pytest.raises(UnavailableError, match="2 orders"):
        desk.orders.take(Order(ref="https://host/c"))
    desk.orders.take(Order(ref="https://host/a"))


@pytest.mark.parametrize("state", ["starting", "draining"])
async def test_a_node_that_is_not_ready_says_not_now(desk: Desk, state: str) -> None:
    desk.node.state = state

    with pytest.raises(UnavailableError, match=state):
        desk.orders.take(ORDER)


async def test_what_is_no_ref_is_refused(desk: Desk) -> None:
    with pytest.raises(UsageError):
        desk.orders.take(Order(ref="nonsense"))


async def test_cancelling_ends_every_order_for_the_ref_and_their_pull(desk: Desk) -> None:
    first = desk.orders.take(ORDER)
    second = desk.orders.take(Order(ref=ORDER.ref, include=ORDER.include, ttl_s=9.0))
    await until(lambda: desk.node.watchers.get(REQUEST) == 2)

    was_running = await desk.orders.cancel(Order(ref=ORDER.ref, include=ORDER.include, pin=True))

    assert was_running
    assert isinstance(first.failure, CancelledError)
    assert isinstance(second.failure, CancelledError)
    assert desk.node.given_up == [REQUEST]
    assert desk.counted == ["cancelled", "cancelled"]
    assert not await desk.orders.cancel(ORDER)


async def test_cancelling_an_order_that_has_not_begun_ends_it(desk: Desk) -> None:
    running = desk.orders.take(ORDER)

    await desk.orders.cancel(ORDER)

    assert isinstance(running.failure, CancelledError)
    assert running.ended.is_set()


async def test_other_filters_are_another_order(desk: Desk) -> None:
    desk.orders.take(ORDER)

    assert not await desk.orders.cancel(Order(ref=ORDER.ref))


async def test_a_pull_that_ran_before_the_order_is_not_given_up(desk: Desk) -> None:
    pod = desk.node.pull(REQUEST)
    await anext(pod)
    running = desk.orders.take(ORDER)
    await until(lambda: desk.node.watchers.get(REQUEST) == 2)

    await desk.orders.cancel(ORDER)

    assert isinstance(running.failure, CancelledError)
    assert not running.is_owner
    assert desk.node.given_up == []
    assert desk.node.is_pulling(REQUEST)


def test_a_lease_is_named_by_the_ref_and_the_filters_alone() -> None:
    same = {
        Order(ref="r", include=("a",)).lease_id,
        Order(ref="r", include=("a",), pin=True).lease_id,
        Order(ref="r", include=("a",), ttl_s=9.0).lease_id,
    }
    others = {
        Order(ref="r").lease_id,
        Order(ref="r", exclude=("a",)).lease_id,
        Order(ref="s", include=("a",)).lease_id,
    }

    assert len(same) == 1
    assert len(others | same) == 4
    assert all(lease.startswith("warm-") and len(lease) == 69 for lease in others)
