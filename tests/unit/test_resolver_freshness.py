"""How often an origin is asked what a ref is: once while it is believed, never for nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from damselfly.agent import resolver as resolving
from damselfly.agent.resolver import Resolver, ref_key
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
from damselfly.p2p.refs import RefHome, RefLimits, RefNews, RefReply, RefReport
from damselfly.p2p.transport import PeerPool

ME = Hello(AgentID("127.0.0.1:1"), "boot-me", "")
GONE = AgentID("127.0.0.1:9")
REF = Ref.parse("https://origin.invalid/m/")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIXED = Ref.parse(f"hf://org/name@{COMMIT}")
SIGNED = Ref.parse("https://origin.invalid/m/?signature=s3cret")
MANIFEST = Manifest.seal(Plan.of("-", [PlannedFile("weights.bin", (7,))]), [Digest.of(b"weights")])


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)


class CountingOrigin:
    """An origin that says where it was asked, and is another every time."""

    shared = True

    def __init__(self) -> None:
        self.asked: list[Ref] = []
        self.is_stuck = False

    def for_ref(self, ref: Ref) -> "CountingOrigin":
        return self

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        self.asked.append(ref)
        if self.is_stuck:
            await asyncio.Event().wait()
        file = PlannedFile("weights.bin", (7,), f"etag:{len(self.asked)}")
        return Resolved(Plan.of(str(ref.as_directory), [file]), None, "revision")


class InsistingHome(RefHome):
    """A home that tells everybody of a plan that nobody has."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def reported(self, report: RefReport, now: float) -> RefReply:
        if report.news is RefNews.ASK:
            self.asked += 1
            return RefReply(plan=Digest.of(b"nobody's"), holders=(GONE,))
        return super().reported(report, now)


@asynccontextmanager
async def resolver_of(
    origin: CountingOrigin,
    clock: HandClock,
    home: RefHome | None = None,
    kept: Callable[[Digest], Manifest | None] = lambda digest: None,
    known: Callable[[Ref], Manifest | None] = lambda ref: None,
    resolve_s: float = 900.0,
) -> AsyncIterator[Resolver]:
    """An agent alone, which is the home of every ref."""
    pool = PeerPool()
    agents = Agents(ME, StaticPeers(frozenset()), pool, clock)
    resolver = Resolver(
        cast("Origins", origin),
        agents,
        pool,
        home or RefHome(RefLimits(fresh_s=60.0)),
        clock,
        kept,
        known=known,
        resolve_s=resolve_s,
    )
    running = asyncio.create_task(agents.run())
    try:
        async with asyncio.timeout(20):
            yield resolver
    finally:
        running.cancel()
        await asyncio.wait({running})
        await pool.close()


async def test_a_ref_is_asked_for_once_while_it_is_believed() -> None:
    origin, clock = CountingOrigin(), HandClock()
    async with resolver_of(origin, clock) as resolver:
        first = await resolver.resolve(REF)
        clock.now_s += 59
        second = await resolver.resolve(REF)
        clock.now_s += 2
        third = await resolver.resolve(REF)

    assert first.plan == second.plan != third.plan
    assert len(origin.asked) == 2


async def test_who_asks_says_how_old_the_answer_may_be() -> None:
    origin, clock = CountingOrigin(), HandClock()
    async with resolver_of(origin, clock) as resolver:
        await resolver.resolve(REF)
        clock.now_s += 1
        await resolver.resolve(REF, age_s_max=0.0)
        assert len(origin.asked) == 2

        clock.now_s += 1000
        await resolver.resolve(REF, age_s_max=2000.0)
        assert len(origin.asked) == 2


