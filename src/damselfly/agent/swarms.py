"""The swarms this agent is in: at most one membership for each swarm."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.p2p.messages import SwarmID
from damselfly.p2p.swarm import Keeper, OpenSpan, Surroundings, Swarm

logger = logging.getLogger(__name__)

SEEDS_MAX = 256
"""Swarms of artifacts that are complete here; beyond that the longest unused are left."""
DRAFT_LINGERS_S = 60.0
"""A swarm at first contact is left when nobody has followed us in it for so long."""


class Seed:
    """A keeper that has everything and is never given anything."""

    def __init__(self, manifest: Manifest, have: Bitmap) -> None:
        self._digests = manifest.digests
        self._have = have

    def have(self) -> Bitmap:
        """What the store holds."""
        return self._have

    def digests(self) -> Sequence[Digest | None]:
        """What the manifest says."""
        return self._digests

    def write(self, index: int, digest: Digest, data: memoryview) -> None:
        """Never called: a seed wants nothing."""
        raise AssertionError("a seed is given nothing")

    def copy_local(self, index: int, digest: Digest) -> bool:
        """Nothing to copy."""
        return False

    @property
    def has_others(self) -> bool:
        """Nothing is looked for."""
        return False


@dataclass(slots=True)
class _Turn:
    """Who may join one swarm, one after the other; forgotten when nobody wants to."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted_by: int = 0


class Swarms:
    """Memberships by swarm. Belongs to one event loop and to the task group it is given."""

    def __init__(self, around: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self._around = around
        self._tasks = tasks
        self._swarms: dict[SwarmID, tuple[Swarm, asyncio.Task[None]]] = {}
        self._turns: dict[SwarmID, _Turn] = {}

    def get(self, swarm: SwarmID) -> Swarm | None:
        """The membership in `swarm`, if there is one."""
        entry = self._swarms.get(swarm)
        return entry[0] if entry else None

    @asynccontextmanager
    async def pulling(
        self,
        name: Digest,
        plan: Plan,
        keeper: Keeper,
        *,
        wanted: int,
        open_span: OpenSpan | None,
        is_sealed: bool,
        is_eager: bool = False,
    ) -> AsyncGenerator[Swarm]:
        """Join a swarm to pull; stay in it as a seed afterwards, unless the pull failed."""
        swarm_id = SwarmID(str(name))
        async with self._turn(swarm_id):
            await self._leave(swarm_id)
            swarm = Swarm(
                swarm_id,
                plan,
                keeper,
                self._around,
                wanted=wanted,
                open_span=open_span,
                is_sealed=is_sealed,
                is_eager=is_eager,
            )
            self._join(swarm)
            try:
                yield swarm
            except BaseException:
                await asyncio.shield(self._leave(swarm_id))
                raise

    async def seed(self, manifest: Manifest, have: Bitmap, ref: str) -> None:
        """Be in the swarm of an artifact that we hold, for those who want it."""
        swarm_id = SwarmID(str(manifest.digest))
        if swarm_id in self._turns or swarm_id in self._swarms:
            return  # A pull is at it, and stays.
        async with self._turn(swarm_id):
            await self._make_room()
            swarm = Swarm(
                swarm_id,
                manifest.plan(ref),
                Seed(manifest, have),
                self._around,
                wanted=have.bits,
                open_span=None,
                is_sealed=True,
            )
            self._join(swarm)

    async def leave(self, name: Digest) -> None:
        """Leave a swarm, if we are in it."""
        await self._leave(SwarmID(str(name)))

    def seeded(self) -> set[Digest]:
        """The artifacts that we are in a swarm of without pulling them."""
        return {artifact for _, artifact in self._seeds()}

    def _seeds(self) -> list[tuple[SwarmID, Digest]]:
        found: list[tuple[SwarmID, Digest]] = []
        for swarm_id, (swarm, _) in self._swarms.items():
            planner = swarm.planner
            artifact = Digest.parse(swarm_id) if planner.is_sealed else planner.artifact
            if artifact is not None and not self._is_pulling(swarm_id):
                found.append((swarm_id, artifact))
        return found

    def _is_pulling(self, swarm_id: SwarmID) -> bool:
        turn = self._turns.get(swarm_id)
        return turn is not None and turn.lock.locked()

    async def lost(self, artifacts: Collection[Digest], chunks: Collection[Digest]) -> None:
        """Chunks were found bad on our disk, and these artifacts lack some.

        A pull that runs fetches them again. A seed could not: its swarm is left.
        """
        for swarm_id, (swarm, _) in self._swarms.items():
            if self._is_pulling(swarm_id):
                have = swarm.planner.have
                for index, digest in list(swarm.digests.items()):
                    if digest in chunks and have >> index & 1:
                        swarm.lost(index)
        for swarm_id, artifact in self._seeds():
            if artifact in artifacts:
                await self._leave(swarm_id)

    async def leave_all(self) -> None:
        """Say goodbye everywhere."""
        for swarm_id in list(self._swarms):
            await self._leave(swarm_id)

    async def tidy(self) -> None:
        """Leave swarms of first contact that nobody needs any more."""
        now = self._around.clock.monotonic_s()
        for swarm_id, (swarm, _) in list(self._swarms.items()):
            is_draft = swarm.planner.artifact is not None and swarm_id != str(
                swarm.planner.artifact
            )
            is_idle = swarm.follower_count == 0 and now - swarm.idle_since_s > DRAFT_LINGERS_S
            if is_draft and is_idle and swarm.planner.is_complete:
                await self._leave(swarm_id)

    @asynccontextmanager
    async def _turn(self, swarm_id: SwarmID) -> AsyncGenerator[None]:
        """Nobody else joins this swarm meanwhile."""
        turn = self._turns.setdefault(swarm_id, _Turn())
        turn.wanted_by += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted_by -= 1
            if not turn.wanted_by:
                del self._turns[swarm_id]

    async def _make_room(self) -> None:
        """Leave the longest unused of too many seeds; not one that a pull is at."""
        complete = [swarm for swarm, _ in self._swarms.values() if swarm.planner.is_complete]
        seeds = [swarm for swarm in complete if swarm.swarm not in self._turns]
        if seeds and len(complete) >= SEEDS_MAX:
            oldest = min(seeds, key=lambda s: (s.follower_count, s.idle_since_s))
            await self._leave(oldest.swarm)

    def _join(self, swarm: Swarm) -> None:
        task = self._tasks.create_task(swarm.run())
        self._swarms[swarm.swarm] = entry = (swarm, task)

        def forget(_: asyncio.Task[None]) -> None:
            # Where it broke, nobody has left it: the next who looks joins anew.
            if self._swarms.get(swarm.swarm) is entry:
                del self._swarms[swarm.swarm]

        task.add_done_callback(forget)
        logger.info("swarm.joined", extra={"swarm": swarm.swarm})

    async def _leave(self, swarm_id: SwarmID) -> None:
        entry = self._swarms.pop(swarm_id, None)
        if entry is None:
            return
        swarm, task = entry
        await swarm.end()
        await asyncio.wait({task})
        logger.info("swarm.left", extra={"swarm": swarm_id})
