"""A node for the tests of the driver as a black box: origin, agent, driver, kubelet."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import bench.node
from bench.mounts import why_not
from bench.node import AGENT_OPTIONS
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.pod import Claimed, Inline, Pod
from tests.kubelet.timing import Timing

FAST = Timing(scale=0.02)
"""A retry after 10 ms at first; a call has 2.4 s."""

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
class Node(bench.node.Node):
    """A node with a small model at its origin, and pods that want it."""

    files: Mapping[str, bytes]

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
    with bench.node.running_node(
        folder / "fleet",
        folder / "model",
        *driver_options,
        origin_options=origin_options,
        agent_options=agent_options,
    ) as node:
        yield Node(**vars(node), files=files)


@contextmanager
def running_kubelet(node: Node, timing: Timing = FAST) -> Generator[Kubelet]:
    """A kubelet on the node, at which the driver is registered."""
    with Kubelet(node.root, timing=timing) as kubelet:
        kubelet.plugins.wait_for(node.driver.name)
        yield kubelet
