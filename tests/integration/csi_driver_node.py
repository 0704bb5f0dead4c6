"""A node for the driver's own tests: a kubelet's directory, a fake agent, the driver's process."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from bench.agents import Fleet
from bench.driver import NAME, Driver
from bench.mounts import mounts_below
from damselfly.client.agent import AgentClient
from damselfly.csi import mount
from tests.fakes.volume_agent import VolumeAgent, model

needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]
REF = "https://models.test/llama/"
PATIENCE_S = 20.0


class Node:
    """A driver that is running, and the agent behind it."""

    def __init__(self, fleet: Fleet, agent: VolumeAgent, driver: Driver) -> None:
        self.fleet = fleet
        self.agent = agent
        self.driver = driver

    def target(self, pod: str = "pod-1", handle: str = "") -> Path:
        """A pod's target, with its parent; and with the kubelet's note if there is a handle."""
        target = self.driver.target_of(pod)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        if handle:
            note = {"driverName": NAME, "volumeHandle": handle, "volumeLifecycleMode": "Ephemeral"}
            (target.parent / "vol_data.json").write_text(json.dumps(note))
        return target

    def records(self) -> list[Path]:
        """The driver's records of what is published."""
        return sorted(self.driver.state.glob("*.json"))

    def left_behind(self, target: Path) -> list[str]:
        """What there is of a volume at a target."""
        found = [f"record {path.name}" for path in self.records()]
        found += [f"lease {lease}" for lease in sorted(self.agent.leases())]
        found += [f"mount {each.path}" for each in mounts_below(self.driver.root)]
        return found + ([f"directory {target}"] if os.path.lexists(target) else [])

    def log(self) -> list[dict[str, Any]]:
        """What the driver has logged."""
        lines = self.driver.process.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def restart(self, *options: str) -> None:
        """Kill the driver and start it again."""
        self.driver.process.kill()
        self.driver.start(*options)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder in which sockets have paths that are short enough, as pytest's own have not."""
    with tempfile.TemporaryDirectory(prefix="csi-") as name:
        yield Path(name)


@contextmanager
def running(folder: Path, *options: str, prefix: Sequence[str] = ()) -> Iterator[Node]:
    """A node, with the driver started; nothing is mounted below the folder afterwards."""
    with Fleet(folder / "fleet") as fleet, VolumeAgent(folder) as agent:
        agent.models[REF] = model()
        client = AgentClient(str(agent.socket))
        stand_in = cast("Any", type("Agent", (), {"client": client}))
        driver = Driver(fleet, folder / "kubelet", stand_in, *options, prefix=prefix)
        driver.start()
        try:
            yield Node(fleet, agent, driver)
        finally:
            driver.process.kill()
            for found in reversed(mounts_below(folder)):
                mount.unmount_all(str(found.path))


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """How a call fails: its code and its message."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = cast("grpc.Call", caught.value)
    return error.code().name, str(error.details())


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a state."""
    ends_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends_s, what
        time.sleep(0.01)


def files_below(folder: Path) -> Mapping[str, bytes]:
    """The files of a volume."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(*command: str) -> None:
    """Run a command of the system."""
    subprocess.run(command, check=True, capture_output=True)
