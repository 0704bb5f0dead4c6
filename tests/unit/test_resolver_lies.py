"""What a home says that is not so, and what a resolver that ends badly leaves behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from damselfly.agent.resolver import Resolver, Target, ref_key
from damselfly.clock import SystemClock
from damselfly.errors import OriginUnavailableError
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.port import Resolved
from damselfly.origin.registry import Origins
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.refs import RefHome, RefLimits, RefNews, RefReport
from damselfly.p2p.transport import PeerPool

ME = Hello(AgentID("127.0.0.1:1"), "boot-me", "")
REF = Ref.parse("http://origin.invalid/two/")


def plan_of(ref: str, *lengths: int) -> Plan:
    return Plan.of(ref, [PlannedFile("weights.bin", lengths)])


PLAN_ONE = plan_of("http://origin.invalid/one/", 7)
ONE = Manifest.seal(PLAN_ONE, [Digest.of(b"one")])
PLAN_TWO = plan_of(str(REF), 7, 8)
TWO = Manifest.seal(PLAN_TWO, [Digest.of(b"two"), Digest.of(b"more")])


class OneOrigin:
    """An origin that says what it is told to say, as often as it is asked."""

    shared = True

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure: Exception | None = None

    def for_ref(self, ref: Ref) -> "OneOrigin":
        return self

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        self.asked.set()
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return Resolved(PLAN_TWO, None, "revision")


def said(
    news: RefNews, agent: str, plan: Digest | None = None, artifact: Digest | None = None
) -> RefReport:
    return RefReport(news, ref_key(REF), AgentID(f"{agent}:1"), f"boot-{agent}", plan, artifact)


@asynccontextmanager
async def resolver_of(home: RefHome, origin: OneOrigin) -> AsyncIterator[Resolver]:
    """An agent alone, which is the home of every ref; it has both manifests."""
    clock = SystemClock()
    pool = PeerPool()
    agents = Agents(ME, StaticPeers(frozenset()), pool, clock)
    kept = {each.digest: each for each in (ONE, TWO)}
    origins = cast("Origins", origin)
    resolver = Resolver(origins, agents, pool, home, clock, kept.get)
    running = asyncio.create_task(agents.run())
    try:
        async with asyncio.timeout(20):
            yield resolver
    finally:
        running.cancel()
        await asyncio.wait({running})
        await pool.close()


async def test_an_artifact_that_a_plan_cannot_have_become_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = RefHome()
    home.reported(said(RefNews.SEALED, "liar", PLAN_TWO.id, ONE.digest), 0.0)

    async with resolver_of(home, OneOrigin()) as resolver:
        target = await resolver.resolve(REF)

    assert target == Target(PLAN_TWO, None)
    assert "manifest.refused" in [each.message for each in caplog.records]


async def test_an_artifact_that_the_plan_became_is_taken() -> None:
    home = RefHome()
    home.reported(said(RefNews.SEALED, "a", PLAN_TWO.id, TWO.digest), 0.0)

    async with resolver_of(home, OneOrigin()) as resolver:
        target = await resolver.resolve(REF)

    assert target == Target(PLAN_TWO, TWO, is_told=True)


@pytest.mark.parametrize(("policy", "age_s_max"), [("always", None), ("auto", 0.0)])
async def test_who_wants_the_origins_own_word_takes_no_manifest_that_was_told(
    policy: str, age_s_max: float | None
) -> None:
    home = RefHome()
    home.reported(said(RefNews.SEALED, "a", PLAN_TWO.id, TWO.digest), 0.0)

    async with resolver_of(home, OneOrigin()) as resolver:
        target = await resolver.resolve(REF, age_s_max=age_s_max, policy=policy)

    assert target == Target(PLAN_TWO, None)


async def test_an_artifact_that_is_refuted_makes_way_for_another() -> None:
    home = RefHome()
    home.reported(said(RefNews.SEALED, "liar", PLAN_TWO.id, ONE.digest), 0.0)

    async with resolver_of(home, OneOrigin()) as resolver:
        await resolver.refuted(REF, PLAN_TWO, ONE.digest)
        await resolver.sealed(REF, PLAN_TWO, TWO.digest)
        target = await resolver.resolve(REF)

    assert target.manifest == TWO


async def test_an_outcome_whose_plan_nobody_shows_is_no_other_model() -> None:
    home = RefHome(RefLimits(fresh_s=0.5))
    now = SystemClock().monotonic_s()
    home.reported(said(RefNews.ASK, "a"), now)
    home.reported(said(RefNews.PLANNED, "a", PLAN_TWO.id), now)
    home.reported(said(RefNews.SEALED, "liar", PLAN_TWO.id, ONE.digest), now)

    async with resolver_of(home, OneOrigin()) as resolver:
        target = await resolver.resolve(REF)

    assert target == Target(PLAN_TWO, None)


async def test_a_resolution_that_is_cancelled_keeps_nobody_waiting() -> None:
    home, origin = RefHome(), OneOrigin()
    origin.answers.clear()

    async with resolver_of(home, origin) as resolver:
        task = asyncio.create_task(resolver.resolve(REF))
        await origin.asked.wait()
        task.cancel()
        await asyncio.wait({task})

        now = SystemClock().monotonic_s()
        assert home.reported(said(RefNews.ASK, "b"), now).must_resolve


@pytest.mark.parametrize("failure", [OriginUnavailableError("away"), ZeroDivisionError("a bug")])
async def test_a_resolution_that_fails_keeps_nobody_waiting(failure: Exception) -> None:
    home, origin = RefHome(), OneOrigin()
    origin.failure = failure

    async with resolver_of(home, origin) as resolver:
        with pytest.raises(type(failure)):
            await resolver.resolve(REF)

        now = SystemClock().monotonic_s()
        assert home.reported(said(RefNews.ASK, "b"), now).must_resolve


@pytest.mark.parametrize(
    ("ref", "place", "is_trusted"),
    [
        ("https://hub/m/", "https://hub/m/resolve/abc/", True),
        ("http://hub/m/", "https://hub/m/", True),
        ("https://hub/m/", "http://hub/m/", False),
        ("https://hub/m/", "https://evil/m/", False),
        ("https://hub/m/", "https://hub:8443/m/", False),
    ],
)
def test_a_plan_that_leads_elsewhere_is_shown_no_credentials(
    ref: str, place: str, is_trusted: bool
) -> None:
    assert Ref.parse(ref).is_trusted_with(Ref.parse(place)) == is_trusted
