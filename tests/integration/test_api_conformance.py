"""The memory node behind the real API, held to what every agent does on its socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from damselfly.agent.api import APIServer
from tests.conformance.agent_api import AgentAPIConformance, Served
from tests.fakes.memory_node import MemoryNode

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 64,
    "tokenizer/vocab.txt": b"",
}
REF = "file:///models/llama/"


class TestMemoryNode(AgentAPIConformance):
    @pytest.fixture
    async def served(self, tmp_path: Path) -> AsyncIterator[Served]:
        node = MemoryNode(tmp_path / "views", {REF: FILES})
        socket = tmp_path / "agent.sock"
        async with APIServer(node, socket):
            yield Served(
                socket=socket,
                ref=REF,
                files=FILES,
                missing_ref="file:///models/none/",
                hold=node.hold,
                release=node.release,
            )
            await node.close()
