"""What a volume lives through: slow pulls, and the ends of driver, agent and kubelet."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from bench.mounts import mounts_at, mounts_below
from tests.conformance.csi import files_below
from tests.integration.csi_blackbox_node import (
    Node,
    needs_root,
    running_kubelet,
    running_node,
)
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.registrar import Registrar
from tests.kubelet.timing import Timing

pytestmark = needs_root
Code = grpc.StatusCode
MIB = 1 << 20
SLOW = ("--rate-per-connection", "16mbit")
"""Three connections for 12 MiB: two seconds."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running_node(tmp_path, "--self-register") as node:
        yield node


@pytest.fixture
def slow_node(tmp_path: Path) -> Iterator[Node]:
    with running_node(
        tmp_path, "--self-register", origin_options=SLOW, weights_bytes=12 * MIB
    ) as node:
        yield node


def wait_until(condition: Callable[[], object], what: str = "it") -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} never came to be"
        time.sleep(0.01)


def is_pulling(node: Node, bytes_min: int = 1) -> bool:
    return any(pull.bytes_done >= bytes_min for pull in node.agent.client.pulls())


def assert_runs_well(node: Node, kubelet: Kubelet, uid: str) -> None:
    kubelet.wait_until_running(uid)
    assert len(mounts_at(kubelet.target(uid))) == 1
    assert files_below(kubelet.target(uid)) == node.files
    assert len(node.leases()) == len(mounts_below(node.root))


def assert_goes_well(node: Node, kubelet: Kubelet, uid: str) -> None:
    kubelet.delete_pod(uid)
    kubelet.wait_until_gone(uid)
    assert node.leftovers() == {}


# --- slow pulls ---


def test_calls_that_are_cut_off_and_made_again_end_in_one_mount_and_one_pull(
    slow_node: Node,
) -> None:
    with running_kubelet(slow_node, Timing(scale=0.002)) as kubelet:  # A call has 0.24 s.
        kubelet.add_pod(slow_node.pod())

        assert_runs_well(slow_node, kubelet, "u1")

        events = kubelet.events_of("u1")
        assert len(events) >= 3
        assert {event.code for event in events} == {Code.DEADLINE_EXCEEDED}
        assert slow_node.origin.bytes_sent() < slow_node.bytes * 1.05
        assert_goes_well(slow_node, kubelet, "u1")


def test_a_publish_that_waited_long_enough_says_how_far_the_pull_is(tmp_path: Path) -> None:
    options = ("--self-register", "--publish-wait", "300ms")
    with (
        running_node(tmp_path, *options, origin_options=SLOW, weights_bytes=12 * MIB) as node,
        running_kubelet(node) as kubelet,
    ):
        kubelet.add_pod(node.pod())

        assert_runs_well(node, kubelet, "u1")

        events = kubelet.events_of("u1")
        assert events
        assert {event.code for event in events} == {Code.ABORTED}
        assert re.search(r"\d+ % of 1[12]\.\d MiB", events[-1].message), events[-1].message
        assert node.origin.url in events[-1].message
        assert_goes_well(node, kubelet, "u1")


def test_a_pod_that_goes_during_its_pull_leaves_nothing(tmp_path: Path) -> None:
    options = ("--self-register", "--publish-wait", "200ms")
    with (
        running_node(tmp_path, *options, origin_options=SLOW, weights_bytes=12 * MIB) as node,
        running_kubelet(node) as kubelet,
    ):
        kubelet.add_pod(node.pod())
        kubelet.wait_for_events("u1")

        kubelet.delete_pod("u1")

        assert kubelet.wait_until_gone("u1") == []
        wait_until(lambda: not node.agent.client.pulls(), "the end of the pull")
        wait_until(lambda: node.leftovers() == {}, f"an empty node, not {node.leftovers()},")


# --- the driver ends ---


def test_a_driver_that_is_killed_during_a_publish_is_asked_again(slow_node: Node) -> None:
    with running_kubelet(slow_node) as kubelet:
        kubelet.add_pod(slow_node.pod())
        wait_until(lambda: is_pulling(slow_node), "a pull")

        slow_node.driver.process.kill()
        slow_node.driver.start()

        assert_runs_well(slow_node, kubelet, "u1")
        codes = {event.code for event in kubelet.events_of("u1")} - {None}
        assert codes <= {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED}
        assert slow_node.origin.bytes_sent() < slow_node.bytes * 1.05
        assert_goes_well(slow_node, kubelet, "u1")


@pytest.mark.parametrize("number", range(6))
def test_a_driver_that_is_killed_at_any_moment_leaves_what_can_be_gone_on_with(
    node: Node, number: int
) -> None:
    warm = node.driver.target_of("warm")
    node.driver.publish("warm", warm, {"model": node.origin.url})
    node.driver.unpublish("warm", warm)
    with running_kubelet(node) as kubelet:
        for each in range(4):
            kubelet.add_pod(node.pod(f"p{each}"))
        time.sleep(number * 0.004)  # Another moment each time; any is right.

        node.driver.process.kill()
        node.driver.start()

        for each in range(4):
            assert_runs_well(node, kubelet, f"p{each}")
        for each in range(4):
            kubelet.delete_pod(f"p{each}")
        time.sleep(number * 0.004)
        node.driver.process.kill()
        node.driver.start()
        for each in range(4):
            kubelet.wait_until_gone(f"p{each}")
        shutil.rmtree(node.root / "pods" / "warm")
    assert node.leftovers() == {}


