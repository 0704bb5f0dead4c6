"""Origins that ask for rest, stall, or break off: how one agent's web reads them all the same."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from damselfly.errors import (
    OriginBusyError,
    OriginChangedError,
    OriginUnavailableError,
    explain,
)
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.gate import Alone, Gate
from damselfly.origin.host_clock import RestLimits
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import OriginLimits
from damselfly.origin.web import Web
from damselfly.waiting import Waiting, heard
from tests.integration.origin_servers import Asked, reply, scripted

DATA = bytes(range(256)) * 1024
FILE = PlannedFile("f.bin", (len(DATA),), "")
LIMITS = OriginLimits(body_silence_s=0.2, back_off_s=0.01, connect_s=2, unsteady_s=5.0)


@pytest.fixture
async def origin() -> AsyncGenerator[HTTPOrigin]:
    web = Web(LIMITS, Gate(limits=RestLimits(rest_s=0.05)))
    yield HTTPOrigin(LIMITS, web)
    await web.close()


def part(one: Asked, stop: int | None = None, **headers: str) -> bytes:
    """An honest answer to a ranged request, cut off at byte `stop` of the file."""
    first, last = one.header("Range").removeprefix("bytes=").split("-")
    start, end = int(first), int(last) + 1
    return reply(
        "206 Partial Content",
        DATA[start : min(end, stop or end)],
        Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}",
        Content_Length=str(end - start),
        **headers,
    )


async def read(origin: HTTPOrigin, address: str, start: int = 0, stop: int = len(DATA)) -> bytes:
    view = memoryview(bytearray(stop - start))
    async with origin.open(Ref.parse(f"{address}/m/"), FILE, start, stop) as stream:
        for offset in range(0, len(view), 1000):
            await stream.readinto(view[offset : offset + 1000])
    return bytes(view)


async def test_a_body_that_is_cut_goes_on_at_the_byte_where_it_stopped(origin: HTTPOrigin) -> None:
    ranges: list[str] = []

    async def answer(one: Asked) -> bytes:
        ranges.append(one.header("Range"))
        return part(
            one, stop=100_000 if len(ranges) == 1 else 200_000 if len(ranges) == 2 else None
        )

    async with scripted(answer) as (address, _):
        assert await read(origin, address, 5) == DATA[5:]

    last = len(DATA) - 1
    assert ranges == [f"bytes={start}-{last}" for start in (5, 100_000, 200_000)]


async def test_a_body_that_stalls_is_cut_and_goes_on(origin: HTTPOrigin) -> None:
    ranges: list[str] = []

    async def answer(one: Asked) -> bytes | None:
        ranges.append(one.header("Range"))
        if len(ranges) > 1:
            return part(one)
        one.writer.write(part(one, stop=70_000))
        await one.writer.drain()
        await asyncio.Event().wait()
        return None

    async with scripted(answer) as (address, _):
        assert await read(origin, address) == DATA

    assert ranges[1] == f"bytes=70000-{len(DATA) - 1}"


@asynccontextmanager
async def impatient(floor_s: float) -> AsyncGenerator[HTTPOrigin]:
    """An origin that bears silence for long, and a trickle for a moment."""
    limits = replace(LIMITS, body_silence_s=30, body_floor_s=floor_s, resumes_max=2)
    web = Web(limits)
    yield HTTPOrigin(limits, web)
    await web.close()


async def trickle(one: Asked) -> None:
    """Answer honestly, a byte now and then, for as long as somebody listens."""
    honest = part(one)
    start = len(honest) - 200_000
    one.writer.write(honest[:start])
    for at in range(start, len(honest)):
        one.writer.write(honest[at : at + 1])
        await one.writer.drain()
        await asyncio.sleep(0.02)


async def test_a_body_that_trickles_is_cut_and_goes_on() -> None:
    ranges: list[str] = []

    async def answer(one: Asked) -> bytes | None:
        ranges.append(one.header("Range"))
        if len(ranges) > 1:
            return part(one)
        await trickle(one)
        return None

    async with impatient(0.5) as origin, scripted(answer) as (address, _):
        assert await asyncio.wait_for(read(origin, address), 30) == DATA

    assert len(ranges) == 2
    assert ranges[1] != ranges[0]


async def test_an_origin_that_only_trickles_is_given_up() -> None:
    async with impatient(0.3) as origin, scripted(trickle) as (address, _):
        with pytest.raises(OriginUnavailableError, match="sends too little"):
            await asyncio.wait_for(read(origin, address), 30)


async def test_a_reader_that_takes_its_time_is_not_held_against_the_origin() -> None:
    async def answer(one: Asked) -> bytes:
        return part(one)

    async with impatient(1) as origin, scripted(answer) as (address, lines):
        view = memoryview(bytearray(len(DATA)))
        async with origin.open(Ref.parse(f"{address}/m/"), FILE, 0, len(DATA)) as stream:
            for offset in range(0, len(view), 1 << 16):
                await asyncio.sleep(0.4)
                await stream.readinto(view[offset : offset + (1 << 16)])

    assert bytes(view) == DATA
    assert len(lines) == 1


async def test_an_origin_that_never_gets_further_is_given_up(origin: HTTPOrigin) -> None:
    async def answer(one: Asked) -> bytes:
        return part(one, stop=1000) if one.header("Range").startswith("bytes=0-") else b""

    async with scripted(answer) as (address, lines):
        with pytest.raises(OriginUnavailableError):
            await asyncio.wait_for(read(origin, address), 20)

    # Each try may be two requests: aiohttp asks again by itself when a connection is closed.
    assert len(lines) <= 1 + LIMITS.resumes_max * (1 + LIMITS.tries_max) * 2


async def test_a_file_that_changes_between_two_halves_is_noticed(origin: HTTPOrigin) -> None:
    answers = iter((1, 2))

    async def answer(one: Asked) -> bytes:
        number = next(answers)
        return part(one, stop=1000 if number == 1 else None, ETag=f'"{number}"')

    async with scripted(answer) as (address, _):
        with pytest.raises(OriginChangedError, match="while it was read"):
            await read(origin, address)


async def test_a_429_is_waited_out_and_the_waiting_is_told(origin: HTTPOrigin) -> None:
    came_s: list[float] = []
    reasons: list[str | None] = []
    waiting = Waiting(lambda: reasons.append(waiting.reason))

    async def answer(one: Asked) -> bytes:
        came_s.append(time.monotonic())
        if len(came_s) == 1:
            return reply("429 Too Many Requests", Retry_After="1")
        return part(one)

    async with scripted(answer) as (address, _):
        with heard(waiting):
            assert await read(origin, address) == DATA

    assert came_s[1] - came_s[0] >= 1.0
    host = address.removeprefix("http://")
    assert f"origin host {host} (it asked for rest, 1 s left)" in reasons
    assert waiting.reason is None


async def test_nobody_asks_while_a_host_rests(origin: HTTPOrigin) -> None:
    came_s: list[float] = []

    async def answer(one: Asked) -> bytes:
        came_s.append(time.monotonic())
        if len(came_s) == 1:
            return reply("503 Busy", Retry_After="1")
        return part(one)

    async with scripted(answer) as (address, _):
        first = asyncio.ensure_future(read(origin, address, 0, 10))
        while not came_s:
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)  # The answer is there by then; if not, the test proves less.
        others = [read(origin, address, 10 * number, 10 * number + 10) for number in range(1, 6)]
        read_all = await asyncio.gather(first, *others)

    assert b"".join(read_all) == DATA[:60]
    assert min(came_s[1:]) - came_s[0] >= 1.0


async def test_a_bare_503_is_asked_again(origin: HTTPOrigin) -> None:
    count = 0

    async def answer(one: Asked) -> bytes:
        nonlocal count
        count += 1
        return reply("503 Busy") if count < 6 else part(one)

    async with scripted(answer) as (address, _):
        assert await read(origin, address, 0, 10) == DATA[:10]


async def test_a_reset_while_resolving_is_asked_again(origin: HTTPOrigin) -> None:
    count = 0

    async def answer(one: Asked) -> bytes | None:
        nonlocal count
        count += 1
        if count % 2:
            return None
        return reply("200 OK", DATA if one.method == "GET" else b"", Content_Length=str(len(DATA)))

    async with scripted(answer) as (address, _):
        resolved = await origin.resolve(Ref.parse(f"{address}/f.bin"))

    assert [file.bytes for file in resolved.plan.files] == [len(DATA)]


async def test_a_rest_longer_than_anybody_waits_is_an_error_at_once() -> None:
    async def answer(one: Asked) -> bytes:
        return reply("429 Too Many Requests", Retry_After="7200")

    origin = HTTPOrigin(LIMITS)
    async with scripted(answer) as (address, lines):
        with pytest.raises(OriginBusyError, match="429") as caught:
            await read(origin, address)
        with pytest.raises(OriginBusyError, match="asks for rest"):
            await read(origin, address)

    assert "alone for 7200 s" in str(caught.value)
    assert caught.value.retry_after_s == 7200
    assert len(lines) == 1
    await origin.close()


async def test_a_long_rest_that_others_tell_of_is_an_error_at_once_and_says_how_long() -> None:
    gate = Gate()
    gate.told_to_rest("models.example", 3600.0)

    with pytest.raises(OriginBusyError, match="3600 s more"):
        await gate.admit("models.example", "reading it")


class NoTurns(Alone):
    """A budget that never has a turn."""

    async def turn(self, host: str) -> None:
        await asyncio.Event().wait()


async def test_a_budget_that_has_no_turn_is_waited_for_as_long_as_for_anything() -> None:
    gate = Gate(patience_s=0.05)
    gate.shares = NoTurns()

    with pytest.raises(OriginBusyError, match="no turn"):
        await asyncio.wait_for(gate.admit("models.example", "reading it"), 20)


async def test_who_is_not_there_is_named_once_and_plainly(origin: HTTPOrigin) -> None:
    async with scripted(lambda one: asyncio.sleep(0, b"")) as (address, _):
        pass  # Whoever listened there is gone.

    with pytest.raises(OriginUnavailableError) as caught:
        await read(origin, address)

    said = explain(caught.value)
    assert "ssl" not in said
    assert said.count("Connect call failed") == 1
    assert f"no connection to {address.removeprefix('http://')}" in said


async def test_each_host_of_a_redirect_passes_the_gate_by_itself(origin: HTTPOrigin) -> None:
    rested: list[str] = []

    async def throttled(one: Asked) -> bytes:
        rested.append(one.target)
        return reply("429 Too Many Requests", Retry_After="1") if len(rested) == 1 else part(one)

    async with scripted(throttled) as (behind, _):

        async def send_on(one: Asked) -> bytes:
            return reply("302 Found", Location=f"{behind}/there")

        async with scripted(send_on) as (address, lines):
            assert await read(origin, address, 0, 10) == DATA[:10]

    assert len(rested) == 2
    assert len(lines) == 1  # Only the host that asked for rest is asked again.
