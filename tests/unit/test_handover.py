"""What a worker makes for a task that is cancelled meanwhile."""

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from damselfly.clock import SystemClock
from damselfly.model.digest import Digest
from damselfly.p2p.handover import handed_over
from damselfly.p2p.homes import Homes
from damselfly.p2p.refs import RefHome
from damselfly.p2p.routes import HeldChunk, Routes, ServeLimits, Shelf
from damselfly.p2p.transport import FileBody, Request


class Making:
    """Something that is made when a test says so, and counts how often it is closed."""

    fd = 0
    offset = 0
    length = 1

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self.closed_by: list[str] = []

    def make(self) -> "Making":
        self.has_begun.set()
        assert self.may_end.wait(10)
        return self

    def close(self) -> None:
        self.closed_by.append(threading.current_thread().name)


@pytest.fixture
def workers() -> Generator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, thread_name_prefix="worker") as workers:
        yield workers


async def cancelled(task: asyncio.Task[object], making: Making) -> None:
    """Cancel a task while a worker makes something for it; then let that end."""
    await asyncio.to_thread(making.has_begun.wait, 10)
    task.cancel()
    await asyncio.wait({task})
    making.may_end.set()


async def test_what_is_made_for_a_task_that_has_gone_is_closed_in_the_worker(
    workers: ThreadPoolExecutor,
) -> None:
    making = Making()
    task = asyncio.create_task(handed_over(workers, making.make, Making.close))

    await cancelled(task, making)

    await asyncio.to_thread(workers.shutdown)
    assert task.cancelled()
    assert making.closed_by == ["worker_0"]


async def test_what_a_task_takes_is_its_own(workers: ThreadPoolExecutor) -> None:
    making = Making()
    making.may_end.set()

    made = await handed_over(workers, making.make, Making.close)

    assert made is making
    assert making.closed_by == []


async def test_what_cannot_be_made_for_a_task_that_has_gone_is_nothing_to_close(
    workers: ThreadPoolExecutor,
) -> None:
    making = Making()

    def fail() -> Making:
        making.make()
        raise OSError("no")

    task = asyncio.create_task(handed_over(workers, fail, Making.close))

    await cancelled(task, making)

    await asyncio.to_thread(workers.shutdown)
    assert making.closed_by == []


def routes(workers: ThreadPoolExecutor, locate: Callable[[Digest], HeldChunk | None]) -> Routes:
    clock = SystemClock()
    return Routes(
        hello=lambda _: b"",
        homes=Homes("b1", clock),
        refs=RefHome(),
        shelf=Shelf(
            locate=locate,
            manifest=lambda _: None,
            plan=lambda _: None,
            swarm=lambda _: None,
            greeted_by=lambda agent, boot: True,
            accused=lambda _: None,
            served=lambda _: None,
        ),
        workers=workers,
        clock=clock,
        limits=ServeLimits(slots=1),
    )


class NoBody:
    async def read(self) -> bytes:
        return b""


async def test_a_request_that_is_reset_while_its_chunk_is_looked_for_holds_nothing(
    workers: ThreadPoolExecutor,
) -> None:
    making = Making()
    handler = routes(workers, lambda _: making.make())
    path = f"/v1/chunks/{'00' * 32}"
    request = Request(
        method="GET", path=path, query={}, headers=(), remote=("127.0.0.1", 1), body=NoBody()
    )
    task = asyncio.create_task(handler(request))

    await cancelled(task, making)

    again = await handler(request)
    assert len(making.closed_by) == 1
    assert again.status == 200, "its slot is free again"
    assert isinstance(again.body, FileBody)
    again.body.close()
