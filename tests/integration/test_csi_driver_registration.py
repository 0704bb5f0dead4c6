"""Registration: the kubelet's side is a client here; `tests/kubelet` plays it in full."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bench.driver import NAME
from damselfly.csi.proto import csi_pb2, registration_pb2
from tests.integration.csi_driver_node import Node, needs_root, running, short_folder, wait_until

pytestmark = needs_root


@pytest.fixture
def node() -> Iterator[Node]:
    with short_folder() as folder, running(folder, "--self-register") as node:
        yield node


def socket_of(node: Node) -> Path:
    return node.driver.root / "plugins_registry" / f"{NAME}-reg.sock"


def info(node: Node) -> registration_pb2.PluginInfo:
    with grpc.insecure_channel(f"unix://{socket_of(node)}") as channel:
        say = channel.unary_unary(
            "/pluginregistration.Registration/GetInfo",
            request_serializer=registration_pb2.InfoRequest.SerializeToString,
            response_deserializer=registration_pb2.PluginInfo.FromString,
        )
        return say(registration_pb2.InfoRequest(), timeout=1.0)


def test_the_kubelet_is_told_who_answers_where(node: Node) -> None:
    told = info(node)

    assert (told.type, told.name) == ("CSIPlugin", NAME)
    assert told.endpoint == str(node.driver.socket)
    assert list(told.supported_versions) == ["1.0.0"]


def test_the_endpoint_is_told_as_the_kubelet_sees_it(node: Node) -> None:
    node.driver.process.stop()
    node.driver.start("--host-endpoint", "/elsewhere/csi.sock")

    assert info(node).endpoint == "/elsewhere/csi.sock"


def test_sockets_are_for_root_alone(node: Node) -> None:
    for path in (socket_of(node), node.driver.socket):
        assert path.stat().st_mode & 0o077 == 0


def test_a_socket_that_somebody_removed_is_made_again(node: Node) -> None:
    socket_of(node).unlink()

    wait_until(socket_of(node).exists, "the socket stays away")

    assert info(node).name == NAME


def test_a_folder_that_somebody_removed_is_made_again(node: Node) -> None:
    shutil.rmtree(socket_of(node).parent)

    wait_until(socket_of(node).exists, "the socket stays away")

    assert info(node).name == NAME


def test_a_stop_takes_the_sockets_away(node: Node) -> None:
    node.driver.process.stop()

    assert not socket_of(node).exists()
    assert not node.driver.socket.exists()


def test_a_killed_driver_leaves_sockets_that_the_next_one_replaces(node: Node) -> None:
    before = socket_of(node).stat().st_ino

    node.restart()

    assert socket_of(node).stat().st_ino != before
    assert info(node).name == NAME


def test_a_driver_that_cannot_make_its_socket_says_so_and_ends(node: Node) -> None:
    node.driver.process.stop()
    node.driver.socket.parent.joinpath("csi.sock").mkdir()

    with pytest.raises(Exception, match="making the socket"):
        node.driver.start()


def test_probe_and_node_info_answer_before_anybody_has_registered_us(node: Node) -> None:
    probe = node.driver.call("Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse)
    answer = node.driver.call(
        "Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse
    )

    assert probe.ready.value
    assert dict(answer.accessible_topology.segments) == {f"{NAME}/node": "node-1"}
