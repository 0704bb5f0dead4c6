"""Real agents and an origin in trouble: it answers 503, stalls amid bodies, or breaks them off.

The origin counts: what was sent goes on from where it stopped, so it costs no byte twice; only what
one agent got before it stalled may be read again by another.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.agents import Fleet, free_addresses, same_tree
from damselfly.model.chunker import CHUNK_BYTES

AGENTS = 3
FAILURES = {"503": 20, "truncated": 5, "stalled": 2}
"""A stall ends when an agent has waited for 15 seconds; the other trouble takes two."""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(os.urandom(24 << 20))
    (folder / "b.bin").write_bytes(os.urandom(5_000_001))
    return folder


@pytest.mark.parametrize("failure", FAILURES)
def test_a_pull_outlasts_trouble_and_reads_nothing_twice(
    fleet: Fleet, model: Path, failure: str
) -> None:
    options = ("--fail", failure, "--fail-count", str(FAILURES[failure]))
    origin = fleet.start_origin(model, free_addresses(1)[0], *options)
    addresses = free_addresses(AGENTS)
    for number, address in enumerate(addresses):
        fleet.start_agent(f"n{number}", address, addresses, "--store-keep-free", "1MiB")
    fleet.wait_until_met()

    with ThreadPoolExecutor(AGENTS) as threads:
        pulled = list(threads.map(lambda agent: agent.pull(origin.url), fleet.agents))

    assert all(same_tree(Path(each.path), model) for each in pulled)
    stats = origin.stats()
    model_bytes = sum(file.stat().st_size for file in model.iterdir())
    begun = Counter((path, start) for path, start in stats["reads_begun"])
    again = [count - 1 for count in begun.values() if count > 1]
    if failure == "stalled":  # The home gives it to another agent, which has nothing of it.
        assert sum(again) <= FAILURES[failure]
    else:
        assert again == []
    assert model_bytes <= stats["bytes"] <= 1.02 * model_bytes + sum(again) * CHUNK_BYTES // 2
    resumed = [start for _, start in begun if start % CHUNK_BYTES]
    if failure == "503":
        assert sum(stats["requests_by_path"].values()) >= len(begun) + FAILURES[failure]
        assert resumed == []
    else:
        assert len(resumed) + sum(again) >= FAILURES[failure]
