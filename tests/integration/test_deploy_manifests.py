"""Everything that is applied to a cluster, held to the types of its API."""

import copy
import subprocess
import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from damselfly.agent.config import load_config
from damselfly.agent.signature_rules import read_rules
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


def kustomized(folder: Path) -> list[Document]:
    built = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True, timeout=120
    )
    return documents(built.stdout)


def by_name(objects: list[Document]) -> dict[tuple[str, str], Document]:
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def test_kustomize_builds_the_same_objects() -> None:
    assert by_name(kustomized(MANIFESTS)) == by_name(committed())


def without_order(daemon_set: Document) -> Document:
    """With its lists of variables, mounts and volumes sorted by name."""
    ordered = copy.deepcopy(daemon_set)
    pod = ordered["spec"]["template"]["spec"]
    lists: list[list[Document]] = [pod["volumes"]]
    lists += [one.get(key, []) for one in pod["containers"] for key in ("env", "volumeMounts")]
    for each in lists:
        each.sort(key=itemgetter("name"))
    return ordered


def test_the_example_with_signatures_is_what_the_chart_makes_of_a_config_map() -> None:
    built = kustomized(DEPLOY / "examples" / "signatures")
    chart = rendered({"namespace": {"create": True}, "agent": {"configMap": "damselfly-config"}})

    config_map = only(built, "ConfigMap")
    assert config_map["metadata"] == {"name": "damselfly-config", "namespace": "damselfly"}
    assert without_order(only(built, "DaemonSet")) == without_order(only(chart, "DaemonSet"))


def test_the_rules_of_the_example_are_rules_with_their_keys_beside_them(tmp_path: Path) -> None:
    config_map = only(kustomized(DEPLOY / "examples" / "signatures"), "ConfigMap")
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
    flags = {"agent.listen": "127.0.0.1:7460", "agent.socket": "/x/s", "store.path": "/x"}

    load_config(flags, {"DAMSELFLY_CONFIG": str(tmp_path / "config.toml")})
    (rule,) = read_rules(tmp_path / "config.toml")

    assert rule.trust().method is not None
    (public,) = [load_pem_public_key(file.read_bytes()) for file in rule.files]
    assert isinstance(public, EllipticCurvePublicKey)


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
