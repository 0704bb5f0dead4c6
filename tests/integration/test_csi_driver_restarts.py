"""Whatever ends and comes back, what is mounted stays, and what is nobody's goes."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from bench.mounts import mounts_at, mounts_below
from damselfly.csi import mount
from damselfly.csi.proto import csi_pb2
from damselfly.model.lease import encode
from tests.integration.csi_driver_node import (
    REF,
    Node,
    files_below,
    needs_root,
    refusal,
    run,
    running,
    wait_until,
)

pytestmark = needs_root
SEALED = {"ro", "nosuid", "nodev"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running(tmp_path, "--publish-wait", "1s") as node:
        yield node


def stats(node: Node, volume_id: str, target: Path) -> dict[int, int]:
    answer = node.driver.call(
        "Node/NodeGetVolumeStats",
        csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(target)),
        csi_pb2.NodeGetVolumeStatsResponse,
    )
    return {usage.unit: usage.used for usage in answer.usage}


def test_a_killed_driver_finds_its_volumes_again_and_touches_nothing(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})
    before = stats(node, "v1", target)
    identity = mounts_at(target)
    node.agent.stop()

    with (target / "config.json").open("rb") as file:
        node.restart()
        node.driver.publish("v1", target, {"model": REF})

        assert file.read() == node.agent.models[REF]["config.json"]
    assert mounts_at(target) == identity
    assert stats(node, "v1", target) == before
    assert node.agent.leases()
    node.driver.unpublish("v1", target)
    assert node.left_behind(target) == []


def test_a_driver_killed_amid_a_publish_joins_the_pull_when_it_is_back(node: Node) -> None:
    node.agent.may_go_on.clear()
    target = node.target(handle="v1")
    refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    node.restart()
    node.agent.may_go_on.set()
    node.driver.publish("v1", target, {"model": REF})

    assert files_below(target) == node.agent.models[REF]
    assert len(node.agent.leases()) == 1
    node.driver.unpublish("v1", target)
    assert node.left_behind(target) == []


def test_after_a_reboot_a_volume_is_mounted_again_without_the_agent(node: Node) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    node.driver.process.kill()
    node.agent.stop()
    mount.unmount_all(str(target))

    node.driver.start()
    assert node.agent.leases()
    node.driver.publish("v1", target, {"model": REF})

    assert files_below(target) == node.agent.models[REF]
    assert "ro" in mounts_at(target)[0].options


def test_after_a_reboot_with_the_view_gone_the_agent_is_asked_again(node: Node) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    node.driver.process.kill()
    mount.unmount_all(str(target))
    shutil.rmtree(node.agent.store / "views")

    node.driver.start()
    node.driver.publish("v1", target, {"model": REF})

    assert node.agent.asked[REF] == 2
    assert files_below(target) == node.agent.models[REF]


def test_a_volume_whose_pod_went_while_nobody_looked_is_taken_off_the_books(node: Node) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    node.driver.process.kill()
    mount.unmount_all(str(target))
    (target.parent / "vol_data.json").unlink()

    node.driver.start()

    assert node.left_behind(target) == []


@pytest.mark.parametrize("store", ["told", "unknown", "told by a link"])
def test_lost_records_are_made_again_from_what_is_mounted(
    node: Node, tmp_path: Path, store: str
) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    before = stats(node, "v1", target)
    node.driver.process.kill()
    node.agent.stop()
    shutil.rmtree(node.driver.state)
    shutil.rmtree(node.agent.store / "leases")
    (node.agent.store / "leases").mkdir()
    link = tmp_path / "link"
    link.symlink_to(node.agent.store)
    told = {"told": node.agent.store, "told by a link": link}.get(store)

    node.driver.start(*(("--store", str(told)) if told else ()))
    node.driver.publish("v1", target, {"model": REF})

    assert len(mounts_at(target)) == 1
    assert stats(node, "v1", target) == before
    assert len(node.agent.leases()) == 1
    node.driver.unpublish("v1", target)
    assert node.left_behind(target) == []


def test_leases_of_nobody_are_given_back_and_those_of_others_are_kept(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})
    (held,) = node.agent.leases()
    folder = next(node.agent.store.glob("leases/*"))
    other = folder.with_name("ab" * 32)
    other.mkdir()
    anothers = f"csi.damselfly.dev-x-{'0' * 40}"
    for place in (
        folder / f"csi.damselfly.dev-{'0' * 40}",
        other / held,
        folder / "a-loader",
        folder / anothers,
    ):
        place.write_bytes(encode(None, 1))

    node.restart()
    wait_until(lambda: len(list(node.agent.store.glob("leases/*/*"))) <= 3, "leases are kept")

    assert (folder / held).exists()
    assert (folder / "a-loader").exists()
    assert (folder / anothers).exists()


def test_a_mount_that_can_be_written_through_gets_a_sealed_one_on_top(node: Node) -> None:
    target = node.target(handle="v1")
    node.driver.publish("v1", target, {"model": REF})
    run("mount", "-o", "remount,bind,rw", str(target))

    node.driver.publish("v1", target, {"model": REF})
    first = mounts_at(target)
    run("mount", "-o", "remount,bind,rw", str(target))
    node.restart()
    second = mounts_at(target)
    node.driver.unpublish("v1", target)

    assert [first[-1].options >= SEALED, len(first)] == [True, 2]
    assert [second[-1].options >= SEALED, len(second)] == [True, 3]
    assert node.left_behind(target) == []


def test_a_stop_is_quick_and_leaves_mounts_also_while_a_publish_waits(node: Node) -> None:
    target, waiting = node.target(), node.target("pod-2")
    node.driver.publish("v1", target, {"model": REF})
    node.agent.may_go_on.clear()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(refusal, lambda: node.driver.publish("v2", waiting, {"model": REF}))
        wait_until(lambda: node.agent.asked[REF] == 2, "nobody asked the agent")
        began_s = time.monotonic()
        node.driver.process.stop()
        took_s = time.monotonic() - began_s
        code, _ = call.result()

    assert took_s < 5
    assert code in {"ABORTED", "CANCELLED", "UNAVAILABLE"}
    assert len(mounts_at(target)) == 1
    assert not node.driver.socket.exists()


def test_a_hundred_kills_leave_nothing_once_all_is_unpublished(node: Node) -> None:
    # Killed at ten different times of ten rounds, each of which publishes and takes away.
    targets = {f"v{number}": node.target(f"pod-{number}", f"v{number}") for number in range(6)}

    def publish(volume: str) -> None:
        try:
            node.driver.publish(volume, targets[volume], {"model": REF}, patience_s=5)
            node.driver.unpublish(volume, targets[volume])
        except grpc.RpcError:
            return  # The driver died under it.

    for round_ in range(10):
        with ThreadPoolExecutor(len(targets)) as pool:
            for volume in targets:
                pool.submit(publish, volume)
            time.sleep(0.004 * round_)
            node.driver.process.kill()
        node.driver.start()

    for volume, target in targets.items():
        node.driver.unpublish(volume, target)
    node.restart()
    wait_until(lambda: not node.agent.leases(), "leases are kept")

    assert all(node.left_behind(target) == [] for target in targets.values())
    assert mounts_below(node.driver.root) == []
