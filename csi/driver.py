"""The driver's composition root: builds everything, answers until SIGTERM."""

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack
from functools import partial

from damselfly.client.agent import AgentClient
from damselfly.clock import SystemClock
from damselfly.csi.admin import AdminPage
from damselfly.csi.asking import in_background
from damselfly.csi.calls import Calls
from damselfly.csi.controller import Controller
from damselfly.csi.created import Created
from damselfly.csi.exclusive import Exclusive
from damselfly.csi.identity import Identity
from damselfly.csi.node import HealthyNode, Node
from damselfly.csi.options import Options
from damselfly.csi.proto import csi_pb2
from damselfly.csi.publication import Publication
from damselfly.csi.records import Records
from damselfly.csi.recovery import recover
from damselfly.csi.registration import Registration
from damselfly.csi.sealing import Sealing
from damselfly.csi.server import SocketServer, service
from damselfly.csi.stores import SeenStore, Stores
from damselfly.csi.taint import Cluster, keep_removing
from damselfly.csi.targets import Targets
from damselfly.csi.volumes import Volumes
from damselfly.errors import DamselflyError
from damselfly.metrics import DriverMetrics

logger = logging.getLogger(__name__)

MOUNTING_THREADS = 8
"""A mount takes a millisecond; the rest is waiting for the disk to keep a record."""


def run(options: Options) -> int:
    """Run the driver until SIGTERM or SIGINT; returns the exit code. Mounts stay.

    Raises:
        DamselflyError: It cannot start, or cannot go on.
    """
    try:
        asyncio.run(_serve(options))
    except BaseExceptionGroup as group:
        errors = group.subgroup(DamselflyError)
        if errors is None:
            raise
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from first.__cause__  # Its cause is worth more than the group it came in.
    return 0


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # What is missing for it is found out now, and not when the kubelet has registered us.
    cluster = Cluster.of(os.environ) if options.taint else None
    clock = SystemClock()
    metrics = DriverMetrics()
    calls = Calls(metrics, clock)
    records = Records(options.state_folder, Publication)
    created = Records(options.state_folder / "created", Created)
    sealing = Sealing(options.staging_folder)
    targets = Targets(options.kubelet_root, options.store, records, sealing, clock)
    published = recover(options, targets, records, clock)
    agent = AgentClient(options.agent_socket)
    registration = Registration(options, calls) if options.is_self_registering else None

    def unready() -> list[str]:
        if registration is not None and not registration.registered.is_set():
            return ["the kubelet has not registered us yet"]
        return []

    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        exclusive = await stack.enter_async_context(Exclusive(MOUNTING_THREADS))
        stores = Stores(
            options.store,
            Records(options.state_folder / "stores", SeenStore),
            (record.store for record in published.values()),
            exclusive,
        )
        volumes = Volumes(options, targets, agent, published, stores, exclusive, clock)
        node: Node = Node(options, volumes, targets)
        if options.shows_health:
            node = HealthyNode(options, volumes, targets, agent)
        controller = Controller(options, volumes, created, created.open(), agent, exclusive, clock)
        identity = Identity(options.driver_name, lambda: True)
        known = csi_pb2.DESCRIPTOR.services_by_name
        services = [
            service(known["Identity"], identity, calls),
            service(known["Controller"], controller, calls),
            service(known["Node"], node, calls),
        ]
        if options.admin is not None:
            await stack.enter_async_context(AdminPage(options.admin, metrics, unready))
        await stack.enter_async_context(SocketServer(options.endpoint, services))
        background = [tasks.create_task(_keep_sweeping(volumes, options))]
        if registration is not None:
            await stack.enter_async_context(registration.running())
            if options.taint is not None and cluster is not None:
                removal = _remove_taint(registration, cluster, options.node_id, options.taint)
                background.append(tasks.create_task(removal))
        logger.info(
            "driver.started",
            extra={
                "driver": options.driver_name,
                "endpoint": str(options.endpoint),
                "volumes": len(published),
            },
        )
        await stop.wait()
        logger.info("driver.stopping", extra={"volumes": len(volumes.published)})
        volumes.stop()
        for task in background:
            task.cancel()


async def _keep_sweeping(volumes: Volumes, options: Options) -> None:
    while True:
        try:
            await volumes.sweep()
        except (DamselflyError, OSError) as exc:
            logger.warning("sweep.failed", extra={"error": exc})
        await asyncio.sleep(options.limits.sweep_interval_s)


async def _remove_taint(
    registration: Registration, cluster: Cluster, node_id: str, taint: str
) -> None:
    await registration.registered.wait()
    in_background(partial(keep_removing, cluster, node_id, taint))
