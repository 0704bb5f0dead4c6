"""Nothing is resolved before this agent has met the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from damselfly.agent.resolver import Resolver
from damselfly.clock import SystemClock
from damselfly.model.ref import Ref
from damselfly.origin.registry import Origins
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.refs import RefHome
from damselfly.p2p.transport import PeerPool

ME = Hello(AgentID("127.0.0.1:1"), "boot-me", "")


@asynccontextmanager
async def resolving(ref: str) -> AsyncIterator[tuple[Resolver, Agents, "asyncio.Task[object]"]]:
    """An agent alone, and a resolution that has had the time to begin."""
    clock = SystemClock()
    pool, origins = PeerPool(), Origins()
    agents = Agents(ME, StaticPeers(frozenset()), pool, clock)
    resolver = Resolver(origins, agents, pool, RefHome(), clock, lambda digest: None)
    task: asyncio.Task[object] = asyncio.create_task(resolver.resolve(Ref.parse(ref)))
    await asyncio.wait({task}, timeout=0.1)
    try:
        yield resolver, agents, task
    finally:
        task.cancel()
        await asyncio.wait({task})
        await pool.close()
        await origins.close()


async def test_a_shared_origin_is_not_read_before_the_others_are_met() -> None:
    async with resolving("http://127.0.0.1:9/model/") as (resolver, agents, task):
        early = resolver.waiting_for
        was_waiting = not task.done()

        running = asyncio.create_task(agents.run())
        await agents.met()
        await asyncio.wait({task}, timeout=10)
        running.cancel()
        await asyncio.wait({running})

        assert was_waiting
        assert "meets them" in early
        assert "origin" in resolver.waiting_for
        assert task.exception() is not None, "nobody serves on port 9, and that was asked now"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


async def test_what_only_this_agent_can_read_waits_for_nobody(model: Path) -> None:
    async with resolving(f"file://{model}/") as (_, agents, task):
        await asyncio.wait({task}, timeout=10)

        assert task.done()
        assert task.exception() is None
        assert not agents.has_met


async def test_a_pin_is_not_looked_for_before_the_others_are_met(model: Path) -> None:
    async with resolving(f"file://{model}/#blake3:{'0' * 64}") as (_, _agents, task):
        assert not task.done()
