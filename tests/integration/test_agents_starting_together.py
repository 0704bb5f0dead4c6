"""Agents that start together and are asked at once: the origin is read once all the same."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree
from damselfly.client.answers import Pulled
from damselfly.errors import AgentUnavailableError

SIZE = 24 << 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(os.urandom(SIZE))
    (folder / "config.json").write_bytes(b'{"a": 1}\n')
    return folder


def pull_at_once(agent: Agent, ref: str) -> Pulled:
    """Pull as soon as the agent's socket answers: while it still meets the others."""
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return agent.pull(ref)
        except AgentUnavailableError:
            assert agent.process.is_alive, agent.process.last_words()
            assert time.monotonic() < deadline_s, "its socket never answered"
            time.sleep(0.01)


@pytest.mark.parametrize("count", [4, 8, 6, 5])
def test_agents_that_start_together_and_are_asked_at_once_read_the_origin_once(
    fleet: Fleet, model: Path, count: int
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0], "--rate-per-connection", "40mbit")
    addresses = free_addresses(count)
    agents = [
        fleet.start_agent(f"n{i}", address, addresses, "--store-keep-free", "1MiB")
        for i, address in enumerate(addresses)
    ]

    with ThreadPoolExecutor(count) as threads:
        pulled = list(threads.map(lambda agent: pull_at_once(agent, origin.url), agents))

    total = sum(path.stat().st_size for path in model.rglob("*"))
    assert origin.bytes_sent() <= 1.01 * total, fleet.explain()
    assert {each.artifact for each in pulled} == {pulled[0].artifact}
    assert all(same_tree(Path(each.path), model) for each in pulled)
