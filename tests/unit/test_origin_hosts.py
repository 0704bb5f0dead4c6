"""What is remembered of hosts: refs and redirects name any number of them."""

import asyncio
import logging

import pytest

from damselfly.errors import OriginUnavailableError
from damselfly.origin.access import ANONYMOUS
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import _RANGELESS_MAX, Web


async def test_a_host_that_nobody_asks_has_no_slot() -> None:
    origin = Web(OriginLimits(connections_per_host_max=1, connect_s=2))

    for host in range(2, 20):
        with pytest.raises(OriginUnavailableError):
            await origin.measure(f"http://127.0.0.{host}:9/m/f.bin", ANONYMOUS)

    await origin.close()
    assert len(origin._slots) == 0


async def test_everybody_at_a_host_has_the_same_slot() -> None:
    origin = Web(OriginLimits(connections_per_host_max=1))

    async with origin._slot("http://host/a"):
        second = asyncio.create_task(origin._slot("http://host/b").acquire())
        await asyncio.sleep(0)

        assert not second.done()
    assert await second


def test_a_host_without_ranges_is_warned_of_once_and_forgotten_after_many_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    origin = Web(OriginLimits())

    for host in range(3 * _RANGELESS_MAX):
        origin._warn_of_no_ranges(f"http://h{host}/f")
        origin._warn_of_no_ranges(f"http://h{host}/f")

    assert len(caplog.records) == 3 * _RANGELESS_MAX
    assert len(origin._rangeless) == _RANGELESS_MAX
