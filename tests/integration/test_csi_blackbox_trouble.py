"""Fifty at once, stale mounts, things in the way, full disks."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from bench.driver import Driver
from bench.mounts import mounts_at, mounts_below
from bench.node import AGENT_OPTIONS
from damselfly.csi.proto import csi_pb2
from tests.conformance.csi import files_below, refused
from tests.integration.csi_blackbox_node import (
    Node,
    needs_root,
    running_kubelet,
    running_node,
)
from tests.kubelet.dial import code_of
from tests.kubelet.timing import Timing

pytestmark = needs_root
Code = grpc.StatusCode
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("node"), "--self-register") as node:
        yield node


@pytest.fixture
def target(node: Node) -> Iterator[Path]:
    target = node.driver.target_of("pod")
    target.parent.mkdir(parents=True)
    yield target
    for _ in mounts_at(target):
        subprocess.run(["umount", "--lazy", str(target)], check=True)
    shutil.rmtree(node.root / "pods" / "pod")
    assert node.leftovers() == {}


def attributes(node: Node) -> dict[str, str]:
    return {"model": node.origin.url}


# --- many at once ---


def test_fifty_pods_of_one_model_are_one_pull_and_probes_are_answered_meanwhile(
    tmp_path: Path,
) -> None:
    slow = ("--rate-per-connection", "16mbit")
    with (
        running_node(
            tmp_path, "--self-register", origin_options=slow, weights_bytes=8 * MIB
        ) as node,
        running_kubelet(node, Timing(scale=0.25)) as kubelet,
    ):
        uids = [f"p{number}" for number in range(50)]
        for uid in uids:
            kubelet.add_pod(node.pod(uid))
        probes = [probe_s(node.driver) for _ in range(10)]
        for uid in uids:
            kubelet.wait_until_running(uid)

        assert kubelet.events == []
        assert node.origin.bytes_sent() < node.bytes * 1.05
        assert len(mounts_below(node.root)) == len(node.leases()) == 50
        for uid in uids:
            assert (kubelet.target(uid) / "config.json").read_bytes() == node.files["config.json"]
            kubelet.delete_pod(uid)
        for uid in uids:
            assert kubelet.wait_until_gone(uid) == []
        assert node.leftovers() == {}
        assert max(probes) < 1.0  # The kubelet's own patience with a registration.


def probe_s(driver: Driver) -> float:
    start_s = time.monotonic()
    driver.call("Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse, 5.0)
    return time.monotonic() - start_s


def test_fifty_calls_for_one_target_end_in_one_mount(node: Node, target: Path) -> None:
    with ThreadPoolExecutor(50) as pool:
        calls = [pool.submit(node.driver.publish, "v", target, attributes(node)) for _ in range(50)]
        codes = [outcome(call) for call in calls]

    assert set(codes) <= {Code.OK, Code.ABORTED}
    node.driver.publish("v", target, attributes(node))
    assert len(mounts_at(target)) == 1
    assert len(node.leases()) == 1
    node.driver.unpublish("v", target)


def test_publishes_and_unpublishes_at_once_end_as_the_last_one_says(
    node: Node, target: Path
) -> None:
    with ThreadPoolExecutor(16) as pool:
        calls = [
            pool.submit(node.driver.publish, "v", target, attributes(node))
            if number % 2
            else pool.submit(node.driver.unpublish, "v", target)
            for number in range(64)
        ]
        codes = [outcome(call) for call in calls]

    assert set(codes) <= {Code.OK, Code.ABORTED}
    node.driver.unpublish("v", target)
    assert not target.exists()
    assert node.leases() == []
    assert node.records() == []


def outcome(call: Future[None]) -> grpc.StatusCode:
    error = call.exception()
    if error is None:
        return Code.OK
    assert isinstance(error, grpc.RpcError)
    return code_of(error)


# --- stale mounts ---


def mount_dead_fuse(target: Path) -> None:
    """A FUSE mount whose server has gone: everything about it is ENOTCONN."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"dead", bytes(target), b"fuse", 0, options) != 0:
            pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(device)
    with pytest.raises(OSError, match="not connected"):
        target.stat()


def mount_deleted(target: Path) -> None:
    """A bind mount of a directory that is gone: it is there, and empty."""
    source = target.parent / "source"
    source.mkdir()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
    source.rmdir()


@pytest.mark.parametrize("make_stale", [mount_dead_fuse, mount_deleted])
def test_a_stale_mount_at_the_target_is_taken_away_and_mounted_anew(
    node: Node, target: Path, make_stale: Callable[[Path], None]
) -> None:
    target.mkdir()
    make_stale(target)

    node.driver.publish("v", target, attributes(node))

    assert len(mounts_at(target)) == 1
    assert files_below(target) == node.files
    node.driver.unpublish("v", target)


