"""A warm-up of many nodes by the real shell, over sockets: limits hold, nobody is forgotten."""

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from damselfly.agent.accept import Accept
from damselfly.agent.order_client import OrderClient
from damselfly.agent.order_desk import OrderDesk
from damselfly.agent.orders import OrderLimits, Orders
from damselfly.agent.targets import Targets
from damselfly.agent.warm import WarmLimits
from damselfly.agent.warming import Warmups
from damselfly.client.answers import Warmed, WarmProgress, WarmRequest
from damselfly.clock import SystemClock
from damselfly.errors import AgentUnavailableError, UsageError
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import StaticPeers
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.transport import Limits, PeerPool, PeerServer
from tests.fakes.puller import FakePuller

REF = "https://host/models/x/"
NODES = 120
ASKS_MAX = 50


@dataclass
class Cluster:
    """Nodes that take orders, each with a server, and the warm-ups of one more."""

    nodes: list[FakePuller]
    addresses: tuple[str, ...]
    pool: PeerPool
    warmups: Warmups

    @property
    def request(self) -> WarmRequest:
        return WarmRequest(ref=REF, agents=self.addresses)

    async def warmed(self, request: WarmRequest | None = None) -> Warmed:
        async with asyncio.timeout(60):
            *_, last = [item async for item in self.warmups.warm(request or self.request)]
        assert isinstance(last, Warmed)
        return last


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    nodes: list[FakePuller] = []
    addresses: list[str] = []
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())

        def node() -> tuple[FakePuller, Orders]:
            puller = FakePuller()
            stack.callback(puller.release)
            limits = OrderLimits(tell_interval_s=0.05)
            return puller, Orders(puller, tasks, lambda _: None, limits)

        for _ in range(NODES):
            puller, orders = node()
            server = PeerServer(OrderDesk(orders, Accept(is_all=True), secrets.token_hex(16)))
            await server.start("127.0.0.1", 0)
            stack.push_async_callback(server.close)
            nodes.append(puller)
            addresses.append(f"127.0.0.1:{server.port}")
        pool = PeerPool(Limits(pooled_max=ASKS_MAX + 64))
        stack.push_async_callback(pool.close)
        own, orders = node()
        me = Hello(AgentID("127.0.0.1:1"), secrets.token_hex(16), "")
        clock = SystemClock()
        warmups = Warmups(
            orders,
            Targets(Agents(me, StaticPeers(frozenset()), pool, clock)),
            OrderClient(pool, me.boot),
            me.agent,
            clock,
            tasks,
            WarmLimits(asks_max=ASKS_MAX, nodes_max=NODES, patience_s=0.5),
        )
        stack.push_async_callback(warmups.stop)
        yield Cluster([*nodes, own], tuple(addresses), pool, warmups)
    gc.collect()  # What was left open is said here, and not in somebody else's test.


async def test_all_of_many_nodes_are_warmed_a_few_at_a_time(cluster: Cluster) -> None:
    watching = asyncio.create_task(cluster.warmed())
    async with asyncio.timeout(60):
        while sum(node.pull_count for node in cluster.nodes) < ASKS_MAX:
            await asyncio.sleep(0.01)
    begun = sum(node.pull_count for node in cluster.nodes)
    connections = cluster.pool.connection_count
    for node in cluster.nodes:
        node.release()

    warmed = await watching

    assert begun == connections == ASKS_MAX
    assert [node.state for node in warmed.nodes] == ["done"] * NODES
    assert sum(node.pull_count for node in cluster.nodes) == NODES


async def test_the_same_request_is_one_warm_up(cluster: Cluster) -> None:
    first = asyncio.create_task(cluster.warmed())
    again = cluster.request.but(agents=tuple(reversed(cluster.addresses)))
    second = asyncio.create_task(cluster.warmed(again))
    async with asyncio.timeout(60):
        while not any(node.pull_count for node in cluster.nodes):
            await asyncio.sleep(0.01)

    assert repr(cluster.warmups) == "<Warmups 1 run>"
    for node in cluster.nodes:
        node.release()
    assert (await first).nodes == (await second).nodes


async def test_cancelling_some_of_the_nodes_leaves_the_others_going(cluster: Cluster) -> None:
    watching = asyncio.create_task(cluster.warmed())
    async with asyncio.timeout(60):
        while sum(node.pull_count for node in cluster.nodes) < ASKS_MAX:
            await asyncio.sleep(0.01)
    some = sorted(cluster.addresses)[:10]

    cancelled = await cluster.warmups.cancel(cluster.request.but(agents=tuple(some)))
    for node in cluster.nodes:
        node.release()
    warmed = await watching

    assert {node.state for node in cancelled.nodes} == {"cancelled"}
    states = {node.agent: node.state for node in warmed.nodes}
    assert {agent for agent, state in states.items() if state == "cancelled"} == set(some)
    assert sum(state == "done" for state in states.values()) == NODES - 10


async def test_an_agent_that_stops_tells_its_watchers_and_leaves_the_nodes(
    cluster: Cluster,
) -> None:
    items = cluster.warmups.warm(cluster.request)
    first = await anext(items)
    async with asyncio.timeout(60):
        while sum(node.pull_count for node in cluster.nodes) < ASKS_MAX:
            await asyncio.sleep(0.01)

    await cluster.warmups.stop()

    assert isinstance(first, WarmProgress)
    with pytest.raises(AgentUnavailableError, match="same command joins"):
        async for _ in items:
            pass
    with pytest.raises(AgentUnavailableError, match="leads no new"):
        await anext(cluster.warmups.warm(cluster.request))
    assert sum(sum(node.watchers.values()) for node in cluster.nodes) == ASKS_MAX


async def test_more_nodes_than_one_warm_up_may_have_are_refused(cluster: Cluster) -> None:
    more = cluster.request.but(agents=(*cluster.addresses, "127.0.0.1:1"))

    with pytest.raises(UsageError, match="121 nodes are more than the 120"):
        await cluster.warmed(more)
