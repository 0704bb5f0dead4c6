"""The examples: what a newcomer copies has to be right."""

import copy
import re
from collections.abc import Iterator

import pytest
import yaml

from damselfly.csi.volume import parse_credentials, parse_source
from tests.integration.deploy_chart import (
    DEPLOY,
    Document,
    containers_of,
    documents,
    pod_of,
)
from tests.integration.deploy_types import problems

DRIVER = "csi.damselfly.dev"
FOLDER = DEPLOY / "examples"
VALUES = {"llm-d-values.yaml"}  # of somebody else's chart: no objects
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name not in VALUES)

SECRETS = r"csi\.storage\.k8s\.io/node-publish-secret-(name|namespace)"


def objects(example: str) -> list[Document]:
    return documents((FOLDER / example).read_text())


def every_object() -> Iterator[tuple[str, Document]]:
    for example in MANIFESTS:
        for one in objects(example):
            yield example, one


def test_the_examples_are_all_there() -> None:
    assert {
        "kserve.yaml",
        "persistentvolume.yaml",
        "storageclass.yaml",
        "vllm-inline.yaml",
        "warm-cronjob.yaml",
        "warm-job.yaml",
    } <= set(MANIFESTS)
    assert (FOLDER / "llm-d-values.yaml").exists()


@pytest.mark.parametrize("example", MANIFESTS)
def test_every_object_is_what_its_api_says(example: str) -> None:
    found = objects(example)

    assert found
    assert [problems(one) for one in found] == [[]] * len(found)


@pytest.mark.parametrize(
    "place", ["spec", "spec.predictor", "spec.predictor.model", "spec.predictor.model.modelFormat"]
)
def test_what_kserve_would_refuse_is_found_where_we_know_its_fields(place: str) -> None:
    (broken,) = copy.deepcopy(objects("kserve.yaml"))
    inner: Document = broken
    for step in place.split("."):
        inner = inner[step]

    inner["storageURI"] = "pvc://llama"

    known = (
        place != "spec.predictor.model.modelFormat"
    )  # KServe's own, and not in what we can check
    assert bool(problems(broken)) is known


def inline_volumes() -> Iterator[Document]:
    for _, one in every_object():
        if pod := pod_of(one):
            for volume in pod.get("volumes", []):
                if volume.get("csi", {}).get("driver") == DRIVER:
                    yield volume["csi"]


def test_inline_volumes_are_read_only_and_the_driver_reads_them() -> None:
    found = list(inline_volumes())

    assert found
    for volume in found:
        assert volume["readOnly"] is True
        parse_source(volume["volumeAttributes"], allows_files=False)


def test_the_driver_finds_credentials_in_every_secret() -> None:
    secrets = [one["stringData"] for _, one in every_object() if one["kind"] == "Secret"]

    assert secrets
    assert all(parse_credentials(secret) is not None for secret in secrets)


def test_the_inline_volume_is_the_one_of_the_issue() -> None:
    (volume,) = inline_volumes()

    assert volume.keys() == {"driver", "readOnly", "volumeAttributes", "nodePublishSecretRef"}
    assert volume["volumeAttributes"].keys() == {"model", "include", "layout"}
    assert volume["volumeAttributes"]["include"] == "*.safetensors,*.json"
    assert volume["volumeAttributes"]["layout"] in {"plain", "hf-cache"}
    secrets = [one["metadata"]["name"] for _, one in every_object() if one["kind"] == "Secret"]
    assert volume["nodePublishSecretRef"]["name"] in secrets


def test_persistent_volumes_have_a_handle_each_and_a_claim_that_is_theirs() -> None:
    volumes = [one for _, one in every_object() if one["kind"] == "PersistentVolume"]
    claims = {
        (one["metadata"]["namespace"], one["metadata"]["name"]): one["spec"]
        for _, one in every_object()
        if one["kind"] == "PersistentVolumeClaim"
    }
    handles = [one["spec"]["csi"]["volumeHandle"] for one in volumes]

    assert volumes
    assert len(set(handles)) == len(handles)
    for volume in volumes:
        spec = volume["spec"]
        assert spec["csi"]["driver"] == DRIVER
        parse_source(spec["csi"]["volumeAttributes"], allows_files=False)
        assert spec["accessModes"] == ["ReadOnlyMany"]
        assert spec["persistentVolumeReclaimPolicy"] == "Retain"
        claim = claims[spec["claimRef"]["namespace"], spec["claimRef"]["name"]]
        assert claim["volumeName"] == volume["metadata"]["name"]
        assert claim["accessModes"] == spec["accessModes"]
        assert claim["storageClassName"] == spec["storageClassName"] == ""


def test_storage_classes_wait_for_their_pod_and_the_driver_reads_them() -> None:
    classes = [one for _, one in every_object() if one["kind"] == "StorageClass"]

    assert classes
    for one in classes:
        assert one["provisioner"] == DRIVER
        assert one["volumeBindingMode"] == "WaitForFirstConsumer"
        # The provisioner keeps the keys that name Secrets to itself.
        own = {
            key: value for key, value in one["parameters"].items() if not re.fullmatch(SECRETS, key)
        }
        parse_source(own, allows_files=False)


def test_claims_that_are_mounted_are_mounted_read_only() -> None:
    mounted = 0
    for example, one in every_object():
        if pod := pod_of(one):
            for volume in pod.get("volumes", []):
                if claim := volume.get("persistentVolumeClaim"):
                    assert claim["readOnly"] is True, example
                    mounted += 1

    assert mounted


def test_weights_are_mounted_read_only_and_every_mount_has_its_volume() -> None:
    for example, one in every_object():
        pod = pod_of(one)
        if pod is None:
            continue
        declared = {volume["name"] for volume in pod.get("volumes", [])}
        for container in containers_of(pod):
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in declared, example
                if mount["name"] in {"weights", "socket"}:
                    assert mount["readOnly"] is True, example


def test_warm_jobs_are_who_may_open_the_agents_socket() -> None:
    for example in ("warm-job.yaml", "warm-cronjob.yaml"):
        (job,) = objects(example)
        pod = pod_of(job)
        assert pod is not None
        (volume,) = pod["volumes"]
        (container,) = pod["containers"]

        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == 65532
        assert volume["hostPath"] == {"path": "/run/damselfly", "type": "Directory"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False


def test_both_warm_jobs_are_the_same_pod() -> None:
    pods = [pod_of(objects(example)[0]) for example in ("warm-job.yaml", "warm-cronjob.yaml")]

    assert pods[0] == pods[1]


def test_kserve_and_llm_d_name_the_claim_of_the_example() -> None:
    claims = {
        one["metadata"]["name"]
        for one in objects("persistentvolume.yaml")
        if one["kind"] == "PersistentVolumeClaim"
    }
    (service,) = objects("kserve.yaml")
    values = yaml.safe_load((FOLDER / "llm-d-values.yaml").read_text())

    uris = [service["spec"]["predictor"]["model"]["storageUri"], values["modelArtifacts"]["uri"]]
    for uri in uris:
        found = re.fullmatch(r"pvc://([a-z0-9.-]+?)(/.*)?", uri)
        assert found is not None
        assert found[1] in claims
    assert values["modelArtifacts"]["readOnly"] is True
