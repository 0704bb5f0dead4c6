"""A manifest that peers tell of a plan is compared with what the origin has."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from damselfly.agent.holdings import Holdings
from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Target
from damselfly.cache.store import Store
from damselfly.client.answers import PullRequest
from damselfly.clock import SystemClock
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from tests.integration.agent_fleet import sha256
from tests.integration.pull_workshop import LIMITS, SAMPLE, SampleOrigin, workshop

REF = Ref.parse("https://origin.invalid/sample/")
BARE = Plan.of(str(REF), SAMPLE.plan.files)
PUBLISHED = Plan.of(
    str(REF),
    [replace(file, digests=(sha256(SAMPLE.content(file.path)),)) for file in BARE.files],
)


def evil(plan: Plan) -> tuple[Manifest, list[bytes]]:
    """The same paths and cuts, other bytes."""
    chunks = [bytes([index % 251]) * length for index, length in enumerate(plan.lengths)]
    return Manifest.seal(plan, [Digest.of(chunk) for chunk in chunks]), chunks


class Told(SampleOrigin):
    """A resolver and an origin; the former was told a manifest, and hears what comes of it."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.refuted_ones: list[Digest | None] = []
        self.sealed_ones: list[Digest] = []

    async def resolve(
        self,
        ref: Ref,
        access: Access,
        age_s_max: float | None = None,
        policy: str = "auto",
    ) -> Target:
        return self.target

    async def refuted(self, ref: Ref, plan: Plan, artifact: Digest | None = None) -> None:
        self.refuted_ones.append(artifact)

    async def sealed(self, ref: Ref, plan: Plan, artifact: Digest) -> None:
        self.sealed_ones.append(artifact)


async def pulled(shop: Workshop, told: Told, request: PullRequest | None = None) -> Pull:
    shop = replace(shop, origins=told, resolver=told)  # type: ignore[arg-type]
    pull = Pull(request or PullRequest(ref=str(REF)), REF, shop)
    await asyncio.wait_for(pull.run(), 30)
    return pull


def hold(store: Store, plan: Plan, manifest: Manifest, chunks: list[bytes]) -> None:
    """Keep what another ref brought."""
    everything = frozenset(range(len(plan.files)))
    ingest = store.ingest(plan, list(manifest.digests), everything)
    for index, chunk in enumerate(chunks):
        if not ingest.have().bits >> index & 1:
            ingest.write(index, manifest.digests[index], memoryview(chunk))
    ingest.seal(manifest)
    ingest.close()


@pytest.mark.parametrize("is_held", [False, True])
async def test_other_bytes_than_the_origin_published_are_refuted_and_the_pull_goes_on(
    tmp_path: Path, is_held: bool
) -> None:
    bad, chunks = evil(PUBLISHED)
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        if is_held:  # Then nobody asks the origin for a single byte.
            hold(store, PUBLISHED, bad, chunks)
        async with workshop(store) as (shop, _):
            told = Told(Target(PUBLISHED, bad, is_told=True))
            pull = await pulled(shop, told)

        assert pull.outcome is not None, pull.failure
        assert told.refuted_ones == [bad.digest]
        assert told.sealed_ones != [bad.digest]
        for file in PUBLISHED.files:
            assert (Path(pull.outcome.path) / file.path).read_bytes() == SAMPLE.content(file.path)
        assert Holdings(store).known(REF, PUBLISHED) == told.sealed_ones[0]


async def test_other_bytes_than_the_origin_serves_are_refuted_though_it_publishes_no_digests(
    tmp_path: Path,
) -> None:
    bad, _ = evil(BARE)
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        async with workshop(store) as (shop, _):
            told = Told(Target(BARE, bad, is_told=True))
            pull = await pulled(shop, told)

    assert pull.outcome is not None, pull.failure
    assert told.refuted_ones == [bad.digest]
    assert told.sealed_ones == [Manifest.seal(BARE, SAMPLE.manifest.digests).digest]


async def test_what_was_told_and_not_found_out_here_answers_for_no_ref(tmp_path: Path) -> None:
    bad, chunks = evil(BARE)
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        hold(store, BARE, bad, chunks)
        async with workshop(store) as (shop, _):
            # Nobody can tell: no digest is published, and nothing is read from the origin.
            pull = await pulled(shop, Told(Target(BARE, bad, is_told=True)))
            assert pull.artifact == bad.digest
            holdings = Holdings(store)
            assert holdings.whole(REF) is None
            assert holdings.known(REF, BARE) is None
            assert holdings.told(REF, BARE) == bad.digest

            afresh = PullRequest(ref=str(REF), age_s_max=0.0)
            pull = await pulled(shop, Told(Target(BARE, None)), afresh)

        good = Manifest.seal(BARE, SAMPLE.manifest.digests)
        assert pull.artifact == good.digest
        assert holdings.known(REF, BARE) == good.digest
        assert holdings.whole(REF) == good


async def test_what_was_told_and_compared_here_is_our_own_finding(tmp_path: Path) -> None:
    good = Manifest.seal(PUBLISHED, SAMPLE.manifest.digests)
    with Store.open(tmp_path / "store", LIMITS, SystemClock()) as store:
        chunks = [
            SAMPLE.content(PUBLISHED.files[span.file].path)[span.start : span.start + span.length]
            for span in map(PUBLISHED.span, range(PUBLISHED.chunk_count))
        ]
        hold(store, BARE, Manifest.seal(BARE, SAMPLE.manifest.digests), chunks)
        async with workshop(store) as (shop, _):
            told = Told(Target(PUBLISHED, good, is_told=True))
            pull = await pulled(shop, told)

        assert pull.outcome is not None, pull.failure
        assert pull.outcome.bytes_from_origin == 0
        assert not told.refuted_ones
        assert Holdings(store).whole(REF) == good
