"""The driver as a black box, the real agent behind it: what every CSI driver of ours does."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from damselfly.csi.proto import csi_pb2
from tests.conformance.csi import CSIConformance, Driven, files_below
from tests.integration.csi_blackbox_node import Node, needs_root, running_node

pytestmark = needs_root


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(scope="module")
def driven(node: Node) -> Driven:
    numbers = itertools.count()

    def new_target() -> Path:
        target = node.driver.target_of(f"pod-{next(numbers)}")
        target.parent.mkdir(parents=True, mode=0o750)
        return target

    return Driven(node.driver, {"model": node.origin.url}, node.files, new_target)


class TestDriver(CSIConformance):
    """The real one."""


# --- the wire, encoded by hand from the numbers of csi.v1: not by the classes that it is read with


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def entry(key: str, value: str) -> bytes:
    return field(1, key) + field(2, value)


def say(node: Node, method: str, request: bytes) -> bytes:
    with grpc.insecure_channel(f"unix://{node.driver.socket}") as channel:
        call = channel.unary_unary(
            f"/csi.v1.{method}", request_serializer=bytes, response_deserializer=bytes
        )
        return call(request, timeout=30)


def test_bytes_as_a_kubelet_sends_them_are_understood(node: Node, driven: Driven) -> None:
    target = driven.new_target()
    mount = field(2, b"")
    writer = field(3, b"\x08\x01")  # access_mode { mode: SINGLE_NODE_WRITER }
    publish = (
        field(1, "by-hand")
        + field(4, str(target))
        + field(5, mount + writer)
        + b"\x30\x01"  # readonly: true
        + field(7, entry("unrelated", "x"))
        + field(7, entry("token", "not-asked-for"))
        + field(8, entry("model", node.origin.url))
        + field(8, entry("csi.storage.k8s.io/ephemeral", "true"))
    )

    assert say(node, "Node/NodePublishVolume", publish) == b""
    seen = files_below(target)
    stats = say(node, "Node/NodeGetVolumeStats", field(1, "by-hand") + field(2, str(target)))
    assert say(node, "Node/NodeUnpublishVolume", field(1, "by-hand") + field(2, str(target))) == b""

    assert seen == driven.files
    assert stats[0] == 1 << 3 | 2  # usage = 1, a message
    assert say(node, "Identity/Probe", b"") == field(1, b"\x08\x01")  # ready { value: true }


def test_health_is_announced_only_when_it_is_switched_on(node: Node) -> None:
    def capabilities() -> set[int]:
        answer = node.driver.call(
            "Node/NodeGetCapabilities",
            csi_pb2.NodeGetCapabilitiesRequest(),
            csi_pb2.NodeGetCapabilitiesResponse,
        )
        return {each.rpc.type for each in answer.capabilities}

    without = capabilities()
    node.driver.process.stop()
    node.driver.start("--health")
    with_health = capabilities()

    rpc = csi_pb2.NodeServiceCapability.RPC
    assert with_health - without == {rpc.GET_VOLUME_HEALTH, rpc.GET_STORAGE_HEALTH}
