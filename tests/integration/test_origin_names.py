"""Names of origins whose name servers never answer: what else goes on meanwhile."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from damselfly.errors import OriginUnavailableError
from damselfly.model.ref import Ref
from damselfly.origin import host_names
from damselfly.origin.host_names import LOOKUPS_MAX, NEIGHBOURS_MAX, HostNames
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import OriginLimits


class Nameserver:
    """Finds 127.0.0.1 behind any name, and never answers of those under `slow.test`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: str, *args: Any, **more: Any) -> Any:
        self.asked.append(host)
        if host.endswith("slow.test"):
            self.answers.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        return self._real("127.0.0.1", *args, **more)


@pytest.fixture
def nameserver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nameserver]:
    nameserver = Nameserver()
    monkeypatch.setattr(socket, "getaddrinfo", nameserver.getaddrinfo)
    yield nameserver
    nameserver.answers.set()


@pytest.fixture
async def names(nameserver: Nameserver) -> AsyncGenerator[HostNames]:
    names = HostNames(10)
    yield names
    nameserver.answers.set()
    await names.close()


def slow(names: HostNames, count: int) -> list[asyncio.Task[object]]:
    """Ask for so many names that are never found."""
    return [asyncio.create_task(_asked(names, f"n{number}.slow.test")) for number in range(count)]


async def _asked(names: HostNames, name: str) -> object:
    return await names.resolve(name)


async def ended(nameserver: Nameserver, tasks: list[asyncio.Task[object]]) -> list[object]:
    nameserver.answers.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_threads_for_other_work_are_free_while_names_are_slow(
    nameserver: Nameserver, names: HostNames
) -> None:
    tasks = slow(names, 100)
    await asyncio.sleep(0)

    assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 10) == "done"
    assert len(nameserver.asked) <= NEIGHBOURS_MAX

    assert all(isinstance(each, OSError) for each in await ended(nameserver, tasks))


async def test_a_name_that_was_found_before_is_found_while_others_are_slow(
    nameserver: Nameserver, names: HostNames
) -> None:
    await names.resolve("good.test", 80)
    tasks = slow(names, 100)
    await asyncio.sleep(0)

    (found,) = await names.resolve("good.test", 81)

    assert (found["host"], found["port"], found["hostname"]) == ("127.0.0.1", 81, "good.test")
    await ended(nameserver, tasks)


async def test_a_new_name_is_found_while_those_of_another_domain_are_slow(
    nameserver: Nameserver, names: HostNames
) -> None:
    tasks = slow(names, 100)
    await asyncio.sleep(0)

    (found,) = await names.resolve("new.test", 80)

    assert found["host"] == "127.0.0.1"
    assert len(nameserver.asked) <= NEIGHBOURS_MAX + 1
    await ended(nameserver, tasks)


async def test_a_name_that_nobody_waits_for_any_more_is_not_looked_up(
    nameserver: Nameserver, names: HostNames
) -> None:
    tasks = slow(names, 100)
    await names.resolve("new.test", 80)
    for task in tasks:
        task.cancel()

    await ended(nameserver, tasks)
    await names.resolve("n99.slow.test.", 80)

    assert len(nameserver.asked) <= NEIGHBOURS_MAX + 2


async def test_those_who_ask_for_one_name_wait_for_one_look_up(
    nameserver: Nameserver, names: HostNames
) -> None:
    tasks = [asyncio.create_task(_asked(names, "a.slow.test")) for _ in range(20)]
    await asyncio.sleep(0)
    tasks[0].cancel()

    results = await ended(nameserver, tasks)

    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(each, socket.gaierror) for each in results[1:])
    assert nameserver.asked == ["a.slow.test"]


async def test_more_names_than_may_be_looked_up_are_refused(
    nameserver: Nameserver, names: HostNames
) -> None:
    tasks = slow(names, LOOKUPS_MAX)
    await asyncio.sleep(0)

    with pytest.raises(OriginUnavailableError, match="other names"):
        await names.resolve("one-more.test")

    await ended(nameserver, tasks)


async def test_an_origin_whose_name_is_not_answered_is_unavailable(
    nameserver: Nameserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_names, "LOOKUP_S", 0.1)
    origin = HTTPOrigin(OriginLimits())

    with pytest.raises(OriginUnavailableError, match="no answer in 0.1 s"):
        await origin.resolve(Ref.parse("http://a.slow.test/m/"))

    assert nameserver.asked == ["a.slow.test"]
    nameserver.answers.set()
    await origin.close()
