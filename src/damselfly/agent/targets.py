"""Which agents a warm-up is for: those that were listed, all that are seen, those of some nodes."""

import re
from collections.abc import Mapping
from typing import Protocol

from damselfly.client.answers import WarmRequest
from damselfly.errors import UsageError
from damselfly.model.ref import Ref
from damselfly.p2p.agents import Agents
from damselfly.p2p.discovery import check_address

_SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,315})=[A-Za-z0-9._-]{0,63}", re.ASCII)


class TargetFinder(Protocol):
    """Who knows which agent runs on which node: Kubernetes does."""

    async def labelled(self, selector: str) -> frozenset[str]:
        """The addresses of the agents on nodes with this label (LABEL=VALUE).

        Raises:
            UnavailableError: nobody can be asked now.
            DeniedError: we may not ask.
        """
        ...

    def node_name(self, address: str) -> str:
        """The name of the node of the agent at this address; empty if it is not known."""
        ...


class Targets:
    """Finds the agents that a request means. `finder` is None where there is no Kubernetes."""

    def __init__(self, agents: Agents, finder: TargetFinder | None = None) -> None:
        self._agents = agents
        self._finder = finder

    async def of(self, request: WarmRequest, ref: Ref) -> Mapping[str, str]:
        """The addresses of the agents, each with the name of its node.

        Raises:
            UsageError: the request contradicts itself, or the ref cannot leave this node.
        """
        addresses = await self._addresses(request)
        others = addresses - {self._agents.me.agent}
        if others and ref.scheme == "file":
            raise UsageError(
                f"{ref.safe} lies on a node's own disk: other nodes cannot be warmed with it"
            )
        if others and ref.query:
            raise UsageError(
                f"{ref.safe} has a query, which may be a signature and is told to no other node:"
                " warm by a ref without one, or run the command on each node"
            )
        name_of = self._finder.node_name if self._finder is not None else _nameless
        return {address: name_of(address) for address in addresses}

    async def _addresses(self, request: WarmRequest) -> frozenset[str]:
        ways = (bool(request.agents), request.selector is not None, request.everywhere)
        if sum(ways) > 1:
            raise UsageError(
                "--agents, --selector and --all each say which nodes: give one of them"
            )
        if request.agents:
            return frozenset(check_address(address) for address in request.agents)
        if request.selector is not None:
            return await self._selected(request.selector)
        if request.everywhere:
            return frozenset(self._agents.view)
        return frozenset({self._agents.me.agent})

    async def _selected(self, selector: str) -> frozenset[str]:
        if not _SELECTOR.fullmatch(selector):
            raise UsageError(f"{selector[:120]!r} is no selector: write LABEL=VALUE")
        if self._finder is None:
            raise UsageError(
                f"labels are Kubernetes', and this agent does not know it (--peers k8s:...): name"
                f" the agents with --agents instead of --selector {selector}"
            )
        found = await self._finder.labelled(selector)
        if not found:
            raise UsageError(f"no agent runs on a node with {selector}")
        return found


def _nameless(_: str) -> str:
    return ""
