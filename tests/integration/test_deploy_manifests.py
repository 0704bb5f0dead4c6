"""Everything that is applied to a cluster, held to the types of its API."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.deploy_chart import (
    DEPLOY,
    ROOT,
    VARIANTS,
    Document,
    documents,
    only,
    rendered,
)
from tests.integration.deploy_types import problems

KUBECTL = Path(sys.executable).parent / "kubectl"
MANIFESTS = DEPLOY / "kubernetes"


def committed() -> list[Document]:
    return [
        document
        for path in sorted(MANIFESTS.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in documents(path.read_text())
    ]


def test_the_committed_manifests_are_the_chart_rendered_afresh(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "deploy.manifests", "--to", tmp_path],
        cwd=ROOT,
        check=True,
        timeout=120,
    )

    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in MANIFESTS.iterdir()}
    assert kept == fresh, "run `make manifests`"


def test_rendering_takes_away_what_the_chart_has_no_more(tmp_path: Path) -> None:
    (tmp_path / "forgotten.yaml").write_text("kind: Secret\n")

    subprocess.run(
        [sys.executable, "-m", "deploy.manifests", "--to", tmp_path],
        cwd=ROOT,
        check=True,
        timeout=120,
    )

    assert not (tmp_path / "forgotten.yaml").exists()


def test_kustomize_builds_the_same_objects() -> None:
    built = subprocess.run(
        [KUBECTL, "kustomize", MANIFESTS], capture_output=True, text=True, check=True, timeout=120
    )

    def by_name(objects: list[Document]) -> dict[tuple[str, str], Document]:
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    assert by_name(documents(built.stdout)) == by_name(committed())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_what_its_api_says(variant: str) -> None:
    objects = rendered(VARIANTS[variant])

    assert len(objects) >= 4
    assert {one["kind"]: found for one in objects if (found := problems(one))} == {}


def break_unknown_field(daemon_set: Document) -> None:
    daemon_set["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"


def break_unknown_probe_field(daemon_set: Document) -> None:
    daemon_set["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["retries"] = 3


def break_type(daemon_set: Document) -> None:
    daemon_set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "45s"


def break_missing(daemon_set: Document) -> None:
    del daemon_set["spec"]["selector"]


def break_kind(daemon_set: Document) -> None:
    daemon_set["kind"] = "DeamonSet"


def break_version(daemon_set: Document) -> None:
    daemon_set["apiVersion"] = "apps/v1beta9"


@pytest.mark.parametrize(
    "break_it",
    [
        break_unknown_field,
        break_unknown_probe_field,
        break_type,
        break_missing,
        break_kind,
        break_version,
    ],
)
def test_what_kubernetes_would_refuse_is_found(break_it: Callable[[Document], None]) -> None:
    broken = copy.deepcopy(only(rendered({}), "DaemonSet"))

    break_it(broken)

    assert problems(broken) != []


@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule", "Certificate"])
def test_what_an_operator_would_refuse_is_found(kind: str) -> None:
    broken = copy.deepcopy(only(rendered(VARIANTS["everything"]), kind))

    broken["spec"]["intervall"] = "30s"

    assert any("intervall" in problem for problem in problems(broken))
