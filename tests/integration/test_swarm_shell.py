"""Swarms of real sockets and real cores, with chunks in memory and an origin that counts."""

import asyncio
import random
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from damselfly.clock import SystemClock
from damselfly.errors import LocalProtocolError, OriginDeniedError, OriginUnavailableError
from damselfly.model.digest import Digest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.p2p.agents import Agents, hello_bytes
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.homes import Homes
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID, SwarmID
from damselfly.p2p.refs import RefHome
from damselfly.p2p.routes import Routes, Shelf
from damselfly.p2p.swarm import Source, Surroundings, Swarm
from damselfly.p2p.transport import BufferPool, PeerPool, PeerServer, Request, Response
from tests.fakes.keeper import MemoryKeeper

CHUNK = 64 << 10


@dataclass
class CountingOrigin:
    """An origin in memory that counts what leaves it, and can refuse."""

    files: dict[str, bytes]
    bytes_read: int = 0
    denies: bool = False
    fails: int = 0
    is_broken: bool = False
    goes_on: asyncio.Event | None = None
    """What every read waits for."""
    is_read: asyncio.Event = field(default_factory=asyncio.Event)

    def plan(self) -> Plan:
        return Plan.of(
            "http://origin/m/",
            [
                PlannedFile(path, tuple(min(CHUNK, len(d) - s) for s in range(0, len(d), CHUNK)))
                for path, d in self.files.items()
            ],
        )

    @asynccontextmanager
    async def open(
        self, file: PlannedFile, start: int, stop: int
    ) -> "AsyncGenerator[CountingStream]":
        if self.denies:
            raise OriginDeniedError("the origin refuses")
        if self.fails:
            self.fails -= 1
            raise OriginUnavailableError("the origin is away")
        if self.is_broken:
            raise ZeroDivisionError("what nobody expected")
        yield CountingStream(self, self.files[file.path][start:stop])


@dataclass
class CountingStream:
    origin: CountingOrigin
    data: bytes
    offset: int = 0
    first_byte_s: float | None = 0.0

    async def readinto(self, view: memoryview) -> None:
        await asyncio.sleep(0)
        self.origin.is_read.set()
        if self.origin.goes_on is not None:
            await self.origin.goes_on.wait()
        view[:] = self.data[self.offset : self.offset + len(view)]
        self.offset += len(view)
        self.origin.bytes_read += len(view)


class Member:
    """One agent: a server, a pool, a home's desk and one swarm."""

    def __init__(self, origin: CountingOrigin | None, plan: Plan) -> None:
        self.origin = origin
        self.plan = plan
        self.keeper = MemoryKeeper(plan, [None] * plan.chunk_count)
        self.server = PeerServer(self._early)

    async def _early(self, _: Request) -> Response:
        return Response(503)

    async def listen(self) -> str:
        await self.server.start("127.0.0.1", 0)
        self.me = Hello(AgentID(f"127.0.0.1:{self.server.port}"), f"b{self.server.port}", "")
        return self.me.agent

    def prepare(self, addresses: frozenset[str], buffers: BufferPool | None = None) -> None:
        self.clock = SystemClock()
        self.pool = PeerPool()
        self.workers = ThreadPoolExecutor(2)
        self.agents = Agents(self.me, StaticPeers(addresses), self.pool, self.clock)
        self.homes = Homes(self.me.boot, self.clock)
        around = Surroundings(
            agents=self.agents,
            homes=self.homes,
            talk=self.pool,
            pool=self.pool,
            buffers=buffers or BufferPool(24, CHUNK),
            workers=self.workers,
            clock=self.clock,
            landed=lambda source, length, seconds: None,
            corrupt=lambda source: None,
        )
        self.swarm = Swarm(
            SwarmID(str(self.plan.id)),
            self.plan,
            self.keeper,
            around,
            wanted=(1 << self.plan.chunk_count) - 1,
            open_span=self.origin.open if self.origin else None,
            is_sealed=False,
        )
        self.server.handler = Routes(
            hello=partial(hello_bytes, self.me, "test"),
            homes=self.homes,
            refs=RefHome(),
            shelf=Shelf(
                locate=self.keeper.locate,
                manifest=lambda digest: None,
                plan=lambda digest: None,
                swarm=lambda name: self.swarm if name == self.swarm.swarm else None,
                greeted_by=self.agents.greeted_by,
                accused=lambda digest: None,
                served=lambda length: None,
            ),
            workers=self.workers,
            clock=self.clock,
        )

    async def close(self) -> None:
        await self.server.close()
        await self.pool.close()
        self.workers.shutdown()
        self.keeper.close()


@asynccontextmanager
async def swarm_of(
    members: list[Member], buffers: BufferPool | None = None
) -> AsyncGenerator[list[Swarm]]:
    addresses = frozenset([await member.listen() for member in members])
    for member in members:
        member.prepare(addresses, buffers)
    try:
        async with asyncio.TaskGroup() as tasks:
            running: list[asyncio.Task[None]] = []
            for member in members:
                running.append(tasks.create_task(member.agents.run()))
                running.append(tasks.create_task(member.homes.run()))
            for member in members:
                await member.agents.met()
                assert len(member.agents.view) == len(members)
            swarms = [member.swarm for member in members]
            running += [tasks.create_task(swarm.run()) for swarm in swarms]
            try:
                yield swarms
            finally:
                for task in running:
                    task.cancel()
    finally:
        for member in members:
            await member.close()


