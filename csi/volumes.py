"""The volumes of this node: published, taken away, told about. What the Node service asks.

One call looks (in a worker's thread), lets `publication.publish` decide, and carries it out; what
takes long is an `Opening`, which is waited for outside of the step. All state is touched by the
event loop alone.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from damselfly.client.answers import Credentials, Opened, VolumeRequest
from damselfly.clock import Clock
from damselfly.csi.exclusive import Exclusive
from damselfly.csi.opening import Agent, Opening
from damselfly.csi.options import Options
from damselfly.csi.publication import (
    Clear,
    Done,
    Facts,
    Mount,
    Open,
    Publication,
    Refuse,
    Show,
    conflict,
    publish,
)
from damselfly.csi.status import CSIError, PendingError, VolumeNotFoundError, code_of
from damselfly.csi.stores import Stores
from damselfly.csi.targets import Targets
from damselfly.csi.volume import Wish, lease_id, parse_credentials, recorded
from damselfly.errors import CapacityError, DamselflyError, RemoteProtocolError, UsageError
from damselfly.model.digest import Digest
from damselfly.model.ref import Ref

logger = logging.getLogger(__name__)


LOOKS_MAX = 8
"""Steps of one publish: clear, open, show, and the same once more if somebody interferes."""


class Volumes:
    """What is published here. Belongs to one event loop; its steps run in `exclusive`."""

    def __init__(
        self,
        options: Options,
        targets: Targets,
        agent: Agent,
        published: Mapping[str, Publication],
        stores: Stores,
        exclusive: Exclusive,
        clock: Clock,
    ) -> None:
        self._options = options
        self._limits = options.limits
        self._targets = targets
        self._agent = agent
        self._clock = clock
        self._records = {record.target: record for record in published.values()}
        self._stores = stores
        self._openings: dict[str, Opening] = {}
        self._is_stopping = False
        self._exclusive = exclusive

    def stop(self) -> None:
        """Begin nothing more. What the agent pulls goes on, and who asks again finds it."""
        self._is_stopping = True

    # --- questions ----------------------------------------------------------------------------

    @property
    def published(self) -> Mapping[str, Publication]:
        """The records by target."""
        return self._records

    def find(self, volume_id: str, path: str) -> Publication:
        """The record of a volume at a path.

        Raises:
            VolumeNotFoundError: It is not published there.
        """
        try:
            record = self._records.get(self._targets.check(path))
        except UsageError:
            record = None
        if record is None or record.volume_id != volume_id:
            raise VolumeNotFoundError(f"the volume {volume_id} is not published at {path}")
        return record

    def is_published(self, volume_id: str, target: str) -> bool:
        """There is a record of the volume at a target, which has been checked."""
        record = self._records.get(target)
        return record is not None and record.volume_id == volume_id

    async def mount_of(self, record: Publication) -> Mount:
        """How the mount of a volume is."""
        facts = await self._exclusive.work(partial(self._targets.look, record.target, record))
        return facts.mount

    # --- publishing ---------------------------------------------------------------------------

    async def publish(self, wish: Wish, secrets: Mapping[str, str], patience_s: float) -> None:
        """Publish a volume; it is when this returns. `wish.target` has been checked.

        The secrets are read only if the agent has to be asked: rule 1 of `publication`.

        Raises:
            PendingError: It is not done after `patience_s`, and goes on; it says how far it is.
            DamselflyError: It cannot be done. Where its code is final, nothing is left of it.
        """
        ends_at_s = self._clock.monotonic_s() + patience_s
        for _ in range(LOOKS_MAX):
            opening = await self._exclusive.step(wish.target, partial(self._advance, wish, secrets))
            if opening is None:
                return
            if not await opening.wait(ends_at_s):
                raise PendingError(f"pulling {_safe(wish)}: {opening.told()}")
            if opening.error is not None or opening.is_abandoned:
                await self._exclusive.step(wish.target, partial(self._failed, opening))
                raise opening.error or PendingError(f"{wish.target} was unpublished meanwhile")
        raise PendingError(f"{wish.target} is being worked on by others")

    async def _advance(self, wish: Wish, secrets: Mapping[str, str]) -> Opening | None:
        """Go as far as possible without waiting for the agent; None: the volume is published."""
        for _ in range(LOOKS_MAX):
            opening = self._joined(wish)
            if opening is not None and opening.opened is None:
                return opening
            record = self._records.get(wish.target)
            fresh = None if opening is None else self._fresh(opening)
            look = partial(
                self._targets.look, wish.target, fresh or record, is_fresh=fresh is not None
            )
            facts = await self._exclusive.work(look)
            match publish(wish, facts):
                case Done():
                    return None
                case Clear():
                    logger.warning("mount.dead", extra={"target_path": wish.target})
                    await self._exclusive.work(partial(self._targets.clear, wish.target))
                case Open():
                    return self._begin(wish, parse_credentials(secrets))
                case Refuse(error):
                    if fresh is not None:
                        await self._undo(wish.target, fresh)
                    raise error
                case Show():
                    await self._show(facts)
                    return None
        raise PendingError(f"{wish.target} changes while it is looked at")

    def _joined(self, wish: Wish) -> Opening | None:
        """The opening of this wish, if there is one that is of use."""
        opening = self._openings.get(wish.target)
        if opening is None:
            return None
        if opening.is_over:  # Given up or failed, and nobody was there to hear.
            del self._openings[wish.target]
            return None
        if opening.wish != wish:
            if opening.is_abandoned:
                raise PendingError(f"another volume is just leaving {wish.target}")
            raise conflict(wish, opening.wish)
        opening.is_abandoned = False
        return opening

    def _begin(self, wish: Wish, credentials: Credentials | None) -> Opening:
        if len(self._openings) >= self._limits.openings_max:
            raise PendingError(f"{len(self._openings)} volumes are being opened: waiting for one")
        if len(self._records) >= self._limits.records_max:
            raise CapacityError(f"{len(self._records)} volumes are published here: no more")
        lease = lease_id(self._options.driver_name, wish.volume_id, wish.target)
        if self._stores.is_releasing(lease):
            raise PendingError(f"the last lease of {wish.volume_id} is just being given back")
        source = wish.source
        request = VolumeRequest(
            ref=source.ref,
            lease=lease,
            include=source.include,
            exclude=source.exclude,
            layout=source.layout,
            credentials=credentials,
        )
        opening = Opening(wish, request, self._agent, self._clock, self._limits, self._ended)
        self._openings[wish.target] = opening
        opening.begin()
        return opening

    def _fresh(self, opening: Opening) -> Publication:
        """What the agent opened, as the record that it will have."""
        opened, wish = opening.opened, opening.wish
        assert opened is not None
        try:
            Digest.parse(opened.artifact)
            _check_inside(opened)
        except UsageError as exc:
            del self._openings[wish.target]
            raise RemoteProtocolError(f"the agent's answer about {_safe(wish)}") from exc
        return Publication(
            volume_id=wish.volume_id,
            target=wish.target,
            lease=opening.lease,
            ref=recorded(wish.source.ref),
            include=wish.source.include,
            exclude=wish.source.exclude,
            layout=wish.source.layout,
            artifact=opened.artifact,
            store=opened.store,
            path=opened.path,
            bytes=opened.bytes,
            files=opened.files,
            published_ns=self._clock.wall_ns(),
        )

    async def _show(self, facts: Facts) -> None:
        shown = facts.record
        assert shown is not None
        before = self._records.get(shown.target)
        try:
            if facts.is_fresh:
                await self._stores.remember(shown.store)
            await self._exclusive.work(partial(self._targets.show, shown, facts))
        except DamselflyError as exc:
            if facts.mount is not Mount.WELL:
                await self._undo(shown.target, shown, because=exc)
            raise
        self._records[shown.target] = shown
        if facts.is_fresh:
            del self._openings[shown.target]
            if before is not None and before.artifact != shown.artifact:
                await self._exclusive.work(partial(self._targets.release, before))
        logger.info(
            "volume.published",
            extra={
                "volume_id": shown.volume_id,
                "artifact": shown.artifact,
                "target_path": shown.target,
                "bytes": shown.bytes,
            },
        )

    # --- when it does not work ----------------------------------------------------------------

    async def _undo(
        self, target: str, made: Publication, *, because: DamselflyError | None = None
    ) -> None:
        """Leave nothing of a publish that fails for good.

        Raises:
            PendingError: Something stays. It is not final, so that an unpublish will come.
        """
        self._openings.pop(target, None)
        is_ours = because is not None or target in self._records
        try:
            if is_ours:
                await self._exclusive.work(
                    partial(self._targets.take_away, target, made, leaves_foreign=True)
                )
            else:  # What is mounted there was there before, and is not known.
                await self._exclusive.work(partial(self._targets.release, made))
        except CSIError as exc:
            raise PendingError(f"clearing {target} after it failed ({because})") from exc
        self._records.pop(target, None)

    async def _failed(self, opening: Opening) -> None:
        """An opening has failed, or was given up: take it off the books, and what it left."""
        target = opening.wish.target
        if self._openings.get(target) is not opening:
            return
        if opening.error is None and not opening.is_abandoned:
            return  # Somebody wants it after all.
        del self._openings[target]
        record = self._records.get(target)
        is_final = opening.error is not None and code_of(opening.error).is_final
        if not is_final and not opening.is_abandoned:
            return  # The kubelet calls again, or unpublishes.
        if record is not None and is_final:
            await self._undo(target, record, because=opening.error)
        await self._give_back(opening)

    async def _give_back(self, opening: Opening) -> None:
        """Give back the lease of an opening that nobody wants, wherever the agent made it."""
        if opening.opened is not None:  # Its store may be one that nothing was mounted from.
            await self._stores.remember(opening.opened.store)
        await self._stores.release_everywhere(opening.lease)

    def _ended(self, opening: Opening) -> None:
        """In the loop, once an opening's thread is done."""
        if self._is_stopping or opening.waiting:
            return  # Whoever waits goes on with it.
        if opening.is_abandoned or opening.error is not None:
            self._exclusive.start(opening.wish.target, partial(self._failed, opening))

    # --- taking away --------------------------------------------------------------------------

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Take a volume away from a target; it is gone when this returns, whoever it was.

        Raises:
            VolumeNotFoundError: Another volume is at that target.
            CSIError: The kernel or the disk refuses; the same call goes on from there.
        """
        await self._exclusive.step(target, partial(self._take_away, volume_id, target))

    async def _take_away(self, volume_id: str, target: str) -> None:
        record, opening = self._records.get(target), self._openings.get(target)
        there = record.volume_id if record else opening.wish.volume_id if opening else volume_id
        if there != volume_id:
            raise VolumeNotFoundError(f"at {target} is another volume, {there}")
        if opening is not None:
            opening.is_abandoned = True
            if opening.ended.is_set():
                del self._openings[target]
        await self._exclusive.work(partial(self._targets.take_away, target, record))
        self._records.pop(target, None)
        if opening is not None and opening.ended.is_set():
            await self._give_back(opening)
        elif record is None:
            # The agent may have leased it for a call of which nothing else is left.
            lease = lease_id(self._options.driver_name, volume_id, target)
            await self._stores.release_everywhere(lease)
        if record is not None:
            logger.info("volume.unpublished", extra={"volume_id": volume_id, "target_path": target})

    async def sweep(self) -> None:
        """Give up what was opened and never asked for again, and leases that are nobody's."""
        now = self._clock.monotonic_s()
        for target, opening in list(self._openings.items()):
            is_leaving = opening.is_abandoned and opening.ended.is_set()
            is_wanted = now - opening.asked_for_s < self._limits.forgotten_s
            if opening.waiting or (is_wanted and not is_leaving):
                continue
            logger.info("volume.forgotten", extra={"volume_id": opening.wish.volume_id})
            opening.is_abandoned = True
            if opening.ended.is_set():
                await self._exclusive.step(target, partial(self._failed, opening))
        await self._stores.sweep(self._options.driver_name, self._is_held)

    def _is_held(self, artifact: Digest, lease: str) -> bool:
        """Somebody holds this lease, or is about to."""
        # A record that was made again may not know what it holds.
        return any(
            record.lease == lease and record.artifact in {"", str(artifact)}
            for record in self._records.values()
        ) or any(opening.lease == lease for opening in self._openings.values())


def _safe(wish: Wish) -> str:
    """The ref for people: a query may be a signature."""
    return Ref.parse(wish.source.ref).safe


def _check_inside(opened: Opened) -> None:
    """Check that a view lies in its store.

    Raises:
        UsageError: It does not.
    """
    path, store = Path(opened.path), Path(opened.store)
    if not path.is_absolute() or ".." in path.parts or not path.is_relative_to(store):
        raise UsageError(f"{opened.path!r} is no path in the store {opened.store!r}")
