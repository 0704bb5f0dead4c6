"""The kubelet of the tests against a driver that does as it is told: does it do as the real one?"""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from tests.fakes.csi_driver import ScriptedDriver, make_target
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.mounting import State
from tests.kubelet.pod import Claimed, Inline, Pod
from tests.kubelet.timing import Timing

Code = grpc.StatusCode
NAME = "csi.damselfly.dev"
FAST = Timing(scale=0.01)


@pytest.fixture
def root() -> Iterator[Path]:
    with TemporaryDirectory(prefix="kubelet-") as folder:  # A socket's path is short.
        yield Path(folder)


@pytest.fixture
def kubelet(root: Path) -> Iterator[Kubelet]:
    with Kubelet(root, timing=FAST) as kubelet:
        yield kubelet


def pod(uid: str = "u1") -> Pod:
    return Pod(uid=uid, volumes=(Inline(name="weights", attributes={"model": "file:///m/"}),))


def claiming_pod(uid: str = "u1") -> Pod:
    return Pod(uid=uid, volumes=(Claimed(name="pv1", handle="llama", attributes={}),))


def test_a_driver_is_asked_who_it_is_and_told_that_it_is_registered(
    kubelet: Kubelet, root: Path
) -> None:
    with ScriptedDriver(root) as driver:
        kubelet.plugins.wait_for(NAME)

        found = kubelet.plugins.find(NAME)

        assert found is not None
        assert found.endpoint == driver.socket
        assert found.node_id == "node-1"
        assert driver.counts["NodeGetInfo"] == 1
    kubelet.plugins.wait_for(NAME, registered=False)
    assert driver.told == [(True, "")]


@pytest.mark.parametrize("wrong", ["type", "endpoint", "version"])
def test_a_driver_that_says_nonsense_is_told_so_and_asked_again(
    kubelet: Kubelet, root: Path, wrong: str
) -> None:
    driver = ScriptedDriver(root)
    with driver:
        kubelet.plugins.wait_for(NAME)
    kubelet.plugins.wait_for(NAME, registered=False)
    match wrong:
        case "type":
            driver.info.type = "DevicePlugin"
        case "version":
            driver.info.ClearField("supported_versions")
            driver.info.supported_versions.append("2.0.0")
        case _:
            driver.socket = Path("relative.sock")
    anew = ScriptedDriver(root)
    with anew:
        anew.info.CopyFrom(driver.info)
        anew.info.endpoint = "relative.sock" if wrong == "endpoint" else str(anew.socket)
        wait_until(lambda: len(anew.told) >= 2 and anew.told[-1][0] is False)

        assert kubelet.plugins.find(NAME) is None


def wait_until(condition: object) -> None:
    assert callable(condition)
    pause = threading.Event()
    for _ in range(4000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never came to that")


def test_a_second_driver_of_the_same_name_is_refused_until_the_first_has_gone(
    kubelet: Kubelet, root: Path
) -> None:
    with ScriptedDriver(root) as first:
        kubelet.plugins.wait_for(NAME)
        with ScriptedDriver(root, socket_name="other") as second:
            wait_until(lambda: second.told)
            assert second.told[0][0] is False
            assert "already registered" in second.told[0][1]

            first.registration.unlink()

            wait_until(lambda: (True, "") in second.told)
            found = kubelet.plugins.find(NAME)
            assert found is not None
            assert found.endpoint == second.socket


def test_an_inline_mount_is_three_connections_and_a_claimed_one_five(
    kubelet: Kubelet, root: Path
) -> None:
    with ScriptedDriver(root):
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod("u1"))
        kubelet.add_pod(claiming_pod("u2"))
        kubelet.wait_until_running("u1")
        kubelet.wait_until_running("u2")

        assert kubelet.worker("u1").connections == 3
        assert kubelet.worker("u2").connections == 5


def test_the_folder_is_the_kubelets_and_the_target_is_not(kubelet: Kubelet, root: Path) -> None:
    seen: list[tuple[bool, bool, int]] = []

    def look(request: object, context: object) -> None:
        target = kubelet.target("u1")
        folder = target.parent
        seen.append(
            (
                target.exists(),
                (folder / "vol_data.json").exists(),
                folder.stat().st_mode & 0o777,
            )
        )

    with ScriptedDriver(root, publish=look):
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        kubelet.wait_until_running("u1")

    assert seen == [(False, True, 0o750)]


def test_failures_are_events_and_come_back_in_the_kubelets_rhythm(
    kubelet: Kubelet, root: Path
) -> None:
    def abort(_request: object, context: grpc.ServicerContext) -> None:
        context.abort(Code.ABORTED, "41 % of 15.0 GiB")

    with ScriptedDriver(root, publish=abort):
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        events = kubelet.wait_for_events("u1", 5)
        at = kubelet.worker("u1").publishes[:5]

    assert all(event.code is Code.ABORTED for event in events)
    assert events[0].message == (
        'MountVolume.SetUp failed for volume "weights" : rpc error: code = ABORTED'
        " desc = 41 % of 15.0 GiB"
    )
    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert all(pause >= least for pause, least in zip(pauses, [0.5, 1.0, 2.0, 4.0], strict=True))


