"""The chart: what its values may be, and what becomes of them."""

import json
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from damselfly import __version__
from damselfly.agent.config import load_config
from damselfly.agent.settings import SETTINGS
from damselfly.cli import csi_cmd
from tests.integration.deploy_chart import (
    CHART,
    ROOT,
    VARIANTS,
    Document,
    RefusedError,
    containers_of,
    expanded,
    only,
    pod_of,
    render,
    rendered,
)

SCHEMA: Document = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()

# What the chart sets with flags, from values of its own.
SET_BY_THE_CHART = {
    "agent.admin",
    "agent.advertise",
    "agent.listen",
    "agent.socket",
    "agent.tls_ca",
    "agent.tls_cert",
    "agent.tls_key",
    "origin.credentials",
    "store.path",
    "swarm.peers",
    "swarm.zone",
}
# The socket is for the agent's user and group, and the pod sees no files of the host but its own.
NOT_FOR_CLUSTERS = {"agent.socket_mode"}


NOTHING: Document = {}


def described(schema: Document) -> Document:
    """A schema, with its reference followed."""
    if reference := schema.get("$ref"):
        found: Document = SCHEMA["definitions"][reference.rpartition("/")[2]]
        return found
    return schema


def leaves(schema: Document, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values that the schema knows."""
    properties: Document = described(schema).get("properties", {})
    for name, value in properties.items():
        yield f"{prefix}{name}"
        yield from leaves(value, f"{prefix}{name}.")


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_finds_nothing_wrong(variant: str) -> None:
    linted = subprocess.run(
        [sys.executable, "-m", "deploy.lint"],
        cwd=ROOT,
        input=json.dumps(VARIANTS[variant]),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    # Helm would like a picture; there is none.
    assert linted.stdout.splitlines() == ["Chart.yaml: icon is recommended"]
    assert linted.returncode == 0


def test_the_linter_bites() -> None:
    linted = subprocess.run(
        [sys.executable, "-m", "deploy.lint"],
        cwd=ROOT,
        input=json.dumps({"kubeletRoot": "relative"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert linted.returncode == 1
    assert "kubeletRoot" in linted.stdout


def test_the_chart_is_of_the_programs_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == chart["version"] == __version__


def test_every_value_has_a_comment_and_a_place_in_the_schema() -> None:
    lines = VALUES.splitlines()
    silent: list[str] = []
    written: list[str] = []
    path: list[str] = []
    for number, line in enumerate(lines):
        found = re.match(r"^( *)([a-zA-Z]\w*):", line)
        if not found:
            continue
        path = [*path[: len(found[1]) // 2], found[2]]
        name = ".".join(path)
        if not described_by_schema(name):
            continue  # inside a value that is Kubernetes' own
        written.append(name)
        above = lines[number - 1].strip() if number else ""
        is_section = line.rstrip().endswith(":")
        if not above.startswith("#") and not is_section:
            silent.append(name)

    assert silent == []
    names = [name for name in leaves(SCHEMA) if is_a_value(name)]
    assert sorted(written) == sorted(names)


def described_by_schema(name: str) -> bool:
    return name in set(leaves(SCHEMA)) and is_a_value(name)


def is_a_value(name: str) -> bool:
    """Not what Kubernetes documents, nor the settings, which README does, nor Helm's own."""
    return not re.match(r"(.*\.resources\.|(agent|csi)\.settings\.|global$)", name)


def test_settings_are_those_that_the_agent_has() -> None:
    rooms: Document = SCHEMA["properties"]["agent"]["properties"]["settings"]["properties"]
    offered = {
        f"{room}.{field}" for room, schema in rooms.items() for field in schema["properties"]
    }

    assert offered == SETTINGS.keys() - SET_BY_THE_CHART - NOT_FOR_CLUSTERS


def test_settings_become_what_the_agent_reads() -> None:
    settings = {
        "agent": {"drain_s": 15},
        "store": {"capacity_bytes": "500GiB", "low": 0.5},
        "log": {"format": "json"},
        "warm": {"accept": "https://models/,https://more/"},
        "volumes": {"accept": "https://models/"},
    }

    agent = container(rendered({"agent": {"settings": settings}}), "agent")
    environ = {entry["name"]: entry["value"] for entry in agent["env"] if "value" in entry}
    flags = {"agent.listen": "127.0.0.1:7460", "store.path": "/x", "agent.socket": "/x/s"}
    config = load_config(flags, environ)

    assert config.agent.drain_s == 15.0
    assert config.store.capacity_bytes == 500 << 30
    assert config.store.low == 0.5
    assert config.log.format == "json"
    assert config.warm.accept.prefixes == ("https://models/", "https://more/")
    assert config.volumes.accept.prefixes == ("https://models/",)


def test_settings_of_the_driver_become_what_it_reads() -> None:
    settings = {"allow_file_refs": True, "health": False, "publish_wait": "30s"}

    driver = container(rendered({"csi": {"settings": settings}}), "csi")
    environ = {entry["name"]: entry["value"] for entry in driver["env"] if "value" in entry}
    parser = ArgumentParser()
    csi_cmd.configure(parser)
    flags = parser.parse_args(["--endpoint", "unix:///csi.sock", "--node-id", "n"])
    options = csi_cmd._options(csi_cmd._settled(flags, environ))

    assert options.allows_file_refs
    assert not options.shows_health
    assert options.limits.publish_wait_s == 30.0


def test_settings_of_the_driver_are_flags_that_the_chart_does_not_set() -> None:
    offered: Document = SCHEMA["properties"]["csi"]["properties"]["settings"]["properties"]
    parser = ArgumentParser()
    csi_cmd.configure(parser)
    said = set(expanded(container(rendered({}), "csi")))

    assert offered.keys() <= vars(parser.parse_args([])).keys()
    assert not {f"--{name.replace('_', '-')}" for name in offered} & said


def test_pods_of_a_system_priority_have_a_quota_that_allows_them() -> None:
    quota = only(rendered({}), "ResourceQuota")
    own = {"priorityClassName": "models"}
    off = {"resourceQuota": {"enabled": False}}

    (scope,) = quota["spec"]["scopeSelector"]["matchExpressions"]
    assert (scope["scopeName"], scope["values"]) == ("PriorityClass", ["system-node-critical"])
    for values in (own, off):
        assert "ResourceQuota" not in {one["kind"] for one in rendered(values)}


def container(objects: list[Document], name: str) -> Document:
    pod = pod_of(only(objects, "DaemonSet"))
    assert pod is not None
    (found,) = [one for one in containers_of(pod) if one["name"] == name]
    return found


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"kubeletroot": "/var/lib/kubelet"}, "kubeletroot"),
        ({"kubeletRoot": "var/lib/kubelet"}, "kubeletRoot"),
        ({"kubeletRoot": "/var/lib/kubelet/"}, "kubeletRoot"),
        ({"store": {"path": "/"}}, "/store/path"),
        ({"store": {"path": "/models and more"}}, "/store/path"),
        ({"store": {"paths": "/models"}}, "paths"),
        ({"runAs": {"uid": 0}}, "/runAs/uid"),
        ({"agent": {"peersPort": 80}}, "peersPort"),
        ({"agent": {"peersPort": 9464}}, "the same port"),
        ({"agent": {"membership": "gossip"}}, "membership"),
        ({"agent": {"settings": {"store": {"capacity": "1GiB"}}}}, "capacity"),
        ({"agent": {"settings": {"agent": {"socket_mode": "0777"}}}}, "socket_mode"),
        ({"agent": {"configMap": "No_Name"}}, "agent/configMap"),
        ({"agent": {"env": [{"name": "DAMSELFLY_CONFIG", "value": "/x"}]}}, "agent/env/0/name"),
        ({"agent": {"env": [{"name": "POD_IP", "value": "10.0.0.1"}]}}, "agent/env/0/name"),
        ({"agent": {"env": [{"name": "HF_TOKEN", "valueFrom": {"secret": NOTHING}}]}}, "secret"),
        ({"agent": {"env": [{"name": "PORT", "value": 80}]}}, "agent/env/0/value"),
        ({"agent": {"envFrom": [{"prefix": "AWS_"}]}}, "agent/envFrom/0"),
        ({"agent": {"envFrom": [{"secretRef": NOTHING}]}}, "agent/envFrom/0/secretRef"),
        ({"csi": {"env": []}}, "env"),
        ({"csi": {"settings": {"endpoint": "unix:///x"}}}, "endpoint"),
        ({"csi": {"settings": {"log_level": "loud"}}}, "log_level"),
        ({"image": {"digest": "sha256:abc"}}, "digest"),
        ({"maxUnavailable": 0}, "maxUnavailable"),
        ({"terminationGracePeriodSeconds": 10}, "terminationGracePeriodSeconds"),
        ({"storageClasses": [{"name": "llama", "parameters": {"model": "x"}}]}, "provisioner"),
        (
            {
                "provisioner": {"enabled": True},
                "storageClasses": [{"name": "llama", "parameters": NOTHING}],
            },
            "model",
        ),
        (
            {"startupTaint": {"enabled": True}, "csi": {"selfRegister": False}},
            "needs csi.selfRegister",
        ),
        (
            {"agent": {"selectNodes": True, "membership": "dns"}},
            "needs agent.membership=kubernetes",
        ),
        ({"certificates": {"enabled": True}}, "issuerRef.name"),
        ({"monitoring": {"kind": "Monitor"}}, "monitoring/kind"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: Document, complaint: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(complaint)):
        render(values)


