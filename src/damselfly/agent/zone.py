"""In which zone the node is, read from Kubernetes once at the start."""

import asyncio
import logging

from damselfly.errors import DamselflyError, UnavailableError, explain
from damselfly.p2p.kubernetes.cluster import Kubernetes
from damselfly.p2p.messages import ZONE_PATTERN

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""A zone makes transfers cheaper; without one the agent still does its work, so it starts."""
RETRY_S = 0.5


async def zone_of_node(
    kubernetes: Kubernetes, node: str, *, patience_s: float = PATIENCE_S, retry_s: float = RETRY_S
) -> str:
    """Ask for the zone of `node`; empty, with a warning, when that cannot be known in time."""
    problem = "the API server does not answer"
    zone: str | None = None
    try:
        async with asyncio.timeout(patience_s):
            while zone is None:
                try:
                    zone = await kubernetes.zone_of(node)
                except UnavailableError as exc:
                    problem = explain(exc)
                    await asyncio.sleep(retry_s)
    except TimeoutError:
        pass
    except DamselflyError as exc:
        problem = explain(exc)
    if zone and ZONE_PATTERN.fullmatch(zone):
        return zone
    if zone is not None:
        problem = f"the zone {zone!r} is none for us" if zone else "the node has no label of a zone"
    logger.warning("zone.unknown", extra={"node": node, "problem": problem})
    return ""
