"""Verifying and repairing over a real store, with who interrupts it, and what the swarm hears."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from damselfly.agent.accusations import PENDING_MAX, Accusations
from damselfly.agent.pull import Workshop
from damselfly.agent.seeds import leave_unsound
from damselfly.agent.verifying import Verifier
from damselfly.cache.catalog import ChunkRow
from damselfly.cache.disk import open_writable
from damselfly.cache.report import ArtifactState, Verified as Reread
from damselfly.cache.scrub import Scrub
from damselfly.cache.store import Store
from damselfly.client.answers import BadChunk, Progress, Pulled, PullRequest, Verified
from damselfly.clock import SystemClock
from damselfly.errors import IntegrityError
from damselfly.model.digest import Digest
from damselfly.p2p.messages import SwarmID
from tests.conformance.store import Sample, model, pull
from tests.fakes.peers import until
from tests.integration.pull_workshop import LIMITS, SAMPLE, SampleOrigin, pull_of, workshop

ARTIFACT = SAMPLE.manifest.digest
SWARM = SwarmID(str(ARTIFACT))
REF = SAMPLE.plan.ref
A, B = 2, 3
"""The numbers of the sample's two large files."""


@asynccontextmanager
async def bench(
    root: Path,
) -> AsyncGenerator[tuple[Store, Workshop, SampleOrigin, Verifier]]:
    with Store.open(root / "store", LIMITS, SystemClock()) as store:
        async with workshop(store) as (shop, origin):
            yield store, shop, origin, Verifier(shop, partial(pulled, shop))


