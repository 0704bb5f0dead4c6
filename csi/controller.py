"""The Controller service, which runs on every node: volumes are created where they will be used."""

from collections.abc import Iterable
from functools import partial
from typing import Protocol

from google.protobuf.wrappers_pb2 import Int64Value

from damselfly.client.answers import Capacity, CapacityRequest
from damselfly.clock import Clock
from damselfly.csi.asking import answered
from damselfly.csi.calls import Context
from damselfly.csi.capability import MANY_NODES, check_capabilities
from damselfly.csi.created import NAME_BYTES_MAX, Created, Range, create, own_attributes
from damselfly.csi.exclusive import Exclusive
from damselfly.csi.node import topology_key
from damselfly.csi.options import Options
from damselfly.csi.proto import csi_pb2
from damselfly.csi.records import Records
from damselfly.csi.status import VolumeNotFoundError
from damselfly.csi.volume import check_volume_id, file_name, parse_source
from damselfly.csi.volumes import Volumes
from damselfly.errors import CapacityError, UsageError

_RPC = csi_pb2.ControllerServiceCapability.RPC


class Room(Protocol):
    """What the agent is asked about room. Blocks."""

    def capacity(self, request: CapacityRequest) -> Capacity:
        """How much could be stored."""
        ...


class Controller:
    """Answers csi.v1.Controller. Belongs to one event loop."""

    def __init__(
        self,
        options: Options,
        volumes: Volumes,
        records: Records[Created],
        created: dict[str, Created],
        agent: Room,
        exclusive: Exclusive,
        clock: Clock,
    ) -> None:
        self._options = options
        self._volumes = volumes
        self._records = records
        self._created = created
        self._agent = agent
        self._exclusive = exclusive
        self._clock = clock

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, _: Context
    ) -> csi_pb2.CreateVolumeResponse:
        """Write a wish down. Pulling is the publish's, which may take its time."""
        if not request.name:
            raise UsageError("name is missing")
        if len(request.name.encode()) > NAME_BYTES_MAX:
            raise UsageError(f"name has more than {NAME_BYTES_MAX} bytes")
        check_capabilities(request.volume_capabilities)
        if request.HasField("volume_content_source"):
            raise UsageError("volumes are not made from snapshots or other volumes")
        if request.mutable_parameters:
            raise UsageError("nothing about a volume can be changed: no mutable_parameters")
        requisite = request.accessibility_requirements.requisite
        if requisite and not any(self._is_here(topology) for topology in requisite):
            raise CapacityError("volumes are created on the node that they are for")
        # A StorageClass is the administrator's, who may name any directory.
        parse_source(request.parameters, allows_files=True)
        volume_id = file_name(request.name)
        asked = Range(request.capacity_range.required_bytes, request.capacity_range.limit_bytes)
        record = await self._exclusive.step(
            f"created/{volume_id}",
            partial(self._create, volume_id, request.name, dict(request.parameters), asked),
        )
        return csi_pb2.CreateVolumeResponse(
            volume=csi_pb2.Volume(
                volume_id=volume_id,
                capacity_bytes=record.capacity_bytes,
                volume_context=own_attributes(request.parameters),
                accessible_topology=self._topology(request.volume_capabilities),
            )
        )

    async def _create(
        self, volume_id: str, name: str, parameters: dict[str, str], asked: Range
    ) -> Created:
        before = self._created.get(volume_id)
        record = create(volume_id, name, parameters, asked, before, now_ns=self._clock.wall_ns())
        if before is None and len(self._created) >= self._options.limits.records_max:
            oldest = min(self._created.values(), key=lambda each: each.created_ns)
            await self._delete(oldest.volume_id)
        if record is not before:
            await self._exclusive.work(partial(self._records.put, file_name(volume_id), record))
            self._created[volume_id] = record
        return record

    def _topology(self, capabilities: Iterable[csi_pb2.VolumeCapability]) -> list[csi_pb2.Topology]:
        """This node for a volume of one node; everywhere for one of many.

        Any node pulls what it is asked to mount. A claim of many nodes that was bound to the first
        would force all its pods onto that one.
        """
        if any(capability.access_mode.mode in MANY_NODES for capability in capabilities):
            return []
        return [self._here()]

    def _here(self) -> csi_pb2.Topology:
        key = topology_key(self._options.driver_name)
        return csi_pb2.Topology(segments={key: self._options.node_id})

    async def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, _: Context
    ) -> csi_pb2.DeleteVolumeResponse:
        """Forget a wish. What was pulled for it stays in the store until room is needed."""
        volume_id = check_volume_id(request.volume_id)
        await self._exclusive.step(f"created/{volume_id}", partial(self._delete, volume_id))
        return csi_pb2.DeleteVolumeResponse()

    async def _delete(self, volume_id: str) -> None:
        if volume_id in self._created:
            await self._exclusive.work(partial(self._records.remove, file_name(volume_id)))
            self._created.pop(volume_id, None)

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, _: Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what a volume is wanted for, or say why not."""
        volume_id = check_volume_id(request.volume_id)
        if not request.volume_capabilities:
            raise UsageError("volume_capabilities are missing")
        is_published = any(
            record.volume_id == volume_id for record in self._volumes.published.values()
        )
        if volume_id not in self._created and not is_published:
            raise VolumeNotFoundError(f"no volume {volume_id} was created or published here")
        try:
            check_capabilities(request.volume_capabilities)
            if request.volume_context:
                parse_source(request.volume_context, allows_files=True)
        except UsageError as exc:
            cause = f": {exc.__cause__}" if exc.__cause__ else ""
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=f"{exc}{cause}")
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def GetCapacity(
        self, request: csi_pb2.GetCapacityRequest, _: Context
    ) -> csi_pb2.GetCapacityResponse:
        """How much this node could hold: of anything, or of the model that a class names."""
        if request.volume_capabilities:
            try:
                check_capabilities(request.volume_capabilities)
            except UsageError:
                return csi_pb2.GetCapacityResponse(available_capacity=0)
        if not self._is_here(request.accessible_topology):
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        asked = CapacityRequest()
        if own_attributes(request.parameters):
            source = parse_source(request.parameters, allows_files=True)
            asked = CapacityRequest(ref=source.ref, include=source.include, exclude=source.exclude)
        answer = await answered(partial(self._agent.capacity, asked))
        available = max(0, answer.available_bytes)
        return csi_pb2.GetCapacityResponse(
            available_capacity=available, maximum_volume_size=Int64Value(value=available)
        )

    def _is_here(self, topology: csi_pb2.Topology) -> bool:
        key = topology_key(self._options.driver_name)
        return topology.segments.get(key, self._options.node_id) == self._options.node_id

    async def ControllerGetCapabilities(
        self, _: csi_pb2.ControllerGetCapabilitiesRequest, __: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """Creating, deleting, and telling how much room there is."""
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.ControllerServiceCapability(rpc=_RPC(type=kind))
                for kind in (_RPC.CREATE_DELETE_VOLUME, _RPC.GET_CAPACITY)
            ]
        )
