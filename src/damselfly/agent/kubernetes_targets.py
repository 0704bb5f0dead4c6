"""Which agent runs on which node, as Kubernetes tells: its Service knows both."""

from collections.abc import Mapping

from damselfly.p2p.kubernetes.cluster import Kubernetes, ServiceName


class KubernetesTargets:
    """A `targets.TargetFinder` by the Service that lists the agents."""

    def __init__(
        self, kubernetes: Kubernetes, service: ServiceName, *, prefers_ipv6: bool = False
    ) -> None:
        self._kubernetes = kubernetes
        self._service = service
        self._prefers_ipv6 = prefers_ipv6

    async def nodes(self) -> Mapping[str, str]:
        """The addresses of the agents, each with the name of its node as far as it is known."""
        return await self._kubernetes.agents(self._service, prefers_ipv6=self._prefers_ipv6)

    async def labelled(self, selector: str) -> Mapping[str, str]:
        """The agents on nodes with this label."""
        names = await self._kubernetes.nodes(selector)
        return {agent: name for agent, name in (await self.nodes()).items() if name in names}
