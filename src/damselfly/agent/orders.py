"""The orders that this node has taken: pull this and keep it, whoever goes on watching.

    take(order) ──> Running: pull ── pulled ──> lease, pin ── still there ──> ended
                                 ▲                              │ evicted in between
                                 └──────────────────────────────┘

An order is a task of the agent. It joins a pull that runs already, and it goes on when whoever gave
it hangs up. When it has ended it is forgotten: given again, it finds everything in the store.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from damselfly.agent.watch import watched
from damselfly.client.answers import Progress, Pulled, PullRequest
from damselfly.errors import (
    CancelledError,
    DamselflyError,
    LocalProtocolError,
    StoreFullError,
    UnavailableError,
)
from damselfly.model.ref import Ref
from damselfly.p2p.orders import Order

logger = logging.getLogger(__name__)


class Puller(Protocol):
    """What orders need from their node."""

    @property
    def state(self) -> str:
        """`starting`, `ready` or `draining`."""
        ...

    def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        """Start or join a pull, and watch it."""
        ...

    def is_pulling(self, request: PullRequest) -> bool:
        """Whether such a pull runs."""
        ...

    async def give_up(self, request: PullRequest) -> bool:
        """Stop a pull that nobody watches; tells whether it was stopped."""
        ...

    async def keep(self, pulled: Pulled, *, pin: bool, lease_id: str, ttl_s: float | None) -> bool:
        """Pin what was pulled, or lease it; False if it was evicted before that."""
        ...


@dataclass(frozen=True, kw_only=True)
class OrderLimits:
    """How much of the node orders may take."""

    orders_max: int = 64
    """At a time: more pulls at once only make each of them slower, and each holds some memory."""
    streams_max: int = 256
    """Watchers of all orders together; each is a few hundred bytes a second."""
    attempts_max: int = 3
    """An artifact that is evicted as soon as it has come does not fit beside what is in use."""
    tell_interval_s: float = 1.0
    """Between two lines to a watcher: a person reads no faster, and there may be 100 nodes."""


@dataclass(eq=False)
class Running:
    """An order that is being carried out, or has ended: then `pulled` or `failure` is there."""

    order: Order
    request: PullRequest
    is_owner: bool
    """It began the pull, rather than to join one."""
    progress: Progress
    pulled: Pulled | None = None
    failure: DamselflyError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Orders:
    """The orders of one node. Belongs to one event loop, and to the task group it is given.

    `ended` hears the outcome of each: completed, failed, cancelled or refused.
    """

    def __init__(
        self,
        node: Puller,
        tasks: asyncio.TaskGroup,
        ended: Callable[[str], None],
        limits: OrderLimits | None = None,
    ) -> None:
        self.limits = limits or OrderLimits()
        self._node = node
        self._tasks = tasks
        self._ended = ended
        self._running: dict[Order, Running] = {}

    def __repr__(self) -> str:
        return f"<Orders {len(self._running)} of {self.limits.orders_max}>"

    @property
    def is_stopping(self) -> bool:
        """What ends now ends because the agent stops, and wants to be ordered again."""
        return self._node.state == "draining"

    def refused(self) -> None:
        """Count an order that was not taken."""
        self._ended("refused")

    def take(self, order: Order) -> Running:
        """Carry out an order, or join it if it is being carried out.

        Raises:
            UnavailableError: not now: the agent is not ready, or has its hands full.
            UsageError: what it names is no ref.
        """
        ref = Ref.parse(order.ref)
        if (running := self._running.get(order)) is not None:
            return running
        if self._node.state != "ready":
            raise UnavailableError(f"the agent is {self._node.state} and takes no orders")
        if len(self._running) >= self.limits.orders_max:
            raise UnavailableError(f"{self.limits.orders_max} orders to warm this node run already")
        request = PullRequest(ref=str(ref), include=order.include, exclude=order.exclude)
        running = Running(
            order=order,
            request=request,
            is_owner=not self._node.is_pulling(request),
            progress=Progress(ref=ref.safe),
        )
        self._running[order] = running
        running.task = self._tasks.create_task(self._carry_out(running))
        running.task.add_done_callback(lambda _: self._forget(running))
        return running

    async def watch(self, running: Running) -> AsyncGenerator[Progress]:
        """The newest progress now and then, until the order has ended."""
        tell_s = self.limits.tell_interval_s
        async for progress in watched(running.ended, lambda: running.progress, tell_s):
            yield progress
        yield running.progress

    async def cancel(self, order: Order) -> bool:
        """End every order for the same ref and filters; tells whether there was one.

        The pull ends too if an order began it and nobody else watches it: a pod that waits for the
        same model must not lose it to somebody who has changed their mind.
        """
        found = [one for one in self._running.values() if one.order.lease_id == order.lease_id]
        tasks = [one.task for one in found if one.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if any(one.is_owner for one in found):
            await self._node.give_up(found[0].request)
        return bool(found)

    # --- within ------------------------------------------------------------------------------

    async def _carry_out(self, running: Running) -> None:
        try:
            running.pulled = await self._kept(running)
        except DamselflyError as exc:
            running.failure = exc
        except Exception as exc:
            ref = running.progress.ref
            logger.exception("order.broken", extra={"ref": ref})
            running.failure = LocalProtocolError.found(f"carrying out the order for {ref}", exc)

    def _forget(self, running: Running) -> None:
        """An order has ended, perhaps cancelled before it began."""
        del self._running[running.order]
        ref = running.progress.ref
        if running.pulled is None and running.failure is None:
            running.failure = CancelledError(f"the order to pull {ref} was cancelled")
        failure = running.failure
        outcome = "completed"
        extra = {"ref": ref}
        if failure is not None:
            outcome = "cancelled" if isinstance(failure, CancelledError) else "failed"
            extra["error"] = str(failure)
        running.ended.set()
        self._ended(outcome)
        logger.info("order.ended", extra=extra | {"outcome": outcome})

    async def _kept(self, running: Running) -> Pulled:
        order = running.order
        for _ in range(self.limits.attempts_max):
            pulled = await self._pulled(running)
            # Only now the artifact has a name to lease. Who looks after having made the lease
            # knows: an eviction either saw the lease, or has taken away what is looked for.
            if await self._node.keep(
                pulled, pin=order.pin, lease_id=order.lease_id, ttl_s=order.ttl_s
            ):
                return pulled
        raise StoreFullError(
            f"{running.progress.ref} was evicted {self.limits.attempts_max} times before it could"
            " be kept"
        )

    async def _pulled(self, running: Running) -> Pulled:
        items = self._node.pull(running.request)
        try:
            async for item in items:
                if isinstance(item, Pulled):
                    return item
                running.progress = item
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
        raise AssertionError("a pull ended without an outcome")
