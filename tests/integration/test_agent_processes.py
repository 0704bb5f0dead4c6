"""Real agents as processes, asked by the real command line: what users see, also when it breaks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree

DAMSELFLY = (sys.executable, "-m", "damselfly")
MODEL_BYTES = 12 << 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(os.urandom(MODEL_BYTES))
    (folder / "b.bin").write_bytes(os.urandom(5_000_001))
    (folder / "sub" / "config.json").write_bytes(b'{"a": 1}\n')
    (folder / "empty").touch()
    return folder


def damselfly(*words: str, agent: Agent | None = None) -> subprocess.CompletedProcess[str]:
    tail = ("--socket", agent.client.socket_path) if agent else ()
    return subprocess.run(
        [*DAMSELFLY, *words, *tail], capture_output=True, text=True, timeout=60, check=False
    )


def started(fleet: Fleet, count: int = 1, *options: str) -> list[Agent]:
    addresses = free_addresses(count)
    agents = [
        fleet.start_agent(f"n{i}", address, addresses, "--store-keep-free", "1MiB", *options)
        for i, address in enumerate(addresses)
    ]
    fleet.wait_until_met()
    return agents


def test_two_agents_pull_and_the_origin_is_read_once(
    fleet: Fleet, model: Path, tmp_path: Path
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    one, two = started(fleet, 2)

    first = damselfly("pull", origin.url, "--json", "--to", str(tmp_path / "tree"), agent=one)
    second = json.loads(damselfly("pull", origin.url, "--json", agent=two).stdout)

    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["bytes_from_origin"] == size
    assert second["bytes_from_peers"] == size
    assert second["bytes_from_origin"] == 0
    assert same_tree(tmp_path / "tree", model)
    assert same_tree(Path(second["path"]), model)


def test_a_second_pull_takes_everything_from_the_store(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    (agent,) = started(fleet)
    first = json.loads(damselfly("pull", origin.url, "--json", agent=agent).stdout)

    again = json.loads(damselfly("pull", origin.url, "--json", agent=agent).stdout)

    assert again["artifact"] == first["artifact"]
    assert again["bytes_from_store"] == again["bytes"]


def test_a_filtered_pull_brings_what_was_asked_for_and_no_more(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    (agent,) = started(fleet)

    found = damselfly("pull", origin.url, "--json", "--include", "*.json", agent=agent)

    answer = json.loads(found.stdout)
    assert answer["bytes"] == 9
    names = [path.name for path in Path(answer["path"]).rglob("*") if path.is_file()]
    assert names == ["config.json"]


def test_an_agent_that_was_killed_fetches_nothing_twice(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0], "--rate-per-connection", "8mbit")
    (agent,) = started(fleet)
    pull = subprocess.Popen(
        [*DAMSELFLY, "pull", origin.url, "--socket", agent.client.socket_path],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_bytes(agent, 6 << 20)

    agent.process.kill()
    pull.wait(30)
    before = origin.bytes_sent()
    options = ("--store-keep-free", "1MiB")
    anew = fleet.start_agent("n0", agent.address, [agent.address], *options)
    anew.wait_until_ready()
    answer = json.loads(damselfly("pull", origin.url, "--json", agent=anew).stdout)

    size = answer["bytes"]
    assert answer["bytes_from_store"] > 0
    assert answer["bytes_from_store"] + answer["bytes_from_origin"] == size
    assert origin.bytes_sent() - before < size
    assert same_tree(Path(answer["path"]), model)


def wait_for_bytes(agent: Agent, count: int) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        pulls = agent.client.pulls()
        if pulls and pulls[0].bytes_done >= count:
            return
        time.sleep(0.02)
    raise AssertionError("the pull does not get on")


def test_an_interrupted_pull_goes_on_until_it_is_cancelled(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0], "--rate-per-connection", "4mbit")
    (agent,) = started(fleet)
    pull = subprocess.Popen(
        [*DAMSELFLY, "pull", origin.url, "--socket", agent.client.socket_path],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_bytes(agent, 1)

    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=30)
    goes_on = len(agent.client.pulls())
    cancelled = damselfly("cancel", origin.url, agent=agent)

    assert pull.returncode == 130
    assert "cancel" in said
    assert goes_on == 1
    assert cancelled.returncode == 0, cancelled.stderr
    assert agent.client.pulls() == []


def test_what_is_bad_on_disk_is_named_and_repaired_from_the_swarm(
    fleet: Fleet, model: Path
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    one, two = started(fleet, 2)
    damselfly("pull", origin.url, agent=one)
    answer = json.loads(damselfly("pull", origin.url, "--json", agent=two).stdout)
    victim = Path(answer["path"]) / "a.bin"
    victim.chmod(0o644)
    with victim.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"\xff\x00\xff")
    origin_before = origin.bytes_sent()

    found = damselfly("verify", "--json", agent=two)
    repaired = damselfly("verify", "--json", "--repair", agent=two)

    assert found.returncode != 0
    assert "a.bin" in found.stdout
    assert repaired.returncode == 0, repaired.stderr + repaired.stdout
    assert same_tree(Path(answer["path"]), model)
    assert origin.bytes_sent() == origin_before


@pytest.mark.parametrize(
    ("failure", "code"), [("denied", 61), ("changed", 24)], ids=["denied", "changed"]
)
def test_an_origin_that_misbehaves_fails_the_pull_by_name(
    fleet: Fleet, model: Path, failure: str, code: int
) -> None:
    origin = fleet.start_origin(
        model, free_addresses(1)[0], "--fail", failure, "--fail-count", "1000"
    )
    (agent,) = started(fleet)

    answer = damselfly("pull", origin.url, agent=agent)

    assert answer.returncode == code, answer.stderr
    assert agent.client.artifacts() == []


@pytest.mark.parametrize("failure", ["429", "truncated"])
def test_an_origin_that_fails_for_a_while_is_survived(
    fleet: Fleet, model: Path, failure: str
) -> None:
    (model / "empty").unlink()  # A GET tells its size: finding out what there is tries once.
    origin = fleet.start_origin(model, free_addresses(1)[0], "--fail", failure)
    (agent,) = started(fleet)

    answer = damselfly("pull", origin.url, "--json", agent=agent)

    assert answer.returncode == 0, answer.stderr + fleet.explain()
    assert same_tree(Path(json.loads(answer.stdout)["path"]), model)


def test_an_origin_that_closes_after_every_body_takes_no_agent_down(
    fleet: Fleet, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    names = [f"model-{number}.bin" for number in range(5)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(os.urandom((5 + number) * 1_000_003))
    address = free_addresses(1)[0]
    host, _, port = address.partition(":")
    server = (sys.executable, "-m", "http.server", port, "--bind", host)
    fleet.start("http-server", [*server, "--directory", str(folder)])
    wait_until_listening(host, int(port))
    (agent,) = started(fleet)

    answers = [
        damselfly("pull", f"http://{address}/{name}", "--json", agent=agent) for name in names
    ]

    assert agent.process.is_alive, agent.process.last_words(40)
    for name, answer in zip(names, answers, strict=True):
        assert answer.returncode == 0, answer.stderr
        pulled = Path(json.loads(answer.stdout)["path"]) / name
        assert pulled.read_bytes() == (folder / name).read_bytes()


def wait_until_listening(host: str, port: int) -> None:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline_s, "the server does not listen"
            time.sleep(0.02)
        else:
            return


def test_an_unreachable_origin_is_named(fleet: Fleet) -> None:
    (agent,) = started(fleet)
    address = free_addresses(1)[0]

    answer = damselfly("pull", f"http://{address}/model/", agent=agent)

    assert answer.returncode == 31
    assert address in answer.stderr


def test_a_hostile_header_is_named_and_nothing_is_kept(fleet: Fleet, model: Path) -> None:
    (model / "evil.safetensors").write_bytes((1 << 63).to_bytes(8, "little") + b"{}")
    (agent,) = started(fleet)

    answer = damselfly("pull", f"file://{model}/", agent=agent)

    assert answer.returncode == 23, answer.stderr
    assert "evil.safetensors" in answer.stderr
    assert agent.client.artifacts() == []


def test_a_store_has_one_agent(fleet: Fleet, tmp_path: Path) -> None:
    (agent,) = started(fleet)

    second = damselfly(
        "agent",
        *("--store", str(fleet.folder / "n0"), "--listen", free_addresses(1)[0]),
        *("--socket", str(tmp_path / "s")),
    )

    assert second.returncode == 43, second.stderr
    assert agent.process.is_alive


def test_pins_keep_and_rm_removes(fleet: Fleet, model: Path) -> None:
    (agent,) = started(fleet)
    pulled = json.loads(damselfly("pull", f"file://{model}/", "--json", agent=agent).stdout)
    short = pulled["artifact"].removeprefix("blake3:")[:12]

    pinned = damselfly("pin", short, agent=agent)
    refused = damselfly("rm", short, agent=agent)
    unpinned = damselfly("unpin", short, agent=agent)
    removed = damselfly("rm", short, "--json", agent=agent)

    assert pinned.returncode == 0, pinned.stderr
    assert refused.returncode == 42, refused.stderr
    assert unpinned.returncode == 0, unpinned.stderr
    assert removed.returncode == 0, removed.stderr
    assert agent.client.artifacts() == []


def test_sigterm_stops_an_agent_cleanly(fleet: Fleet) -> None:
    (agent,) = started(fleet)

    os.kill(agent.process.pid, signal.SIGTERM)

    assert agent.process.stop() == 0
    assert not Path(agent.client.socket_path).exists()