def test_after_a_final_code_the_folder_has_gone_and_no_unpublish_comes(
    kubelet: Kubelet, root: Path
) -> None:
    def refuse(_request: object, context: grpc.ServicerContext) -> None:
        context.abort(Code.INVALID_ARGUMENT, "no such mode")

    with ScriptedDriver(root, publish=refuse) as driver:
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        kubelet.wait_for_events("u1", 2)
        kubelet.delete_pod("u1")
        kubelet.wait_until_gone("u1")

        assert driver.counts["NodeUnpublishVolume"] == 0
    assert not any((root / "pods").iterdir())


def test_after_an_uncertain_code_an_unpublish_comes(kubelet: Kubelet, root: Path) -> None:
    def abort(_request: object, context: grpc.ServicerContext) -> None:
        context.abort(Code.ABORTED, "later")

    with ScriptedDriver(root, publish=abort) as driver:
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        kubelet.wait_for_events("u1", 1)
        kubelet.delete_pod("u1")
        kubelet.wait_until_gone("u1")

        assert driver.counts["NodeUnpublishVolume"] == 1
    assert not any((root / "pods").iterdir())


def test_a_slow_publish_is_cut_off_and_called_again_while_it_still_runs(root: Path) -> None:
    may_end = threading.Event()
    running: list[int] = []

    def hang(request: object, context: grpc.ServicerContext) -> None:
        running.append(1)
        if len(running) == 1:
            assert may_end.wait(20)

    with (
        Kubelet(root, timing=Timing(scale=0.002)) as kubelet,
        ScriptedDriver(root, publish=hang),
    ):
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        kubelet.wait_until_running("u1")
        events = kubelet.events_of("u1")
        may_end.set()

    assert [event.code for event in events] == [Code.DEADLINE_EXCEEDED]
    assert len(running) == 2


def test_a_driver_that_is_not_there_is_an_event_and_no_more(kubelet: Kubelet) -> None:
    kubelet.add_pod(pod())

    (event, *_) = kubelet.wait_for_events("u1", 1)

    assert event.code is None
    assert "not found in the list of registered CSI drivers" in event.message


def test_publishes_of_one_handle_wait_for_each_other_and_inline_ones_do_not(
    kubelet: Kubelet, root: Path
) -> None:
    inline_met = threading.Barrier(2)
    claimed_now: list[str] = []
    overlaps: list[str] = []
    lock = threading.Lock()

    def publish(request: object, context: object) -> None:
        volume_id = str(getattr(request, "volume_id", ""))
        if volume_id != "llama":
            inline_met.wait(10)  # Both are in here at once, or this breaks.
            return
        with lock:
            overlaps.extend(claimed_now)
            claimed_now.append(volume_id)
        threading.Event().wait(0.02)
        with lock:
            claimed_now.remove(volume_id)

    with ScriptedDriver(root, publish=publish):
        kubelet.plugins.wait_for(NAME)
        pods = [pod("a"), pod("b"), claiming_pod("c"), claiming_pod("d")]
        for each in pods:
            kubelet.add_pod(each)
        for each in pods:
            kubelet.wait_until_running(each.uid)

    assert overlaps == []
    assert kubelet.events == []


def test_a_restarted_kubelet_publishes_everything_again(kubelet: Kubelet, root: Path) -> None:
    with ScriptedDriver(root) as driver:
        kubelet.plugins.wait_for(NAME)
        for uid in ("a", "b"):
            kubelet.add_pod(pod(uid))
            kubelet.wait_until_running(uid)

        kubelet.restart()

        for uid in ("a", "b"):
            kubelet.wait_until_running(uid)
        assert driver.counts["NodePublishVolume"] == 4
        assert driver.told == [(True, ""), (True, "")]


def test_a_restarted_kubelet_removes_nothing_when_its_publish_fails(
    kubelet: Kubelet, root: Path
) -> None:
    with ScriptedDriver(root) as driver:
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        kubelet.wait_until_running("u1")
        target = kubelet.target("u1")

        def refuse(_request: object, context: grpc.ServicerContext) -> None:
            context.abort(Code.NOT_FOUND, "the origin says no")

        driver.publish = refuse
        kubelet.restart()
        kubelet.wait_for_events("u1", 1)

        assert target.exists()
        driver.publish = make_target
        kubelet.wait_until_running("u1")


def test_a_pod_that_went_while_no_kubelet_ran_is_unpublished(kubelet: Kubelet, root: Path) -> None:
    with ScriptedDriver(root) as driver:
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        kubelet.wait_until_running("u1")
        kubelet.stop()
        kubelet.forget_pod("u1")

        kubelet.restart()

        kubelet.wait_until_gone("u1")
        assert driver.counts["NodeUnpublishVolume"] == 1
    assert not any((root / "pods").iterdir())


def test_a_pod_that_goes_during_its_publish_waits_for_it(kubelet: Kubelet, root: Path) -> None:
    began, may_end = threading.Event(), threading.Event()

    def slow(request: object, context: object) -> None:
        began.set()
        assert may_end.wait(1.0)

    with ScriptedDriver(root, publish=slow) as driver:
        kubelet.plugins.wait_for(NAME)
        kubelet.add_pod(pod())
        assert began.wait(10)
        kubelet.delete_pod("u1")
        assert driver.counts["NodeUnpublishVolume"] == 0
        assert kubelet.worker("u1").mounting.state is State.ABSENT

        may_end.set()

        kubelet.wait_until_gone("u1")
        assert driver.counts["NodeUnpublishVolume"] == 1
