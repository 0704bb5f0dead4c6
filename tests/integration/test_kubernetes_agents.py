"""Real agents that find each other by a Service of Kubernetes, and know the zone of their node."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree
from damselfly.client.answers import Pulled
from damselfly.errors import AgentUnavailableError
from tests.fakes.kubernetes_api import KubernetesAPI, endpoint

T = TypeVar("T")
SIZE = 9 << 20
ZONE = "topology.kubernetes.io/zone"


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubernetesAPI]:
    async with KubernetesAPI() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kube")))
        yield api


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
def port() -> int:
    """A port that is free on every loopback address: a slice has one for all its endpoints."""
    for _ in range(20):
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            return int(probe.getsockname()[1])
    raise AssertionError("no port is free")


async def blocking(function: Callable[..., T], *args: object) -> T:
    """Run what waits for processes; the API server lives in this loop."""
    return await asyncio.to_thread(function, *args)


def started(fleet: Fleet, number: int, port: int, *options: str) -> Agent:
    """An agent on a loopback address of its own, told of the Service and of its node."""
    return fleet.start_agent(
        f"n{number}",
        f"127.0.0.{number}:{port}",
        ["k8s:models/agents"],
        *("--store-keep-free", "1MiB", "--zone", f"k8s:node-{number}"),
        *options,
    )


def wait_until(condition: Callable[[], bool], fleet: Fleet) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, fleet.explain()
        time.sleep(0.01)


def pull_at_once(agent: Agent, ref: str) -> Pulled:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return agent.pull(ref)
        except AgentUnavailableError:
            assert time.monotonic() < deadline_s, agent.process.last_words()
            time.sleep(0.01)


async def test_two_agents_of_a_service_find_each_other_and_read_the_origin_once(
    api: KubernetesAPI, fleet: Fleet, model: Path, port: int
) -> None:
    ports = [{"name": "admin", "port": 1}, {"name": "peers", "port": port}]
    hosts = [endpoint(f"127.0.0.{number}", f"node-{number}") for number in (1, 2)]
    api.put_slice("agents-x", hosts, ports=ports)
    for number in (1, 2):
        api.put_node(f"node-{number}", {ZONE: f"zone-{number}"})
    origin = await blocking(fleet.start_origin, model, free_addresses(1)[0])
    agents = [started(fleet, number, port) for number in (1, 2)]

    pulled = await asyncio.gather(*(blocking(pull_at_once, agent, origin.url) for agent in agents))

    assert await blocking(origin.bytes_sent) <= 1.01 * SIZE, fleet.explain()
    assert all(same_tree(Path(each.path), model) for each in pulled)
    status = await blocking(agents[0].client.status)
    assert status.zone == "zone-1"
    assert [(peer.agent, peer.zone) for peer in status.peers] == [(agents[1].address, "zone-2")]


async def test_a_pod_that_comes_is_known_within_a_second_and_one_that_goes_is_forgotten(
    api: KubernetesAPI, fleet: Fleet, port: int
) -> None:
    ports = [{"name": "peers", "port": port}]
    one, two = endpoint("127.0.0.1"), endpoint("127.0.0.2")
    api.put_slice("agents-x", [one], ports=ports)
    first = started(fleet, 1, port)
    second = started(fleet, 2, port)
    await blocking(first.wait_until_ready)
    await blocking(second.wait_until_ready)
    before = await blocking(first.peer_count)

    api.put_slice("agents-x", [one, two], ports=ports)
    began_s = time.monotonic()
    await blocking(wait_until, lambda: first.peer_count() == 1, fleet)
    took_s = time.monotonic() - began_s
    api.put_slice("agents-x", [one], ports=ports)
    await blocking(wait_until, lambda: first.peer_count() == 0, fleet)

    assert before == 0
    assert took_s < 1.0


async def test_agents_keep_each_other_while_the_api_server_is_gone(
    api: KubernetesAPI, fleet: Fleet, model: Path, port: int
) -> None:
    hosts = [endpoint(f"127.0.0.{number}") for number in (1, 2)]
    api.put_slice("agents-x", hosts, ports=[{"name": "peers", "port": port}])
    origin = await blocking(fleet.start_origin, model, free_addresses(1)[0])
    agents = [started(fleet, number, port) for number in (1, 2)]
    await blocking(fleet.wait_until_met)

    await api.go_away()
    await blocking(agents[0].pull, origin.url)
    second = await blocking(agents[1].pull, origin.url)

    assert second.bytes_from_peers == SIZE
    assert await blocking(agents[1].peer_count) == 1


async def test_an_agent_starts_without_the_api_server_and_says_so(
    api: KubernetesAPI, fleet: Fleet, port: int
) -> None:
    await api.go_away()

    agent = started(fleet, 1, port)
    await blocking(agent.wait_until_ready)

    words = agent.process.log.read_text()
    assert "zone.unknown" in words
    assert "peers.unwatched" in words
    assert (await blocking(agent.client.status)).zone == ""
    api.put_slice("agents-x", [endpoint("127.0.0.1")], ports=[{"name": "peers", "port": port}])
    await api.come_back()
    await blocking(wait_until, lambda: "peers.watched" in agent.process.log.read_text(), fleet)


def test_an_agent_that_is_told_nothing_about_the_api_server_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    command = [
        *(sys.executable, "-m", "damselfly", "agent", "--listen", "127.0.0.1:0"),
        *("--store", str(tmp_path / "store"), "--socket", str(tmp_path / "s")),
        *("--peers", "k8s:models/agents"),
    ]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 3
    assert str(tmp_path / "none") in ended.stderr
    assert not (tmp_path / "s").exists()
