"""Whether objects are what their APIs say.

Kubernetes' own kinds are held to its OpenAPI types, version by version, and the operators' to types
made from their definitions; unknown fields are refused. KServe's definition is in no registry that
fits here (its package brings pandas, pillow and a web server): what an InferenceService shares with
a pod is held to Kubernetes' types, and the rest is compared with the fields that KServe 0.20 has.
"""

import kubernetes_validate  # type: ignore[import-untyped]
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.prometheus_operator import v1 as prometheus
from pydantic import BaseModel, ValidationError

from tests.integration.deploy_chart import Document

# The chart's kubeVersion, the one that the driver was measured against, and the newest.
VERSIONS = ("1.30", "1.36", "1.37")

OPERATORS: dict[tuple[str, str], type[BaseModel]] = {
    ("cert-manager.io/v1", "Certificate"): cert_manager.Certificate,
    ("monitoring.coreos.com/v1", "PodMonitor"): prometheus.PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): prometheus.PrometheusRule,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): prometheus.ServiceMonitor,
}

# serving.kserve.io/v1beta1, KServe 0.20: what a predictor and its model have beyond a pod and a
# container, as far as our example needs it.
PREDICTOR_FIELDS = {"model", "minReplicas", "maxReplicas", "timeout"}
MODEL_FIELDS = {"modelFormat", "storageUri", "protocolVersion", "runtime", "runtimeVersion"}


def problems(document: Document, versions: tuple[str, ...] = VERSIONS) -> list[str]:
    """What an API server would not take, in words."""
    key = (document.get("apiVersion", ""), document.get("kind", ""))
    if model := OPERATORS.get(key):
        return _operator_problems(model, document)
    if key == ("serving.kserve.io/v1beta1", "InferenceService"):
        return _kserve_problems(document, versions[-1])
    return [problem for version in versions for problem in _kubernetes_problems(document, version)]


def _kubernetes_problems(document: Document, version: str) -> list[str]:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(str(step) for step in error.absolute_path)
        return [f"{version}: {place}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"{version}: {error.message}"]
    return []


def _operator_problems(model: type[BaseModel], document: Document) -> list[str]:
    try:
        model.model_validate(document, extra="forbid")
    except ValidationError as error:
        return [
            f"{'.'.join(str(step) for step in one['loc'])}: {one['msg']}" for one in error.errors()
        ]
    return []


def _kserve_problems(document: Document, version: str) -> list[str]:
    found = [
        f"unknown field {key}"
        for key in document.keys() - {"apiVersion", "kind", "metadata", "spec"}
    ]
    found += [f"spec: unknown field {key}" for key in document["spec"].keys() - {"predictor"}]
    predictor: Document = document["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in PREDICTOR_FIELDS}
    model: Document = predictor.get("model", {})
    container = {key: value for key, value in model.items() if key not in MODEL_FIELDS}
    # A pod needs a container, and a container a name; KServe gives the model's.
    pod["containers"] = [*pod.get("containers", []), {"name": "model", **container}]
    alike = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod}
    return found + _kubernetes_problems(alike, version)
