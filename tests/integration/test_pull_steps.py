"""A pull over a real store and a real swarm of one, amid what may go wrong between its steps."""

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from damselfly.agent.pull import ROUNDS_MAX
from damselfly.cache.ingest import Ingest
from damselfly.cache.store import Store
from damselfly.clock import SystemClock
from damselfly.errors import CancelledError, ChunkNotFoundError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from tests.integration.pull_workshop import LIMITS, SAMPLE, pull_of, workshop


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
