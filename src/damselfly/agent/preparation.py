"""From what a volume asks for to an artifact that may be shown: resolve, prove, pull.

    resolving ── what is it? ──> proving ── may they? ──> here already, or pulling ──> shown

One for all who ask for the same with the same credentials; it goes on when they have gone.

Rule 1: nothing is shown before the origin was asked, or remembers having been, with the very
credentials of who asks. Not even what everybody here has cached.

Rule 2: **a pin is checked, and no way in.** Whoever makes pods may name any ref and any digest, and
`https://their.own.host/#<digest of somebody's private model>` would be proved by their own host. So
a pin alone names an artifact only where this node has found the ref to be that artifact before;
else the ref is resolved as if there were no pin, and what it is found to be is held against it.

Rule 3: what was proved is what is read: at the ref itself or below it, whatever a plan says that
peers told, the same plan, and with the same credentials. None of the agent's own are ever shown.

Rule 4: when the origin cannot be reached, what the ref last was here serves who is believed.

Rule 5: an origin that only names bytes is no way in either: it shows that it has them, once for a
ref and an artifact, before anything is shown (`possession.py`).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from damselfly.agent.holdings import Choice, Holdings, Shown
from damselfly.agent.possession import Possession, is_known
from damselfly.agent.prover import Prover
from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Target
from damselfly.client.answers import Progress
from damselfly.errors import (
    ArtifactNotFoundError,
    CancelledError,
    DamselflyError,
    DigestMismatchError,
    LocalProtocolError,
    OriginDeniedError,
    OriginUnavailableError,
)
from damselfly.model.digest import Digest
from damselfly.model.plan import PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.origin.port import OriginStream
from damselfly.waiting import Waiting, heard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a volume asks for, and with which credentials; equal ones are one."""

    ref: Ref
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    access: Access
    policy: str | None = None
    """When the origin is asked: `auto`, `never` or `always`; None: as the agent is set."""

    @property
    def choice(self) -> Choice:
        """The filters."""
        return self.include, self.exclude


