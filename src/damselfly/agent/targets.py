"""Which agents a warm-up is for: those that were listed, all that are seen, those of some nodes."""

import logging
from collections.abc import Mapping
from typing import Protocol

from damselfly.client.answers import WarmRequest
from damselfly.errors import DamselflyError, UsageError
from damselfly.model.ref import Ref
from damselfly.p2p.address import check_address
from damselfly.p2p.agents import Agents
from damselfly.p2p.kubernetes.names import check_selector

logger = logging.getLogger(__name__)


class TargetFinder(Protocol):
    """Who knows which agent runs on which node: Kubernetes does."""

    async def nodes(self) -> Mapping[str, str]:
        """The addresses of the agents, each with the name of its node as far as it is known.

        Raises:
            DamselflyError: nobody can be asked now, or we may not ask.
        """
        ...

    async def labelled(self, selector: str) -> Mapping[str, str]:
        """The agents on nodes with this label (LABEL=VALUE), as `nodes` has them.

        Raises:
            DamselflyError: nobody can be asked now, or we may not ask.
        """
        ...


class Targets:
    """Finds the agents that a request means. `finder` is None where there is no Kubernetes."""

    def __init__(self, agents: Agents, finder: TargetFinder | None = None) -> None:
        self._agents = agents
        self._finder = finder

    async def of(self, request: WarmRequest, ref: Ref) -> Mapping[str, str]:
        """The addresses of the agents, each with the name of its node, empty if nobody knows it.

        Raises:
            UsageError: the request contradicts itself, or the ref cannot leave this node.
            DamselflyError: a selector was given, and Kubernetes does not answer.
        """
        ways = (bool(request.agents), request.selector is not None, request.everywhere)
        if sum(ways) > 1:
            raise UsageError("agents, a selector and all of them: each says which nodes; give one")
        if any(ways):
            self._check_sharing(request, ref)
        if request.selector is not None:
            return await self._selected(request.selector)
        if request.agents:
            addresses = frozenset(check_address(address) for address in request.agents)
        elif request.everywhere:
            await self._agents.met()
            addresses = frozenset(self._agents.view)
        else:
            return {self._agents.me.agent: ""}
        names = await self._names()
        return {address: names.get(address, "") for address in addresses}

    def _check_sharing(self, request: WarmRequest, ref: Ref) -> None:
        """Refuse what others could not pull, or should not see."""
        if set(request.agents) == {self._agents.me.agent}:
            return
        if ref.scheme == "file":
            raise UsageError(
                f"{ref.safe} lies on a node's own disk: other nodes cannot be warmed with it"
            )
        if ref.query:
            raise UsageError(
                f"{ref.safe} has a query, which may be a signature and is told to no other node:"
                " warm by a ref without one, or run the command on each node"
            )

    async def _selected(self, selector: str) -> Mapping[str, str]:
        check_selector(selector)
        if self._finder is None:
            raise UsageError(
                "labels are Kubernetes', and this agent does not ask it (--peers k8s:...): give"
                f" --agents instead of --selector {selector}"
            )
        found = await self._finder.labelled(selector)
        if not found:
            raise UsageError(f"no agent runs on a node with {selector}")
        return found

    async def _names(self) -> Mapping[str, str]:
        if self._finder is None:
            return {}
        try:
            return await self._finder.nodes()
        except DamselflyError as exc:
            # Names are for people: a warm-up goes without them.
            logger.warning("nodes.unnamed", extra={"error": str(exc)})
            return {}
