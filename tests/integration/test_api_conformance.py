"""The memory node behind the real API, held to what every agent does on its socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from damselfly.agent.api import APIServer
from tests.conformance.agent_api import TOKEN, AgentAPIConformance, Served
from tests.fakes.memory_node import MemoryNode

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 64,
    "tokenizer/vocab.txt": b"",
}
REF = "file:///models/llama/"
PRIVATE_REF = "file:///models/private/"


class TestMemoryNode(AgentAPIConformance):
    @pytest.fixture
    async def served(self, tmp_path: Path) -> AsyncIterator[Served]:
        origin = {REF: FILES, PRIVATE_REF: FILES}
        node = MemoryNode(tmp_path / "views", origin, {PRIVATE_REF: TOKEN})
        socket = tmp_path / "agent.sock"
        async with APIServer(node, socket):
            yield Served(
                socket=socket,
                ref=REF,
                files=FILES,
                missing_ref="file:///models/none/",
                private_ref=PRIVATE_REF,
                hold=node.hold,
                release=node.release,
            )
            await node.close()
