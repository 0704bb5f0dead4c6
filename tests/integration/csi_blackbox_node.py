"""A node for the tests of the driver as a black box: origin, agent, driver, kubelet."""

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest

from bench.agents import Agent, Fleet, OriginServer, free_addresses
from bench.driver import Driver
from bench.mounts import mounts_below, no_mounts_left, why_not
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.pod import Claimed, Inline, Pod
from tests.kubelet.timing import Timing

FAST = Timing(scale=0.02)
"""A retry after 10 ms at first; a call has 2.4 s."""

AGENT_OPTIONS = ("--store-keep-free", "1MiB")

needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def write_small_model(folder: Path, *, weights_bytes: int = 300_000) -> dict[str, bytes]:
    """A model of a few files, and what is in them."""
    files = {
        "config.json": b'{"model_type": "llama"}\n',
        "model.bin": os.urandom(weights_bytes),
        "tokenizer/vocab.txt": b"a\nb\n",
        "empty": b"",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


@dataclass
class Node:
    """See the module."""

    fleet: Fleet
    root: Path
    files: Mapping[str, bytes]
    origin: OriginServer
    agent: Agent
    driver: Driver

    @property
    def store(self) -> Path:
        """The agent's."""
        return self.fleet.folder / self.agent.name

    @property
    def bytes(self) -> int:
        """The model's."""
        return sum(map(len, self.files.values()))

    def pod(
        self,
        uid: str = "u1",
        attributes: Mapping[str, str] | None = None,
        *,
        secrets: Mapping[str, str] | None = None,
    ) -> Pod:
        """A pod with the model in an inline volume."""
        said = {"model": self.origin.url, **(attributes or {})}
        volume = Inline(name="weights", attributes=said, secrets=secrets or {})
        return Pod(uid=uid, volumes=(volume,))

    def claiming_pod(
        self, uid: str, handle: str = "llama", attributes: Mapping[str, str] | None = None
    ) -> Pod:
        """A pod with the model through a claim."""
        said = {"model": self.origin.url, **(attributes or {})}
        return Pod(uid=uid, volumes=(Claimed(name="pv1", handle=handle, attributes=said),))

    def restart_agent(self) -> None:
        """Start the agent again that has ended."""
        self.agent = self.fleet.start_agent(
            self.agent.name, self.agent.address, [self.agent.address], *AGENT_OPTIONS
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
            "pods": [str(path) for path in self.root.glob("pods/*")],
            "leases": self.leases(),
            "records": self.records(),
        }
        return {kind: names for kind, names in found.items() if names}


@contextmanager
def running_node(
    folder: Path,
    *driver_options: str,
    origin_options: tuple[str, ...] = (),
    weights_bytes: int = 300_000,
    agent_options: tuple[str, ...] = AGENT_OPTIONS,
) -> Generator[Node]:
    """Everything, running; nothing of it is left afterwards, also not in the kernel."""
    files = write_small_model(folder / "model", weights_bytes=weights_bytes)
    root = Path(mkdtemp(prefix="kubelet-"))  # A socket's path is short.
    try:
        with no_mounts_left(root), Fleet(folder / "fleet") as fleet:
            (listen,) = free_addresses(1)
            origin = fleet.start_origin(folder / "model", listen, *origin_options)
            (address,) = free_addresses(1)
            agent = fleet.start_agent("n0", address, [address], *agent_options)
            agent.wait_until_ready()
            driver = Driver(fleet, root, agent, *driver_options)
            driver.start()
            yield Node(fleet, root, files, origin, agent, driver)
    finally:
        shutil.rmtree(root)


@contextmanager
def running_kubelet(node: Node, timing: Timing = FAST) -> Generator[Kubelet]:
    """A kubelet on the node, at which the driver is registered."""
    with Kubelet(node.root, timing=timing) as kubelet:
        kubelet.plugins.wait_for(node.driver.name)
        yield kubelet
