"""What every CSI driver of ours does on its socket, asked by a stock gRPC client: one suite.

It covers what `csi-sanity` of kubernetes-csi/csi-test checks of a driver with our capabilities:
argument errors before existence, codes, ten times the same call, unpublish that removes the target,
the rules of CreateVolume, names, capacity, validation, statistics. `csi-sanity` itself is a Go
program that no package registry for Python, Debian or JavaScript has, so it does not run here.

A subclass gives the fixture `driven`. Volumes are real mounts, so all of this needs root.
"""

import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from bench.driver import Driver, mount_capability
from bench.mounts import mounts_at, mounts_below
from damselfly.csi.proto import csi_pb2

M = TypeVar("M", bound=Message)

Code = grpc.StatusCode
TIMES = 10
GIB = 1 << 30
MANY = 1 << 20
# What the last released csi-sanity (CSI 1.12) knows; it fails a driver that announces more.
KNOWN_PLUGIN_SERVICES = {1, 2, 3, 4}
KNOWN_CONTROLLER = set(range(1, 16)) - {11}
KNOWN_NODE = {1, 2, 3, 5, 6}


@dataclass(frozen=True)
class Driven:
    """A driver and what it can reach.

    `parameters` are of a StorageClass or a pod, and name a model with `files`. `new_target` makes
    the parent of a path that is not there yet, as a kubelet does.
    """

    driver: Driver
    parameters: Mapping[str, str]
    files: Mapping[str, bytes]
    new_target: Callable[[], Path]

    def call(self, method: str, request: Message, kind: type[M]) -> M:
        """Ask."""
        return self.driver.call(method, request, kind, 30.0)

    def create(
        self,
        name: str,
        *,
        required: int = 0,
        limit: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> csi_pb2.Volume:
        """A volume."""
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            volume_capabilities=[mount_capability()],
            parameters=self.parameters if parameters is None else parameters,
        )
        if required or limit:
            request.capacity_range.required_bytes = required
            request.capacity_range.limit_bytes = limit
        answer = self.call("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse)
        return answer.volume

    def delete(self, volume_id: str) -> None:
        """Delete a volume."""
        self.call(
            "Controller/DeleteVolume",
            csi_pb2.DeleteVolumeRequest(volume_id=volume_id),
            csi_pb2.DeleteVolumeResponse,
        )

    def publish_request(
        self, volume: csi_pb2.Volume, target: Path | str, mode: str = "SINGLE_NODE_WRITER"
    ) -> csi_pb2.NodePublishVolumeRequest:
        """As csi-sanity asks: a writer, not read-only."""
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=volume.volume_id,
            target_path=str(target),
            volume_capability=mount_capability(mode),
            volume_context=volume.volume_context,
        )

    def publish(self, request: csi_pb2.NodePublishVolumeRequest) -> None:
        """Publish."""
        self.call("Node/NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse)

    def unpublish(self, volume_id: str, target: Path | str) -> None:
        """Unpublish."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target))
        self.call("Node/NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse)

    def stats(self, volume_id: str, path: Path | str) -> dict[int, csi_pb2.VolumeUsage]:
        """Usage by unit."""
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(path))
        answer = self.call("Node/NodeGetVolumeStats", request, csi_pb2.NodeGetVolumeStatsResponse)
        return {usage.unit: usage for usage in answer.usage}


@contextmanager
def refused(*codes: grpc.StatusCode) -> Generator[pytest.ExceptionInfo[grpc.RpcError]]:
    """What happens inside fails with one of these codes, says why, and says it without details."""
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    error: Any = caught.value  # It is a call too, which its type does not say.
    assert error.code() in codes, f"{error.code()}: {error.details()}"
    assert error.details()
    assert "grpc-status-details-bin" not in dict(error.trailing_metadata() or ())


def files_below(folder: Path) -> dict[str, bytes]:
    """The files of a volume."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def block_capability() -> csi_pb2.VolumeCapability:
    """What no model is."""
    capability = mount_capability()
    capability.block.SetInParent()
    return capability


@pytest.mark.root
class CSIConformance:
    """See the module."""

    @pytest.fixture
    def volume(self, driven: Driven, request: pytest.FixtureRequest) -> Generator[csi_pb2.Volume]:
        volume = driven.create(f"of-{request.node.name}"[:128])
        yield volume
        driven.delete(volume.volume_id)

    @pytest.fixture
    def target(self, driven: Driven, volume: csi_pb2.Volume) -> Generator[Path]:
        target = driven.new_target()
        yield target
        driven.unpublish(volume.volume_id, target)
        assert not target.exists()

    # --- Identity ------------------------------------------------------------------------------

    def test_its_name_is_one_that_csi_allows(self, driven: Driven) -> None:
        info = driven.call(
            "Identity/GetPluginInfo", csi_pb2.GetPluginInfoRequest(), csi_pb2.GetPluginInfoResponse
        )

        assert re.fullmatch(r"[a-zA-Z][A-Za-z0-9\-._]{0,61}[a-zA-Z]", info.name)
        assert info.vendor_version

    def test_it_has_a_controller_and_volumes_of_one_node(self, driven: Driven) -> None:
        answer = driven.call(
            "Identity/GetPluginCapabilities",
            csi_pb2.GetPluginCapabilitiesRequest(),
            csi_pb2.GetPluginCapabilitiesResponse,
        )

        services = {each.service.type for each in answer.capabilities}
        service = csi_pb2.PluginCapability.Service
        assert {service.CONTROLLER_SERVICE, service.VOLUME_ACCESSIBILITY_CONSTRAINTS} <= services
        assert services <= KNOWN_PLUGIN_SERVICES

    def test_it_is_ready(self, driven: Driven) -> None:
        answer = driven.call("Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse)

        assert answer.ready.value

    # --- Controller ----------------------------------------------------------------------------

    def test_its_controller_creates_and_knows_capacity(self, driven: Driven) -> None:
        answer = driven.call(
            "Controller/ControllerGetCapabilities",
            csi_pb2.ControllerGetCapabilitiesRequest(),
            csi_pb2.ControllerGetCapabilitiesResponse,
        )

        found = {each.rpc.type for each in answer.capabilities}
        rpc = csi_pb2.ControllerServiceCapability.RPC
        assert {rpc.CREATE_DELETE_VOLUME, rpc.GET_CAPACITY} <= found
        assert found <= KNOWN_CONTROLLER

    @pytest.mark.parametrize("about", ["anything", "the model"])
    def test_capacity_is_never_negative(self, driven: Driven, about: str) -> None:
        request = csi_pb2.GetCapacityRequest(
            parameters=driven.parameters if about == "the model" else {}
        )

        answer = driven.call("Controller/GetCapacity", request, csi_pb2.GetCapacityResponse)

        assert answer.available_capacity > 0

    def test_a_volume_without_a_name_is_refused(self, driven: Driven) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driven.create("")

    def test_a_volume_without_capabilities_is_refused(self, driven: Driven) -> None:
        request = csi_pb2.CreateVolumeRequest(name="none", parameters=driven.parameters)

        with refused(Code.INVALID_ARGUMENT):
            driven.call("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse)

    def test_a_volume_without_a_model_is_refused(self, driven: Driven) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driven.create("no-model", parameters={})

    def test_a_parameter_that_nobody_knows_is_refused_by_name(self, driven: Driven) -> None:
        with refused(Code.INVALID_ARGUMENT) as caught:
            driven.create("odd", parameters={**driven.parameters, "modle": "x"})

        assert "modle" in str(caught.value)

    def test_a_block_volume_is_refused(self, driven: Driven) -> None:
        request = csi_pb2.CreateVolumeRequest(
            name="block", volume_capabilities=[block_capability()], parameters=driven.parameters
        )

        with refused(Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION):
            driven.call("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse)

    @pytest.mark.parametrize("source", ["snapshot", "volume"])
    def test_a_copy_of_something_is_refused(self, driven: Driven, source: str) -> None:
        request = csi_pb2.CreateVolumeRequest(
            name=f"copy-of-{source}",
            volume_capabilities=[mount_capability()],
            parameters=driven.parameters,
        )
        if source == "snapshot":
            request.volume_content_source.snapshot.snapshot_id = "s"
        else:
            request.volume_content_source.volume.volume_id = "v"

        with refused(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED):
            driven.call("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse)

    def test_a_volume_without_a_size_is_created(self, driven: Driven) -> None:
        volume = driven.create("no-size")

        assert volume.volume_id
        assert volume.capacity_bytes >= 0
        driven.delete(volume.volume_id)

    def test_a_volume_has_at_least_the_size_that_was_asked_for(self, driven: Driven) -> None:
        volume = driven.create("sized", required=10 * GIB)

        assert volume.capacity_bytes == 0 or volume.capacity_bytes >= 10 * GIB
        driven.delete(volume.volume_id)

    def test_the_same_name_and_size_is_the_same_volume_ten_times(self, driven: Driven) -> None:
        volumes = [driven.create("same", required=GIB, limit=10 * GIB) for _ in range(TIMES)]

        assert len({volume.volume_id for volume in volumes}) == 1
        assert len({volume.capacity_bytes for volume in volumes}) == 1
        driven.delete(volumes[0].volume_id)

    def test_the_same_name_with_another_size_is_a_conflict(self, driven: Driven) -> None:
        volume = driven.create("grown", required=GIB, limit=GIB)

        if volume.capacity_bytes:
            with refused(Code.ALREADY_EXISTS):
                driven.create("grown", required=2 * GIB, limit=2 * GIB)
        driven.delete(volume.volume_id)

    def test_the_same_name_with_another_model_is_a_conflict(self, driven: Driven) -> None:
        volume = driven.create("other")

        with refused(Code.ALREADY_EXISTS):
            driven.create("other", parameters={**driven.parameters, "include": "*.none"})

        driven.delete(volume.volume_id)

    def test_a_limit_below_what_is_required_is_refused(self, driven: Driven) -> None:
        with refused(Code.OUT_OF_RANGE, Code.INVALID_ARGUMENT):
            driven.create("odd-size", required=2 * GIB, limit=GIB)

    def test_a_name_of_128_characters_is_a_name(self, driven: Driven) -> None:
        volume = driven.create("n" * 128)

        assert 0 < len(volume.volume_id) <= 128
        driven.delete(volume.volume_id)

    def test_a_volume_is_of_this_node(self, driven: Driven, volume: csi_pb2.Volume) -> None:
        info = driven.call(
            "Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
        )

        assert [dict(each.segments) for each in volume.accessible_topology] == [
            dict(info.accessible_topology.segments)
        ]

    def test_a_volume_for_this_node_is_created(self, driven: Driven) -> None:
        info = driven.call(
            "Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
        )
        request = csi_pb2.CreateVolumeRequest(
            name="here", volume_capabilities=[mount_capability()], parameters=driven.parameters
        )
        request.accessibility_requirements.requisite.append(info.accessible_topology)

        answer = driven.call("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse)

        driven.delete(answer.volume.volume_id)

    def test_a_volume_for_another_node_finds_no_room_here(self, driven: Driven) -> None:
        info = driven.call(
            "Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
        )
        request = csi_pb2.CreateVolumeRequest(
            name="there", volume_capabilities=[mount_capability()], parameters=driven.parameters
        )
        segments = dict.fromkeys(info.accessible_topology.segments, "another")
        request.accessibility_requirements.requisite.add(segments=segments)

        with refused(Code.RESOURCE_EXHAUSTED):
            driven.call("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse)

    def test_deleting_without_an_id_is_refused(self, driven: Driven) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driven.delete("")

    def test_deleting_what_was_never_there_is_ok(self, driven: Driven) -> None:
        driven.delete("reallyfakevolumeid")

    def test_deleting_ten_times_is_deleting_once(self, driven: Driven) -> None:
        volume = driven.create("short-lived")

        for _ in range(TIMES):
            driven.delete(volume.volume_id)

    def validate(
        self, driven: Driven, volume_id: str, *capabilities: csi_pb2.VolumeCapability
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        return driven.call(
            "Controller/ValidateVolumeCapabilities",
            csi_pb2.ValidateVolumeCapabilitiesRequest(
                volume_id=volume_id, volume_capabilities=capabilities
            ),
            csi_pb2.ValidateVolumeCapabilitiesResponse,
        )

    def test_validating_without_an_id_or_capabilities_is_refused(
        self, driven: Driven, volume: csi_pb2.Volume
    ) -> None:
        with refused(Code.INVALID_ARGUMENT):
            self.validate(driven, "", mount_capability())
        with refused(Code.INVALID_ARGUMENT):
            self.validate(driven, volume.volume_id)
        with refused(Code.INVALID_ARGUMENT):
            self.validate(driven, "reallyfakevolumeid")

    def test_validating_what_is_not_there_finds_nothing(self, driven: Driven) -> None:
        with refused(Code.NOT_FOUND):
            self.validate(driven, "reallyfakevolumeid", mount_capability())

    def test_capabilities_are_confirmed_if_all_are_supported(
        self, driven: Driven, volume: csi_pb2.Volume
    ) -> None:
        good = self.validate(driven, volume.volume_id, mount_capability())
        bad = self.validate(driven, volume.volume_id, mount_capability(), block_capability())

        assert list(good.confirmed.volume_capabilities) == [mount_capability()]
        assert not bad.HasField("confirmed")
        assert bad.message

    @pytest.mark.parametrize(
        "method",
        ["ControllerPublishVolume", "ListVolumes", "CreateSnapshot", "ControllerExpandVolume"],
    )
    def test_what_is_not_announced_is_not_implemented(self, driven: Driven, method: str) -> None:
        with refused(Code.UNIMPLEMENTED):
            driven.call(f"Controller/{method}", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse)

    # --- Node ----------------------------------------------------------------------------------

    def test_its_node_has_statistics_and_no_staging(self, driven: Driven) -> None:
        answer = driven.call(
            "Node/NodeGetCapabilities",
            csi_pb2.NodeGetCapabilitiesRequest(),
            csi_pb2.NodeGetCapabilitiesResponse,
        )

        found = {each.rpc.type for each in answer.capabilities}
        assert csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS in found
        assert csi_pb2.NodeServiceCapability.RPC.STAGE_UNSTAGE_VOLUME not in found
        assert found <= KNOWN_NODE

    def test_its_node_has_a_name_and_a_place(self, driven: Driven) -> None:
        info = driven.call(
            "Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
        )

        assert info.node_id == driven.driver.node_id
        assert info.accessible_topology.segments
        assert info.max_volumes_per_node >= 0

    @pytest.mark.parametrize("missing", ["volume_id", "target_path", "volume_capability"])
    def test_a_publish_that_lacks_an_argument_is_refused(
        self, driven: Driven, missing: str
    ) -> None:
        volume = csi_pb2.Volume(volume_id="reallyfakevolumeid", volume_context=driven.parameters)
        target = driven.new_target()
        request = driven.publish_request(volume, target)
        request.ClearField(missing)  # type: ignore[arg-type]

        with refused(Code.INVALID_ARGUMENT):
            driven.publish(request)

        assert not target.exists()

    @pytest.mark.parametrize("path", ["some/path", "../up", "/"])
    def test_a_target_that_cannot_be_one_is_refused(
        self, driven: Driven, volume: csi_pb2.Volume, path: str
    ) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driven.publish(driven.publish_request(volume, path))

    def test_publishing_as_a_block_device_is_refused_and_leaves_nothing(
        self, driven: Driven, volume: csi_pb2.Volume
    ) -> None:
        target = driven.new_target()
        request = driven.publish_request(volume, target)
        request.volume_capability.CopyFrom(block_capability())

        with refused(Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION):
            driven.publish(request)

        assert not target.exists()

    def test_a_life_from_creation_to_deletion(self, driven: Driven) -> None:
        volume = driven.create("whole-life", required=MANY)
        target = driven.new_target()

        driven.publish(driven.publish_request(volume, target))
        seen = files_below(target)
        usage = driven.stats(volume.volume_id, target)
        driven.unpublish(volume.volume_id, target)
        driven.delete(volume.volume_id)

        assert seen == driven.files
        assert usage[csi_pb2.VolumeUsage.BYTES].total > 0
        assert not target.exists()

    def test_publishing_ten_times_is_publishing_once(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path
    ) -> None:
        for _ in range(TIMES):
            driven.publish(driven.publish_request(volume, target))

        assert len(mounts_at(target)) == 1
        assert files_below(target) == driven.files

    def test_a_volume_is_read_only_whatever_was_asked_for(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path
    ) -> None:
        request = driven.publish_request(volume, target)
        assert not request.readonly

        driven.publish(request)

        (mount,) = mounts_at(target)
        assert "ro" in mount.options
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        existing = next(path for path in target.rglob("*") if path.is_file())
        for spoil in (
            lambda: existing.open("r+b"),
            lambda: existing.chmod(0o777),
            lambda: os.utime(existing),
            existing.unlink,
        ):
            with pytest.raises(OSError, match="Read-only"):
                spoil()

    @pytest.mark.parametrize(
        "mode",
        [
            "SINGLE_NODE_WRITER",
            "SINGLE_NODE_READER_ONLY",
            "MULTI_NODE_READER_ONLY",
            "MULTI_NODE_MULTI_WRITER",
        ],
    )
    @pytest.mark.parametrize("readonly", [False, True])
    def test_every_access_mode_of_kubernetes_is_taken(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path, mode: str, readonly: bool
    ) -> None:
        request = driven.publish_request(volume, target, mode)
        request.readonly = readonly

        driven.publish(request)

        assert "ro" in mounts_at(target)[0].options

    def test_a_target_has_one_volume(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path
    ) -> None:
        driven.publish(driven.publish_request(volume, target))
        other = driven.create("another-one")

        with refused(Code.ALREADY_EXISTS):
            driven.publish(driven.publish_request(other, target))

        assert len(mounts_at(target)) == 1
        driven.delete(other.volume_id)

    def test_a_volume_may_have_two_targets(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path
    ) -> None:
        second = driven.new_target()
        mode = "MULTI_NODE_READER_ONLY"
        driven.publish(driven.publish_request(volume, target, mode))
        driven.publish(driven.publish_request(volume, second, mode))

        driven.unpublish(volume.volume_id, second)

        assert not second.exists()
        assert files_below(target) == driven.files

    @pytest.mark.parametrize(("volume_id", "has_path"), [("", True), ("v", False)])
    def test_an_unpublish_that_lacks_an_argument_is_refused(
        self, driven: Driven, volume_id: str, has_path: bool
    ) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driven.unpublish(volume_id, driven.new_target() if has_path else "")

    def test_unpublishing_what_was_never_published_is_ok(
        self, driven: Driven, volume: csi_pb2.Volume
    ) -> None:
        driven.unpublish(volume.volume_id, driven.new_target())
        driven.unpublish("reallyfakevolumeid", driven.new_target())

    def test_unpublishing_removes_the_target_ten_times(
        self, driven: Driven, volume: csi_pb2.Volume
    ) -> None:
        target = driven.new_target()
        driven.publish(driven.publish_request(volume, target))

        for _ in range(TIMES):
            driven.unpublish(volume.volume_id, target)

            assert not target.exists()
            assert target.parent.exists()

    def test_unpublishing_removes_a_target_on_which_nothing_is_mounted(
        self, driven: Driven, volume: csi_pb2.Volume
    ) -> None:
        target = driven.new_target()
        target.mkdir()

        driven.unpublish(volume.volume_id, target)

        assert not target.exists()

    @pytest.mark.parametrize(("volume_id", "path"), [("", "/some/path"), ("v", "")])
    def test_statistics_that_lack_an_argument_are_refused(
        self, driven: Driven, volume_id: str, path: str
    ) -> None:
        with refused(Code.INVALID_ARGUMENT):
            driven.stats(volume_id, path)

    def test_statistics_of_what_is_not_there_find_nothing(self, driven: Driven) -> None:
        with refused(Code.NOT_FOUND):
            driven.stats("reallyfakevolumeid", "some/path")

    def test_statistics_of_a_volume_at_another_path_find_nothing(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path
    ) -> None:
        driven.publish(driven.publish_request(volume, target))

        with refused(Code.NOT_FOUND):
            driven.stats(volume.volume_id, "some/path")
        with refused(Code.NOT_FOUND):
            driven.stats(volume.volume_id, target.parent)

    def test_statistics_are_of_the_model(
        self, driven: Driven, volume: csi_pb2.Volume, target: Path
    ) -> None:
        driven.publish(driven.publish_request(volume, target))

        usage = driven.stats(volume.volume_id, target)

        data = usage[csi_pb2.VolumeUsage.BYTES]
        assert data.used == sum(map(len, driven.files.values()))
        assert data.total >= data.used
        assert data.available >= 0

    @pytest.mark.parametrize("method", ["NodeStageVolume", "NodeUnstageVolume", "NodeExpandVolume"])
    def test_what_the_node_does_not_announce_is_not_implemented(
        self, driven: Driven, method: str
    ) -> None:
        with refused(Code.UNIMPLEMENTED):
            driven.call(f"Node/{method}", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse)

    def test_nothing_is_left_when_all_is_unpublished(self, driven: Driven) -> None:
        volume = driven.create("leaves-nothing")
        targets = [driven.new_target() for _ in range(3)]
        for target in targets:
            driven.publish(driven.publish_request(volume, target))

        for target in targets:
            driven.unpublish(volume.volume_id, target)
        driven.delete(volume.volume_id)

        assert not [mount for mount in mounts_below(driven.driver.root) if mount.path in targets]
