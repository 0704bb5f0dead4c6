"""An agent's node over a real store, real local origins and a configuration file: for tests."""

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from damselfly.agent.config import load_config
from damselfly.agent.node import Counters, LocalNode
from damselfly.agent.pull import Workshop
from damselfly.agent.resolver import Resolver
from damselfly.agent.signature_rules import Rules
from damselfly.agent.signatures import Signatures
from damselfly.agent.swarms import Swarms
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.client.answers import Opened, Pulled, PullRequest, VolumeRequest
from damselfly.clock import SystemClock
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.origin.registry import Origins
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.homes import Homes
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.refs import RefHome
from damselfly.p2p.swarm import Surroundings
from damselfly.p2p.transport import BufferPool, PeerPool


class SignedNode:
    """Pulls and opens volumes to the end."""

    def __init__(self, node: LocalNode, store: Store) -> None:
        self.node = node
        self.store = store

    async def pull(self, ref: str, *include: str) -> Pulled:
        """Pull to the end."""
        async for item in self.node.pull(PullRequest(ref=ref, include=include)):
            if isinstance(item, Pulled):
                return item
        raise AssertionError("the pull ended without an answer")

    async def open(self, ref: str, *include: str) -> Opened:
        """Open a volume."""
        request = VolumeRequest(ref=ref, lease="v1", include=include)
        async for item in self.node.open_volume(request):
            if isinstance(item, Opened):
                return item
        raise AssertionError("opening ended without an answer")


@asynccontextmanager
async def signed_node(folder: Path, config_file: Path) -> AsyncGenerator[SignedNode]:
    """A node alone in the world, with the store in `folder`."""
    flags = {
        "store.path": str(folder / "store"),
        "agent.listen": "127.0.0.1:1",
        "agent.socket": str(folder / "agent.sock"),
    }
    config = load_config(flags, {}, config_file)
    clock = SystemClock()
    pool = PeerPool()
    workers = ThreadPoolExecutor(4)
    me = Hello(AgentID("127.0.0.1:1"), "boot", "")
    agents = Agents(me, StaticPeers(frozenset({me.agent})), pool, clock)
    homes = Homes(me.boot, clock)
    origins = Origins()
    around = Surroundings(
        agents=agents,
        homes=homes,
        talk=pool,
        pool=pool,
        buffers=BufferPool(4, CHUNK_BYTES_MAX),
        workers=workers,
        clock=clock,
        landed=lambda source, length, seconds: None,
        corrupt=lambda source: None,
    )
    limits = Limits(keep_free_bytes=0, free_again_bytes=0)
    try:
        with Store.open(folder / "store", limits, clock) as store:
            async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(homes.run()), tasks.create_task(agents.run())]
                await agents.met()
                swarms = Swarms(around, tasks)
                resolver = Resolver(origins, agents, pool, RefHome(), clock, store.manifest)
                signatures = Signatures(Rules.of(config.file))
                shop = Workshop(
                    store, origins, resolver, swarms, workers, clock, signatures=signatures
                )
                node = LocalNode(config, shop, agents, Counters(), tasks)
                node.state = "ready"
                yield SignedNode(node, store)
                await node.stop(1.0)
                await swarms.leave_all()
                for task in running:
                    task.cancel()
    finally:
        await pool.close()
        await origins.close()
        workers.shutdown()