def model(rng_seed: int, size: int = 3_000_000) -> dict[str, bytes]:
    rng = random.Random(rng_seed)
    return {"a/weights.bin": rng.randbytes(size), "b.json": rng.randbytes(777), "empty": b""}


async def test_one_agent_alone_reads_the_origin_once() -> None:
    origin = CountingOrigin(model(1))
    plan = origin.plan()
    member = Member(origin, plan)

    async with swarm_of([member]) as (swarm,), asyncio.timeout(30):
        await swarm.completed()

        assert origin.bytes_read == plan.bytes
        assert len(swarm.digests) == plan.chunk_count
        data = b"".join(member.keeper.read(index) for index in range(plan.chunk_count))
        assert data == b"".join(origin.files[file.path] for file in plan.files)


async def test_five_agents_read_the_origin_once_together() -> None:
    origin = CountingOrigin(model(2))
    plan = origin.plan()
    members = [Member(origin, plan) for _ in range(5)]

    async with swarm_of(members) as swarms, asyncio.timeout(60):
        await asyncio.gather(*(swarm.completed() for swarm in swarms))

        assert origin.bytes_read == plan.bytes
        assert sum(swarm.bytes_by_source[Source.PEER] for swarm in swarms) == 4 * plan.bytes
        for member in members:
            assert all(member.keeper.have().bits >> i & 1 for i in range(plan.chunk_count))
            assert [Digest.of(member.keeper.read(i)) for i in range(plan.chunk_count)] == list(
                members[0].keeper.digests()
            )


async def test_those_without_the_origin_get_everything_from_the_one_who_has_it() -> None:
    origin = CountingOrigin(model(3))
    plan = origin.plan()
    members = [Member(origin, plan), Member(None, plan), Member(None, plan)]

    async with swarm_of(members) as swarms, asyncio.timeout(60):
        await asyncio.gather(*(swarm.completed() for swarm in swarms))

        assert origin.bytes_read == plan.bytes
        assert swarms[1].bytes_by_source[Source.PEER] == plan.bytes


async def test_an_origin_that_fails_at_first_is_tried_again() -> None:
    origin = CountingOrigin(model(4, 300_000), fails=3)
    member = Member(origin, origin.plan())

    async with swarm_of([member]) as (swarm,), asyncio.timeout(60):
        await swarm.completed()

        assert origin.fails == 0
        assert origin.bytes_read == member.plan.bytes


async def test_an_origin_that_refuses_everybody_fails_the_pull_by_name() -> None:
    origin = CountingOrigin(model(5, 300_000), denies=True)
    member = Member(origin, origin.plan())

    async with swarm_of([member]) as (swarm,), asyncio.timeout(60):
        with pytest.raises(OriginDeniedError):
            await swarm.completed()


async def test_a_bug_ends_the_membership_that_found_it_and_no_other() -> None:
    origin = CountingOrigin(model(6, 300_000), is_broken=True)
    whole = CountingOrigin(model(7, 300_000))
    broken, sound = Member(origin, origin.plan()), Member(whole, whole.plan())

    async with swarm_of([broken, sound]) as swarms, asyncio.timeout(60):
        with pytest.raises(LocalProtocolError) as raised:
            await swarms[0].completed()
        await swarms[1].completed()

        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert whole.bytes_read == sound.plan.bytes


@pytest.mark.parametrize("count", [4, 24])
async def test_origins_that_trickle_leave_buffers_to_other_swarms(count: int) -> None:
    stuck = CountingOrigin(model(9), goes_on=asyncio.Event())
    sound = CountingOrigin(model(10, 300_000))
    members = [Member(stuck, stuck.plan()), Member(sound, sound.plan())]
    buffers = BufferPool(count, CHUNK)

    async with swarm_of(members, buffers) as (_, swarm), asyncio.timeout(30):
        await stuck.is_read.wait()
        await swarm.completed()

        assert sound.bytes_read == swarm.plan.bytes
        assert 0 < buffers.taken <= count // 2


async def test_a_swarm_that_waits_for_memory_says_so() -> None:
    goes_on = asyncio.Event()
    origins = [CountingOrigin(model(seed, 300_000), goes_on=goes_on) for seed in (11, 12)]
    members = [Member(origin, origin.plan()) for origin in origins]
    told = "memory for chunks (other reads of origins hold it)"

    async with swarm_of(members, BufferPool(2, CHUNK)) as swarms, asyncio.timeout(30):
        while all(swarm.waiting_for != told for swarm in swarms):
            await asyncio.sleep(0.01)
        goes_on.set()
        await asyncio.gather(*(swarm.completed() for swarm in swarms))

        assert [swarm.waiting_for for swarm in swarms] == [None, None]


async def test_a_membership_that_is_ended_before_it_began_ends_as_it_begins() -> None:
    origin = CountingOrigin(model(8, 1000))
    member = Member(origin, origin.plan())
    member.prepare(frozenset([await member.listen()]))

    await member.swarm.end()

    async with asyncio.timeout(10):
        await member.swarm.run()
    await member.close()
    assert origin.bytes_read == 0
