"""Agents that start together and are asked at once: the origin is read once all the same."""

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, OriginServer, free_addresses, same_tree
from damselfly.client.answers import Pulled
from damselfly.errors import AgentUnavailableError

SIZE = 48 << 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(os.urandom(SIZE))
    return folder


@pytest.fixture
def origin(fleet: Fleet, model: Path) -> OriginServer:
    return fleet.start_origin(model, free_addresses(1)[0])


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


@pytest.mark.parametrize("spread_s", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("count", [4, 8])
def test_agents_that_are_asked_as_they_start_read_the_origin_once(
    fleet: Fleet, origin: OriginServer, model: Path, count: int, spread_s: float
) -> None:
    addresses = free_addresses(count)
    drawn = random.Random(count)
    delays_s = [drawn.uniform(0.0, spread_s) for _ in addresses]

    def begin(number: int) -> Pulled:
        time.sleep(delays_s[number])  # Nodes boot one after the other.
        options = ("--store-keep-free", "1MiB")
        agent = fleet.start_agent(f"n{number}", addresses[number], addresses, *options)
        return pull_at_once(agent, origin.url)

    with ThreadPoolExecutor(count) as threads:
        pulled = list(threads.map(begin, range(count)))

    assert origin.bytes_sent() <= 1.01 * SIZE, fleet.explain()
    assert {each.artifact for each in pulled} == {pulled[0].artifact}
    assert all(same_tree(Path(each.path), model) for each in pulled)
