"""The driver's composition root: builds everything, answers until SIGTERM."""

import asyncio
import logging
import signal
from contextlib import AsyncExitStack

from damselfly.clock import SystemClock
from damselfly.csi.calls import Calls
from damselfly.csi.identity import Identity
from damselfly.csi.options import Options
from damselfly.csi.proto import csi_pb2
from damselfly.csi.server import SocketServer, service
from damselfly.metrics import DriverMetrics

logger = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Run the driver until SIGTERM or SIGINT; returns the exit code. Mounts stay.

    Raises:
        DamselflyError: It cannot start.
    """
    asyncio.run(_serve(options))
    return 0


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = DriverMetrics()
    calls = Calls(metrics, SystemClock())
    services = csi_pb2.DESCRIPTOR.services_by_name
    identity = Identity(options.driver_name, lambda: True)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            SocketServer(options.endpoint, [service(services["Identity"], identity, calls)])
        )
        logger.info("driver.started", extra={"endpoint": str(options.endpoint)})
        await stop.wait()
        logger.info("driver.stopping")
