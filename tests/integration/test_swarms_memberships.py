"""The memberships of one agent: one for each swarm, and none that nobody can end."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from damselfly.agent import swarms as module
from damselfly.agent.swarms import Swarms
from damselfly.clock import SystemClock
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.homes import Homes
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID, SwarmID
from damselfly.p2p.swarm import Surroundings, Swarm
from damselfly.p2p.transport import BufferPool, PeerPool
from tests.fakes.peers import until

ME = Hello(AgentID("127.0.0.1:1"), "boot-me", "")
REF = "http://origin.invalid/m/"
ALL = Bitmap.full(1)


def manifest_of(name: str) -> Manifest:
    return Manifest.seal(Plan.of(REF, [PlannedFile(name, (7,))]), [Digest.of(name.encode())])


@asynccontextmanager
async def memberships() -> AsyncGenerator[Swarms]:
    """The swarms of an agent that is alone."""
    clock = SystemClock()
    pool, workers = PeerPool(), ThreadPoolExecutor(1)
    around = Surroundings(
        agents=Agents(ME, StaticPeers(frozenset()), pool, clock),
        homes=Homes(ME.boot, clock),
        talk=pool,
        pool=pool,
        buffers=BufferPool(2, 1 << 16),
        workers=workers,
        clock=clock,
        landed=lambda source, length, seconds: None,
        corrupt=lambda source: None,
    )
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            swarms = Swarms(around, tasks)
            try:
                yield swarms
            finally:
                await swarms.leave_all()
    finally:
        await pool.close()
        workers.shutdown()


def running() -> int:
    """How many memberships run, whether or not anybody knows of them."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return names.count(Swarm.run.__qualname__)


async def test_two_who_seed_the_same_join_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEEDS_MAX", 1)
    async with memberships() as swarms:
        await swarms.seed(manifest_of("old"), ALL, REF)
        await until(lambda: swarms.get(SwarmID(str(manifest_of("old").digest))) is not None)
        await asyncio.sleep(0)  # Its task has begun, and so has a goodbye to say.

        new = manifest_of("new")
        await asyncio.gather(swarms.seed(new, ALL, REF), swarms.seed(new, ALL, REF))

        assert running() == 1


async def test_a_membership_that_is_left_as_soon_as_it_is_joined_is_left() -> None:
    async with memberships() as swarms:
        one = manifest_of("one")
        await swarms.seed(one, ALL, REF)

        await swarms.leave(one.digest)

        assert running() == 0


async def test_a_pull_after_a_pull_joins_anew_and_leaves_nothing_behind() -> None:
    async with memberships() as swarms:
        one = manifest_of("one")
        for _ in range(3):
            await swarms.seed(one, ALL, REF)
            async with swarms.pulling(
                one.digest,
                one.plan(REF),
                module.Seed(one, ALL),
                wanted=ALL.bits,
                open_span=None,
                is_sealed=True,
            ) as swarm:
                await swarm.completed()

        assert running() == 1
        assert not swarms._turns  # pyright: ignore[reportPrivateUsage] - that nothing grows