def test_other_places_are_other_places_everywhere() -> None:
    text = render(VARIANTS["elsewhere"])["daemonset.yaml"]

    assert "/var/lib/k0s/kubelet/plugins/csi.damselfly.dev/csi.sock" in text
    for default in ("/var/lib/kubelet", "/var/lib/damselfly", "/run/damselfly", "65532", "7460 "):
        assert default not in text


def test_two_releases_share_no_object() -> None:
    def names(release: str, namespace: str) -> set[tuple[str, str, str]]:
        found: set[tuple[str, str, str]] = set()
        for name, text in render(VARIANTS["everything"], release, namespace).items():
            if name in {"NOTES.txt", "storageclasses.yaml"}:
                continue
            for one in yaml.safe_load_all(text):
                where: dict[str, Any] = one["metadata"]
                found.add((one["kind"], where.get("namespace", ""), where["name"]))
        return found

    shared = names("damselfly", "one") & names("damselfly", "two")

    # The driver's name is what pods say: a cluster has it once.
    assert shared == {("CSIDriver", "", "csi.damselfly.dev")}


def test_notes_tell_what_is_open() -> None:
    quiet = render({})["NOTES.txt"]
    loud = render({"networkPolicy": {"enabled": False}})["NOTES.txt"]
    host = render({"hostNetwork": True})["NOTES.txt"]

    assert "can reach the agents" not in quiet
    assert "every pod of the cluster can reach the agents" in loud
    assert "no NetworkPolicy holds there" in host


def test_notes_tell_where_the_configuration_comes_from() -> None:
    assert "ConfigMap rules" in render({"agent": {"configMap": "rules"}})["NOTES.txt"]
    assert "ConfigMap" not in render({})["NOTES.txt"]
