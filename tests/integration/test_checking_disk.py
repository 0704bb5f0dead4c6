"""Whole files that are read back: from a disk that loses bytes, and across the end of an agent."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from damselfly.agent.checking import verified_here
from damselfly.cache.ingest import Ingest
from damselfly.cache.store import Store
from damselfly.clock import SystemClock
from damselfly.errors import DigestMismatchError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from tests.integration import pull_workshop
from tests.integration.agent_fleet import sha256
from tests.integration.pull_workshop import LIMITS, SAMPLE, SampleOrigin, pull_of, workshop

PLAN = Plan(
    SAMPLE.plan.ref,
    tuple(
        replace(file, digests=(sha256(SAMPLE.content(file.path)),)) for file in SAMPLE.plan.files
    ),
)


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's origin publishes what its files are."""
    sample = replace(SAMPLE, plan=PLAN)
    monkeypatch.setattr(pull_workshop, "SAMPLE", sample)
    before = SampleOrigin.__init__

    def unsealed(self: SampleOrigin) -> None:
        before(self)
        self.is_sealed = False

    monkeypatch.setattr(SampleOrigin, "__init__", unsealed)

    async def refuted(self: SampleOrigin, ref: object, plan: object) -> None:
        pass

    async def sealed(self: SampleOrigin, ref: object, plan: object, artifact: object) -> None:
        pass

    monkeypatch.setattr(SampleOrigin, "refuted", refuted, raising=False)
    monkeypatch.setattr(SampleOrigin, "sealed", sealed, raising=False)


def spoil(path: Path, start: int, data: bytes) -> None:
    """Change these bytes of a file, if it has them."""
    with path.open("r+b") as file:
        file.seek(start)
        if file.read(len(data)) == data:
            file.seek(start)
            file.write(os.urandom(64))


def opened(folder: Path) -> Store:
    return Store.open(folder / "store", LIMITS, SystemClock())


async def test_what_was_found_is_kept_and_costs_no_second_reading(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with workshop(store) as (shop, _):
            pull = pull_of(shop)
            await pull.run()

        assert pull.outcome is not None, pull.failure
        manifest = store.manifest(Digest.parse(pull.outcome.artifact))
        assert manifest is not None
        for file in manifest.files:
            assert store.sha256_of(file.id, is_ours=True) == file.digests[0]


async def test_a_chunk_that_cannot_be_read_back_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled: list[int] = []
    write = Ingest.write

    def spoils_once(
        self: Ingest, index: int, digest: Digest, data: bytes | bytearray | memoryview
    ) -> None:
        write(self, index, digest, data)
        if not spoiled and PLAN.span(index).length > 1000:
            spoiled.append(index)
            for path in (tmp_path / "store" / "partial").iterdir():
                spoil(path, PLAN.span(index).start, bytes(data))

    monkeypatch.setattr(Ingest, "write", spoils_once)
    with opened(tmp_path) as store:
        async with workshop(store) as (shop, _):
            pull = pull_of(shop)
            await asyncio.wait_for(pull.run(), 30)

        assert spoiled
        assert pull.outcome is not None, pull.failure
        for file in PLAN.files:
            assert (Path(pull.outcome.path) / file.path).read_bytes() == SAMPLE.content(file.path)


async def test_an_agent_killed_between_check_and_seal_checks_and_seals_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = Ingest.seal

    def killed(self: Ingest, manifest: Manifest) -> None:
        raise KeyError("kill -9")

    monkeypatch.setattr(Ingest, "seal", killed)
    store = opened(tmp_path)
    async with workshop(store) as (shop, _):
        first = pull_of(shop)
        await first.run()
    assert first.outcome is None
    store.abandon()

    monkeypatch.setattr(Ingest, "seal", seal)
    with opened(tmp_path) as store:
        async with workshop(store) as (shop, _):
            pull = pull_of(shop)
            await pull.run()

        assert pull.outcome is not None, pull.failure
        assert pull.outcome.bytes_from_origin == 0
        manifest = store.manifest(Digest.parse(pull.outcome.artifact))
        assert manifest is not None
        assert all(store.sha256_of(one.id, is_ours=True) for one in manifest.files)


async def test_whoever_must_be_sure_has_every_file_read_here(tmp_path: Path) -> None:
    manifest = Manifest.seal(PLAN, SAMPLE.digests)
    lie = replace(PLAN.files[0], digests=(sha256(b"not this"),))
    liar = Manifest.seal(Plan(PLAN.ref, (lie, *PLAN.files[1:])), SAMPLE.digests)
    with opened(tmp_path) as store, ThreadPoolExecutor(2) as readers:
        begun = store.ingest(PLAN, [*SAMPLE.digests], SAMPLE.everything)
        with begun as ingest:
            for index, data in enumerate(SAMPLE.chunks):
                ingest.write(index, SAMPLE.digests[index], data)
            for file in manifest.files:  # Believed of others, and wrong.
                store.found_whole(file.id, sha256(b"?"), is_ours=False)

            found = await verified_here(store, ingest, manifest, SAMPLE.everything, readers)

            assert found == {f.path: sha256(SAMPLE.content(f.path)) for f in PLAN.files}
            for file in manifest.files:
                assert store.sha256_of(file.id) == file.digests[0]
            with pytest.raises(DigestMismatchError, match=PLAN.files[0].path):
                await verified_here(store, ingest, liar, SAMPLE.everything, readers)
