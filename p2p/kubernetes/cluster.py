"""What we ask the API server of Kubernetes: addresses of agents, names and zones of nodes.

Needs the extra `damselfly[kubernetes]`. The least rights (RBAC), by what is used; nothing writes:

    --peers k8s:NAMESPACE/SERVICE, `Kubernetes.agents`       a Role in NAMESPACE
        {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
    --zone k8s:NODE_NAME                                     a ClusterRole
        {apiGroups: [""], resources: [nodes], verbs: [get]}
    `Kubernetes.nodes` (a warm-up by --selector or --all)    a ClusterRole
        {apiGroups: [""], resources: [nodes], verbs: [list]}

Nodes belong to no namespace, hence the ClusterRoles; without `--zone k8s:` and selectors neither is
needed. Credentials are those of $KUBECONFIG, else of the pod's service account, else of
`~/.kube/config`.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Self

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.kubernetes.connection import (
    SERVICE_ACCOUNT,
    ExpiredError,
    KubernetesConnection,
    KubernetesLimits,
    parsed,
    refuse,
)
from damselfly.p2p.kubernetes.endpoint_slices import EndpointSlices
from damselfly.p2p.kubernetes.names import ServiceName, check_node_name, check_selector
from damselfly.p2p.kubernetes.objects import items_of, label_of, name_of, object_of, version_of

__all__ = ["ExpiredError", "Kubernetes", "KubernetesLimits", "ServiceName"]

ZONE_LABEL = "topology.kubernetes.io/zone"


class Kubernetes:
    """One API server. Belongs to one event loop; use it as a context, or `close` it.

    Whatever asks raises:
        UnavailableError: the server does not answer, or says that it cannot now.
        DeniedError: it refuses (401, 403); the message says what right is missing.
        NotFoundError: it has no such object.
        RemoteProtocolError: it answers with something that we do not understand.
        ConfigError: nothing says where it is, or what says so cannot be read.
    """

    def __init__(
        self,
        limits: KubernetesLimits | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Raises:
            UsageError: the extra `damselfly[kubernetes]` is not installed.
        """
        self._connection = KubernetesConnection(
            limits, environ=environ, service_account=service_account
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Kubernetes {self._connection!r}>"

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def check(self) -> None:
        """Find out where the server is and who we are to it, without asking it."""
        await self._connection.check()

    async def nodes(self, selector: str = "") -> frozenset[str]:
        """The names of the nodes with a label (`LABEL=VALUE`), or of all nodes.

        With `agents` this tells which agents run on them:
        `{address for address, node in (await k8s.agents(service)).items() if node in nodes}`.

        Raises:
            UsageError: `selector` is something else.
        """
        query = {"labelSelector": check_selector(selector)} if selector else {}
        listed = await self._connection.get("/api/v1/nodes", query, "the nodes")
        return frozenset(map(name_of, items_of(listed.get("items"))))

    async def zone_of(self, node: str) -> str:
        """The zone that a node is labelled with; empty when it has no such label."""
        path = f"/api/v1/nodes/{check_node_name(node)}"
        return label_of(await self._connection.get(path, {}, f"the node {node}"), ZONE_LABEL)

    async def agents(
        self, service: ServiceName, *, prefers_ipv6: bool = False
    ) -> Mapping[str, str]:
        """The addresses (`host:port`) of a Service's agents, each with the name of its node.

        The name is empty where the Service does not say it.
        """
        core = EndpointSlices(prefers_ipv6=prefers_ipv6)
        slices, version = await self.list_slices(service)
        core.listed(slices, version, now=0.0)
        return core.view

    async def list_slices(self, service: ServiceName) -> tuple[list[object], str]:
        """The EndpointSlices of a Service, and the version to watch them from."""
        listed = await self._connection.get(
            _slices_path(service), _slices_query(service), f"the addresses of {service}"
        )
        return list(items_of(listed.get("items"))), version_of(listed)

    async def watch_slices(
        self, service: ServiceName, version: str
    ) -> AsyncGenerator[tuple[str, object]]:
        """What happens to the EndpointSlices of a Service after `version`: kind and object.

        It ends when the server ends it in good order.

        Raises:
            ExpiredError: the server has forgotten that version.
        """
        what = f"changes of {service}"
        query = _slices_query(service) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
        }
        stream = self._connection.lines(_slices_path(service), query, what)
        async with aclosing(stream) as lines:
            async for line in lines:
                event = parsed(line, what)
                kind, found = event.get("type"), event.get("object")
                if not isinstance(kind, str):
                    raise RemoteProtocolError(f"the API server tells {what} without a type")
                if kind == "ERROR":
                    status = object_of(found)
                    code, message = status.get("code"), status.get("message")
                    refuse(code if isinstance(code, int) else 500, str(message or ""), what)
                yield kind, found


def _slices_path(service: ServiceName) -> str:
    return f"/apis/discovery.k8s.io/v1/namespaces/{service.namespace}/endpointslices"


def _slices_query(service: ServiceName) -> dict[str, str]:
    return {"labelSelector": f"kubernetes.io/service-name={service.name}"}
