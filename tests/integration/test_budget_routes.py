"""What an agent answers about budgets, also to whoever talks nonsense or is nobody it knows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses
from damselfly.p2p.budget import BudgetReply
from damselfly.p2p.messages import AgentID
from damselfly.p2p.rendezvous import home_of
from damselfly.p2p.transport import PeerPool, Reply


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[Agent]]:
    with Fleet(tmp_path / "fleet") as fleet:
        addresses = free_addresses(2)
        options = ("--store-keep-free", "1MiB", "--origin-requests", "4")
        agents = [
            fleet.start_agent(f"n{n}", a, addresses, *options) for n, a in enumerate(addresses)
        ]
        fleet.wait_until_met()
        yield agents


async def asked(agent: Agent, body: bytes, method: str = "POST") -> Reply:
    pool = PeerPool()
    try:
        return await pool.request(agent.address, method, "/v1/budget", body=body, deadline_s=10.0)
    finally:
        await pool.close()


async def test_an_agent_answers_at_once_and_goes_on_after_nonsense(agents: list[Agent]) -> None:
    home = home_of("origin:models.example", [AgentID(each.address) for each in agents])
    agent, other = sorted(agents, key=lambda each: each.address != home)
    good = {"host": "models.example", "agent": other.address, "requests": 3}
    strangers = good | {"agent": "nobody:1"}
    in_its_name = good | {"agent": agent.address, "rests_s": 60.0}
    bad = [b"", b"[]", b"{", b"\xff", b"x" * 20_000]
    bad += [json.dumps(each).encode() for each in (strangers, in_its_name)]

    statuses = [(await asked(agent, body)).status for body in bad]
    answer = await asked(agent, json.dumps(good).encode())

    assert statuses == [400] * len(bad)
    assert (await asked(agent, b"", "GET")).status == 405
    assert answer.status == 200
    reply = BudgetReply.parse(answer.body)
    assert reply.limits_requests
    assert not reply.limits_bytes
    assert len(reply.slots) == 2  # Half a second of four a second.
