"""A pull over a real store and a real swarm of one, amid what may go wrong between its steps."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from damselfly.agent.pull import ROUNDS_MAX, Pull, Workshop
from damselfly.agent.resolver import Resolver, Target
from damselfly.agent.swarms import Swarms
from damselfly.cache.ingest import Ingest
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.client.answers import PullRequest
from damselfly.clock import SystemClock
from damselfly.errors import CancelledError, ChunkNotFoundError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile
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
    def __init__(self, data: bytes) -> None:
        self.first_byte_s: float | None = 0.0
        self._data = data

    async def readinto(self, view: memoryview) -> None:
        view[:], self._data = self._data[: len(view)], self._data[len(view) :]


class SampleOrigin:
    """Resolves to the sample, and hands out its bytes."""

    shared = True

    def __init__(self) -> None:
        self.is_sealed = True

    async def resolve(self, ref: Ref, access: Access) -> Target:
        return Target(SAMPLE.plan, SAMPLE.manifest if self.is_sealed else None)

    def for_ref(self, ref: Ref) -> "SampleOrigin":
        return self

    @asynccontextmanager
    async def open(
        self, ref: Ref, file: PlannedFile, start: int, stop: int, access: Access
    ) -> AsyncGenerator[SampleStream]:
        yield SampleStream(SAMPLE.content(file.path)[start:stop])


class SlowStore(Store):
    """One whose `ingest` takes until a test lets it end."""

    may_begin = threading.Event()
    has_begun = threading.Event()

    def ingest(
        self, plan: Plan, digests: Sequence[Digest | None], wanted: frozenset[int]
    ) -> Ingest:
        self.has_begun.set()
        assert self.may_begin.wait(10)
        return super().ingest(plan, digests, wanted)


@asynccontextmanager
async def workshop(store: Store) -> AsyncGenerator[tuple[Workshop, SampleOrigin]]:
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


def pull_of(shop: Workshop) -> Pull:
    return Pull(PullRequest(ref=SAMPLE.plan.ref), Ref.parse(SAMPLE.plan.ref), shop)


async def test_a_pull_that_is_cancelled_while_room_is_made_for_it_holds_nothing(
    tmp_path: Path,
) -> None:
    with SlowStore.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        async with workshop(store) as (shop, _):
            store.has_begun.clear()
            store.may_begin.clear()
            pull = pull_of(shop)
            task = asyncio.create_task(pull.run())
            await asyncio.to_thread(store.has_begun.wait, 10)

            task.cancel()
            await asyncio.wait({task})
            store.may_begin.set()

        assert isinstance(pull.failure, CancelledError)
        assert store.usage().reserved_bytes == 0


def torn_before_seals(monkeypatch: pytest.MonkeyPatch, store: Store, times: int) -> None:
    """Cut a file short before it is sealed, as often as that."""
    seal = Ingest.seal
    left = times

    def torn(self: Ingest, manifest: Manifest) -> None:
        nonlocal left
        if left:
            left -= 1
            partial = list((store.path / "partial").iterdir())
            largest = max(partial, key=lambda path: path.stat().st_size)
            os.truncate(largest, largest.stat().st_size - 1)
        seal(self, manifest)

    monkeypatch.setattr(Ingest, "seal", torn)


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_a_chunk_that_is_found_bad_while_it_is_sealed_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sealed: bool
) -> None:
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        torn_before_seals(monkeypatch, store, ROUNDS_MAX - 1)
        async with workshop(store) as (shop, origin):
            origin.is_sealed = is_sealed
            pull = pull_of(shop)

            await pull.run()

            assert pull.failure is None
            assert pull.outcome is not None
            assert pull.outcome.bytes_from_store == 0
            assert pull.outcome.bytes_from_origin == SAMPLE.plan.bytes + (ROUNDS_MAX - 1) * 8192
        assert not store.verify(SAMPLE.manifest.digest).bad


async def test_a_disk_that_goes_on_losing_chunks_fails_the_pull_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        torn_before_seals(monkeypatch, store, ROUNDS_MAX)
        async with workshop(store) as (shop, _):
            pull = pull_of(shop)

            await pull.run()

            assert isinstance(pull.failure, ChunkNotFoundError)
