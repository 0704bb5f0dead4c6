"""The DaemonSet and what is around it: who may do what, and whether the parts fit together."""

from typing import Any

import pytest

from damselfly.agent.settings import AgentSettings
from tests.integration.deploy_chart import (
    VARIANTS,
    Document,
    containers_of,
    only,
    pod_of,
    rendered,
)

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest) -> list[Document]:
    return rendered(VARIANTS[request.param])


def daemon_pod(objects: list[Document]) -> Document:
    pod = pod_of(only(objects, "DaemonSet"))
    assert pod is not None
    return pod


def named(objects: list[Document]) -> dict[str, Document]:
    return {one["name"]: one for one in containers_of(daemon_pod(objects))}


def test_only_the_driver_is_privileged(objects: list[Document]) -> None:
    containers = named(objects)

    privileged = {
        name for name, one in containers.items() if one["securityContext"].get("privileged")
    }
    assert privileged == {"csi"}


def test_the_agent_has_nothing_but_its_files_and_its_ports(objects: list[Document]) -> None:
    pod = daemon_pod(objects)
    context = dict(named(objects)["agent"]["securityContext"])

    assert context.pop("seLinuxOptions", None) in (None, {"type": "spc_t"})
    assert min(context.pop("runAsUser"), context.pop("runAsGroup")) > 0
    assert context == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not pod.get("hostPID")
    assert not pod.get("hostIPC")


def test_who_is_root_has_no_more_capabilities_than_it_uses(objects: list[Document]) -> None:
    added = {
        name: one["securityContext"]["capabilities"].get("add", [])
        for name, one in named(objects).items()
        if name != "csi"
    }

    assert all(
        one["securityContext"]["capabilities"]["drop"] == ["ALL"]
        and one["securityContext"]["allowPrivilegeEscalation"] is False
        for name, one in named(objects).items()
        if name != "csi"
    )
    assert {name: capabilities for name, capabilities in added.items() if capabilities} == {
        "prepare": ["CHOWN", "FOWNER"],
        "prepare-socket": ["CHOWN", "FOWNER"],
    }


def test_no_root_file_system_can_be_written(objects: list[Document]) -> None:
    assert all(
        one["securityContext"]["readOnlyRootFilesystem"] is True for one in named(objects).values()
    )


def test_mounts_propagate_only_from_the_driver_and_only_pods(objects: list[Document]) -> None:
    propagating = [
        (name, mount["name"], mount["mountPropagation"])
        for name, one in named(objects).items()
        for mount in one["volumeMounts"]
        if "mountPropagation" in mount
    ]

    assert propagating == [("csi", "pods", "Bidirectional")]


def test_every_mount_has_its_volume_and_every_volume_its_mount(objects: list[Document]) -> None:
    declared = {volume["name"] for volume in daemon_pod(objects)["volumes"]}
    mounted = {mount["name"] for one in named(objects).values() for mount in one["volumeMounts"]}

    assert mounted == declared


def test_the_store_is_at_one_path_in_every_container_and_on_the_host(
    objects: list[Document],
) -> None:
    volumes = {volume["name"]: volume for volume in daemon_pod(objects)["volumes"]}
    for name in ("store", "socket", "pods"):
        paths = {
            mount["mountPath"]
            for one in named(objects).values()
            for mount in one["volumeMounts"]
            if mount["name"] == name
        }

        assert paths == {volumes[name]["hostPath"]["path"]}


