"""Warm-ups of nodes by label: agents as processes, and Kubernetes as they know it."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses
from tests.fakes.kubernetes_api import KubernetesAPI, endpoint
from tests.integration.test_warm_agents import warm

OPTIONS = ("--store-keep-free", "1MiB", "--warm-accept", "all", "--warm-patience", "4s")
NODES = ("gpu-a", "gpu-b", "cpu-c")


@pytest.fixture
async def api() -> AsyncIterator[KubernetesAPI]:
    async with KubernetesAPI() as api:
        for name in NODES:
            api.put_node(name, {"kind": name.partition("-")[0]})
        yield api


@pytest.fixture
async def agents(
    api: KubernetesAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Fleet, list[Agent]]]:
    addresses = free_addresses(len(NODES))
    for name, address in zip(NODES, addresses, strict=True):
        host, _, port = address.rpartition(":")
        ports = ({"name": "peers", "port": int(port), "protocol": "TCP"},)
        api.put_slice(f"agents-{name}", [endpoint(host, name)], ports=ports)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kube")))
    with Fleet(tmp_path / "fleet") as fleet:
        for name, address in zip(NODES, addresses, strict=True):
            fleet.start_agent(name, address, ["k8s:models/agents"], *OPTIONS)
        await asyncio.to_thread(fleet.wait_until_met)
        yield fleet, list(fleet.agents)


async def asked(agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(warm, agent, *words)


def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return folder


async def test_the_nodes_with_a_label_are_warmed_and_no_other(
    agents: tuple[Fleet, list[Agent]], tmp_path: Path
) -> None:
    fleet, (first, second, third) = agents
    origin = await asyncio.to_thread(fleet.start_origin, model(tmp_path), free_addresses(1)[0])

    done = await asked(third, origin.url, "--selector", "kind=gpu", "--json")

    assert done.returncode == 0, done.stderr
    nodes = {node["node"]: node for node in json.loads(done.stdout)["nodes"]}
    assert {name: node["state"] for name, node in nodes.items()} == {
        "gpu-a": "done",
        "gpu-b": "done",
    }
    assert nodes["gpu-a"]["agent"] == first.address
    held = [len(agent.client.artifacts()) for agent in (first, second, third)]
    assert held == [1, 1, 0]


async def test_all_nodes_are_told_by_their_names(
    agents: tuple[Fleet, list[Agent]], tmp_path: Path
) -> None:
    fleet, (first, *_) = agents
    origin = await asyncio.to_thread(fleet.start_origin, model(tmp_path), free_addresses(1)[0])

    done = await asked(first, origin.url, "--all", "--json")

    assert done.returncode == 0, done.stderr
    assert {node["node"] for node in json.loads(done.stdout)["nodes"]} == set(NODES)


async def test_a_label_that_no_node_has_is_said(agents: tuple[Fleet, list[Agent]]) -> None:
    _, (first, *_) = agents

    done = await asked(first, "https://127.0.0.1:1/x/", "--selector", "kind=tpu")

    assert done.returncode == 2
    assert "no agent runs on a node with kind=tpu" in done.stderr


async def test_a_right_that_is_missing_is_named(
    api: KubernetesAPI, agents: tuple[Fleet, list[Agent]]
) -> None:
    _, (first, *_) = agents
    api.rights.discard(("list", "nodes"))

    done = await asked(first, "https://127.0.0.1:1/x/", "--selector", "kind=gpu")

    assert done.returncode == 60
    assert "nodes" in done.stderr


async def test_without_the_api_server_all_nodes_are_warmed_without_names(
    api: KubernetesAPI, agents: tuple[Fleet, list[Agent]], tmp_path: Path
) -> None:
    fleet, (first, *_) = agents
    origin = await asyncio.to_thread(fleet.start_origin, model(tmp_path), free_addresses(1)[0])
    await api.go_away()

    everybody = await asked(first, origin.url, "--all", "--json")
    labelled = await asked(first, origin.url, "--selector", "kind=gpu")

    assert everybody.returncode == 0, everybody.stderr
    nodes = json.loads(everybody.stdout)["nodes"]
    assert [(node["state"], node["node"]) for node in nodes] == [("done", "")] * 3
    assert labelled.returncode == 30, labelled.stderr
