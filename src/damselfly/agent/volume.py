"""Volumes: what pods may mount, made ready, leased, and shown in the layout that was asked for.

    open ── known and believed? ────────────────┐
      └── else a preparation (joined by all) ──> lease ──> view ──> answer

The lease comes before the view, so that an eviction between the two is noticed: it takes the view
away, or finds the lease (`model/lease.py`). Then it is pulled again.

What a ref is is believed for as long as the home of the ref believes it (`p2p/refs.py`); within
that time, and for refs with a pin that this node has seen, a volume of what is here is answered
without a word to anybody.

Who may name a directory of this machine (`file://`) is for the caller to say, who knows whether it
speaks for an operator or for whoever makes pods.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial

from damselfly.agent.holdings import Holdings, Shown
from damselfly.agent.holds import Holds
from damselfly.agent.possession import is_known
from damselfly.agent.preparation import Preparation, Wish
from damselfly.agent.prover import Prover
from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Target
from damselfly.agent.settings import VolumeSettings
from damselfly.agent.watch import watched
from damselfly.client.answers import (
    Capacity,
    CapacityRequest,
    Opened,
    Progress,
    VolumeRequest,
)
from damselfly.errors import (
    ArtifactNotFoundError,
    DeniedError,
    StoreFullError,
    UnavailableError,
    UsageError,
)
from damselfly.model.hub import HubName
from damselfly.model.lease import check_lease_id
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.p2p.refs import RefLimits

logger = logging.getLogger(__name__)

PLAIN = "plain"
HF_CACHE = "hf-cache"
LAYOUTS = (PLAIN, HF_CACHE)
ATTEMPTS = 3
"""How often what is evicted before it could be leased is prepared again."""


@dataclass(frozen=True, kw_only=True)
class VolumeLimits:
    """What opening volumes may take."""

    preparations_max: int = 256
    """More refs at once than a node has pods."""
    fresh_s: float = RefLimits().fresh_s
    """How long what a ref is is believed: as long as everywhere else in the swarm."""
    fresh_max: int = 1024
    globs_max: int = 256


class Volumes:
    """Opens volumes. Belongs to one event loop; preparations run in the given task group."""

    def __init__(
        self,
        settings: VolumeSettings,
        shop: Workshop,
        begin: Callable[[Wish, Target], Pull],
        tasks: asyncio.TaskGroup,
        limits: VolumeLimits | None = None,
    ) -> None:
        self._accept = settings.accept
        self._shop = shop
        self._begin = begin
        self._tasks = tasks
        self._limits = limits or VolumeLimits()
        self._holdings = Holdings(shop.store)
        self._prover = Prover(
            shop.store.proofs, shop.origins, shop.workers, shop.clock, settings.proof_ttl_s
        )
        self._holds = Holds(shop.store, shop.work)
        self._preparations: dict[Wish, Preparation] = {}
        self._fresh: OrderedDict[Wish, tuple[Shown, float]] = OrderedDict()

    async def open(self, request: VolumeRequest) -> AsyncGenerator[Progress | Opened]:
        """Open a volume; see `Node.open_volume`."""
        began_s = self._shop.clock.monotonic_s()
        wish = self._wish(request)
        lost: ArtifactNotFoundError | None = None
        for attempt in range(ATTEMPTS):
            shown = await self._at_once(wish) if attempt == 0 else None
            if shown is None:
                preparation = self._prepare(wish)
                async for progress in watched(preparation.ended, preparation.progress):
                    yield progress
                if preparation.failure is not None:
                    raise preparation.failure
                assert preparation.outcome is not None
                shown = preparation.outcome
            hold = await self._holds.take(shown.artifact, request.lease)
            try:
                try:
                    opened = await self._shop.work(partial(self._show, wish, shown, request.layout))
                except ArtifactNotFoundError as exc:
                    self._fresh.pop(wish, None)
                    lost = exc
                    continue
                yield opened
                # Asked for what comes next: the answer is out.
                hold.is_answered = True
            finally:
                await self._holds.give(hold)
            duration_s = round(self._shop.clock.monotonic_s() - began_s, 4)
            logger.info(
                "volume.opened",
                extra={
                    "ref": wish.ref.safe,
                    "artifact": opened.artifact,
                    "lease": request.lease,
                    "layout": request.layout,
                    "duration_s": duration_s,
                },
            )
            return
        raise StoreFullError(
            f"opening {wish.ref.safe}: it was evicted {ATTEMPTS} times before it could be leased"
        ) from lost

    async def capacity(self, request: CapacityRequest) -> Capacity:
        """How much could be stored; see `Node.capacity`."""
        return await self._shop.work(partial(self._capacity, request))

    @property
    def is_busy(self) -> bool:
        """Something is being prepared, or a lease is being worked on."""
        return bool(self._preparations) or self._holds.is_busy

    def resolving(self) -> list[Preparation]:
        """What is being found out about, and not pulled yet."""
        return [each for each in self._preparations.values() if each.is_resolving]

    async def stop(self) -> None:
        """End what is being prepared."""
        tasks = [each.task for each in self._preparations.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- what is asked -----------------------------------------------------------------------

    def _wish(self, request: VolumeRequest) -> Wish:
        check_lease_id(request.lease)
        if request.layout not in LAYOUTS:
            raise UsageError(
                f"{request.layout[:80]!r} is no layout of a volume: " + " or ".join(LAYOUTS)
            )
        ref = Ref.parse(request.ref)
        if not self._accept.allows_volume(ref.location):
            what = "none" if str(self._accept) == "none" else f"only {self._accept}"
            raise DeniedError(
                f"volumes of this node may not name {ref.safe} (they may name {what}): its agent"
                " would let them with a --volume-accept that has a prefix of it"
            )
        given = request.credentials
        access = (
            Access.of()
            if given is None
            else Access.of(token=given.token, username=given.username, password=given.password)
        )
        return Wish(ref, *self._choice(request), access)

    def _choice(
        self, request: VolumeRequest | CapacityRequest
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if len(request.include) + len(request.exclude) > self._limits.globs_max:
            raise UsageError(f"a volume has at most {self._limits.globs_max} filters")
        return tuple(sorted(set(request.include))), tuple(sorted(set(request.exclude)))

    # --- making ready ------------------------------------------------------------------------

    async def _at_once(self, wish: Wish) -> Shown | None:
        """What may be shown without asking anybody."""
        shown, known_s = self._fresh.get(wish, (None, 0.0))
        if self._shop.clock.monotonic_s() - known_s > self._limits.fresh_s:
            shown = None
        if shown is None and wish.ref.pin is None:
            return None
        shown = await self._shop.work(partial(self._believed, wish, shown))
        return shown if shown is not None and await self._shop.is_genuine(wish.ref, shown) else None

    def _believed(self, wish: Wish, shown: Shown | None) -> Shown | None:
        if not self._prover.believes(wish.ref, wish.access):
            return None
        shown = shown or self._holdings.last_held(wish.ref, wish.choice)
        if shown is None or not is_known(self._shop.store, wish.ref, shown):
            return None
        return shown

    def _prepare(self, wish: Wish) -> Preparation:
        """Begin a preparation, or join the one that runs."""
        if wish in self._preparations:
            return self._preparations[wish]
        if len(self._preparations) >= self._limits.preparations_max:
            raise UnavailableError(f"{len(self._preparations)} volumes are being opened already")
        preparation = Preparation(
            wish, self._shop, self._holdings, self._prover, self._shop.possession, self._begin
        )
        self._preparations[wish] = preparation
        preparation.task = self._tasks.create_task(preparation.run())

        def end(_: asyncio.Task[None]) -> None:
            del self._preparations[wish]
            if not preparation.ended.is_set():
                preparation.cancelled()
            if preparation.outcome is not None and self._shop.origins.for_ref(wish.ref).shared:
                self._fresh[wish] = preparation.outcome, preparation.resolved_s
                self._fresh.move_to_end(wish)
                if len(self._fresh) > self._limits.fresh_max:
                    self._fresh.popitem(last=False)

        preparation.task.add_done_callback(end)
        return preparation

    # --- in a worker -------------------------------------------------------------------------

    def _show(self, wish: Wish, shown: Shown, layout: str) -> Opened:
        store = self._shop.store
        is_hub = layout == HF_CACHE
        hub = HubName.of(wish.ref, shown.artifact, shown.place) if is_hub else None
        if not is_known(store, wish.ref, shown):  # It was evicted before it could be proved.
            raise ArtifactNotFoundError(f"{shown.artifact} was gone before its origin showed it")
        path = store.view(shown.artifact, shown.files, hub)
        manifest = store.manifest(shown.artifact)
        if manifest is None:
            raise ArtifactNotFoundError(f"{shown.artifact} has just gone from the store")
        numbers = range(len(manifest.files)) if shown.files is None else shown.files
        return Opened(
            ref=wish.ref.safe,
            artifact=str(shown.artifact),
            path=str(path),
            store=str(store.path),
            bytes=sum(manifest.files[number].bytes for number in numbers),
            files=len(numbers),
        )

    def _capacity(self, request: CapacityRequest) -> Capacity:
        store = self._shop.store
        if request.ref is None:
            return Capacity(available_bytes=store.room_for().available_bytes)
        shown = self._holdings.last(Ref.parse(request.ref), self._choice(request))
        if shown is None:
            return Capacity(available_bytes=store.room_for().available_bytes)
        found = store.room_for(shown.artifact, shown.files)
        return Capacity(
            available_bytes=found.available_bytes,
            ref_bytes=found.bytes,
            ref_bytes_held=found.bytes_held,
        )