class Preparation:
    """One preparation. `run` is its task; `ended` is set when there is an outcome or a failure."""

    def __init__(
        self,
        wish: Wish,
        shop: Workshop,
        holdings: Holdings,
        prover: Prover,
        possession: Possession,
        begin: Callable[[Wish, Target], Pull],
    ) -> None:
        assert not wish.access.is_own, "a pod has its own credentials, or none"
        self.wish = wish
        self.ended = asyncio.Event()
        self.outcome: Shown | None = None
        self.failure: DamselflyError | None = None
        self.task: asyncio.Task[None] | None = None
        self.resolved_s = shop.clock.monotonic_s()
        """Since when what the ref is has been known."""
        self._shop = shop
        self._holdings = holdings
        self._prover = prover
        self._possession = possession
        self._begin = begin
        self._began_s = self.resolved_s
        self._pull: Pull | None = None
        self._waiting = Waiting()

    def __repr__(self) -> str:
        return f"<Preparation of {self.wish.ref.safe}>"

    @property
    def ref(self) -> Ref:
        """What it is of."""
        return self.wish.ref

    @property
    def artifact(self) -> Digest | None:
        """What it has come to, if that is known."""
        return self._pull.artifact if self._pull is not None else None

    @property
    def is_resolving(self) -> bool:
        """It has not come to a pull yet."""
        return self._pull is None and not self.ended.is_set()

    def progress(self) -> Progress:
        """How far it has come."""
        if self._pull is not None:
            return self._pull.progress()
        seconds = self._shop.clock.monotonic_s() - self._began_s
        usual = "origin (finding out what there is, and for whom)"
        waiting = self._waiting.reason or usual if seconds > 1.0 else None
        return Progress(ref=self.wish.ref.safe, seconds=seconds, waiting_for=waiting)

    async def run(self) -> None:
        """Prepare to the end; the outcome is kept, not raised."""
        try:
            with heard(self._waiting):
                self.outcome = await self._prepared_unless_refused()
        except DamselflyError as exc:
            self.failure = exc
            extra = {"ref": self.wish.ref.safe, "error": exc}
            logger.warning("volume.refused", extra=extra)
        except asyncio.CancelledError:
            self.cancelled()
            raise
        except Exception as exc:
            logger.exception("volume.broken", extra={"ref": self.wish.ref.safe})
            self.failure = LocalProtocolError.found(f"opening {self.wish.ref.safe}", exc)
        finally:
            self.ended.set()

    def cancelled(self) -> None:
        """Somebody stopped it, perhaps before its task had begun."""
        self.failure = CancelledError(f"opening {self.wish.ref.safe} was cancelled")
        self.ended.set()

    async def _prepared_unless_refused(self) -> Shown:
        try:
            return await self._prepared()
        except OriginDeniedError:
            refused = partial(self._prover.refused, self.wish.ref, self.wish.access)
            await self._shop.work(refused)
            raise

    async def _prepared(self) -> Shown:
        wish, holdings = self.wish, self._holdings
        source = wish.ref.unpinned
        pin = wish.ref.pin
        if pin is not None and await self._shop.work(partial(holdings.was, source, pin)):
            source = wish.ref
        try:
            policy = wish.policy or self._shop.policy
            target = await self._shop.resolver.resolve(source, wish.access, policy=policy)
        except OriginUnavailableError as exc:
            return await self._last_held(exc)
        self.resolved_s = self._shop.clock.monotonic_s()
        place = source.place_of(target.plan.ref)
        if not source.leads_to(place):
            # A directory that was redirected, or a plan that somebody made up: the ref tells which.
            own = source.unpinned
            place = own.as_directory if place.is_directory else own
        target = replace(target, place=place)
        await self._prover.prove(source.unpinned, target.plan, place, wish.access)
        await self._check_pin(target)
        of_plan = partial(holdings.of_plan, source, target, wish.choice)
        shown = await self._shop.work(of_plan)
        plan = target.plan
        if shown is None or not await self._shop.is_genuine(wish.ref, shown, plan):
            shown = await self._pulled(source, target)
            plan = self._pull.plan if self._pull is not None and self._pull.plan else plan
        await self._possession.prove(
            source.unpinned, plan, shown, partial(self._open_span, place), work=self._shop.work
        )
        return shown

    @asynccontextmanager
    async def _open_span(
        self, place: Ref, file: PlannedFile, start: int, stop: int
    ) -> AsyncGenerator[OriginStream]:
        origin = self._shop.origins.for_ref(self.wish.ref)
        async with origin.open(place, file, start, stop, self.wish.access) as stream:
            yield stream

    async def _check_pin(self, target: Target) -> None:
        """Refuse what is surely something else before it is pulled."""
        ref = self.wish.ref
        if ref.pin is None:
            return
        known = target.manifest.digest if target.manifest is not None else None
        if known is None:
            known = await self._shop.work(partial(self._holdings.known, ref, target.plan))
        if known not in {None, ref.pin}:
            raise ArtifactNotFoundError(
                f"{ref.unpinned.safe} is {known} now, and was never {ref.pin} on this node"
            )

    async def _pulled(self, source: Ref, target: Target) -> Shown:
        wish = self.wish
        same = Wish(source, wish.include, wish.exclude, wish.access)
        pull = self._pull = self._begin(same, target)
        with pull.watched():
            await pull.ended.wait()
        if pull.failure is not None:
            raise pull.failure
        assert pull.shown is not None, "a pull that ended well has something to show"
        if wish.ref.pin not in {None, pull.shown.artifact}:
            raise DigestMismatchError(
                str(wish.ref.pin), str(pull.shown.artifact), f"the origin ({wish.ref.safe})"
            )
        return pull.shown

    async def _last_held(self, failure: OriginUnavailableError) -> Shown:
        """What serves while the origin is down.

        Raises:
            OriginUnavailableError: nobody has proved it in time, or it is not here.
        """
        ref, access = self.wish.ref, self.wish.access
        believes = partial(self._prover.believes, ref, access)
        last_held = partial(self._holdings.last_held, ref, self.wish.choice)
        if not await self._shop.work(believes):
            raise OriginUnavailableError(
                f"finding out what {ref.safe} is, and whether these credentials open it"
            ) from failure
        shown = await self._shop.work(last_held)
        known = partial(is_known, self._shop.store, ref)
        if (
            shown is None
            or not await self._shop.work(partial(known, shown))
            or not await self._shop.is_genuine(ref, shown)
        ):
            raise failure
        extra = {"ref": ref.safe, "artifact": str(shown.artifact), "error": failure}
        logger.warning("origin.replaced", extra=extra | {"by": "the copy of this node"})
        return shown
