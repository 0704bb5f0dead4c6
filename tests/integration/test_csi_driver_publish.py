"""Publishing and unpublishing: the real driver, real mounts, an agent that does as it is told."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.mounts import mounts_at
from damselfly.client.answers import Progress
from damselfly.csi.proto import csi_pb2
from damselfly.errors import AgentUnavailableError, DamselflyError, StoreFullError, error_classes
from tests.fakes.volume_agent import model
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


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running(tmp_path, "--publish-wait", "1s") as node:
        yield node


def test_a_pod_reads_the_model_and_cannot_write(node: Node) -> None:
    target = node.target()

    node.driver.publish("v1", target, {"model": REF})

    assert files_below(target) == node.agent.models[REF]
    (mounted,) = mounts_at(target)
    assert {"ro", "nosuid", "nodev"} <= set(mounted.options)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()


def test_filters_and_layout_reach_the_agent(node: Node) -> None:
    target = node.target()

    node.driver.publish(
        "v1", target, {"model": REF, "include": "*.json, *.safetensors", "exclude": "sub/"}
    )

    assert set(files_below(target)) == {"model.safetensors", "config.json"}


def test_unpublishing_leaves_nothing(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})
    assert node.left_behind(target)

    node.driver.unpublish("v1", target)

    assert node.left_behind(target) == []


def test_unpublishing_works_while_the_agent_is_down(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})
    node.agent.stop()

    node.driver.unpublish("v1", target)

    assert node.left_behind(target) == []


def test_a_republish_of_a_mounted_volume_is_ok_while_the_agent_is_down(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})
    node.agent.stop()

    node.driver.publish("v1", target, {"model": REF})

    assert len(mounts_at(target)) == 1
    assert node.agent.asked[REF] == 1


def test_a_slow_pull_is_told_and_the_next_call_joins_it(node: Node) -> None:
    node.agent.may_go_on.clear()
    node.agent.progress[REF] = Progress(
        ref=REF, phase="fetching", bytes_done=41, bytes_total=100, peers=3
    )
    target = node.target()

    code, message = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))
    node.agent.may_go_on.set()
    node.driver.publish("v1", target, {"model": REF})

    assert code == "ABORTED"
    assert "41 % of 100 B, 3 peers" in message
    assert node.agent.asked[REF] == 1
    assert files_below(target) == node.agent.models[REF]


def test_a_caller_that_hangs_up_stops_nothing(node: Node) -> None:
    node.agent.may_go_on.clear()
    target = node.target()

    code, _ = refusal(lambda: node.driver.publish("v1", target, {"model": REF}, patience_s=0.3))
    node.agent.may_go_on.set()
    node.driver.publish("v1", target, {"model": REF})

    assert code in {"ABORTED", "DEADLINE_EXCEEDED"}
    assert node.agent.asked[REF] == 1


def test_calls_at_the_same_time_are_one_publish(node: Node) -> None:
    node.agent.may_go_on.clear()
    target = node.target()

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(node.driver.publish, "v1", target, {"model": REF}) for _ in range(8)]
        wait_until(lambda: node.agent.asked[REF] > 0, "nobody asked the agent")
        node.agent.may_go_on.set()
        for call in calls:
            call.result()

    assert node.agent.asked[REF] == 1
    assert len(mounts_at(target)) == 1


def test_fifty_volumes_at_once_and_a_probe_among_them(node: Node) -> None:
    node.agent.may_go_on.clear()
    targets = {f"v{number}": node.target(f"pod-{number}") for number in range(50)}

    with ThreadPoolExecutor(50) as pool:
        calls = [
            pool.submit(node.driver.publish, volume, target, {"model": REF})
            for volume, target in targets.items()
        ]
        wait_until(lambda: node.agent.asked[REF] == 50, "not all have asked the agent")
        node.driver.call("Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse, 0.5)
        node.agent.may_go_on.set()
        for call in calls:
            call.result()

    for volume, target in targets.items():
        assert len(mounts_at(target)) == 1
        node.driver.unpublish(volume, target)
    assert node.left_behind(targets["v0"]) == []


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_what_the_agent_meets_becomes_a_code_and_a_final_one_leaves_nothing(
    node: Node, cls: type[DamselflyError]
) -> None:
    error = cls.__new__(cls)
    error.args = ("what went wrong in words",)
    node.agent.failures[REF] = error
    target = node.target()

    code, message = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    assert "what went wrong in words" in message
    assert code not in {"OK", "UNKNOWN", "UNIMPLEMENTED"}
    assert node.left_behind(target) == []


def test_an_agent_that_is_away_for_a_moment_is_waited_for(node: Node) -> None:
    node.agent.may_go_on.clear()
    target = node.target()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(node.driver.publish, "v1", target, {"model": REF})
        wait_until(lambda: node.agent.asked[REF] == 1, "nobody asked the agent")
        node.agent.stop()
        node.agent.may_go_on.set()
        node.agent.start()
        call.result()

    assert files_below(target) == node.agent.models[REF]


def test_an_agent_that_stays_away_is_named_and_the_code_is_not_final(node: Node) -> None:
    node.agent.stop()
    target = node.target()

    code, message = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    assert code == "UNAVAILABLE"
    assert "no agent answers" in message
    assert node.left_behind(target) == []


def test_an_agent_that_knows_no_volumes_yet_is_asked_again(node: Node) -> None:
    node.agent.is_old = True
    target = node.target()

    code, message = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))
    node.agent.is_old = False
    node.driver.publish("v1", target, {"model": REF})

    assert code == "UNAVAILABLE"
    assert "a version without POST /v1/volumes" in message
    assert files_below(target) == node.agent.models[REF]


def test_a_full_store_is_told_as_such(node: Node) -> None:
    node.agent.failures[REF] = StoreFullError("the store lacks 3 GiB")
    target = node.target()

    code, _ = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    assert code == "RESOURCE_EXHAUSTED"


def test_unpublishing_amid_a_pull_ends_the_wish(node: Node) -> None:
    node.restart("--store", str(node.agent.store))
    node.agent.may_go_on.clear()
    target = node.target()
    refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    node.driver.unpublish("v1", target)
    node.agent.may_go_on.set()
    wait_until(lambda: node.agent.answered[REF] == 1, "the agent goes on for nobody")
    wait_until(lambda: not node.agent.leases(), "a lease of nobody")

    assert node.left_behind(target) == []


def test_a_failure_that_nobody_heard_is_not_remembered(node: Node) -> None:
    node.agent.may_go_on.clear()
    node.agent.failures[REF] = AgentUnavailableError("gone")
    target = node.target()
    refusal(lambda: node.driver.publish("v1", target, {"model": REF}))
    del node.agent.failures[REF]
    node.agent.may_go_on.set()

    node.driver.publish("v1", target, {"model": REF})

    assert files_below(target) == node.agent.models[REF]


def test_a_pod_without_the_right_secret_is_denied(node: Node) -> None:
    node.agent.tokens[REF] = "s3cret-token-1"
    target = node.target()

    wrong = refusal(
        lambda: node.driver.publish("v1", target, {"model": REF}, secrets={"token": "another-one"})
    )
    without = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))
    node.driver.publish("v1", target, {"model": REF}, secrets={"HF_TOKEN": "s3cret-token-1\n"})

    assert wrong[0] == without[0] == "PERMISSION_DENIED"
    seen = "".join(map(str, node.log())) + "".join(
        path.read_text() for path in node.driver.state.rglob("*") if path.is_file()
    )
    assert "volume.published" in seen
    assert "s3cret" not in seen
    assert "another-one" not in seen + wrong[1]


def test_files_of_the_node_are_not_for_inline_volumes(node: Node, tmp_path: Path) -> None:
    target = node.target()
    ref = f"file://{tmp_path}/"
    node.agent.models[ref] = model()

    code, message = refusal(lambda: node.driver.publish("v1", target, {"model": ref}))
    node.restart("--allow-file-refs")
    node.driver.publish("v1", target, {"model": ref})
    node.restart()
    node.driver.publish("v1", target, {"model": ref})  # A pod that runs is not punished.

    assert code == "INVALID_ARGUMENT"
    assert "--allow-file-refs" in message


@pytest.mark.parametrize("kind", ["link", "file", "full", "link above"])
def test_a_target_that_is_in_the_way_is_not_touched(node: Node, tmp_path: Path, kind: str) -> None:
    target = node.target()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    match kind:
        case "link":
            target.symlink_to(elsewhere)
        case "file":
            target.write_text("mine")
        case "full":
            target.mkdir()
            (target / "mine").touch()
        case _:
            target.parent.rmdir()
            target.parent.symlink_to(elsewhere)

    code, _ = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    assert code == "FAILED_PRECONDITION"
    assert list(elsewhere.iterdir()) == []
    assert node.left_behind(target) == ([f"directory {target}"] if kind != "link above" else [])


def test_the_target_of_another_volume_is_refused_and_kept(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})

    other = refusal(lambda: node.driver.publish("v2", target, {"model": REF}))
    attributes = refusal(
        lambda: node.driver.publish("v1", target, {"model": REF, "include": "*.json"})
    )
    unpublish = refusal(lambda: node.driver.unpublish("v2", target))

    assert (other[0], attributes[0], unpublish[0]) == (
        "ALREADY_EXISTS",
        "ALREADY_EXISTS",
        "NOT_FOUND",
    )
    assert files_below(target) == node.agent.models[REF]


def test_a_dead_mount_at_the_target_is_replaced(node: Node, tmp_path: Path) -> None:
    target = node.target()
    target.mkdir()
    gone = tmp_path / "gone"
    gone.mkdir()
    run("mount", "--bind", str(gone), str(target))
    gone.rmdir()

    node.driver.publish("v1", target, {"model": REF})

    assert files_below(target) == node.agent.models[REF]
    assert len(mounts_at(target)) == 1


def test_what_somebody_else_mounted_is_not_touched(node: Node, tmp_path: Path) -> None:
    target = node.target()
    target.mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    run("mount", "--bind", str(foreign), str(target))

    code, message = refusal(lambda: node.driver.publish("v1", target, {"model": REF}))

    assert code == "FAILED_PRECONDITION"
    assert "something else" in message
    assert len(mounts_at(target)) == 1
    assert node.records() == []
    assert node.agent.leases() == set()


def test_stacked_mounts_are_all_taken_away(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})
    for _ in range(3):
        run("mount", "--bind", str(target), str(target))

    node.driver.unpublish("v1", target)

    assert node.left_behind(target) == []


def test_a_volume_that_is_read_at_the_moment_is_unpublished_all_the_same(node: Node) -> None:
    target = node.target()
    node.driver.publish("v1", target, {"model": REF})

    with (target / "config.json").open("rb") as file:
        node.driver.unpublish("v1", target)

        assert file.read() == node.agent.models[REF]["config.json"]
    assert node.left_behind(target) == []
