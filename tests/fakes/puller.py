"""A node that pulls nothing: what orders need of one, with its doors in the hands of the test."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from damselfly.client.answers import Progress, Pulled, PullRequest
from damselfly.errors import CancelledError, DamselflyError


@dataclass
class FakePuller:
    """See the module. Pulls go on until `release`; then they end with `failure`, or well.

    `evictions` says how often what was pulled is gone before it could be kept.
    """

    state: str = "ready"
    failure: DamselflyError | None = None
    evictions: int = 0
    pull_count: int = 0
    kept: list[tuple[bool, str, float | None]] = field(
        default_factory=list[tuple[bool, str, float | None]]
    )
    watchers: dict[PullRequest, int] = field(default_factory=dict[PullRequest, int])
    given_up: list[PullRequest] = field(default_factory=list[PullRequest])
    _may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let pulls end."""
        self._may_end.set()

    async def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        if request not in self.watchers:
            self.pull_count += 1
        self.watchers[request] = self.watchers.get(request, 0) + 1
        try:
            yield Progress(ref=request.ref, phase="fetching", bytes_done=1, bytes_total=10)
            await self._may_end.wait()
        finally:
            self.watchers[request] = self.watchers.get(request, 1) - 1
        if not self.watchers[request]:
            del self.watchers[request]
        if self.failure is not None:
            raise self.failure
        yield Pulled(
            ref=request.ref,
            artifact="blake3:" + "ab" * 32,
            path="/view",
            bytes=10,
            files=1,
            seconds=1.0,
            bytes_from_origin=4,
            bytes_from_peers=6,
            bytes_from_store=0,
        )

    def is_pulling(self, request: PullRequest) -> bool:
        return request in self.watchers

    async def give_up(self, request: PullRequest) -> bool:
        if self.watchers.get(request, 0):
            return False
        self.given_up.append(request)
        return self.watchers.pop(request, None) is not None

    async def keep(self, pulled: Pulled, *, pin: bool, lease_id: str, ttl_s: float | None) -> bool:
        if self.evictions:
            self.evictions -= 1
            return False
        self.kept.append((pin, lease_id, ttl_s))
        return True

    def drain(self) -> None:
        """Stop, as an agent does: its pulls are cancelled."""
        self.state = "draining"
        self.failure = CancelledError("the pull was cancelled")
        self.release()
