"""Registering with the kubelet by ourselves: no sidecar, and a signal when it has happened.

The kubelet finds our socket in its plugins_registry, asks who we are and has one second of
patience, calls NodeGetInfo on the CSI socket, and says how that went. The socket's going away
unregisters us, so it is the last to come and the first to go; mounts do not mind.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from damselfly.csi.calls import Calls, Context
from damselfly.csi.options import Options
from damselfly.csi.proto import registration_pb2
from damselfly.csi.server import SocketServer, service
from damselfly.errors import ConfigError

logger = logging.getLogger(__name__)

CSI_VERSIONS = ("1.0.0",)
"""What the kubelet wants to hear: any 1.x, which has been compatible all along."""


class Registration:
    """Answers pluginregistration.Registration, on a server and a socket of its own."""

    def __init__(self, options: Options, calls: Calls) -> None:
        self._options = options
        self._calls = calls
        self.registered = asyncio.Event()
        """Set while the kubelet knows us, as far as it has said."""

    async def GetInfo(
        self, _: registration_pb2.InfoRequest, __: Context
    ) -> registration_pb2.PluginInfo:
        """Who we are, and where we answer."""
        return registration_pb2.PluginInfo(
            type="CSIPlugin",
            name=self._options.driver_name,
            endpoint=str(self._options.host_endpoint or self._options.endpoint),
            supported_versions=CSI_VERSIONS,
        )

    async def NotifyRegistrationStatus(
        self, request: registration_pb2.RegistrationStatus, _: Context
    ) -> registration_pb2.RegistrationStatusResponse:
        """Hear how it went. A failure is the kubelet's to repeat; we go on answering."""
        if request.plugin_registered:
            logger.info("driver.registered", extra={"driver": self._options.driver_name})
            self.registered.set()
        else:
            logger.error("driver.refused", extra={"told": request.error})
            self.registered.clear()
        return registration_pb2.RegistrationStatusResponse()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Be registered while the context is entered. Enter it after the CSI socket's.

        Raises:
            ConfigError: The first socket cannot be made.
        """
        ready = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep(ready))
            await ready.wait()
            try:
                yield
            finally:
                keeping.cancel()

    async def _keep(self, ready: asyncio.Event) -> None:
        """Answer, and make the socket again if somebody has removed it."""
        descriptor = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
        path = self._options.registration_socket
        while True:
            server = SocketServer(path, [service(descriptor, self, self._calls)])
            try:
                async with server:
                    ready.set()
                    # Looked at, because nobody tells: watching a folder needs more than asyncio.
                    while server.is_there:  # noqa: ASYNC110
                        await asyncio.sleep(self._options.limits.registration_interval_s)
            except ConfigError as exc:
                if not ready.is_set():
                    raise
                logger.warning("registration.failed", extra={"error": exc})
                await asyncio.sleep(self._options.limits.registration_interval_s)
            else:
                self.registered.clear()
                logger.warning("registration.lost", extra={"path": str(path)})
