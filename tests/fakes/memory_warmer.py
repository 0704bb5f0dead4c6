"""A warmer without nodes: it tells what it was given, and waits for `release` before it ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from damselfly.client.answers import Warmed, WarmNode, WarmProgress, WarmRequest
from damselfly.errors import DamselflyError


@dataclass
class MemoryWarmer:
    """See the module. `asked` and `cancelled` are the requests that came."""

    moments: Sequence[tuple[WarmNode, ...]]
    outcome: tuple[WarmNode, ...] | DamselflyError = ()
    interval_s: float = 0.02
    asked: list[WarmRequest] = field(default_factory=list[WarmRequest])
    cancelled: list[WarmRequest] = field(default_factory=list[WarmRequest])
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let it end."""
        self.may_end.set()

    async def warm(self, request: WarmRequest) -> AsyncIterator[WarmProgress | Warmed]:
        self.asked.append(request)
        for nodes in self.moments:
            yield WarmProgress(ref=request.ref, nodes=nodes)
            await asyncio.sleep(self.interval_s)
        while not self.may_end.is_set():
            yield WarmProgress(ref=request.ref, nodes=self.moments[-1])
            await asyncio.sleep(self.interval_s)
        yield self._warmed(request)

    async def cancel(self, request: WarmRequest) -> Warmed:
        self.cancelled.append(request)
        return self._warmed(request)

    def _warmed(self, request: WarmRequest) -> Warmed:
        if isinstance(self.outcome, DamselflyError):
            raise self.outcome
        artifacts = {node.artifact for node in self.outcome if node.artifact}
        artifact = artifacts.pop() if len(artifacts) == 1 else None
        return Warmed(ref=request.ref, artifact=artifact, nodes=self.outcome, seconds=12.5)