async def pulled(shop: Workshop, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
    one = pull_of(shop, request)
    await one.run()
    if one.failure is not None:
        raise one.failure
    assert one.outcome is not None
    yield one.outcome


async def verified(
    verifier: Verifier, artifact: Digest | None = None, *, repair: bool = False
) -> tuple[list[str], Verified]:
    """The paths of what is bad, and the end."""
    items = [item async for item in verifier.verify(artifact, repair=repair)]
    last = items[-1]
    assert isinstance(last, Verified)
    return [item.path for item in items if isinstance(item, BadChunk)], last


def damage(store: Store, of: Sample, number: int) -> None:
    """Flip a byte of a file's first chunk, as a bad disk does."""
    path = store.path / "files" / of.manifest.file_id(number).hex
    before = path.stat()
    readable = os.open(path, os.O_RDONLY)
    fd = open_writable(readable)
    os.close(readable)
    os.pwrite(fd, bytes([os.pread(fd, 1, 0)[0] ^ 0xFF]), 0)
    os.close(fd)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def state_of(store: Store, artifact: Digest) -> ArtifactState:
    return next(info.state for info in store.artifacts() if info.artifact == artifact)


class SlowDisk:
    """Chunks are hashed when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashed = 0
        self.may_hash = threading.Semaphore(0)
        hash_one = Scrub._hash

        def slow(scrub: Scrub, fd: int, direct: int | None, chunk: ChunkRow) -> Digest | None:
            assert self.may_hash.acquire(timeout=10)
            self.hashed += 1
            return hash_one(scrub, fd, direct, chunk)

        monkeypatch.setattr(Scrub, "_hash", slow)


# --- interrupted ---


async def test_a_verification_that_nobody_listens_to_ends_at_the_next_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as (store, _, _, verifier):
        pull(store, SAMPLE)
        disk = SlowDisk(monkeypatch)
        items = verifier.verify(None, repair=False)
        disk.may_hash.release()
        await anext(items)

        closing = asyncio.create_task(items.aclose())
        await asyncio.sleep(0)
        disk.may_hash.release(100)
        await closing

        assert disk.hashed == 2
        assert (await verified(verifier))[1].bytes == SAMPLE.plan.bytes


async def test_verifications_leave_the_workers_to_the_pulls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as (store, shop, _, verifier):
        pull(store, SAMPLE)
        disk = SlowDisk(monkeypatch)
        disk.may_hash.release()
        many = [verifier.verify(None, repair=False) for _ in range(4)]
        first = await asyncio.gather(*(anext(items) for items in many))

        assert await shop.work(partial(store.holds, ARTIFACT))

        disk.may_hash.release(100)
        for items in many:
            await items.aclose()
        assert [getattr(item, "phase", "") for item in first] == [
            "reading",
            *["waiting for another verification"] * 3,
        ]


# --- the swarm hears of it ---


async def test_a_seed_that_lost_a_chunk_leaves_its_swarm(tmp_path: Path) -> None:
    async with bench(tmp_path) as (store, shop, _, verifier):
        await pull_of(shop).run()
        other = model(2)
        pull(store, other)
        await shop.swarms.seed(other.manifest, store.held(other.manifest.digest), REF)
        assert shop.swarms.seeded() == {ARTIFACT, other.manifest.digest}
        damage(store, SAMPLE, A)

        bad, _ = await verified(verifier)

        assert bad == ["weights/a.safetensors"]
        assert shop.swarms.seeded() == {other.manifest.digest}


async def test_a_loss_that_nobody_tells_of_is_noticed(tmp_path: Path) -> None:
    async with bench(tmp_path) as (store, shop, _, _):
        await pull_of(shop).run()
        part, going = model(2), model(3)
        for of, files in ((part, frozenset({A})), (going, None)):
            artifact = pull(store, of, files=files)
            await shop.swarms.seed(of.manifest, store.held(artifact), REF)
        await leave_unsound(shop)
        before = shop.swarms.seeded()
        damage(store, SAMPLE, A)
        store.verify()
        store.remove(going.manifest.digest)

        await leave_unsound(shop)

        assert before == {ARTIFACT, part.manifest.digest, going.manifest.digest}
        assert shop.swarms.seeded() == {part.manifest.digest}


async def test_a_pull_that_runs_fetches_again_what_is_found_bad_under_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as (store, shop, origin, verifier):
        small = pull_of(shop, PullRequest(ref=REF, include=("config.json",)))
        await small.run()
        origin.may_read.clear()
        whole = pull_of(shop)
        running = asyncio.create_task(whole.run())
        await until(lambda: whole.progress().phase == "fetching" and shop.swarms.seeded() == set())
        await until(lambda: shop.swarms.get(SWARM) is not None)
        damage(store, SAMPLE, 0)

        bad, _ = await verified(verifier)

        swarm = shop.swarms.get(SWARM)
        assert bad == ["config.json"]
        assert swarm is not None
        await until(lambda: bool(swarm.planner.have & 1))
        origin.may_read.set()
        await running
        assert whole.failure is None
        assert state_of(store, ARTIFACT) is ArtifactState.COMPLETE
        assert not store.verify().bad


# --- accusations ---


class CountingStore(Store):
    """Counts what is re-read because of an accusation."""

    rechecked: list[Reread]
    is_failing = False

    def recheck(
        self, digest: Digest, on_progress: Callable[[int, int], None] | None = None
    ) -> Reread:
        if self.is_failing:
            self.is_failing = False
            raise IntegrityError("the disk refuses")
        found = super().recheck(digest, on_progress)
        self.rechecked.append(found)
        return found


@asynccontextmanager
async def accusing(root: Path) -> AsyncGenerator[tuple[CountingStore, Workshop, Accusations]]:
    with CountingStore.open(root / "store", LIMITS, SystemClock()) as store:
        store.rechecked = []
        async with workshop(store) as (shop, _):
            await pull_of(shop).run()
            accusations = Accusations(store, shop.swarms)
            running = asyncio.create_task(accusations.run())
            yield store, shop, accusations
            running.cancel()
            await asyncio.wait({running})


def chunk_of(number: int) -> Digest:
    return SAMPLE.digests[SAMPLE.plan.firsts[number]]


async def test_an_accusation_has_only_the_file_with_the_chunk_re_read(tmp_path: Path) -> None:
    async with accusing(tmp_path) as (store, shop, accusations):
        damage(store, SAMPLE, A)
        damage(store, SAMPLE, B)

        accusations.accuse(chunk_of(A))
        await until(lambda: shop.swarms.seeded() == set())

        assert [(found.file_count, len(found.bad)) for found in store.rechecked] == [(1, 1)]
        assert state_of(store, ARTIFACT) is ArtifactState.DEGRADED


async def test_a_false_accusation_costs_one_chunk(tmp_path: Path) -> None:
    async with accusing(tmp_path) as (store, shop, accusations):
        accusations.accuse(chunk_of(A))
        await until(lambda: len(store.rechecked) == 1)

        assert store.rechecked[0].file_count == 0
        assert shop.swarms.seeded() == {ARTIFACT}


async def test_accusations_go_on_after_one_that_could_not_be_looked_into(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with accusing(tmp_path) as (store, _, accusations):
        store.is_failing = True

        accusations.accuse(chunk_of(A))
        accusations.accuse(chunk_of(B))
        await until(lambda: len(store.rechecked) == 1)

        assert "chunk.unchecked" in caplog.messages


async def test_more_accusations_than_anybody_honest_has_are_dropped(tmp_path: Path) -> None:
    async with accusing(tmp_path) as (store, _, accusations):
        for number in range(10 * PENDING_MAX):
            accusations.accuse(Digest.of(b"%d" % number))
            accusations.accuse(Digest.of(b"0"))
        accusations.accuse(chunk_of(A))

        await until(lambda: len(store.rechecked) == PENDING_MAX)

        accusations.accuse(chunk_of(B))
        await until(lambda: len(store.rechecked) == PENDING_MAX + 1)
        assert all(not found.bad for found in store.rechecked)


# --- repaired ---


async def test_the_repair_of_a_part_fetches_no_more_than_that_part(tmp_path: Path) -> None:
    async with bench(tmp_path) as (store, shop, _, verifier):
        await pull_of(shop, PullRequest(ref=REF, include=("*/a.*",))).run()
        damage(store, SAMPLE, A)

        bad, last = await verified(verifier, repair=True)

        assert bad == ["weights/a.safetensors"]
        assert (last.chunks_bad, last.chunks_repaired, last.unrepaired) == (1, 1, ())
        assert store.files_of(ARTIFACT) == {A}
        assert store.usage().bytes == SAMPLE.plan.files[A].bytes


async def test_an_artifact_that_cannot_be_repaired_does_not_keep_others_from_it(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as (store, shop, _, verifier):
        orphan = model(2)
        pull(store, orphan)
        await pull_of(shop).run()
        damage(store, orphan, A)
        damage(store, SAMPLE, A)

        _, last = await verified(verifier, repair=True)

        assert (last.chunks_bad, last.chunks_repaired) == (2, 1)
        (line,) = last.unrepaired
        assert line.startswith(f"{orphan.manifest.digest}: it was pulled by no ref")
        assert state_of(store, ARTIFACT) is ArtifactState.COMPLETE
