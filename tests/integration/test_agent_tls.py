"""Agents that speak TLS: they pull from each other, and from nobody who has no certificate."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree
from tests.fakes.authority import Authority
from tests.integration.test_agent_processes import damselfly


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(os.urandom(9_000_001))
    return folder


def secured(authority: Authority, folder: Path) -> tuple[str, ...]:
    files = authority.write(folder)
    paths = (files.certificate, files.key, files.authority)
    flags = ("--tls-cert", "--tls-key", "--tls-ca")
    return tuple(str(word) for pair in zip(flags, paths, strict=True) for word in pair)


def started(fleet: Fleet, name: str, address: str, peers: list[str], *options: str) -> Agent:
    return fleet.start_agent(name, address, peers, "--store-keep-free", "1MiB", *options)


def pulled(agent: Agent, url: str) -> dict[str, object]:
    done = damselfly("pull", url, "--json", agent=agent)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_agents_with_certificates_pull_from_each_other(
    fleet: Fleet, model: Path, tmp_path: Path
) -> None:
    authority = Authority()
    addresses = free_addresses(2)
    origin = fleet.start_origin(model, free_addresses(1)[0])
    one, two = (
        started(fleet, f"n{i}", each, addresses, *secured(authority, tmp_path / f"tls{i}"))
        for i, each in enumerate(addresses)
    )
    fleet.wait_until_met()

    first = pulled(one, origin.url)
    second = pulled(two, origin.url)

    assert first["bytes_from_origin"] == second["bytes_from_peers"] == 9_000_001
    assert same_tree(Path(str(second["path"])), model)
    told = damselfly("doctor", agent=one).stdout
    assert "the certificate ends in 1 h" in told
    assert "whoever renews it does not" in told  # It lasts an hour.


@pytest.mark.parametrize("stranger", ["plain", "of another authority"])
def test_a_stranger_gets_nothing_and_gives_nothing(
    fleet: Fleet, model: Path, tmp_path: Path, stranger: str
) -> None:
    addresses = free_addresses(2)
    origin = fleet.start_origin(model, free_addresses(1)[0])
    options = () if stranger == "plain" else secured(Authority("another"), tmp_path / "theirs")
    ours = started(fleet, "n0", addresses[0], addresses, *secured(Authority(), tmp_path / "ours"))
    theirs = started(fleet, "n1", addresses[1], addresses, *options)

    assert pulled(ours, origin.url)["bytes_from_origin"] == 9_000_001
    assert pulled(theirs, origin.url)["bytes_from_origin"] == 9_000_001


def test_half_of_the_flags_are_refused(tmp_path: Path) -> None:
    files = Authority().write(tmp_path / "tls")
    done = damselfly(
        *("agent", "--store", str(tmp_path / "store"), "--listen", "127.0.0.1:0"),
        *("--tls-cert", str(files.certificate)),
    )

    assert done.returncode == 3
    assert "agent.tls_key, agent.tls_ca is not set" in done.stderr
