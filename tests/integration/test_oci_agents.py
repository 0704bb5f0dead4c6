"""Agents as processes pull from a registry: what users type, and what the registry is asked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses
from tests.fakes.registry import FakeRegistry, sha256
from tests.integration.origin_servers import weights

DAMSELFLY = (sys.executable, "-m", "damselfly")
PASSWORD = "SECRET-OF-ADA"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    registry = FakeRegistry(users={"ada": PASSWORD}, wants="bearer", redirects_blobs=True)
    with registry.in_a_thread():
        yield registry


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


def damselfly(*words: str, agent: Agent) -> subprocess.CompletedProcess[str]:
    tail = ("--socket", agent.client.socket_path)
    return subprocess.run(
        [*DAMSELFLY, *words, *tail], capture_output=True, text=True, timeout=60, check=False
    )


def started(fleet: Fleet, count: int) -> list[Agent]:
    addresses = free_addresses(count)
    agents = [
        fleet.start_agent(f"n{i}", address, addresses, "--store-keep-free", "1MiB")
        for i, address in enumerate(addresses)
    ]
    fleet.wait_until_met()
    return agents


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_two_agents_pull_a_tag_and_the_registry_is_read_once(
    registry: FakeRegistry, fleet: Fleet, tmp_path: Path
) -> None:
    files = {
        "model.safetensors": weights(1, 300, 9 << 20, 40, (5 << 20) - 1),
        "sub/config.json": b"{}",
        "tokenizer.model": os.urandom(3_000_000),
    }
    registry.add_model("org/model", "v1", files)
    one, two = started(fleet, 2)
    ref = f"oci://{registry.host}/org/model:v1"

    first = damselfly("pull", ref, "--json", "--to", str(tmp_path / "tree"), agent=one)
    second = damselfly("pull", ref, "--json", agent=two)

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    size = sum(map(len, files.values()))
    assert json.loads(first.stdout)["bytes_from_origin"] == size
    assert json.loads(second.stdout)["bytes_from_peers"] == size
    assert json.loads(second.stdout)["bytes_from_origin"] == 0
    assert files_of(tmp_path / "tree") == files
    assert files_of(Path(json.loads(second.stdout)["path"])) == files


def test_a_pull_that_is_denied_says_so_and_shows_no_secret(
    registry: FakeRegistry, fleet: Fleet, tmp_path: Path
) -> None:
    registry.opens_to_anybody = False
    registry.add_model("org/model", "v1", {"a.bin": b"a"})
    (agent,) = started(fleet, 1)
    token = tmp_path / "token"
    token.write_text("SECRET-TOKEN\n")

    denied = damselfly(
        "pull",
        f"oci://{registry.host}/org/model:v1",
        "--token-file",
        str(token),
        agent=agent,
    )

    assert denied.returncode == 61, denied.stderr
    assert "org/model" in denied.stderr
    assert "SECRET" not in denied.stderr + denied.stdout
    assert registry.asked_for_tokens == []


def test_a_layer_that_is_not_its_digest_is_named_and_nothing_of_it_is_kept(
    registry: FakeRegistry, fleet: Fleet
) -> None:
    right, wrong = b"a" * 6_000_000, b"b" * 6_000_000
    registry.add_model("org/model", "v1", {"a.bin": right, "b.json": b"{}"})
    registry.blobs[sha256(right)] = wrong
    (agent,) = started(fleet, 1)

    refused = damselfly("pull", f"oci://{registry.host}/org/model:v1", agent=agent)

    assert refused.returncode == 21, refused.stderr
    for told in ("a.bin", sha256(right), sha256(wrong), registry.host):
        assert told in refused.stderr
    assert damselfly("ls", agent=agent).stdout.strip() == ""