@pytest.mark.parametrize("make_stale", [mount_dead_fuse, mount_deleted])
def test_a_stale_mount_is_unpublished(
    node: Node, target: Path, make_stale: Callable[[Path], None]
) -> None:
    target.mkdir()
    make_stale(target)

    node.driver.unpublish("v", target)

    assert not target.exists()


def test_a_stale_mount_upon_ours_is_taken_away(node: Node, target: Path) -> None:
    node.driver.publish("v", target, attributes(node))
    mount_dead_fuse(target)

    node.driver.publish("v", target, attributes(node))

    assert files_below(target) == node.files
    node.driver.unpublish("v", target)
    assert not target.exists()


def test_mounts_that_lie_upon_each_other_are_all_unpublished(node: Node, target: Path) -> None:
    node.driver.publish("v", target, attributes(node))
    for _ in range(3):
        subprocess.run(["mount", "--bind", str(target), str(target)], check=True)
    assert len(mounts_at(target)) == 4

    node.driver.unpublish("v", target)

    assert not target.exists()


def test_a_volume_that_is_being_read_is_unpublished(node: Node, target: Path) -> None:
    node.driver.publish("v", target, attributes(node))
    with (target / "model.bin").open("rb") as reader:
        node.driver.unpublish("v", target)

        assert reader.read() == node.files["model.bin"]
    assert not target.exists()


# --- things in the way ---


def test_a_foreign_mount_at_the_target_is_not_touched(node: Node, target: Path) -> None:
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
    (target / "precious").write_text("mine")

    with refused(Code.FAILED_PRECONDITION, Code.INTERNAL, Code.ALREADY_EXISTS):
        node.driver.publish("v", target, attributes(node))

    assert (target / "precious").read_text() == "mine"
    assert node.leases() == []
    assert node.records() == []


def make_file(target: Path) -> None:
    target.write_text("mine")


def make_full_folder(target: Path) -> None:
    target.mkdir()
    (target / "precious").write_text("mine")


def make_link(target: Path) -> None:
    elsewhere = target.parent / "elsewhere"
    elsewhere.mkdir()
    target.symlink_to(elsewhere)


@pytest.mark.parametrize("make", [make_file, make_full_folder, make_link])
def test_what_is_in_the_way_is_refused_and_stays(
    node: Node, target: Path, make: Callable[[Path], None]
) -> None:
    make(target)

    with refused(Code.FAILED_PRECONDITION, Code.INTERNAL, Code.INVALID_ARGUMENT):
        node.driver.publish("v", target, attributes(node))

    assert mounts_below(node.root) == []
    assert os.path.lexists(target)
    assert node.leases() == []
    assert node.records() == []


def test_a_link_above_the_target_is_not_followed(node: Node, target: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target.parent.rmdir()
    target.parent.symlink_to(elsewhere)
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id="v", target_path=str(target), volume_context=attributes(node)
    )
    request.volume_capability.mount.SetInParent()
    request.volume_capability.access_mode.mode = (
        csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    )

    with refused(Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.INTERNAL):
        node.driver.call("Node/NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse)

    assert list(elsewhere.iterdir()) == []
    assert node.leases() == []
    target.parent.unlink()
    target.parent.mkdir()


# --- no room ---


@contextmanager
def small_disk(folder: Path, size: str) -> Generator[None]:
    """A disk of its own at a folder, which is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


def test_a_store_without_room_is_said_in_the_event_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "fleet" / "n0", "12M"),
        running_node(
            tmp_path, "--self-register", weights_bytes=16 * MIB, agent_options=AGENT_OPTIONS
        ) as node,
        running_kubelet(node) as kubelet,
    ):
        kubelet.add_pod(node.pod())

        (event, *_) = kubelet.wait_for_events("u1")

        assert event.code is Code.RESOURCE_EXHAUSTED
        assert "room" in event.message
        kubelet.add_pod(node.pod("small", {"include": "*.json"}))
        kubelet.wait_until_running("small")
        for uid in ("u1", "small"):
            kubelet.delete_pod(uid)
            assert kubelet.wait_until_gone(uid) == []
        assert node.leftovers() == {}


def test_records_without_room_fail_the_publish_and_leave_nothing(tmp_path: Path) -> None:
    with running_node(tmp_path, "--self-register") as node:
        state = node.driver.state
        node.driver.process.stop()
        with small_disk(state, "64k"):
            node.driver.start()
            ballast = fill(state)
            target = node.driver.target_of("u1")

            with refused(Code.RESOURCE_EXHAUSTED):
                node.driver.publish("v", target, attributes(node))

            assert mounts_at(target) == []
            node.driver.unpublish("v", target)
            assert node.leases() == []
            ballast.unlink()
            node.driver.publish("v", target, attributes(node))
            assert files_below(target) == node.files
            fill(state)
            node.driver.publish("v", target, attributes(node))
            node.driver.unpublish("v", target)
            assert node.leases() == []
            assert not target.exists()
            node.driver.process.stop()
