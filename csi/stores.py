"""The stores that something was mounted from, and the leases of ours in them that are nobody's.

Mostly it is one, and we were told of it. If not, every store that the agent ever named is kept in
mind, on the disk too: a lease of a call that died with us is nowhere else than in there.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from damselfly.client.record import Record
from damselfly.csi.exclusive import Exclusive
from damselfly.csi.leases import Leases
from damselfly.csi.records import Records
from damselfly.csi.volume import file_name, is_lease_of, lease_prefix
from damselfly.model.digest import Digest

logger = logging.getLogger(__name__)


class SeenStore(Record):
    """A store that something was mounted from."""

    store: str
    format: int = 1


class Stores:
    """See the module. Belongs to one event loop; `told` is the only store, if it is given."""

    def __init__(
        self,
        told: Path | None,
        records: Records[SeenStore],
        seen: Iterable[str],
        exclusive: Exclusive,
    ) -> None:
        self._told = told
        self._records = records
        self._exclusive = exclusive
        self._seen = records.open()
        for store in filter(None, seen):
            self._seen.setdefault(file_name(store), SeenStore(store=store))
        self._releasing: set[str] = set()

    def is_releasing(self, lease: str) -> bool:
        """A lease of that id is being given back just now: no time to ask for it."""
        return lease in self._releasing

    async def remember(self, store: str) -> None:
        """Keep a store in mind.

        Raises:
            DamselflyError: The disk does not take it.
        """
        name = file_name(store)

        async def keep() -> None:
            if name not in self._seen:
                seen = SeenStore(store=store)
                await self._exclusive.work(partial(self._records.put, name, seen))
                self._seen[name] = seen

        if self._told is None:  # One at a time, however many volumes come first.
            await self._exclusive.step(f"stores/{name}", keep)

    async def release_everywhere(self, lease: str) -> None:
        """Give back a lease of which it is not known where it is, if it is anywhere."""
        for store in self._known():
            await self._exclusive.work(partial(Leases(store).release_everywhere, lease))

    async def sweep(self, driver_name: str, is_held: Callable[[Digest, str], bool]) -> None:
        """Give back the leases of this driver that are not held."""
        prefix = lease_prefix(driver_name)
        for store in self._known():
            leases = Leases(store)
            found = await self._exclusive.work(partial(leases.beginning_with, prefix))
            # Which of them are whose is decided here, without waiting: an opening that begins
            # later finds its lease among those that are being released, and comes again.
            orphans = [
                (artifact, lease)
                for artifact, lease in found
                if is_lease_of(driver_name, lease) and not is_held(artifact, lease)
            ]
            self._releasing.update(lease for _, lease in orphans)
            try:
                for artifact, lease in orphans:
                    await self._exclusive.work(partial(leases.release, artifact, lease))
                    logger.info("lease.released", extra={"lease": lease, "artifact": str(artifact)})
            finally:
                self._releasing.difference_update(lease for _, lease in orphans)

    def _known(self) -> set[Path]:
        if self._told is not None:
            return {self._told}
        return {Path(seen.store) for seen in self._seen.values()}
