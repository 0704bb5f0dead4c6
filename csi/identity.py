"""The Identity service: who we are, what we can do, whether we are ready."""

from collections.abc import Callable

from google.protobuf.wrappers_pb2 import BoolValue

from damselfly import __version__
from damselfly.csi.calls import Context
from damselfly.csi.proto import csi_pb2

_SERVICES = (
    csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE,
    csi_pb2.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
)


class Identity:
    """Answers csi.v1.Identity. `is_ready` is asked at every probe."""

    def __init__(self, driver_name: str, is_ready: Callable[[], bool]) -> None:
        self._driver_name = driver_name
        self._is_ready = is_ready

    async def GetPluginInfo(
        self, _: csi_pb2.GetPluginInfoRequest, __: Context
    ) -> csi_pb2.GetPluginInfoResponse:
        """Name and version."""
        return csi_pb2.GetPluginInfoResponse(name=self._driver_name, vendor_version=__version__)

    async def GetPluginCapabilities(
        self, _: csi_pb2.GetPluginCapabilitiesRequest, __: Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """A controller, and volumes that are of one node."""
        capability = csi_pb2.PluginCapability
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[capability(service=capability.Service(type=kind)) for kind in _SERVICES]
        )

    async def Probe(self, _: csi_pb2.ProbeRequest, __: Context) -> csi_pb2.ProbeResponse:
        """Ready once what was mounted before is known again.

        The agent's health is not ours: without it, what is mounted stays mounted, and no restart of
        this process brings an agent back.
        """
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._is_ready()))
