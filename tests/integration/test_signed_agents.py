"""Signatures as real agents verify them, over HTTP, by the real command line, in a swarm of two."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses
from damselfly import cli
from tests.integration.signing_keys import private_key, public_of
from tests.integration.test_agent_bad_input import damselfly

RULE = '[[signatures]]\nprefix = "{url}"\nrequire = "required"\nkey = "{key}"\n'


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return private_key(tmp_path / "owner.pem")


@pytest.fixture
def model(tmp_path: Path, key: Path) -> Path:
    """A model that was pushed and signed."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes(b"{}")
    (source / "weights.bin").write_bytes(bytes(range(256)) * 40_000)
    target = tmp_path / "model"
    assert cli.main(["push", str(source), str(target), "--sign-key", str(key), "--quiet"]) == 0
    return target


def _listed(agent: Agent) -> list[dict[str, object]]:
    listed = json.loads(damselfly("ls", "--json", agent=agent).stdout)
    found: list[dict[str, object]] = listed["artifacts"]
    return found


def test_agents_show_who_signed_and_refuse_what_is_not_signed(
    fleet: Fleet, model: Path, key: Path, tmp_path: Path
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    config = tmp_path / "damselfly.toml"
    config.write_text(RULE.format(url=origin.url.upper().replace("HTTP://", "https://"), key=key))
    addresses = free_addresses(2)
    free = fleet.start_agent("free", addresses[0], addresses, "--store-keep-free", "1MiB")
    bound = fleet.start_agent(
        "bound", addresses[1], addresses, "--store-keep-free", "1MiB", "--config", str(config)
    )
    fleet.wait_until_met()

    # The private key is no public one: whom to trust cannot be told.
    refused = damselfly("pull", origin.url, agent=bound)
    assert refused.returncode == 26, refused.stderr
    assert _listed(bound) == []

    config.write_text(RULE.format(url=origin.url, key=public_of(key)))
    first = damselfly("pull", origin.url, "--json", agent=free)
    pulled = damselfly("pull", origin.url, "--json", agent=bound)
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(first.stdout)["signature"] is None
    assert json.loads(pulled.stdout)["signature"]["by"].startswith("key sha256:")
    assert _listed(bound)[0]["signature"] == json.loads(pulled.stdout)["signature"]
    assert "key sha256:" in damselfly("ls", agent=bound).stdout
    doctor = json.loads(damselfly("doctor", "--json", agent=bound).stdout)
    checks = {check["name"]: check for check in doctor["checks"]}
    assert checks["signatures"]["verdict"] == "ok"

    # The other agent takes what is not signed; the rule of this one does not let it in by that.
    (model / "damselfly-manifest.json").unlink()
    (model / "weights.bin").write_bytes(b"other weights")
    taken = damselfly("pull", f"{origin.url}?again", "--json", agent=free)
    assert taken.returncode == 0, taken.stderr
    artifact = json.loads(taken.stdout)["artifact"]
    for ref in (f"{origin.url}?again", f"{origin.url}#{artifact}"):
        refused = damselfly("pull", ref, "--json", agent=bound)
        assert (refused.returncode, refused.stdout) == (26, ""), refused.stderr
        assert "'weights.bin' is not what was signed" in refused.stderr.splitlines()[-1]
    assert len(_listed(bound)) == 1
