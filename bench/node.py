"""One node to publish volumes on: an origin, an agent, a driver, and the kubelet's directory.

A context: afterwards no process, no mount and no directory of it is left, however it is left.
"""

import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.agents import Agent, Fleet, OriginServer, Process, free_addresses
from bench.driver import Driver
from bench.mounts import mounts_below, no_mounts_left

AGENT_OPTIONS = ("--store-keep-free", "1MiB")


@dataclass
class Node:
    """See the module."""

    fleet: Fleet
    root: Path
    origin: OriginServer
    agent: Agent
    driver: Driver
    agent_options: Sequence[str]

    @property
    def store(self) -> Path:
        """The agent's."""
        return self.fleet.folder / self.agent.name

    def restart_agent(self) -> None:
        """Start the agent again that has ended.

        Raises:
            BenchError: it does not become ready.
        """
        address = self.agent.address
        self.agent = self.fleet.start_agent(
            self.agent.name, address, [address], *self.agent_options
        )
        self.agent.wait_until_ready()

    def leases(self) -> list[str]:
        """The leases in the agent's store."""
        return sorted(path.name for path in self.store.glob("leases/*/*"))

    def records(self) -> list[str]:
        """What the driver remembers."""
        return sorted(path.name for path in self.driver.state.rglob("*") if path.is_file())

    def leftovers(self) -> dict[str, list[str]]:
        """What is there of volumes; nothing, after the last one has gone."""
        found = {
            "mounts": [str(mount.path) for mount in mounts_below(self.root)],
            "directories": [str(path) for path in self.root.glob("pods/*")],
            "leases": self.leases(),
            "records": self.records(),
        }
        return {kind: names for kind, names in found.items() if names}


@contextmanager
def running_node(
    folder: Path,
    model: Path,
    *driver_options: str,
    origin_options: Sequence[str] = (),
    agent_options: Sequence[str] = AGENT_OPTIONS,
) -> Generator[Node]:
    """Everything, running. Stores and logs go into `folder`.

    Raises:
        BenchError: one of them does not start.
    """
    root = Path(tempfile.mkdtemp(prefix="kubelet-"))  # A socket's path is short.
    try:
        with no_mounts_left(root), Fleet(folder) as fleet:
            listen, address = free_addresses(2)
            origin = fleet.start_origin(model, listen, *origin_options)
            agent = fleet.start_agent("n0", address, [address], *agent_options)
            agent.wait_until_ready()
            driver = Driver(fleet, root, agent, *driver_options)
            driver.start()
            yield Node(fleet, root, origin, agent, driver, agent_options)
    finally:
        shutil.rmtree(root)


def descriptor_count(process: Process) -> int:
    """How many files a process has open."""
    return sum(1 for _ in Path(f"/proc/{process.pid}/fd").iterdir())


def thread_count(process: Process) -> int:
    """How many threads a process has."""
    return sum(1 for _ in Path(f"/proc/{process.pid}/task").iterdir())
