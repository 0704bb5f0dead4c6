"""The warm-ups that this agent leads: the shell around `warm.Warmup`.

A warm-up is a task of the agent that was asked first, like a pull: watchers come and go, the same
request joins it. Other nodes are given orders over the peer plane and watched on a stream each;
this one takes its order in process. What they pull is one swarm: the origin is read once for all.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from damselfly.agent.fault import fault_of
from damselfly.agent.order_client import OrderClient, OurselvesError
from damselfly.agent.orders import Orders
from damselfly.agent.targets import Targets
from damselfly.agent.warm import Fault, WarmLimits, Warmup
from damselfly.client.answers import (
    Progress,
    Pulled,
    Warmed,
    WarmNode,
    WarmProgress,
    WarmRequest,
)
from damselfly.clock import Clock
from damselfly.errors import (
    AgentUnavailableError,
    DamselflyError,
    LocalProtocolError,
    UnavailableError,
    UsageError,
)
from damselfly.model.ref import Ref
from damselfly.p2p.messages import AgentID
from damselfly.p2p.orders import GLOBS_MAX, TTL_S_MAX, Order

logger = logging.getLogger(__name__)

TELL_INTERVAL_S = 0.5
"""Between two words to a watcher, who gets all nodes at once: 100 of them are 30 KB."""
WARMUPS_MAX = 32
CANCELS_MAX = 64
"""Peers that are asked at a time to cancel."""


@dataclass(eq=False)
class _Running:
    """A warm-up that runs, or has ended."""

    ref: Ref
    order: Order
    core: Warmup
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    asks: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])
    task: asyncio.Task[None] | None = None


class Warmups:
    """See the module. Belongs to one event loop, and to the task group it is given."""

    def __init__(
        self,
        orders: Orders,
        targets: Targets,
        client: OrderClient,
        me: AgentID,
        clock: Clock,
        tasks: asyncio.TaskGroup,
        limits: WarmLimits | None = None,
    ) -> None:
        self._orders = orders
        self._targets = targets
        self._client = client
        self._me = me
        self._clock = clock
        self._tasks = tasks
        self._limits = limits or WarmLimits()
        self._running: dict[WarmRequest, _Running] = {}
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Warmups {len(self._running)} run>"

    # --- what is asked of us -----------------------------------------------------------------

    async def warm(self, request: WarmRequest) -> AsyncGenerator[WarmProgress | Warmed]:
        """Start or join a warm-up, and watch it; the last item is `Warmed`.

        Raises:
            UsageError: the request makes no sense.
            AgentUnavailableError: the agent stops.
        """
        running = await self._started(request)
        while not running.ended.is_set():
            yield self._progress(running)
            waiter = asyncio.ensure_future(running.ended.wait())
            try:
                await asyncio.wait({waiter}, timeout=TELL_INTERVAL_S)
            finally:
                waiter.cancel()
        if not running.core.is_over:
            raise AgentUnavailableError(
                "the agent that leads the warm-up stops; the nodes that have begun go on, and the"
                " same command joins them"
            )
        core = running.core
        yield self._warmed(running.ref, core.artifact, core.nodes(), core.began_s)

    async def cancel(self, request: WarmRequest) -> Warmed:
        """Stop to warm the nodes of the request, whoever asked for it; says what became of each."""
        began_s = self._clock.monotonic_s()
        ref, order = _checked(request)
        names = await self._targets.of(request, ref)
        for running in list(self._running.values()):
            if running.order.lease_id == order.lease_id:
                self._withdraw(running, names)
        slots = asyncio.Semaphore(CANCELS_MAX)

        async def one(agent: str) -> WarmNode:
            async with slots:
                return await self._cancelled(WarmNode(agent=agent, node=names[agent]), order)

        nodes = await asyncio.gather(*(one(agent) for agent in sorted(names)))
        return self._warmed(ref, None, tuple(nodes), began_s)

    async def stop(self) -> None:
        """Lead no more; the nodes go on."""
        self._is_stopping = True
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- a warm-up ---------------------------------------------------------------------------

    async def _started(self, request: WarmRequest) -> _Running:
        ref, order = _checked(request)
        key = request.but(
            ref=order.ref,
            include=order.include,
            exclude=order.exclude,
            agents=tuple(sorted(set(request.agents))),
        )
        if (known := self._running.get(key)) is not None:
            return known
        names = await self._targets.of(request, ref)
        if (known := self._running.get(key)) is not None:
            return known  # It began while we looked for targets.
        if len(names) > self._limits.nodes_max:
            raise UsageError(
                f"{len(names)} nodes are more than the {self._limits.nodes_max} of one warm-up"
            )
        if self._is_stopping:
            raise AgentUnavailableError("the agent is stopping: it leads no new warm-ups")
        if len(self._running) >= WARMUPS_MAX:
            raise UsageError(f"{WARMUPS_MAX} warm-ups run already")
        running = _Running(ref, order, Warmup(names, self._clock.monotonic_s(), self._limits))
        self._running[key] = running
        running.task = self._tasks.create_task(self._run(running))

        def forget(_: asyncio.Task[None]) -> None:
            del self._running[key]
            running.ended.set()

        running.task.add_done_callback(forget)
        logger.info("warmup.started", extra={"ref": ref.safe, "nodes": len(names)})
        return running

    async def _run(self, running: _Running) -> None:
        core = running.core
        async with asyncio.TaskGroup() as tasks:
            while not core.is_over:
                now = self._clock.monotonic_s()
                while (action := core.next_action(now)) is not None:
                    ask = self._ask(running, action.agent)
                    running.asks[action.agent] = tasks.create_task(ask)
                deadline = core.next_deadline()
                running.changed.clear()
                with suppress(TimeoutError):
                    wait_s = None if deadline is None else max(0.001, deadline - now)
                    async with asyncio.timeout(wait_s):
                        await running.changed.wait()
        logger.info(
            "warmup.ended",
            extra={
                "ref": running.ref.safe,
                "nodes": len(core.names),
                "done": sum(node.state == "done" for node in core.nodes()),
                "duration_s": round(self._clock.monotonic_s() - core.began_s, 3),
            },
        )

    async def _ask(self, running: _Running, agent: str) -> None:
        """Give the order, and pass on what the node says until it has ended or is lost."""
        core = running.core
        try:
            async with aclosing(self._items(agent, running.order)) as items:
                async for item in items:
                    now = self._clock.monotonic_s()
                    match item:
                        case Progress():
                            core.told(agent, item, now)
                        case Pulled():
                            core.done(agent, item, now)
                        case Fault():
                            core.failed(agent, item)
        except UnavailableError as exc:
            core.lost(agent, fault_of(exc), self._clock.monotonic_s())
        except DamselflyError as exc:
            core.failed(agent, fault_of(exc))
        except Exception as exc:
            logger.exception("order.broken", extra={"ref": running.ref.safe, "peer": agent})
            doing = f"having {agent} warmed"
            core.failed(agent, fault_of(LocalProtocolError.found(doing, exc)))
        running.changed.set()

    async def _items(self, agent: str, order: Order) -> AsyncGenerator[Progress | Pulled | Fault]:
        if agent != self._me:
            try:
                async with aclosing(self._client.watch(agent, order)) as items:
                    async for item in items:
                        yield item
            except OurselvesError:
                pass  # We have been named by an address that we do not go by.
            else:
                return
        here = self._orders.take(order)
        async with aclosing(self._orders.watch(here)) as moments:
            async for progress in moments:
                yield progress
        if here.failure is not None:
            yield fault_of(here.failure)
        else:
            assert here.pulled is not None
            yield here.pulled

    def _withdraw(self, running: _Running, agents: Mapping[str, str]) -> None:
        for agent in running.core.names.keys() & agents.keys():
            running.core.withdrawn(agent)
            if (ask := running.asks.get(agent)) is not None:
                ask.cancel()
        running.changed.set()

    async def _cancelled(self, node: WarmNode, order: Order) -> WarmNode:
        """Have a node's order cancelled; returns what became of it."""
        try:
            found = await self._cancelled_there(node.agent, order)
        except UnavailableError as exc:
            fault = fault_of(exc)
            return node.but(state="unreachable", error=fault.error, message=fault.message)
        except DamselflyError as exc:
            found = fault_of(exc)
        if isinstance(found, Fault):
            return node.but(state="failed", error=found.error, message=found.message)
        return node.but(state="cancelled" if found else "idle")

    async def _cancelled_there(self, agent: str, order: Order) -> bool | Fault:
        if agent != self._me:
            with suppress(OurselvesError):
                return await self._client.cancel(agent, order)
        return await self._orders.cancel(order)

    # --- what is told ------------------------------------------------------------------------

    def _progress(self, running: _Running) -> WarmProgress:
        return WarmProgress(
            ref=running.ref.safe,
            nodes=running.core.nodes(),
            seconds=self._seconds_since(running.core.began_s),
        )

    def _warmed(
        self, ref: Ref, artifact: str | None, nodes: tuple[WarmNode, ...], began_s: float
    ) -> Warmed:
        seconds = self._seconds_since(began_s)
        return Warmed(ref=ref.safe, artifact=artifact, nodes=nodes, seconds=seconds)

    def _seconds_since(self, began_s: float) -> float:
        return round(self._clock.monotonic_s() - began_s, 3)


def _checked(request: WarmRequest) -> tuple[Ref, Order]:
    """The ref and the order of a request.

    Raises:
        UsageError: there is none in it.
    """
    ref = Ref.parse(request.ref)
    include, exclude = tuple(sorted(set(request.include))), tuple(sorted(set(request.exclude)))
    if max(len(include), len(exclude)) > GLOBS_MAX:
        raise UsageError(f"more than {GLOBS_MAX} filters")
    if request.pin and request.ttl_s is not None:
        raise UsageError("a pin has no end, and a time to live is one: give one of them")
    if request.ttl_s is not None and not 1 <= request.ttl_s <= TTL_S_MAX:
        raise UsageError("a time to live is from one second to ten years; a pin has no end")
    order = Order(
        ref=str(ref), include=include, exclude=exclude, pin=request.pin, ttl_s=request.ttl_s
    )
    return ref, order