async def test_what_others_find_out_meanwhile_is_fresh_enough() -> None:
    clock, home = HandClock(), RefHome()
    origin = CountingOrigin()
    other = AgentID("other:1")
    home.reported(RefReport(RefNews.ASK, ref_key(REF), other, "boot"), clock.now_s)
    async with resolver_of(origin, clock, home) as resolver:
        known = (await origin.resolve(REF)).plan
        resolver._keep(known)
        asking = asyncio.create_task(resolver.resolve(REF, age_s_max=0.0))
        await asyncio.wait({asking}, timeout=0.05)
        report = RefReport(RefNews.PLANNED, ref_key(REF), other, "boot", known.id)
        clock.now_s += 0.1
        home.reported(report, clock.now_s)
        clock.now_s += 0.1

        assert (await asking).plan == known
    assert len(origin.asked) == 1


async def test_an_outcome_that_nobody_hands_out_is_asked_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "RETRY_S", 0.001)
    origin, clock, home = CountingOrigin(), HandClock(), RefHome(RefLimits(fresh_s=1e6))
    key = ref_key(REF)
    home.reported(RefReport(RefNews.ASK, key, GONE, "boot"), clock.now_s)
    home.reported(RefReport(RefNews.PLANNED, key, GONE, "boot", Digest.of(b"lost")), clock.now_s)
    clock.now_s += 1

    async with resolver_of(origin, clock, home) as resolver:
        target = await resolver.resolve(REF)
        again = await resolver.resolve(REF)

    assert target.plan == again.plan
    assert len(origin.asked) == 1


async def test_a_home_that_insists_on_what_nobody_has_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "RETRY_S", 0.0001)
    origin, home = CountingOrigin(), InsistingHome()

    async with resolver_of(origin, HandClock(), home) as resolver:
        await resolver.resolve(REF)

    assert len(origin.asked) == 1
    assert home.asked <= resolving.LOSSES_MAX + 2


async def test_a_commit_is_asked_for_once_and_never_again() -> None:
    origin, clock = CountingOrigin(), HandClock()
    async with resolver_of(origin, clock) as resolver:
        await resolver.resolve(FIXED)
        clock.now_s += 1e6
        await resolver.resolve(FIXED)

    assert origin.asked == [FIXED]


async def test_a_commit_that_is_here_is_not_asked_for_after_a_restart() -> None:
    origin = CountingOrigin()
    async with resolver_of(origin, HandClock(), known={FIXED: MANIFEST}.get) as resolver:
        target = await resolver.resolve(FIXED)

    assert target.manifest == MANIFEST
    assert target.plan.ref == f"{FIXED}/"
    assert origin.asked == []


async def test_somebody_may_insist_even_for_a_commit() -> None:
    origin, clock = CountingOrigin(), HandClock()
    async with resolver_of(origin, clock, known={FIXED: MANIFEST}.get) as resolver:
        await resolver.resolve(FIXED, age_s_max=0.0)

    assert origin.asked == [FIXED]


async def test_a_pin_that_is_here_is_not_asked_for() -> None:
    origin = CountingOrigin()
    ref = Ref.parse(f"{REF}#{MANIFEST.digest}")
    async with resolver_of(origin, HandClock(), kept={MANIFEST.digest: MANIFEST}.get) as resolver:
        target = await resolver.resolve(ref)

    assert target.manifest == MANIFEST
    assert origin.asked == []


async def test_an_origin_is_asked_with_a_query_that_nobody_else_is_told() -> None:
    origin = CountingOrigin()
    async with resolver_of(origin, HandClock()) as resolver:
        target = await resolver.resolve(SIGNED)

        told = resolver.plan(target.plan.id)

    assert origin.asked == [SIGNED]
    assert told is not None
    assert b"s3cret" not in told
    assert SIGNED.place_of(target.plan.ref) == SIGNED
    assert ref_key(SIGNED) == ref_key(SIGNED.named)


async def test_an_origin_that_leads_on_for_ever_is_left() -> None:
    origin = CountingOrigin()
    origin.is_stuck = True
    async with resolver_of(origin, HandClock(), resolve_s=0.05) as resolver:
        with pytest.raises(OriginUnavailableError, match="takes longer than"):
            await resolver.resolve(REF)
        origin.is_stuck = False

        await resolver.resolve(REF)

    assert len(origin.asked) == 2
