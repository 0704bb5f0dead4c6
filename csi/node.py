"""The Node service: each call is parsed, handed to the volumes, answered."""

from typing import Protocol, cast

from damselfly.client.answers import Status
from damselfly.csi.asking import answered
from damselfly.csi.calls import Context
from damselfly.csi.capability import check_capability
from damselfly.csi.options import Options
from damselfly.csi.proto import csi_pb2
from damselfly.csi.publication import Mount
from damselfly.csi.targets import Targets
from damselfly.csi.volume import (
    Wish,
    check_volume_id,
    is_inline,
    parse_source,
)
from damselfly.csi.volumes import Volumes
from damselfly.errors import DamselflyError, UsageError

HANG_UP_MARGIN_S = 1.0
"""An answer before the caller hangs up is worth more than one second of waiting."""
_RPC = csi_pb2.NodeServiceCapability.RPC


def topology_key(driver_name: str) -> str:
    """The label by which a node is told from others."""
    return f"{driver_name}/node"


class Node:
    """Answers csi.v1.Node, but for the calls about health."""

    def __init__(self, options: Options, volumes: Volumes, targets: Targets) -> None:
        self._options = options
        self._volumes = volumes
        self._targets = targets

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Show a volume at a target, read-only, whatever `readonly` says."""
        volume_id = check_volume_id(request.volume_id)
        target = self._targets.check(request.target_path)
        if not request.HasField("volume_capability"):
            raise UsageError("volume_capability is missing")
        check_capability(request.volume_capability)
        allows_files = (
            self._options.allows_file_refs
            or not is_inline(volume_id, request.volume_context)
            or self._volumes.is_published(volume_id, target)  # It was allowed when it began.
        )
        source = parse_source(request.volume_context, allows_files=allows_files)
        wish = Wish(volume_id=volume_id, target=target, source=source)
        patience_s = self._options.limits.publish_wait_s
        # None without a deadline, whatever the stubs say.
        left_s = cast("float | None", context.time_remaining())
        if left_s is not None:
            patience_s = min(patience_s, max(0.0, left_s - HANG_UP_MARGIN_S))
        await self._volumes.publish(wish, request.secrets, patience_s)
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, _: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take a volume away; one that nobody knows is away."""
        volume_id = check_volume_id(request.volume_id)
        target = self._targets.check(request.target_path)
        await self._volumes.unpublish(volume_id, target)
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, _: Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """How large a volume is: from its record, because it does not change."""
        volume_id = check_volume_id(request.volume_id)
        if not request.volume_path:
            raise UsageError("volume_path is missing")
        record = self._volumes.find(volume_id, request.volume_path)
        usage = csi_pb2.VolumeUsage
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=[
                usage(unit=usage.BYTES, total=record.bytes, used=record.bytes),
                usage(unit=usage.INODES, total=record.files, used=record.files),
            ]
        )

    async def NodeGetCapabilities(
        self, _: csi_pb2.NodeGetCapabilitiesRequest, __: Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """Statistics; health if asked for."""
        kinds = [_RPC.GET_VOLUME_STATS]
        if self._options.shows_health:
            kinds += [_RPC.GET_VOLUME_HEALTH, _RPC.GET_STORAGE_HEALTH]
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=_RPC(type=kind)) for kind in kinds]
        )

    async def NodeGetInfo(
        self, _: csi_pb2.NodeGetInfoRequest, __: Context
    ) -> csi_pb2.NodeGetInfoResponse:
        """The node's name, and the topology of one node."""
        key = topology_key(self._options.driver_name)
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._options.node_id,
            accessible_topology=csi_pb2.Topology(segments={key: self._options.node_id}),
        )


class AgentHealth(Protocol):
    """What is asked about the agent's health. Blocks."""

    def status(self) -> Status:
        """The agent at a glance."""
        ...


class HealthyNode(Node):
    """Answers csi.v1.Node with the calls about health, which are new in CSI 1.13 and alpha."""

    def __init__(
        self,
        options: Options,
        volumes: Volumes,
        targets: Targets,
        agent: AgentHealth,
    ) -> None:
        super().__init__(options, volumes, targets)
        self._agent = agent

    async def NodeGetVolumeHealth(
        self, request: csi_pb2.NodeGetVolumeHealthRequest, _: Context
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        """Whether what is mounted is alive; no entry is good news."""
        volume_id = check_volume_id(request.volume_id)
        if not request.volume_publish_path:
            raise UsageError("volume_publish_path is missing")
        record = self._volumes.find(volume_id, request.volume_publish_path)
        health = csi_pb2.VolumeHealth(volume_id=volume_id)
        mounted = await self._volumes.mount_of(record)
        if mounted is not Mount.WELL:
            is_read = mounted is Mount.WRITABLE  # What is in it may be changed by anybody.
            health.health_statuses.add(
                status=csi_pb2.DEGRADED if is_read else csi_pb2.INACCESSIBLE,
                reason=f"Mount{mounted.name.capitalize()}",
                message=f"at {record.target} is {mounted.value}",
            )
        return csi_pb2.NodeGetVolumeHealthResponse(volume_health=health)

    async def NodeGetStorageHealth(
        self, _: csi_pb2.NodeGetStorageHealthRequest, __: Context
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        """Whether the agent answers. Without it volumes that are mounted are well."""
        answer = csi_pb2.NodeGetStorageHealthResponse()
        try:
            await answered(self._agent.status)
        except DamselflyError as exc:
            answer.backend_health.add(
                status=csi_pb2.STORAGE_DEGRADED, reason="AgentUnavailable", message=str(exc)
            )
        return answer
