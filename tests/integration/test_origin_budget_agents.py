"""Real agents and an origin that has had enough: what they ask it, and what people are told."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree
from damselfly.p2p.messages import AgentID
from damselfly.p2p.rendezvous import home_of
from tests.integration.origin_servers import Asked, reply, scripted

DAMSELFLY = (sys.executable, "-m", "damselfly")
MARGIN_S = 0.6
"""Half of a rest and more: a word that is so late was not on its way, it was not heard."""


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


def started(fleet: Fleet, count: int, *options: str) -> list[Agent]:
    addresses = free_addresses(count)
    agents = [
        fleet.start_agent(f"n{i}", address, addresses, "--store-keep-free", "1MiB", *options)
        for i, address in enumerate(addresses)
    ]
    fleet.wait_until_met()
    return agents


def begun(agent: Agent, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*DAMSELFLY, *words, "--socket", agent.client.socket_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, error = process.communicate(timeout=90)
    return process.returncode, out, error


def damselfly(agent: Agent, *words: str) -> tuple[int, str, str]:
    return ended(begun(agent, *words))


def test_nobody_asks_while_the_origin_rests_and_the_pull_completes(
    fleet: Fleet, model: Path
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0], "--throttle", "3")
    agents = started(fleet, 3)

    pulls = [begun(agent, "pull", origin.url, "--json") for agent in agents]
    answers = [ended(pull) for pull in pulls]

    assert [code for code, _, _ in answers] == [0, 0, 0], answers
    stats = origin.stats()
    assert stats["busy"] > 0
    assert [early for early in stats["early_s"] if early > MARGIN_S] == []
    size = sum(file.stat().st_size for file in model.iterdir())
    assert stats["bytes"] <= 1.1 * size
    assert same_tree(Path(json.loads(answers[0][1])["path"]), model)


def test_a_budget_of_few_requests_is_shared_and_nobody_starves(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    agents = started(fleet, 3, "--origin-requests", "8", "--origin-bytes", "20MiB")

    pulls = [begun(agent, "pull", origin.url, "--json") for agent in agents]

    answers = [ended(pull) for pull in pulls]
    assert [code for code, _, _ in answers] == [0, 0, 0], answers
    claimed = [json.loads(out)["bytes_from_origin"] for _, out, _ in answers]
    assert sum(claimed) == sum(file.stat().st_size for file in model.iterdir())


async def test_a_rest_longer_than_anybody_waits_ends_the_pulls_of_all_agents_at_once(
    fleet: Fleet,
) -> None:
    async def answer(one: Asked) -> bytes:
        return reply("429 Too Many Requests", Retry_After="4000")

    async with scripted(answer) as (address, lines):
        one, two = await asyncio.to_thread(started, fleet, 2)
        first = await asyncio.to_thread(damselfly, one, "pull", f"{address}/m/")
        second = await asyncio.to_thread(damselfly, two, "pull", f"{address}/m/")

    assert (first[0], second[0]) == (34, 34), (first, second)
    assert "left alone for 4000 s" in first[2]
    told = re.search(r"asks for rest, ([0-9]+) s more", second[2])
    assert told is not None, second[2]
    assert int(told[1]) > 3000
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("of_home", "of_other"),
    [
        (("--origin-bytes", "20MiB"), ("--origin-requests", "4")),
        (("--origin-requests", "4"), ("--origin-bytes", "20MiB")),
    ],
)
def test_agents_whose_budgets_are_set_differently_ask_each_other_seldom(
    fleet: Fleet, model: Path, of_home: tuple[str, str], of_other: tuple[str, str]
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    addresses = free_addresses(2)
    host = origin.url.removeprefix("http://").rstrip("/")
    home = home_of(f"origin:{host}", [AgentID(address) for address in addresses])
    common = ("--store-keep-free", "1MiB", "--log-level", "debug")
    agents = {
        address: fleet.start_agent(
            f"n{i}", address, addresses, *common, *(of_home if address == home else of_other)
        )
        for i, address in enumerate(addresses)
    }
    fleet.wait_until_met()
    other = next(agent for address, agent in agents.items() if address != home)

    code, _, error = damselfly(other, "pull", origin.url, "--json", "--include", "b.bin")

    assert code == 0, error
    asked = other.process.log.read_text().count("budget.asked")
    assert 0 < asked <= 20


def test_the_home_of_a_host_may_die_amid_a_budget(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    agents = started(fleet, 3, "--origin-requests", "4")
    pulls = [begun(agent, "pull", origin.url, "--json") for agent in agents[:2]]

    agents[2].process._process.send_signal(signal.SIGKILL)

    answers = [ended(pull) for pull in pulls]
    assert [code for code, _, _ in answers] == [0, 0], answers


def test_whoever_the_origin_refuses_hands_back_and_is_served_by_peers(
    fleet: Fleet, model: Path, tmp_path: Path
) -> None:
    slow = ("--rate-per-connection", "8mbit")
    origin = fleet.start_origin(model, free_addresses(1)[0], "--token", "let-me-in", *slow)
    one, two = started(fleet, 2, "--origin-connections", "1")
    (tmp_path / "good").write_text("let-me-in")
    (tmp_path / "bad").write_text("let-him-in")
    first = begun(one, "pull", origin.url, "--json", "--token-file", str(tmp_path / "good"))
    while not any(pull.bytes_from_origin for pull in one.client.pulls()):
        assert first.poll() is None, ended(first)

    code, out, error = damselfly(
        two, "pull", origin.url, "--json", "--token-file", str(tmp_path / "bad")
    )

    assert ended(first)[0] == 0
    assert code == 0, error
    assert json.loads(out)["bytes_from_origin"] == 0
    assert "the origin answered 401" in two.process.log.read_text()  # It had a claim, once.


def test_never_takes_from_peers_and_else_ends_with_a_word(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    one, two = started(fleet, 2)

    alone = damselfly(two, "pull", origin.url, "--json", "--origin", "never")
    assert alone[0] == 31
    assert "--origin never" in alone[2]
    assert origin.stats()["requests"] == 0

    assert damselfly(one, "pull", origin.url, "--json")[0] == 0
    asked = origin.stats()["requests"]
    code, out, error = damselfly(two, "pull", origin.url, "--json", "--origin", "never")

    assert code == 0, error
    assert json.loads(out)["bytes_from_peers"] > 0
    assert origin.stats()["requests"] == asked


def test_never_says_how_many_chunks_nobody_has(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    one, two = started(fleet, 2)
    assert damselfly(one, "pull", origin.url, "--include", "b.bin")[0] == 0

    code, _, error = damselfly(two, "pull", origin.url, "--origin", "never")

    assert code == 31
    assert "6 chunks are missing that nobody holds" in error


def test_always_reads_everything_from_the_origin(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    (one,) = started(fleet, 1)

    code, out, error = damselfly(one, "pull", origin.url, "--json", "--origin", "always")

    assert code == 0, error
    answer = json.loads(out)
    assert answer["bytes_from_origin"] == answer["bytes"]
    told = json.loads(damselfly(one, "explain", origin.url, "--json")[1])
    assert {run["why"] for file in told["files"] for run in file["runs"]} == {
        "the policy is always"
    }


def test_a_policy_that_nobody_knows_is_refused(fleet: Fleet) -> None:
    (one,) = started(fleet, 1)

    assert damselfly(one, "pull", "http://127.0.0.1:1/", "--origin", "maybe")[0] == 2


def test_every_chunk_is_explained(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    one, two = started(fleet, 2)
    answers = [
        damselfly(agent, "pull", origin.url, "--json", "--to", f"{agent.process.log}.d")
        for agent in (one, two)
    ]
    artifact = json.loads(answers[0][1])["artifact"]

    read = json.loads(damselfly(one, "explain", artifact[:20], "--json")[1])
    got = json.loads(damselfly(two, "explain", origin.url, "--json")[1])
    text = damselfly(two, "explain", origin.url)[1]

    assert read["artifact"] == got["artifact"] == artifact
    assert read["chunks_missing"] == got["chunks_missing"] == 0
    host = origin.url.removeprefix("http://").rstrip("/")
    assert {(r["source"], r["by"]) for f in read["files"] for r in f["runs"]} == {("origin", host)}
    assert {(r["source"], r["by"]) for f in got["files"] for r in f["runs"]} == {
        ("peer", one.address)
    }
    for told in (read, got):
        assert sum(r["chunks"] for f in told["files"] for r in f["runs"]) == told["chunks"]
    assert f"from peer {one.address}" in text
    assert "a.bin" in text


def test_what_was_never_pulled_is_not_explained(fleet: Fleet) -> None:
    (one,) = started(fleet, 1)

    code, _, error = damselfly(one, "explain", "http://127.0.0.1:1/")

    assert code == 14
    assert "is remembered" in error
