"""Leases of volumes that are being opened: made before the view, given back if nobody gets it.

Two requests may want the same lease at once (a caller gives up and asks again while we still work
on the first), and one may ask for a lease that a mounted volume has already. So a lease is given
back by the last who works on it, only if it was made here, and only if none of them was answered.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from damselfly.cache.store import Store
from damselfly.model.digest import Digest


class Work(Protocol):
    """Runs what touches the disk in a worker."""

    def __call__(self, function: "partial[bool]", /) -> Awaitable[bool]:
        """Await what it returns."""
        ...


class Hold:
    """One lease, and who works on what it is for."""

    def __init__(self, artifact: Digest, lease_id: str) -> None:
        self.artifact = artifact
        self.lease_id = lease_id
        self.is_answered = False
        self._lock = asyncio.Lock()
        self._users = 0
        self._is_made = False
        self._is_ours = False

    @property
    def key(self) -> tuple[Digest, str]:
        """What it is found by."""
        return self.artifact, self.lease_id

    def enter(self) -> None:
        """One more works on it."""
        self._users += 1

    @property
    def is_left(self) -> bool:
        """Nobody works on it any more."""
        return self._users == 0

    async def make(self, make: Callable[[], Awaitable[bool]]) -> None:
        """Make the lease, unless somebody has."""
        async with self._lock:
            if not self._is_made:
                self._is_ours = await make()
                self._is_made = True

    async def leave(self, release: Callable[[], Awaitable[bool]]) -> None:
        """One fewer works on it; the last gives back what nobody was told of."""
        async with self._lock:
            self._users -= 1
            if self._users == 0 and self._is_made and self._is_ours and not self.is_answered:
                await release()
                self._is_made = self._is_ours = False


class Holds:
    """Every lease that is being worked on. Belongs to one event loop."""

    def __init__(self, store: Store, work: Work) -> None:
        self._store = store
        self._work = work
        self._holds: dict[tuple[Digest, str], Hold] = {}

    @property
    def is_busy(self) -> bool:
        """Some lease is being worked on."""
        return bool(self._holds)

    async def take(self, artifact: Digest, lease_id: str) -> Hold:
        """Make the lease; `give` has to follow, whatever happens.

        Raises:
            UsageError: the id cannot be a file's name.
            CapacityError: not even a lease fits on the disk.
        """
        hold = self._holds.setdefault((artifact, lease_id), Hold(artifact, lease_id))
        hold.enter()
        make = partial(self._work, partial(self._store.lease, artifact, lease_id))
        try:
            # A thread that makes a lease cannot be stopped: who is cancelled leaves it to `give`.
            await asyncio.shield(hold.make(make))
        except BaseException:
            await self.give(hold)
            raise
        return hold

    async def give(self, hold: Hold) -> None:
        """Be done with it; a caller that is cancelled meanwhile is done all the same."""
        await asyncio.shield(self._give(hold))

    async def _give(self, hold: Hold) -> None:
        release = partial(self._work, partial(self._store.release, hold.artifact, hold.lease_id))
        try:
            await hold.leave(release)
        finally:
            if hold.is_left:
                self._holds.pop(hold.key, None)