@pytest.mark.parametrize(
    ("values", "holders"),
    [
        ({}, {"agent"}),
        (VARIANTS["least"], set[str]()),
        ({"startupTaint": {"enabled": True}}, {"agent", "csi"}),
        ({**VARIANTS["least"], "provisioner": {"enabled": True}}, {"provisioner"}),
        ({"csi": {"selfRegister": False}}, {"agent"}),
    ],
)
def test_only_who_asks_the_api_has_a_token(values: Document, holders: set[str]) -> None:
    objects = rendered(values)

    assert daemon_pod(objects)["automountServiceAccountToken"] is False
    assert only(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    with_token = {
        name
        for name, one in named(objects).items()
        if TOKEN in {mount["mountPath"] for mount in one["volumeMounts"]}
    }
    assert with_token == holders


Rights = set[tuple[str, str, str]]


def rights(objects: list[Document], kind: str) -> Rights:
    return {
        (group, resource, verb)
        for role in objects
        if role["kind"] == kind
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def spread(group: str, resource: str, verbs: str) -> Rights:
    return {(group, resource, verb) for verb in verbs.split()}


SLICES = spread("discovery.k8s.io", "endpointslices", "list watch")
PROVISIONER = (
    spread("", "persistentvolumes", "get list watch create patch delete")
    | spread("", "persistentvolumeclaims", "get list watch update")
    | spread("storage.k8s.io", "storageclasses", "get list watch")
    | spread("", "events", "create patch")
)
CAPACITY = spread("storage.k8s.io", "csistoragecapacities", "get list watch create update delete")


@pytest.mark.parametrize(
    ("values", "in_namespace", "in_cluster"),
    [
        ({}, SLICES, spread("", "nodes", "get")),
        (VARIANTS["least"], set[Any](), set[Any]()),
        ({"agent": {"zoneFromNode": False}}, SLICES, set[Any]()),
        ({"startupTaint": {"enabled": True}}, SLICES, spread("", "nodes", "get patch")),
        ({"agent": {"selectNodes": True}}, SLICES, spread("", "nodes", "get list")),
        (
            {"agent": {"selectNodes": True, "zoneFromNode": False}},
            SLICES,
            spread("", "nodes", "list"),
        ),
        (
            {**VARIANTS["least"], "provisioner": {"enabled": True}},
            CAPACITY | spread("", "pods", "get"),
            PROVISIONER,
        ),
    ],
)
def test_rights_are_the_least(values: Document, in_namespace: Rights, in_cluster: Rights) -> None:
    objects = rendered(values)

    assert rights(objects, "Role") == in_namespace
    assert rights(objects, "ClusterRole") == in_cluster


def test_rights_go_to_the_pods_account_and_to_nobody_else(objects: list[Document]) -> None:
    account = only(objects, "ServiceAccount")["metadata"]
    bindings = [one for one in objects if one["kind"].endswith("RoleBinding")]
    roles = {
        (one["kind"], one["metadata"]["name"])
        for one in objects
        if one["kind"] in {"Role", "ClusterRole"}
    }

    assert daemon_pod(objects)["serviceAccountName"] == account["name"]
    assert {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings} == roles
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]


def selects(selector: Document, labels: Document) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def test_everything_that_selects_the_pods_selects_them(objects: list[Document]) -> None:
    daemon_set = only(objects, "DaemonSet")
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]

    assert selects(daemon_set["spec"]["selector"]["matchLabels"], labels)
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service":
                assert selects(spec["selector"], labels)
            case "NetworkPolicy":
                assert selects(spec["podSelector"]["matchLabels"], labels)
                assert selects(spec["ingress"][0]["from"][0]["podSelector"]["matchLabels"], labels)
            case "PodMonitor":
                assert selects(spec["selector"]["matchLabels"], labels)
            case _:
                pass


def test_a_service_monitor_scrapes_one_service_and_finds_its_port() -> None:
    objects = rendered(VARIANTS["service monitor"])
    spec = only(objects, "ServiceMonitor")["spec"]

    (scraped,) = [
        one
        for one in objects
        if one["kind"] == "Service"
        and selects(spec["selector"]["matchLabels"], one["metadata"]["labels"])
    ]
    assert [port["name"] for port in scraped["spec"]["ports"]] == [
        end["port"] for end in spec["endpoints"]
    ]


