"""An agent that nobody knows has no home anywhere, and takes none from those who are known."""

import os
from pathlib import Path

from damselfly.p2p.hashing import HashReport
from damselfly.p2p.messages import AgentID
from damselfly.p2p.transport import PeerPool
from tests.integration.agent_fleet import ServedModel, fleet


async def test_only_agents_of_the_view_open_homes(tmp_path: Path) -> None:
    model = ServedModel({"w.bin": os.urandom(1 << 20)})
    pool = PeerPool()
    swarm = "blake3:" + "7" * 64
    try:
        async with fleet(model, tmp_path, 2) as agents:
            first, second = agents

            async def status(name: str) -> int:
                body = HashReport(AgentID(name), "b" * 16, 1, 1).to_json()
                path = f"/v1/swarms/{swarm}/hashes?chunks=1"
                answer = await pool.request(first.address, "POST", path, body=body, deadline_s=10.0)
                return answer.status

            async def live_status(name: str) -> int:
                path = f"/v1/swarms/{swarm}/live?agent={name}&chunks=1"
                async with pool.stream(first.address, "GET", path) as stream:
                    return stream.status

            before = repr(first.homes)
            assert await status("10.9.9.9:1") == 503
            assert await live_status("10.9.9.9:1") == 503
            assert await status(first.address) == 503  # Its own name is nobody else's.
            assert repr(first.homes) == before
            assert await status(second.address) == 200
            assert repr(first.homes) != before
    finally:
        await pool.close()
