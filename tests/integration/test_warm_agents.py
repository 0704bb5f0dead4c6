"""Warm-ups of real agents, asked by the real command line."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.agents import Agent, Fleet, OriginServer, free_addresses, same_tree
from damselfly.client.answers import PullRequest, Warmed

DAMSELFLY = (sys.executable, "-m", "damselfly")
PATIENCE_S = 60.0
ROOMY = ("--store-keep-free", "1MiB", "--warm-patience", "4s")
WILLING = (*ROOMY, "--warm-accept", "all")
SLOW = ("--rate-per-connection", "6mbit")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(os.urandom(20 << 20))
    (folder / "b.bin").write_bytes(os.urandom(9_000_001))
    (folder / "sub" / "config.json").write_bytes(b'{"a": 1}\n')
    return folder


def size_of(model: Path) -> int:
    return sum(path.stat().st_size for path in model.rglob("*") if path.is_file())


def started(
    fleet: Fleet, count: int, *options: str, last: Sequence[str] | None = None
) -> list[Agent]:
    """Agents that have met; the last one may have options of its own."""
    addresses = free_addresses(count)
    for number, address in enumerate(addresses):
        own = last if last is not None and number == count - 1 else options
        fleet.start_agent(f"n{number}", address, addresses, *own)
    fleet.wait_until_met()
    return list(fleet.agents)


def served(fleet: Fleet, model: Path, *options: str) -> OriginServer:
    return fleet.start_origin(model, free_addresses(1)[0], *options)


def command(agent: Agent, *words: str) -> list[str]:
    return [*DAMSELFLY, "warm", *words, "--socket", agent.client.socket_path]


def warm(agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(agent, *words), capture_output=True, text=True, timeout=120, check=False
    )


def warming(agent: Agent, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(agent, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def states(told: str) -> dict[str, str]:
    """Each node's outcome; the answer is checked against the record's schema first."""
    warmed = Warmed.parse(json.loads(told), unknown_is_error=True)
    return {node.agent: node.state for node in warmed.nodes}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def is_pulling(agent: Agent, count: int = 1) -> bool:
    pulls = agent.client.pulls()
    return bool(pulls) and pulls[0].bytes_done >= count


def holds(agent: Agent, model: Path) -> bool:
    (held,) = agent.client.artifacts()
    assert held.bytes_held == held.bytes == size_of(model)
    done = agent.pull(held.refs[0])
    assert done.bytes_from_store == done.bytes
    return same_tree(Path(done.path), model)


def metric(admin: str, outcome: str) -> float:
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    wanted = f'damselfly_warm_orders_total{{outcome="{outcome}"}} '
    return next(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


def test_four_nodes_hold_the_model_and_the_origin_is_read_once(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 4, *WILLING)

    done = warm(agents[0], origin.url, "--all", "--json")

    assert done.returncode == 0, done.stderr
    assert states(done.stdout) == {agent.address: "done" for agent in agents}
    assert origin.bytes_sent() <= 1.01 * size_of(model)
    assert all(holds(agent, model) for agent in agents)
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["artifact"] == agents[3].client.artifacts()[0].artifact
    sources = ("bytes_from_origin", "bytes_from_peers", "bytes_from_store")
    for node in told["nodes"]:
        assert sum(node[source] for source in sources) == size_of(model)


def test_without_a_target_this_node_alone_is_warmed(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 2, *ROOMY)

    done = warm(agents[0], origin.url)

    assert done.returncode == 0, done.stderr
    assert "is on 1 of 1 node:" in done.stdout
    assert holds(agents[0], model)
    assert agents[1].client.artifacts() == []


def test_a_warm_up_again_finds_everything_there(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 2, *WILLING)
    assert warm(agents[0], origin.url, "--all").returncode == 0

    again = warm(agents[1], origin.url, "--all", "--json")

    assert again.returncode == 0, again.stderr
    size = size_of(model)
    assert [node["bytes_from_store"] for node in json.loads(again.stdout)["nodes"]] == [size, size]


def test_a_node_that_takes_no_orders_is_named_with_what_would_allow_it(
    fleet: Fleet, model: Path
) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 3, *WILLING, last=ROOMY)

    told = warm(agents[0], origin.url, "--all")
    listed = warm(agents[0], origin.url, "--agents", agents[2].address, "--json")

    assert told.returncode == 80
    assert f"{agents[2].address} failed:" in told.stderr
    assert f"--warm-accept {origin.url}" in told.stderr
    assert told.stderr.splitlines()[-1] == "damselfly warm: 2 of 3 nodes hold it"
    assert "is on 2 of 3 nodes" in told.stdout
    assert holds(agents[1], model)
    assert agents[2].client.artifacts() == []
    assert listed.returncode == 60
    (node,) = json.loads(listed.stdout)["nodes"]
    assert (node["state"], node["error"]) == ("failed", "DeniedError")


def test_a_node_takes_orders_below_an_accepted_prefix_only(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    admin = free_addresses(1)[0]
    willing = (*ROOMY, "--admin", admin, "--warm-accept", f"{origin.url}sub/,https://other/")
    agents = started(fleet, 2, *ROOMY, last=willing)
    other = ("--agents", agents[1].address)

    inside = warm(agents[0], f"{origin.url}sub/", *other)
    outside = warm(agents[0], origin.url, *other)

    assert inside.returncode == 0, inside.stderr
    assert outside.returncode == 60
    assert f"it accepts only {origin.url}sub/,https://other/" in outside.stderr
    assert metric(admin, "completed") == 1
    assert metric(admin, "refused") == 1


def test_a_dead_node_is_named_and_the_others_hold_the_model(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 3, *WILLING)
    nobody = free_addresses(1)[0]
    targets = ",".join([*(agent.address for agent in agents), nobody])

    done = warm(agents[0], origin.url, "--agents", targets, "--json")
    alone = warm(agents[0], origin.url, "--agents", nobody)

    assert done.returncode == 80, done.stderr
    assert states(done.stdout) == {
        **{agent.address: "done" for agent in agents},
        nobody: "unreachable",
    }
    (node,) = [node for node in json.loads(done.stdout)["nodes"] if node["agent"] == nobody]
    assert node["error"] == "PeerUnavailableError"
    assert nobody in node["message"]
    assert alone.returncode == 32
    assert nobody in alone.stderr


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_node_that_restarts_in_the_middle_is_asked_again(
    fleet: Fleet, model: Path, how: str
) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 4, *WILLING)
    victim = agents[2]
    watcher = warming(agents[0], origin.url, "--all", "--json")
    until(lambda: is_pulling(victim), "the victim begins")

    if how == "killed":
        victim.process.kill()
    else:
        assert victim.process.stop() == 0
    addresses = [agent.address for agent in agents]
    anew = fleet.start_agent("n2", victim.address, addresses, *WILLING)
    out, err = watcher.communicate(timeout=120)

    assert watcher.returncode == 0, err
    assert set(states(out).values()) == {"done"}
    assert all(holds(agent, model) for agent in (agents[0], agents[1], anew, agents[3]))


def test_the_nodes_go_on_when_the_agent_that_leads_is_killed(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 3, *WILLING)
    leader = agents[0]
    watcher = warming(leader, origin.url, "--all")
    until(lambda: all(map(is_pulling, agents)), "everybody begins")

    leader.process.kill()
    _, said = watcher.communicate(timeout=60)
    goes_on = [len(agent.client.pulls()) for agent in agents[1:]]
    addresses = [agent.address for agent in agents]
    anew = fleet.start_agent("n0", leader.address, addresses, *WILLING)
    anew.wait_until_ready()
    joined = warm(anew, origin.url, "--agents", ",".join(addresses), "--json")

    assert watcher.returncode == 33, said
    assert goes_on == [1, 1]
    assert joined.returncode == 0, joined.stderr
    assert all(holds(agent, model) for agent in (anew, *agents[1:]))


def test_a_pull_that_is_cancelled_on_its_node_is_told_apart(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 2, *WILLING)
    watcher = warming(agents[0], origin.url, "--all", "--json")
    until(lambda: all(map(is_pulling, agents)), "both begin")

    agents[1].client.cancel(origin.url)
    out, _ = watcher.communicate(timeout=120)

    assert watcher.returncode == 80
    assert states(out) == {agents[0].address: "done", agents[1].address: "cancelled"}


def test_an_interrupted_warm_up_goes_on_and_is_joined(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 3, *WILLING)
    first = warming(agents[0], origin.url, "--all")
    until(lambda: all(map(is_pulling, agents)), "everybody begins")

    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    goes_on = [len(agent.client.pulls()) for agent in agents]
    second = warm(agents[0], origin.url, "--all", "--json")

    assert first.returncode == 130
    assert "the same command joins it" in said
    assert f"damselfly warm {origin.url} --socket" in said
    assert "--all --cancel" in said
    assert "Traceback" not in said
    assert goes_on == [1, 1, 1]
    assert second.returncode == 0, second.stderr
    assert origin.bytes_sent() <= 1.01 * size_of(model)


def test_cancelling_ends_it_on_every_node_and_for_every_watcher(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 3, *WILLING)
    watcher = warming(agents[0], origin.url, "--all", "--json")
    until(lambda: all(map(is_pulling, agents)), "everybody begins")

    cancelled = warm(agents[0], origin.url, "--all", "--cancel")
    out, _ = watcher.communicate(timeout=60)
    again = warm(agents[0], origin.url, "--all", "--cancel", "--json")

    assert cancelled.returncode == 0, cancelled.stderr
    assert "on 3 of 3 nodes" in cancelled.stdout
    assert watcher.returncode == 70
    assert set(states(out).values()) == {"cancelled"}
    assert [agent.client.pulls() for agent in agents] == [[], [], []]
    assert again.returncode == 14
    assert set(states(again.stdout).values()) == {"idle"}


def test_cancelling_leaves_a_pull_that_somebody_else_waits_for(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 2, *WILLING)
    watcher = warming(agents[0], origin.url, "--all")
    until(lambda: all(map(is_pulling, agents)), "both begin")
    pod = agents[1].client.pull(PullRequest(ref=origin.url))
    next(pod)

    cancelled = warm(agents[0], origin.url, "--all", "--cancel", "--json")
    watcher.communicate(timeout=60)

    assert set(states(cancelled.stdout).values()) == {"cancelled"}
    assert agents[0].client.pulls() == []
    assert len(agents[1].client.pulls()) == 1
    pod.close()


def test_a_wait_that_ends_leaves_the_pulls_going(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model, *SLOW)
    agents = started(fleet, 2, *WILLING)

    given_up = warm(agents[0], origin.url, "--all", "--timeout", "1.5s", "--json")
    not_waited = warm(agents[0], origin.url, "--all", "--no-wait")
    goes_on = [len(agent.client.pulls()) for agent in agents]
    done = warm(agents[0], origin.url, "--all")

    assert given_up.returncode == 81
    assert "after 1.5 s, 0 of 2 done, 2 pulling; what runs goes on" in given_up.stderr
    assert set(states(given_up.stdout).values()) == {"pulling"}
    assert not_waited.returncode == 0, not_waited.stderr
    assert "is on its way to 2 of 2 nodes" in not_waited.stdout
    assert goes_on == [1, 1]
    assert done.returncode == 0


def test_what_is_pinned_stays_and_a_time_to_live_ends(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 2, *WILLING)

    def leases() -> list[int]:
        return [agent.client.artifacts()[0].leases for agent in agents]

    leased = warm(agents[0], origin.url, "--all", "--ttl", "2s")
    held = leases()
    kept = subprocess.run(
        [*DAMSELFLY, "rm", origin.url, "--socket", agents[1].client.socket_path],
        capture_output=True,
        text=True,
        check=False,
    )
    until(lambda: leases() == [0, 0], "leases end")
    pinned = warm(agents[0], origin.url, "--all", "--pin")

    assert leased.returncode == 0, leased.stderr
    assert held == [1, 1]
    assert kept.returncode == 42
    assert "warm-" in kept.stderr
    assert pinned.returncode == 0, pinned.stderr
    assert [agent.client.artifacts()[0].pinned for agent in agents] == [True, True]


def test_a_node_that_is_named_by_another_address_is_this_one(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    (agent,) = started(fleet, 1, *ROOMY)
    alias = agent.address.replace("127.0.0.1", "localhost")

    done = warm(agent, origin.url, "--agents", alias, "--json")

    assert done.returncode == 0, done.stderr
    assert states(done.stdout) == {alias: "done"}


def test_filters_are_obeyed_on_every_node(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 2, *WILLING)

    done = warm(agents[0], origin.url, "--all", "--include", "*.json", "--json")

    assert done.returncode == 0, done.stderr
    assert [node["bytes_total"] for node in json.loads(done.stdout)["nodes"]] == [9, 9]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["file:///models/x/", "--all"], "lies on a node's own disk"),
        (["http://127.0.0.1:1/x/?signature=secret", "--all"], "a query, which may be a signature"),
        (["http://127.0.0.1:1/x/", "--selector", "gpu=h100"], "--agents instead of --selector"),
        (["http://127.0.0.1:1/x/", "--selector", "gpu"], "LABEL=VALUE"),
        (["http://127.0.0.1:1/x/", "--agents", "nowhere"], "HOST:PORT"),
        (["no ref", "--all"], "not a ref"),
    ],
)
def test_what_cannot_be_warmed_is_refused_before_anybody_is_asked(
    fleet: Fleet, words: list[str], reason: str
) -> None:
    agents = started(fleet, 2, *WILLING)

    done = warm(agents[0], *words)

    assert done.returncode in {2, 3}, done.stderr
    assert reason in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_ref_that_is_not_there_fails_by_name(fleet: Fleet, model: Path) -> None:
    origin = served(fleet, model)
    agents = started(fleet, 2, *WILLING)

    done = warm(agents[0], f"{origin.url}none/", "--all", "--json")

    assert done.returncode == 13, done.stderr
    assert {node["error"] for node in json.loads(done.stdout)["nodes"]} == {"OriginNotFoundError"}
