"""The messages of CSI: what is committed is what the .proto says, and its numbers are CSI's."""

import subprocess
import sys
from pathlib import Path

import pytest

from damselfly.csi.proto import csi_pb2, registration_pb2

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["csi", "registration"])
def test_the_generated_code_is_that_of_the_proto(name: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools compiles it")
    made = tmp_path / "out" / "damselfly" / "csi" / "proto" / f"{name}_pb2.py"
    (tmp_path / "out").mkdir()

    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", "src"),
            f"--python_out={tmp_path / 'out'}",
            f"damselfly/csi/proto/{name}.proto",
        ],
        cwd=ROOT,
        check=True,
    )

    assert made.read_text() == (ROOT / "csi" / "proto" / made.name).read_text()


# By hand, from the numbers of csi.v1: field number << 3 | wire type, length, content.
@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (csi_pb2.GetPluginInfoResponse(name="n", vendor_version="v"), b"\x0a\x01n\x12\x01v"),
        (csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="t"), b"\x0a\x01v\x12\x01t"),
        (
            csi_pb2.NodePublishVolumeRequest(
                volume_id="v",
                staging_target_path="s",
                target_path="t",
                readonly=True,
                secrets={"k": "w"},
                volume_context={"c": "d"},
            ),
            b"\x0a\x01v\x1a\x01s\x22\x01t\x30\x01\x3a\x06\x0a\x01k\x12\x01w\x42\x06\x0a\x01c\x12\x01d",
        ),
        (
            csi_pb2.VolumeUsage(total=3, used=2, unit=csi_pb2.VolumeUsage.INODES),
            b"\x10\x03\x18\x02\x20\x02",
        ),
        (
            csi_pb2.NodeGetInfoResponse(
                node_id="n", accessible_topology=csi_pb2.Topology(segments={"a": "b"})
            ),
            b"\x0a\x01n\x1a\x08\x0a\x06\x0a\x01a\x12\x01b",
        ),
        (
            registration_pb2.PluginInfo(
                type="CSIPlugin", name="n", endpoint="e", supported_versions=["1.0.0"]
            ),
            b"\x0a\x09CSIPlugin\x12\x01n\x1a\x01e\x22\x051.0.0",
        ),
        (
            registration_pb2.RegistrationStatus(plugin_registered=True, error="e"),
            b"\x08\x01\x12\x01e",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bytes) else "",
)
def test_messages_are_on_the_wire_as_csi_has_them(message: object, wire: bytes) -> None:
    assert message.SerializeToString(deterministic=True) == wire  # type: ignore[attr-defined]


def test_methods_are_called_what_csi_calls_them() -> None:
    services = csi_pb2.DESCRIPTOR.services_by_name
    names = {method.full_name for service in services.values() for method in service.methods}

    assert {
        "csi.v1.Identity.Probe",
        "csi.v1.Controller.CreateVolume",
        "csi.v1.Node.NodePublishVolume",
        "csi.v1.Node.NodeGetVolumeHealth",
    } <= names
    registration = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
    assert registration.full_name == "pluginregistration.Registration"
