"""Pods on a node with the driver: a kubelet mounts, tries again, restarts and takes away."""

import subprocess
from collections.abc import Iterator

import grpc
import pytest

from bench.mounts import mounts_at
from damselfly.errors import LeaseHeldError
from tests.conformance.csi import files_below
from tests.integration.csi_blackbox_node import (
    Node,
    needs_root,
    running_kubelet,
    running_node,
)
from tests.kubelet.kubelet import Kubelet, Usage
from tests.kubelet.pod import Claimed, Inline, Pod

pytestmark = needs_root
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("node"), "--self-register") as node:
        yield node


@pytest.fixture
def kubelet(node: Node) -> Iterator[Kubelet]:
    with running_kubelet(node) as kubelet:
        yield kubelet
        for uid in [pod.uid for pod in kubelet.pods()]:
            kubelet.delete_pod(uid)
            assert kubelet.wait_until_gone(uid) == []
    assert node.leftovers() == {}


def test_a_pod_sees_the_model_and_nothing_is_left_of_it(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod())
    kubelet.wait_until_running("u1")

    target = kubelet.target("u1")
    assert files_below(target) == node.files
    (mount,) = mounts_at(target)
    assert "ro" in mount.options
    assert len(node.leases()) == 1
    kubelet.delete_pod("u1")
    assert kubelet.wait_until_gone("u1") == []
    assert node.leftovers() == {}


def test_pods_that_share_a_claim_have_a_mount_each(node: Node, kubelet: Kubelet) -> None:
    for uid in ("a", "b"):
        kubelet.add_pod(node.claiming_pod(uid))
        kubelet.wait_until_running(uid)

    kubelet.delete_pod("a")

    assert kubelet.wait_until_gone("a") == []
    assert files_below(kubelet.target("b")) == node.files


def test_a_pod_may_have_several_volumes(node: Node, kubelet: Kubelet) -> None:
    url = node.origin.url
    volumes = (
        Inline(name="all", attributes={"model": url}),
        Inline(name="config", attributes={"model": url, "include": "*.json, tokenizer/*"}),
        Claimed(name="pv2", handle="h2", attributes={"model": url, "exclude": "*.bin"}),
    )

    kubelet.add_pod(Pod(uid="many", volumes=volumes))
    kubelet.wait_until_running("many")

    assert files_below(kubelet.target("many", "all")) == node.files
    assert set(files_below(kubelet.target("many", "config"))) == {
        "config.json",
        "tokenizer/vocab.txt",
    }
    assert "model.bin" not in files_below(kubelet.target("many", "pv2"))


def test_files_of_a_volume_can_be_read_by_anybody(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod())
    kubelet.wait_until_running("u1")
    target = kubelet.target("u1")

    # As a container sees it: the mount itself, not the kubelet's directories above it.
    done = subprocess.run(
        ["cat", "config.json", "tokenizer/vocab.txt"],
        cwd=target,
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == node.files["config.json"] + node.files["tokenizer/vocab.txt"]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"mode": "lazy"}, "lazy"),
        ({"layout": "flat"}, "layout"),
        ({"modle": "x"}, "modle"),
        ({"model": ""}, "model"),
        ({"model": "no ref at all"}, "model"),
        ({"model": "file:///etc/"}, "file://"),
        ({"include": "../*"}, "include"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_attributes_that_make_no_sense_are_named_and_leave_nothing(
    node: Node, kubelet: Kubelet, attributes: dict[str, str], words: str
) -> None:
    said = {"model": node.origin.url, **attributes}
    kubelet.add_pod(Pod(uid="odd", volumes=(Inline(name="weights", attributes=said),)))

    event, *_ = kubelet.wait_for_events("odd", 2)

    assert event.code is Code.INVALID_ARGUMENT
    assert words in event.message
    kubelet.delete_pod("odd")
    kubelet.wait_until_gone("odd")
    assert node.leftovers() == {}


def test_a_model_that_is_not_there_is_named_and_leaves_nothing(
    node: Node, kubelet: Kubelet
) -> None:
    kubelet.add_pod(node.pod("none", {"model": f"{node.origin.url}no/such/model/"}))

    event, *_ = kubelet.wait_for_events("none", 1)

    assert event.code is Code.NOT_FOUND
    assert "no/such/model" in event.message
    kubelet.delete_pod("none")
    kubelet.wait_until_gone("none")
    assert node.leftovers() == {}


def test_an_unreachable_origin_is_an_uncertain_failure(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod("away", {"model": "http://127.0.0.1:9/model/"}))

    event, *_ = kubelet.wait_for_events("away", 1)

    assert event.code is Code.UNAVAILABLE
    assert "127.0.0.1:9" in event.message


def test_pod_info_is_the_kubelets_whatever_the_pod_writes(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod("forger", {"csi.storage.k8s.io/ephemeral": "false"}))
    kubelet.add_pod(node.pod("files", {"model": f"file://{node.fleet.folder}/"}))
    kubelet.wait_until_running("forger")

    event, *_ = kubelet.wait_for_events("files", 1)

    assert event.code is Code.INVALID_ARGUMENT
    assert "file://" in event.message


def test_an_administrators_volume_may_name_a_directory_of_the_node(
    node: Node, kubelet: Kubelet
) -> None:
    model = node.fleet.folder.parent / "model"
    kubelet.add_pod(node.claiming_pod("local", "local", {"model": f"file://{model}/"}))

    kubelet.wait_until_running("local")

    assert files_below(kubelet.target("local")) == node.files


def test_a_restarted_kubelet_finds_every_volume_as_it_was(node: Node, kubelet: Kubelet) -> None:
    uids = [f"p{number}" for number in range(5)]
    for uid in uids:
        kubelet.add_pod(node.pod(uid))
    for uid in uids:
        kubelet.wait_until_running(uid)
    readers = [(kubelet.target(uid) / "model.bin").open("rb") for uid in uids]

    kubelet.restart()

    for uid in uids:
        kubelet.wait_until_running(uid)
        assert len(mounts_at(kubelet.target(uid))) == 1
    assert kubelet.events == []
    for reader in readers:
        with reader:
            assert reader.read() == node.files["model.bin"]


def test_statistics_are_polled_and_are_of_the_model(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod())
    kubelet.add_pod(node.claiming_pod("c"))
    for uid in ("u1", "c"):
        kubelet.wait_until_running(uid)

    found = kubelet.poll_stats()

    assert len(found) == 2
    for usage in found.values():
        assert isinstance(usage, Usage), usage
        assert usage.used == node.bytes
        assert usage.total >= usage.used


def test_the_hubs_own_layout_is_shown_if_asked_for(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod("hub", {"layout": "hf-cache"}))

    kubelet.wait_until_running("hub")

    snapshots = list(kubelet.target("hub").glob("models--*/snapshots/*"))
    assert len(snapshots) == 1
    assert {
        str(path.relative_to(snapshots[0])): path.read_bytes()
        for path in snapshots[0].rglob("*")
        if path.is_file()
    } == node.files


def test_what_is_mounted_cannot_be_evicted(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod())
    kubelet.wait_until_running("u1")
    (held,) = [each for each in node.agent.client.artifacts() if each.leases]

    with pytest.raises(LeaseHeldError):
        node.agent.client.remove(held.artifact)

    assert files_below(kubelet.target("u1")) == node.files
