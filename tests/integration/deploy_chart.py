"""What the tests of deploy/ share: the chart's variants, rendered in a process of their own."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "damselfly"

Document = dict[str, Any]

EVERYTHING: Document = {
    "namespace": {"create": True},
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "agent": {
        "selectNodes": True,
        "settings": {"store": {"capacity_bytes": "500GiB", "high": 0.9}, "log": {"level": "debug"}},
        "configMap": "damselfly-config",
        "env": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        ],
        "envFrom": [{"secretRef": {"name": "models-aws", "optional": True}}],
        "seLinuxOptions": {"type": "spc_t"},
    },
    "csi": {"settings": {"allow_file_refs": True, "log_level": "debug"}},
    "startupTaint": {"enabled": True},
    "provisioner": {"enabled": True},
    "storageClasses": [
        {"name": "llama", "parameters": {"model": "https://models/llama/"}},
        {
            "name": "qwen",
            "parameters": {"model": "https://models/qwen/", "layout": "plain"},
            "reclaimPolicy": "Retain",
            "annotations": {"example.com/owner": "ml"},
        },
    ],
    "monitoring": {"kind": "PodMonitor", "rules": True, "labels": {"release": "prometheus"}},
    "certificates": {"enabled": True, "issuerRef": {"name": "internal"}},
    "origin": {"credentialsSecret": "origins"},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}},
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"example.com/team": "ml"},
    "podLabels": {"example.com/tier": "models"},
    "maxUnavailable": "10%",
}
LEAST: Document = {
    "agent": {"membership": "dns", "zoneFromNode": False},
    "networkPolicy": {"enabled": False},
    "tolerations": [],
    "nodeSelector": {},
}
VARIANTS: dict[str, Document] = {
    "defaults": {},
    "everything": EVERYTHING,
    "least": LEAST,
    "elsewhere": {
        "kubeletRoot": "/var/lib/k0s/kubelet",
        "store": {"path": "/mnt/nvme0/models"},
        "socketDirectory": "/run/models",
        "runAs": {"uid": 1001, "gid": 1002},
        "agent": {"peersPort": 17460, "adminPort": 19464},
        "csi": {"adminPort": 19465},
    },
    "registrar": {"csi": {"selfRegister": False}},
    "host network": {"hostNetwork": True},
    "service monitor": {"monitoring": {"kind": "ServiceMonitor"}},
}


class RefusedError(Exception):
    """Helm refused to render."""


def render(
    values: Mapping[str, Any], release: str = "damselfly", namespace: str = "damselfly"
) -> dict[str, str]:
    """The chart's files. Helm's library brings Go's runtime: it runs in a process of its own."""
    return dict(_render(json.dumps({"values": values, "release": release, "namespace": namespace})))


@cache
def _render(question: str) -> Mapping[str, str]:
    answered = subprocess.run(
        [sys.executable, "-m", "deploy.chart"],
        cwd=ROOT,
        input=f"{question}\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answer = json.loads(answered.stdout)
    if "error" in answer:
        raise RefusedError(answer["error"])
    files: dict[str, str] = answer["files"]
    return files


def documents(text: str) -> list[Document]:
    """The YAML documents of a text that hold something."""
    return [document for document in yaml.safe_load_all(text) if document is not None]


def rendered(values: Mapping[str, Any]) -> list[Document]:
    """Every object of a rendering."""
    return [
        document
        for name, text in render(values).items()
        if name != "NOTES.txt"
        for document in documents(text)
    ]


def only(objects: list[Document], kind: str) -> Document:
    """The one object of a kind."""
    (found,) = [document for document in objects if document["kind"] == kind]
    return found


def pod_of(document: Document) -> Document | None:
    """The pod template's spec of a workload."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Pod":
            return dict(spec)
        case "DaemonSet" | "Deployment" | "Job":
            return dict(spec["template"]["spec"])
        case "CronJob":
            return dict(spec["jobTemplate"]["spec"]["template"]["spec"])
        case _:
            return None


def containers_of(pod: Document) -> Iterator[Document]:
    """Every container of a pod, those that initialise first."""
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def expanded(container: Document) -> list[str]:
    """A container's arguments as its process gets them, `$(NAME)` replaced as Kubernetes does."""
    known = {"POD_IP": "10.0.0.7", "NODE_NAME": "node-7"}
    variables = {
        entry["name"]: entry.get("value", known.get(entry["name"], ""))
        for entry in container.get("env", [])
    }
    return [
        re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], argument)
        for argument in container.get("args", [])
    ]
