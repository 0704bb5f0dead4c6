"""What pulls work with, around a real store and a real swarm of one: for tests."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import cast

from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Resolver, Target
from damselfly.agent.swarms import Swarms
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.client.answers import PullRequest
from damselfly.clock import SystemClock
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.origin.registry import Origins
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.homes import Homes
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.swarm import Surroundings
from damselfly.p2p.transport import BufferPool, PeerPool
from tests.conformance.store import model

SAMPLE = model()
LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0)


class SampleStream:
    """A span of a file."""

    def __init__(self, data: bytes) -> None:
        self.first_byte_s: float | None = 0.0
        self._data = data

    async def readinto(self, view: memoryview) -> None:
        """Fill `view`."""
        view[:], self._data = self._data[: len(view)], self._data[len(view) :]


class SampleOrigin:
    """Resolves to the sample, and hands out its bytes."""

    shared = True

    def __init__(self) -> None:
        self.is_sealed = True
        self.may_read = asyncio.Event()
        """Of the files in folders; the others are read at once."""
        self.may_read.set()

    async def resolve(
        self,
        ref: Ref,
        access: Access,
        age_s_max: float | None = None,
        policy: str = "auto",
    ) -> Target:
        """The plan, and the manifest if somebody sealed it."""
        return Target(SAMPLE.plan, SAMPLE.manifest if self.is_sealed else None)

    def for_ref(self, ref: Ref) -> "SampleOrigin":
        """The only one there is."""
        return self

    @asynccontextmanager
    async def open(
        self, ref: Ref, file: PlannedFile, start: int, stop: int, access: Access
    ) -> AsyncGenerator[SampleStream]:
        """A span."""
        if "/" in file.path:
            await self.may_read.wait()
        yield SampleStream(SAMPLE.content(file.path)[start:stop])


@asynccontextmanager
async def workshop(store: Store) -> AsyncGenerator[tuple[Workshop, SampleOrigin]]:
    """Two workers, one agent, one origin."""
    origin = SampleOrigin()
    clock = SystemClock()
    pool = PeerPool()
    workers = ThreadPoolExecutor(2)
    me = Hello(AgentID("127.0.0.1:1"), "boot", "")
    homes = Homes(me.boot, clock)
    around = Surroundings(
        agents=Agents(me, StaticPeers(frozenset({me.agent})), pool, clock),
        homes=homes,
        talk=pool,
        pool=pool,
        buffers=BufferPool(4, 1 << 16),
        workers=workers,
        clock=clock,
        landed=lambda source, length, seconds: None,
        corrupt=lambda source: None,
    )
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            home = tasks.create_task(homes.run())
            swarms = Swarms(around, tasks)
            yield (
                Workshop(
                    store,
                    cast("Origins", origin),
                    cast("Resolver", origin),
                    swarms,
                    workers,
                    clock,
                ),
                origin,
            )
            await swarms.leave_all()
            home.cancel()
    finally:
        await pool.close()
        workers.shutdown()


def pull_of(shop: Workshop, request: PullRequest | None = None) -> Pull:
    """A pull of the sample."""
    request = request or PullRequest(ref=SAMPLE.plan.ref)
    return Pull(request, Ref.parse(request.ref), shop)
