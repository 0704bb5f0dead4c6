"""Bad input to real agents, by the real command line: a named error, its own code, nothing half."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree
from damselfly.model import canonical
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.origin.push import push

DAMSELFLY = (sys.executable, "-m", "damselfly")
MIB = 1 << 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(os.urandom(9 * MIB))
    (folder / "config.json").write_bytes(b'{"a": 1}\n')
    return folder


def damselfly(*words: str, agent: Agent) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DAMSELFLY, *words, "--socket", agent.client.socket_path],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def started(fleet: Fleet, count: int = 1, *options: str) -> list[Agent]:
    addresses = free_addresses(count)
    agents = [
        fleet.start_agent(f"n{i}", address, addresses, "--store-keep-free", "1MiB", *options)
        for i, address in enumerate(addresses)
    ]
    fleet.wait_until_met()
    return agents


def assert_refused(fleet: Fleet, agent: Agent, ref: str, code: int, said: str, *words: str) -> None:
    """The pull ends so; nothing of it is shown, kept or running, and the agent goes on."""
    done = damselfly("pull", ref, "--json", *words, agent=agent)

    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert_nothing_shown(fleet, agent)


def assert_nothing_shown(fleet: Fleet, agent: Agent, *, pulls: int = 0) -> None:
    """Nothing half-made can be seen, and the agent answers."""
    held = damselfly("ls", "--json", agent=agent)

    assert json.loads(held.stdout)["artifacts"] == []
    store = fleet.folder / agent.name
    assert [path for path in (store / "views").rglob("*") if path.is_file()] == []
    assert len(agent.client.pulls()) == pulls
    assert agent.client.status().state == "ready"


def forged(pushed: Path, **changes: object) -> None:
    """Change the manifest beside a model, in the one form that would be read."""
    path = pushed / MANIFEST_NAME
    path.write_bytes(canonical.encode({**json.loads(path.read_bytes()), **changes}))


@pytest.fixture
def pushed(model: Path, tmp_path: Path) -> Path:
    push(model, str(tmp_path / "pushed"))
    return tmp_path / "pushed"


def test_another_artifact_than_the_pin_says_is_refused(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    (agent,) = started(fleet)
    pin = Digest.of(b"something else")

    assert_refused(fleet, agent, f"{origin.url}#{pin}", 21, str(pin))


def test_a_pin_that_the_manifest_at_the_origin_does_not_bear_out_is_looked_for_in_vain(
    fleet: Fleet, pushed: Path
) -> None:
    origin = fleet.start_origin(pushed, free_addresses(1)[0])
    (agent,) = started(fleet)
    pin = Digest.of(b"something else")

    assert_refused(fleet, agent, f"{origin.url}#{pin}", 11, f"nobody here has {pin}")
    assert origin.bytes_sent() < 8192  # Of the model itself, nothing.


@pytest.mark.parametrize(
    "paths",
    [
        ("../escaped", "weights.bin"),
        ("/tmp/absolute", "weights.bin"),
        ("a/../../escaped", "weights.bin"),
        ("same", "same"),
        ("a", "a/b"),
    ],
)
def test_a_manifest_whose_paths_lead_out_or_meet_is_refused(
    fleet: Fleet, pushed: Path, paths: tuple[str, str]
) -> None:
    files = json.loads((pushed / MANIFEST_NAME).read_bytes())["files"]
    forged(pushed, files=[{**file, "path": path} for file, path in zip(files, paths, strict=True)])
    origin = fleet.start_origin(pushed, free_addresses(1)[0])
    (agent,) = started(fleet)

    assert_refused(fleet, agent, origin.url, 22, MANIFEST_NAME)
    assert not [*fleet.folder.rglob("escaped"), *fleet.folder.parent.rglob("escaped")]


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"format": "damselfly-manifest/2"}, "format 2"),
        ({"requires": ["compression"]}, "compression"),
    ],
)
def test_a_manifest_of_a_newer_version_is_refused_by_name(
    fleet: Fleet, pushed: Path, changes: dict[str, object], lacking: str
) -> None:
    forged(pushed, **changes)
    origin = fleet.start_origin(pushed, free_addresses(1)[0])
    (agent,) = started(fleet)

    assert_refused(fleet, agent, origin.url, 25, lacking)


def test_a_model_that_there_is_no_room_for_is_refused(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    (agent,) = started(fleet, 1, "--store-capacity", "8MiB")

    assert_refused(fleet, agent, origin.url, 41, "could be evicted")
    small = damselfly("pull", origin.url, "--include", "*.json", agent=agent)
    assert small.returncode == 0, small.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_by_name(fleet: Fleet, model: Path) -> None:
    disk = fleet.folder / "n0"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        origin = fleet.start_origin(model, free_addresses(1)[0])
        (agent,) = started(fleet)

        assert_refused(fleet, agent, origin.url, 41, "could be evicted")
        assert agent.process.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("line", ["agent.listen = 1", "[swarm]\npears = 'a:1'", "[swam]\nx = 1"])
def test_an_unknown_key_of_the_configuration_is_refused_by_name(tmp_path: Path, line: str) -> None:
    file = tmp_path / "damselfly.toml"
    file.write_text(line)
    store = tmp_path / "store"

    done = subprocess.run(
        [*DAMSELFLY, "agent", "--config", str(file), "--store", str(store)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 3
    assert any(key in done.stderr for key in ("listen", "pears", "swam"))
    assert "Traceback" not in done.stderr
    assert not store.exists()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s, "it does not come to pass"
        time.sleep(0.02)


def test_an_origin_that_is_gone_is_said(fleet: Fleet, model: Path) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    (agent,) = started(fleet)
    origin.process.stop()

    assert_refused(fleet, agent, origin.url, 31, origin.url)


def test_a_pull_survives_that_its_origin_goes_and_comes_back(fleet: Fleet, model: Path) -> None:
    (address,) = free_addresses(1)
    origin = fleet.start_origin(model, address, "--rate-per-connection", "8mbit")
    (agent,) = started(fleet)
    command = [*DAMSELFLY, "pull", origin.url, "--json", "--socket", agent.client.socket_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pull:
        wait_until(lambda: any(each.bytes_done > 8 for each in agent.client.pulls()))
        origin.process.stop()
        wait_until(lambda: "origin.failed" in agent.process.log.read_text())
        assert_nothing_shown(fleet, agent, pulls=1)
        (Path(agent.client.socket_path).parent / "origin.sock").unlink()
        fleet.start_origin(model, address)
        out, said = pull.communicate(timeout=90)

    assert pull.returncode == 0, said.decode()
    assert same_tree(Path(json.loads(out)["path"]), model)


def integrity_failures(admin: str, source: str) -> float:
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as page:
        metrics = page.read().decode()
    (line,) = [
        line for line in metrics.splitlines() if f'failures_total{{source="{source}"' in line
    ]
    return float(line.split()[-1])


def decay(path: Path) -> None:
    """Flip a bit as a bad disk does: nothing that a file says of itself changes."""
    before = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_peer_that_serves_wrong_bytes_is_found_out_and_the_model_comes_from_others(
    fleet: Fleet, model: Path
) -> None:
    origin = fleet.start_origin(model, free_addresses(1)[0])
    addresses, admins = free_addresses(2), free_addresses(2)
    liar, honest = (
        fleet.start_agent(name, address, addresses, "--store-keep-free", "1MiB", "--admin", admin)
        for name, address, admin in zip(("liar", "n0"), addresses, admins, strict=True)
    )
    fleet.wait_until_met()
    first = json.loads(damselfly("pull", origin.url, "--json", agent=liar).stdout)
    decay(Path(first["path"]) / "weights.bin")

    done = damselfly("pull", origin.url, "--json", agent=honest)

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["artifact"] == first["artifact"]
    assert same_tree(Path(answer["path"]), model)
    assert 0 < answer["bytes_from_origin"] < answer["bytes"]
    assert integrity_failures(admins[1], "peer") == 1
    wait_until(lambda: integrity_failures(admins[0], "store") == 1)  # It was told, and looked.
    assert "Traceback" not in liar.process.log.read_text() + honest.process.log.read_text()
