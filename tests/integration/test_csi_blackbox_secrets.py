"""Secrets: who may see a private model, and where a secret must never be seen."""

import base64
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bench.node import AGENT_OPTIONS
from tests.conformance.csi import files_below
from tests.integration.csi_blackbox_node import (
    Node,
    needs_root,
    running_kubelet,
    running_node,
)
from tests.kubelet.kubelet import Kubelet

pytestmark = needs_root
Code = grpc.StatusCode

TOKEN = "hf_pLaNtEdToKeN0123456789"
WRONG = "hf_wRoNgPlAnTeD9876543210"
PASSWORD = "pLaNtEd-pAsSwOrD-4711"
UNRELATED = "pLaNtEd-uNrElAtEd-0815"
DENIED = {Code.PERMISSION_DENIED, Code.UNAUTHENTICATED}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(
        tmp_path_factory.mktemp("node"),
        *("--self-register", "--log-level", "debug"),
        origin_options=("--token", TOKEN),
        agent_options=(*AGENT_OPTIONS, "--log-level", "debug"),
    ) as node:
        yield node


@pytest.fixture
def kubelet(node: Node) -> Iterator[Kubelet]:
    with running_kubelet(node) as kubelet:
        yield kubelet
        for uid in [pod.uid for pod in kubelet.pods()]:
            kubelet.delete_pod(uid)
            kubelet.wait_until_gone(uid)


def test_a_private_model_is_for_pods_with_the_right_secret(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod("nobody"))
    kubelet.add_pod(node.pod("stranger", secrets={"token": WRONG}))
    (refused, *_) = kubelet.wait_for_events("nobody")
    (doubted, *_) = kubelet.wait_for_events("stranger")
    assert {refused.code, doubted.code} <= DENIED

    kubelet.add_pod(node.pod("owner", secrets={"token": TOKEN, "unrelated": UNRELATED}))

    kubelet.wait_until_running("owner")
    assert files_below(kubelet.target("owner")) == node.files


@pytest.mark.parametrize("key", ["token", "HF_TOKEN"])
def test_what_is_cached_is_shown_only_to_who_proves_its_own_secret(
    node: Node, kubelet: Kubelet, key: str
) -> None:
    kubelet.add_pod(node.pod("owner", secrets={"token": TOKEN}))
    kubelet.wait_until_running("owner")

    kubelet.add_pod(node.pod("nobody"))
    kubelet.add_pod(node.pod("stranger", secrets={key: WRONG}))
    kubelet.add_pod(node.pod("named", secrets={"username": "me", "password": PASSWORD}))
    kubelet.add_pod(node.pod("friend", secrets={key: f"{TOKEN}\n"}))

    kubelet.wait_until_running("friend")
    for uid in ("nobody", "stranger", "named"):
        for event in kubelet.wait_for_events(uid, 2):
            assert event.code in DENIED
        assert not kubelet.target(uid).exists()


def test_a_kubelet_that_restarts_needs_no_proof_for_what_is_mounted(
    node: Node, kubelet: Kubelet
) -> None:
    kubelet.add_pod(node.pod("owner", secrets={"token": TOKEN}))
    kubelet.wait_until_running("owner")
    asked_before = node.origin.stats()["requests"]

    kubelet.restart()

    kubelet.wait_until_running("owner")
    assert kubelet.events_of("owner") == []
    assert node.origin.stats()["requests"] == asked_before


def test_a_secret_that_cannot_be_one_is_named_and_not_repeated(
    node: Node, kubelet: Kubelet
) -> None:
    kubelet.add_pod(node.pod("odd", secrets={"token": f"{WRONG}\n{PASSWORD}"}))

    (event, *_) = kubelet.wait_for_events("odd")

    assert event.code is Code.INVALID_ARGUMENT
    assert "token" in event.message
    assert_unseen(event.message.encode(), "the pod's event")


def assert_unseen(data: bytes, where: str) -> None:
    for secret in (TOKEN, WRONG, PASSWORD, UNRELATED):
        said = secret.encode()
        for form in (said, base64.b64encode(said).rstrip(b"="), said.hex().encode()):
            assert form not in data, f"{secret} is in {where}"
    assert base64.b64encode(f"me:{PASSWORD}".encode()) not in data, where


def test_no_secret_is_in_a_log_an_event_or_a_file(node: Node, kubelet: Kubelet) -> None:
    kubelet.add_pod(node.pod("owner", secrets={"token": TOKEN, "unrelated": UNRELATED}))
    kubelet.add_pod(node.pod("stranger", secrets={"token": WRONG, "unrelated": UNRELATED}))
    kubelet.add_pod(node.pod("named", secrets={"username": "me", "password": PASSWORD}))
    kubelet.wait_until_running("owner")
    for uid in ("stranger", "named"):
        kubelet.wait_for_events(uid, 2)

    for event in kubelet.events:
        assert_unseen(event.message.encode(), "an event")
    files = [path for path in files_of(node) if path.name != "origin.log"]
    names = {path.name for path in files}
    assert {"csi-node-1.log", "n0.log", "vol_data.json"} <= names
    for path in files:
        assert_unseen(path.read_bytes(), str(path))


def files_of(node: Node) -> Iterator[Path]:
    for folder in (node.fleet.folder, node.root):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path