def test_ports_that_are_named_exist(objects: list[Document]) -> None:
    containers = named(objects)
    ports: dict[str, int] = {}
    for name in ("agent", "csi"):
        own = {port["name"]: port["containerPort"] for port in containers[name]["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert containers[name][probe]["httpGet"]["port"] in own
        for port in own.values():
            assert f"0.0.0.0:{port}" in containers[name]["args"]
        ports |= own
    asked: set[str] = set()
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            asked |= {port["targetPort"] for port in spec["ports"]}
        elif one["kind"] == "NetworkPolicy":
            asked |= {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        elif one["kind"] == "PodMonitor":
            asked |= {end["port"] for end in spec["podMetricsEndpoints"]}

    assert asked <= ports.keys() == {"peers", "admin", "csi-admin"}
    assert len(set(ports.values())) == 3


def test_agents_that_start_or_drain_are_peers_too(objects: list[Document]) -> None:
    name = only(objects, "DaemonSet")["metadata"]["name"]
    (service,) = [
        one for one in objects if one["kind"] == "Service" and one["metadata"]["name"] == name
    ]

    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [port["name"] for port in service["spec"]["ports"]] == ["peers"]


def test_no_two_pods_of_a_node_run_at_once_and_a_stop_may_drain(objects: list[Document]) -> None:
    update = only(objects, "DaemonSet")["spec"]["updateStrategy"]

    assert update["type"] == "RollingUpdate"
    assert update["rollingUpdate"]["maxSurge"] == 0
    grace = daemon_pod(objects)["terminationGracePeriodSeconds"]
    assert grace > AgentSettings.drain_s + 10


def test_only_agents_reach_the_peers_port_and_only_monitoring_the_admin_port() -> None:
    rules = only(rendered({}), "NetworkPolicy")["spec"]["ingress"]

    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [
        ["peers"],
        ["admin", "csi-admin"],
    ]
    assert [list(peer) for rule in rules for peer in rule["from"]] == [
        ["podSelector"],
        ["namespaceSelector"],
    ]


def test_services_of_the_namespace_cannot_pass_for_settings(objects: list[Document]) -> None:
    assert daemon_pod(objects)["enableServiceLinks"] is False


def test_the_driver_object_is_as_the_facts_have_it() -> None:
    def spec(values: Document) -> Document:
        driver = only(rendered(values), "CSIDriver")
        assert driver["metadata"]["name"] == "csi.damselfly.dev"
        return dict(driver["spec"])

    expected = {
        "attachRequired": False,
        "podInfoOnMount": True,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "fsGroupPolicy": "None",
        "seLinuxMount": False,
        "requiresRepublish": False,
    }
    assert spec({}) == {**expected, "storageCapacity": False}
    assert spec({"provisioner": {"enabled": True}}) == {**expected, "storageCapacity": True}


def test_a_provisioner_makes_volumes_where_pods_are() -> None:
    provisioner = named(rendered({"provisioner": {"enabled": True}}))["provisioner"]

    assert {
        "--node-deployment",
        "--strict-topology",
        "--immediate-topology=false",
        "--enable-capacity",
        "--capacity-ownerref-level=1",
    } <= set(provisioner["args"])
    assert {entry["name"] for entry in provisioner["env"]} == {"NODE_NAME", "POD_NAME", "NAMESPACE"}


def test_a_registrar_takes_the_place_of_our_own_registration() -> None:
    containers = named(rendered(VARIANTS["registrar"]))

    assert "--self-register" not in containers["csi"]["args"]
    assert containers["registrar"]["args"] == [
        "--csi-address=/csi/csi.sock",
        "--kubelet-registration-path=/var/lib/kubelet/plugins/csi.damselfly.dev/csi.sock",
    ]


@pytest.mark.parametrize(
    ("certificates", "secret"),
    [
        ({"issuerRef": {"name": "internal"}}, "damselfly-tls"),
        ({"secretName": "ours"}, "ours"),
    ],
)
def test_agents_with_certificates_are_given_them_and_nobody_else_is(
    certificates: Document, secret: str
) -> None:
    objects = rendered({"certificates": {"enabled": True, **certificates}})
    containers = named(objects)
    arguments = containers["agent"]["args"]

    for flag, file in (("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")):
        assert arguments[arguments.index(f"--tls-{flag}") + 1] == f"/etc/damselfly/tls/{file}"
    mounts = {name: _mounted(container) for name, container in containers.items()}
    assert [name for name, mounted in mounts.items() if "tls" in mounted] == ["agent"]
    volumes = {each["name"]: each for each in daemon_pod(objects)["volumes"]}
    assert volumes["tls"]["secret"] == {"secretName": secret}
    assert "--tls-cert" not in named(rendered({}))["agent"]["args"]


def test_a_secret_with_credentials_is_for_the_agent_alone() -> None:
    objects = rendered({"origin": {"credentialsSecret": "origins"}})
    containers = named(objects)
    arguments = containers["agent"]["args"]

    assert (
        arguments[arguments.index("--credentials") + 1]
        == "/etc/damselfly/credentials/credentials.toml"
    )
    mounts = {name: _mounted(container) for name, container in containers.items()}
    assert [name for name, mounted in mounts.items() if "credentials" in mounted] == ["agent"]
    volumes = {each["name"]: each for each in daemon_pod(objects)["volumes"]}
    assert volumes["credentials"]["secret"] == {"secretName": "origins"}
    assert "--credentials" not in named(rendered({}))["agent"]["args"]


def test_a_configuration_file_is_for_the_agent_alone_and_can_change_under_it() -> None:
    objects = rendered({"agent": {"configMap": "rules"}})
    containers = named(objects)
    volumes = {each["name"]: each for each in daemon_pod(objects)["volumes"]}
    variables = {one["name"]: one.get("value") for one in containers["agent"]["env"]}
    (mount,) = [one for one in containers["agent"]["volumeMounts"] if one["name"] == "config"]

    assert variables["DAMSELFLY_CONFIG"] == f"{mount['mountPath']}/config.toml"
    # A single file of a volume (subPath) would stay what it was at the start.
    assert mount == {"name": "config", "mountPath": "/etc/damselfly/config", "readOnly": True}
    assert volumes["config"]["configMap"] == {"name": "rules"}
    mounts = {name: _mounted(container) for name, container in containers.items()}
    assert [name for name, mounted in mounts.items() if "config" in mounted] == ["agent"]
    assert "config" not in {each["name"] for each in daemon_pod(rendered({}))["volumes"]}


def test_the_environment_of_origins_is_for_the_agent_alone() -> None:
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    source = {"secretRef": {"name": "models-aws"}}

    containers = named(rendered({"agent": {"env": [token], "envFrom": [source]}}))

    assert token in containers["agent"]["env"]
    assert containers["agent"]["envFrom"] == [source]
    for name in containers.keys() - {"agent"}:
        assert "envFrom" not in containers[name]
        assert token not in containers[name].get("env", [])


def test_roles_that_clouds_bind_to_the_account_are_for_the_agent_alone(
    objects: list[Document],
) -> None:
    annotations = only(objects, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]
    others = named(objects).keys() - {"agent"}

    assert set(annotations["eks.amazonaws.com/skip-containers"].split(",")) == others
    assert set(annotations["azure.workload.identity/skip-containers"].split(";")) == others


def test_annotations_of_the_user_beat_those_of_the_chart() -> None:
    own = {"eks.amazonaws.com/skip-containers": "csi", "example.com/team": "ml"}

    daemon_set = only(rendered({"podAnnotations": own}), "DaemonSet")

    assert own.items() <= daemon_set["spec"]["template"]["metadata"]["annotations"].items()


def _mounted(container: Document) -> list[str]:
    return [mount["name"] for mount in container.get("volumeMounts", [])]