def test_volumes_stay_while_the_driver_is_down_and_go_when_it_is_back(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        kubelet.add_pod(node.pod())
        kubelet.wait_until_running("u1")
        target = kubelet.target("u1")

        assert node.driver.process.stop() == 0
        kubelet.plugins.wait_for(node.driver.name, registered=False)

        assert not node.driver.socket.exists()
        assert files_below(target) == node.files
        kubelet.delete_pod("u1")
        kubelet.add_pod(node.pod("u2"))
        (event, *_) = kubelet.wait_for_events("u2")
        assert "not found in the list of registered CSI drivers" in event.message
        node.driver.start()
        kubelet.wait_until_gone("u1")
        assert_runs_well(node, kubelet, "u2")
        assert_goes_well(node, kubelet, "u2")


def test_a_killed_driver_is_registered_again_and_knows_its_volumes(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        kubelet.add_pod(node.pod())
        kubelet.wait_until_running("u1")

        node.driver.process.kill()
        node.driver.start()
        wait_until(lambda: kubelet.plugins.registrations == 2, "a second registration")

        assert all(not isinstance(usage, str) for usage in kubelet.poll_stats().values())
        kubelet.restart()
        assert_runs_well(node, kubelet, "u1")
        assert kubelet.events == []
        assert_goes_well(node, kubelet, "u1")


def test_a_driver_that_has_lost_its_records_still_finds_and_removes_its_mounts(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        for uid in ("u1", "u2"):
            kubelet.add_pod(node.pod(uid))
            kubelet.wait_until_running(uid)
        node.driver.process.kill()
        shutil.rmtree(node.driver.state)
        node.driver.start()
        kubelet.restart()
        assert_runs_well(node, kubelet, "u1")

        for uid in ("u1", "u2"):
            kubelet.delete_pod(uid)
            kubelet.wait_until_gone(uid)

    assert node.leftovers() == {}


# --- the agent ends ---


def test_an_agent_that_is_killed_during_a_publish_is_asked_again(slow_node: Node) -> None:
    with running_kubelet(slow_node) as kubelet:
        kubelet.add_pod(slow_node.pod())
        wait_until(lambda: is_pulling(slow_node, 4 * MIB), "a pull")

        slow_node.agent.process.kill()
        slow_node.restart_agent()

        assert_runs_well(slow_node, kubelet, "u1")
        assert_goes_well(slow_node, kubelet, "u1")


def test_without_an_agent_what_is_mounted_stays_and_unpublishing_works(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        for uid in ("stays", "goes"):
            kubelet.add_pod(node.pod(uid))
            kubelet.wait_until_running(uid)
        node.agent.process.kill()
        node.origin.process.kill()

        kubelet.restart()
        kubelet.wait_until_running("stays")
        kubelet.wait_until_running("goes")
        kubelet.delete_pod("goes")

        assert kubelet.wait_until_gone("goes") == []
        assert_runs_well(node, kubelet, "stays")
        assert kubelet.events == []
        assert_goes_well(node, kubelet, "stays")


def test_a_lease_keeps_a_mounted_model_through_a_restart_of_the_agent(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        kubelet.add_pod(node.pod())
        kubelet.wait_until_running("u1")
        node.agent.process.kill()
        node.restart_agent()

        node.agent.client.gc()

        (held,) = node.agent.client.artifacts()
        assert held.leases == 1
        assert_runs_well(node, kubelet, "u1")
        assert_goes_well(node, kubelet, "u1")
        (held,) = node.agent.client.artifacts()
        assert held.leases == 0


def test_a_publish_without_an_agent_is_uncertain_and_its_end_leaves_no_lease(node: Node) -> None:
    node.agent.process.kill()
    with running_kubelet(node) as kubelet:
        kubelet.add_pod(node.pod())
        (event, *_) = kubelet.wait_for_events("u1")
        assert event.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}

        kubelet.delete_pod("u1")

        assert kubelet.wait_until_gone("u1") == []
        node.restart_agent()
        other = node.driver.target_of("other")
        node.driver.publish("other", other, {"model": node.origin.url})
        node.driver.unpublish("other", other)
        shutil.rmtree(node.root / "pods" / "other")
        assert node.leftovers() == {}


# --- the kubelet and the node end ---


def test_a_pod_that_went_while_nobody_ran_is_taken_away(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        kubelet.add_pod(node.pod())
        kubelet.wait_until_running("u1")
        kubelet.stop()
        node.driver.process.kill()
        kubelet.forget_pod("u1")

        node.driver.start()
        kubelet.restart()

        assert kubelet.wait_until_gone("u1") == []
    assert node.leftovers() == {}


def test_after_a_reboot_volumes_are_mounted_again_without_agent_and_origin(node: Node) -> None:
    with running_kubelet(node) as kubelet:
        kubelet.add_pod(node.pod())
        kubelet.wait_until_running("u1")
        target = kubelet.target("u1")
        kubelet.stop()
        for process in (node.driver.process, node.agent.process, node.origin.process):
            process.kill()
        unmount(target)
        assert mounts_below(node.root) == []

        node.driver.start()
        kubelet.restart()

        assert_runs_well(node, kubelet, "u1")
        assert_goes_well(node, kubelet, "u1")


def unmount(target: Path) -> None:
    subprocess.run(["umount", str(target)], check=True)


def test_the_standard_registrar_does_as_well(tmp_path: Path) -> None:
    with (
        running_node(tmp_path) as node,
        Registrar(node.driver.socket, node.root),
        running_kubelet(node) as kubelet,
    ):
        kubelet.add_pod(node.pod())

        assert_runs_well(node, kubelet, "u1")

        assert_goes_well(node, kubelet, "u1")
