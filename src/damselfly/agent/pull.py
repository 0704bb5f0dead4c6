"""One pull: from a ref to a view in the store.

    resolving ── plan ──> fetching ── every wanted chunk ──> checking ── every whole file that its
    origin published a digest of ──> verifying, if it must be signed ──> sealing ── artifact, view
    ──> done

A pull belongs to the agent, not to who asked for it: watchers come and go. A bug that one pull
finds ends that pull and no more (`LocalProtocolError`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from damselfly.agent import possession
from damselfly.agent.checking import Checker
from damselfly.agent.holdings import Choice, Holdings, Shown, chosen, revision_of
from damselfly.agent.resolver import Resolver, Target
from damselfly.agent.rights import Rights
from damselfly.agent.signatures import Found, Signatures
from damselfly.agent.swarms import Swarms
from damselfly.cache.report import ArtifactState, Verdict
from damselfly.cache.store import Ingest, Store
from damselfly.client.answers import Progress, Pulled, PullRequest, Signature
from damselfly.clock import Clock
from damselfly.errors import (
    CancelledError,
    ChunkNotFoundError,
    DamselflyError,
    DigestMismatchError,
    LocalProtocolError,
)
from damselfly.model.bitmap import indexes_of
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest, ManifestFile
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.port import OriginStream
from damselfly.origin.registry import Origins
from damselfly.p2p.handover import handed_over
from damselfly.p2p.journal import How, Journal
from damselfly.p2p.swarm import Source, Swarm
from damselfly.waiting import Waiting, heard

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_WAS_HERE = How("store", "", "")
_COPIED = How("copied", "", "")
ADOPTED_BYTES_MIN = 1 << 20
"""Reading less costs the origin no more than having it show that it has it."""
ROUNDS_MAX = 3
"""A disk that loses chunks between their writing and their sealing so often is broken."""


def _no_endpoint(_ref: Ref) -> str:
    return ""


@dataclass(frozen=True)
class Workshop:
    """What every pull of an agent works with."""

    store: Store
    origins: Origins
    resolver: Resolver
    swarms: Swarms
    workers: Executor
    clock: Clock
    readers: Executor | None = None
    """For reading whole files back, which would hold up what lands; None: the workers do it."""
    rights: Rights = field(default_factory=Rights)
    signatures: Signatures = field(default_factory=Signatures)
    endpoint_of: Callable[[Ref], str] = _no_endpoint
    """Where what a ref names is asked, if the ref does not say; see `Origins.endpoint_of`."""
    policy: str = "auto"
    """When origins are asked, where a pull does not say: `auto`, `never` or `always`."""

    @cached_property
    def possession(self) -> possession.Possession:
        """One for all: who failed in a pull has failed for every volume."""
        return possession.Possession(self.store, self.clock)

    async def work(self, function: "partial[_T]") -> _T:
        """Run what touches the disk in a worker."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function)

    async def is_genuine(self, ref: Ref, shown: Shown, plan: Plan | None = None) -> bool:
        """Whether what is held is signed as it must be; False: only a pull can tell.

        Raises:
            SignatureError: it is not.
        """
        return await self.signatures.are_genuine(self.store, self.workers, ref, shown, plan)


class Pull:
    """A pull that runs, or has ended. Belongs to one event loop.

    `run` is its task; `ended` is set when `outcome` or `failure` is there. With a `target` nothing
    is found out again: what was proved to somebody is what is read.
    """

    def __init__(
        self,
        request: PullRequest,
        ref: Ref,
        workshop: Workshop,
        access: Access = ANONYMOUS,
        target: Target | None = None,
    ) -> None:
        self.request = request
        self.ref = ref
        self.ended = asyncio.Event()
        self.outcome: Pulled | None = None
        self.shown: Shown | None = None
        """What the outcome's path shows."""
        self.failure: DamselflyError | None = None
        self.task: asyncio.Task[None] | None = None
        self.watcher_count = 0
        self._workshop = workshop
        self._access = access
        self._target = target
        self._began_s = workshop.clock.monotonic_s()
        self._phase = "resolving"
        self._waiting = Waiting()
        self.policy = request.origin or workshop.policy
        """When the origin is asked: `auto`, `never` or `always`."""
        self.journal = Journal()
        self.began_ns = workshop.clock.wall_ns()
        self._plan: Plan | None = None
        self._wanted = 0
        self._bytes_total = 0
        self._bytes_from_store = 0
        self._bytes_before: Counter[Source] = Counter()
        """Brought by swarms before this one."""
        self._swarm: Swarm | None = None
        self._checker: Checker | None = None
        self._signed: Found | None = None
        self._is_judged = False
        self._is_own = False
        """That the plan became the artifact is our own finding."""
        self.artifact: Digest | None = None

    @property
    def plan(self) -> Plan | None:
        """How what it brings is cut, as soon as that is known."""
        return self._plan

    def __repr__(self) -> str:
        return f"<Pull {self.ref.safe} {self._phase}>"

    @contextmanager
    def watched(self) -> Generator[None]:
        """Count somebody who waits for it: what nobody waits for may be given up."""
        self.watcher_count += 1
        try:
            yield
        finally:
            self.watcher_count -= 1

    def progress(self) -> Progress:
        """How far it has come."""
        swarm = self._swarm
        by = self._bytes_by_source()
        from_store = self._bytes_from_store + by[Source.STORE]
        return Progress(
            ref=self.ref.safe,
            artifact=str(self.artifact) if self.artifact else None,
            phase=self._phase,
            bytes_done=min(self._bytes_total, from_store + by[Source.ORIGIN] + by[Source.PEER]),
            bytes_total=self._bytes_total,
            bytes_from_origin=by[Source.ORIGIN],
            bytes_from_peers=by[Source.PEER],
            bytes_from_store=from_store,
            peers=swarm.planner.peer_count if swarm is not None else 0,
            seconds=self._seconds(),
            waiting_for=self._waiting_for(),
        )

    async def run(self) -> None:
        """Pull to the end; the outcome is kept, not raised."""
        try:
            with heard(self._waiting):
                self.outcome = await self._pull()
        except DamselflyError as exc:
            self.failure = exc
        except asyncio.CancelledError:
            self.cancelled()
            raise
        except Exception as exc:
            logger.exception("pull.broken", extra={"ref": self.ref.safe})
            self.failure = LocalProtocolError.found(f"pulling {self.ref.safe}", exc)
        finally:
            self.ended.set()
            self._phase = "done" if self.outcome else "failed"
        extra = {
            "ref": self.ref.safe,
            "artifact": str(self.artifact) if self.artifact else None,
            "duration_s": round(self._seconds(), 3),
        }
        if self.outcome is not None:
            logger.info("artifact.completed", extra=extra)
        else:
            logger.warning("pull.failed", extra=extra | {"error": str(self.failure)})

    def cancelled(self) -> None:
        """Somebody stopped it, perhaps before its task had begun."""
        self.failure = CancelledError(f"the pull of {self.ref.safe} was cancelled")
        self.ended.set()

    @property
    def wanted(self) -> int:
        """The chunks that it is to bring."""
        return self._wanted

    def _seconds(self) -> float:
        return self._workshop.clock.monotonic_s() - self._began_s

    def _bytes_by_source(self) -> Counter[Source]:
        now = self._swarm.bytes_by_source if self._swarm is not None else {}
        return self._bytes_before + Counter(now)

    def _waiting_for(self) -> str | None:
        if self._phase == "resolving" and self._seconds() > 1.0:
            return self._waiting.reason or self._workshop.resolver.waiting_for
        if self._phase == "checking" and self._checker is not None:
            return self._checker.waiting_for
        if self._swarm is not None:
            return self._swarm.waiting_for
        is_queued = self._phase == "fetching" and self._seconds() > 1.0
        return "another pull of the same files" if is_queued else None

    # --- the phases --------------------------------------------------------------------------

    async def _pull(self) -> Pulled:
        shop = self._workshop
        target = self._target
        if target is None:
            age_s_max = self.request.age_s_max
            target = await shop.resolver.resolve(self.ref, self._access, age_s_max, self.policy)
        plan = target.plan
        self.journal.grow(plan.chunk_count)
        selected = files = self._select(plan)
        number = await shop.work(partial(shop.signatures.number_in, self.ref, plan))
        if number is not None:
            files |= {number}
            self._is_judged = True
        self._plan = plan
        self._wanted = _bits_of(plan, files)
        self._bytes_total = sum(plan.files[number].bytes for number in files)
        if target.manifest is not None:
            self.artifact = target.manifest.digest
        if target.manifest is None or target.is_told:
            target = await self._known_before(target)
        try:
            target, manifest = await self._gathered(target, files)
        except DigestMismatchError as exc:
            if not target.is_told:
                raise
            # What peers said of this plan is not what the origin has: as at first contact then.
            extra = {"ref": self.ref.safe, "artifact": str(self.artifact), "error": str(exc)}
            logger.warning("manifest.refuted", extra=extra)
            await shop.resolver.refuted(self.ref, plan, self.artifact)
            self.artifact = self._checker = None
            target, manifest = await self._gathered(target.untold, files)
        self._is_own = await shop.work(partial(self._is_found_here, target, plan))
        return await self._finish(plan, manifest, files, selected)

    async def _gathered(self, target: Target, files: frozenset[int]) -> tuple[Target, Manifest]:
        """Bring these files of a target, and seal them."""
        shop, plan = self._workshop, target.plan
        digests: list[Digest | None] = (
            list(target.manifest.digests) if target.manifest else [None] * plan.chunk_count
        )
        if target.manifest is not None:
            await shop.work(partial(shop.store.keep_manifest, target.manifest))
        elif self.policy != "never":  # The origin has to show what is adopted.
            await self._adopt(target, files, digests)
        begin = partial(shop.store.ingest, plan, digests, files)
        ingest = await handed_over(shop.workers, begin, Ingest.close)
        try:
            manifest = await self._brought(target, ingest, files)
            if target.manifest is None:  # The origin delivered every byte, to us or to others.
                whole = Shown(manifest.digest, None)
                now_ns = shop.clock.wall_ns()
                await shop.work(partial(possession.note, shop.store, self.ref, whole, now_ns))
            if target.manifest is None or target.is_told:
                name = str(self.ref.unpinned.named)
                await shop.work(partial(shop.store.keep_versions, name, plan, manifest))
        finally:
            await asyncio.shield(shop.work(partial(ingest.close)))
        return target, manifest

    def _is_found_here(self, target: Target, plan: Plan) -> bool:
        """Whether this node knows for itself that the plan became this, and was not told."""
        if target.manifest is not None and not target.is_told:
            return self.ref.pin is None  # A pin is the word of whoever wrote it.
        checked = self._checker.hashing.found_here if self._checker is not None else {}
        read = bytearray(plan.chunk_count)
        for entry in self.journal.entries(range(plan.chunk_count)):
            read[entry.index] = entry.how.source == Source.ORIGIN
        return all(
            number in checked or all(read[index] for index in plan.indexes(number))
            for number in range(len(plan.files))
        )

    async def _adopt(
        self, target: Target, files: frozenset[int], digests: list[Digest | None]
    ) -> None:
        """Find files that are here already, by published digests or by the version of before.

        A version counts for the very ref that it was delivered to, and at the same path.
        The others of the swarm are told these digests, pods among them: so the origin has to show
        that it has the bytes, whoever asks (`possession.py`).
        """
        shop, plan = self._workshop, target.plan
        name = str(self.ref.unpinned.named)
        read = partial(self._open_span, self._place_of(target))
        for number in sorted(files):
            planned = plan.files[number]
            if planned.bytes < ADOPTED_BYTES_MIN:
                continue
            found = await shop.work(partial(_found_here, shop.store, name, planned))
            if found is None or not await shop.possession.has(planned, found, read, work=shop.work):
                continue
            for index, chunk in zip(plan.indexes(number), found.chunks, strict=True):
                digests[index] = chunk.digest

    async def _brought(self, target: Target, ingest: Ingest, files: frozenset[int]) -> Manifest:
        """Fetch and seal; a chunk that is found bad while it is sealed is fetched again."""
        rounds = 0
        while True:
            rounds += 1
            self._phase = "fetching"
            try:
                manifest = await self._fetch(target, ingest, files)
                await self._judge(target.plan, manifest, files)
                self._phase = "sealing"
                await self._workshop.work(partial(ingest.seal, manifest))
                if self._checker is not None:
                    await self._checker.keep()
            except ChunkNotFoundError as exc:
                if rounds == ROUNDS_MAX:
                    raise
                logger.warning("pull.resumed", extra={"ref": self.ref.safe, "error": str(exc)})
            else:
                return manifest

    async def _judge(self, plan: Plan, manifest: Manifest, files: frozenset[int]) -> None:
        """Refuse what is not signed as it must be, before there is an artifact of it."""
        shop = self._workshop
        if self._is_judged:
            self._phase = "verifying"
        self._signed = await shop.signatures.judged(
            shop.store, shop.workers, self.ref, manifest, plan, files
        )

    @property
    def _choice(self) -> Choice:
        return self.request.include, self.request.exclude

    def _select(self, plan: Plan) -> frozenset[int]:
        return chosen([file.path for file in plan.files], self._choice, self.ref)

    async def _known_before(self, target: Target) -> Target:
        """A plan that we sealed earlier has its manifest here, and needs no first contact."""
        store = self._workshop.store
        holdings = Holdings(store)
        is_told = False
        artifact = await self._workshop.work(partial(holdings.known, self.ref, target.plan))
        is_content = self.policy != "always" and self.request.age_s_max != 0.0
        if artifact is None and target.manifest is None and is_content:
            is_told = True
            artifact = await self._workshop.work(partial(holdings.told, self.ref, target.plan))
        if artifact is None:
            return target
        manifest = await self._workshop.work(partial(store.manifest, artifact))
        if manifest is None:
            return target
        self.artifact = artifact
        return replace(target, manifest=manifest, is_told=is_told)

    async def _fetch(self, target: Target, ingest: Ingest, files: frozenset[int]) -> Manifest:
        shop = self._workshop
        plan = target.plan
        is_first = self._swarm is None
        self._bytes_before, self._swarm = self._bytes_by_source(), None
        began_s = self._seconds()
        had, found = await shop.work(partial(_copy_what_is_here, ingest, plan, self._wanted))
        if is_first:
            self._bytes_from_store = _bytes_of(plan, found & self._wanted)
            took_s = self._seconds() - began_s
            for index in indexes_of(found & self._wanted):
                how = _WAS_HERE if had >> index & 1 else _COPIED
                self.journal.note(index, how, began_s, took_s)
        is_sealed = target.manifest is not None
        name = target.manifest.digest if target.manifest is not None else plan.id
        place = self._place_of(target)
        open_span = partial(self._open_span, place)
        async with shop.swarms.pulling(
            name,
            plan,
            ingest,
            wanted=self._wanted,
            open_span=open_span if self.policy != "never" else None,
            is_sealed=is_sealed,
            is_eager=self.policy == "always",
        ) as swarm:
            self._swarm = swarm
            swarm.journal = self.journal
            swarm.journal_from_s = self._began_s
            swarm.origin_name = host_of(place, shop.endpoint_of(place))
            if is_first:  # Another pull may have been at it, and brought what we want.
                self._bytes_from_store = _bytes_of(plan, swarm.planner.have & self._wanted)
            await self._completed(target, ingest, files, swarm)
            manifest = target.manifest or _sealed(plan, files, swarm)
            if self.ref.pin is not None and manifest.digest != self.ref.pin:
                raise DigestMismatchError(
                    str(self.ref.pin), str(manifest.digest), f"the origin ({self.ref.safe})"
                )
            self.artifact = manifest.digest
            if not is_sealed and len(manifest.files) == len(plan.files):
                swarm.planner.sealed(manifest.digest, shop.clock.monotonic_s())
        return manifest

    def _place_of(self, target: Target) -> Ref:
        """Where to read what was found."""
        return target.place or self.ref.place_of(target.plan.ref)

    @asynccontextmanager
    async def _open_span(
        self, place: Ref, file: PlannedFile, start: int, stop: int
    ) -> AsyncGenerator[OriginStream]:
        # Not the origin of the place: a plan may come from a peer, and name a file of this machine.
        origin = self._workshop.origins.for_ref(self.ref)
        access = await self._workshop.rights.shown(self.ref, self._access, place)
        async with origin.open(place, file, start, stop, access) as stream:
            yield stream

    async def _completed(
        self, target: Target, ingest: Ingest, files: frozenset[int], swarm: Swarm
    ) -> None:
        """Wait for every chunk, and for every whole file to be what its origin published."""
        if target.manifest is not None and not target.is_told:
            await swarm.completed()  # Its chunks were sealed by the origin, or here: they rule.
            return
        shop = self._workshop
        checker = self._checker = Checker(
            shop.store,
            ingest,
            swarm,
            files,
            self.ref.safe,
            shop.readers or shop.workers,
            shop.clock,
            believes=not target.is_told,
        )
        try:
            async with checker.running():
                await swarm.completed()
                self._phase = "checking"
                await checker.settled()
        except DigestMismatchError:
            if target.is_shared and not target.is_told:
                await shop.resolver.refuted(self.ref, target.plan)
            raise

    async def _finish(
        self, plan: Plan, manifest: Manifest, files: frozenset[int], selected: frozenset[int]
    ) -> Pulled:
        shop = self._workshop
        store = shop.store
        artifact = manifest.digest
        verdict = None
        if self._signed is not None:
            verdict = await shop.work(partial(shop.signatures.keep, store, manifest, self._signed))
        is_whole = len(selected) == len(plan.files) or len(manifest.files) < len(plan.files)
        self.shown = Shown(artifact, None if is_whole else selected, plan.ref)
        view: Path = await shop.work(partial(store.view, artifact, self.shown.files))
        ref = self.ref.unpinned.named
        is_part = len(manifest.files) < len(plan.files)
        choice = self._choice if is_part else None
        revision = revision_of(plan.id, choice, is_told=not self._is_own)
        await shop.work(partial(store.remember, str(ref), revision, artifact))
        if not is_part and ref.scheme != "file":
            await shop.resolver.sealed(ref, plan, artifact)
        held = await shop.work(partial(store.held, artifact))
        await shop.swarms.seed(manifest, held, str(ref))
        by = self._bytes_by_source()
        return Pulled(
            ref=self.ref.safe,
            artifact=str(artifact),
            path=str(view),
            bytes=self._bytes_total,
            files=len(files),
            seconds=round(self._seconds(), 3),
            bytes_from_origin=by[Source.ORIGIN],
            bytes_from_peers=by[Source.PEER],
            bytes_from_store=self._bytes_from_store + by[Source.STORE],
            signature=signature_of(verdict),
        )


def _found_here(store: Store, ref: str, file: PlannedFile) -> ManifestFile | None:
    return store.whole_like(file) or store.same_version(ref, file)


def _bits_of(plan: Plan, files: Iterable[int]) -> int:
    bits = 0
    for number in files:
        indexes = plan.indexes(number)
        bits |= ((1 << len(indexes)) - 1) << indexes.start
    return bits


def _bytes_of(plan: Plan, bits: int) -> int:
    return sum(length for index, length in enumerate(plan.lengths) if bits >> index & 1)


def _copy_what_is_here(ingest: Ingest, plan: Plan, wanted: int) -> tuple[int, int]:
    """Take chunks that other files of the store have; returns what was held, and what is now."""
    digests = ingest.digests()
    had = have = ingest.have().bits
    for index in range(plan.chunk_count):
        digest = digests[index]
        if wanted >> index & 1 and not have >> index & 1 and digest is not None:
            with suppress(FileNotFoundError):
                if ingest.copy_local(index, digest):
                    have |= 1 << index
    return had, have


def _sealed(plan: Plan, files: frozenset[int], swarm: Swarm) -> Manifest:
    """The manifest of what was pulled: of everything if every digest is known, else of `files`."""
    digests = swarm.digests
    if len(digests) == plan.chunk_count:
        return Manifest.seal(plan, [digests[index] for index in range(plan.chunk_count)])
    chosen = sorted(files)
    part = Plan(plan.ref, tuple(plan.files[number] for number in chosen))
    indexes = [index for number in chosen for index in plan.indexes(number)]
    return Manifest.seal(part, [digests[index] for index in indexes])


def signature_of(verdict: Verdict | None) -> Signature | None:
    """A verdict, for whoever asks the agent."""
    if verdict is None:
        return None
    return Signature(
        by=verdict.signer,
        method=verdict.method,
        verified_ns=verdict.verified_ns,
        files=len(verdict.files),
    )


def is_held(state: ArtifactState) -> bool:
    """Whether an artifact of this state has files to show."""
    return state is not ArtifactState.KNOWN


def host_of(ref: Ref, endpoint: str = "") -> str:
    """Whom the origin's chunks are from: never with a query, never with anybody's name.

    A repository or a bucket is told, and where it is asked if the ref does not say.
    """
    if ref.scheme in {"http", "https"}:
        return ref.netloc
    names = {"hf": ref.repository, "oci": f"{ref.netloc}/{ref.repository}"}
    named = f"{ref.scheme}://{names.get(ref.scheme, ref.netloc)}"
    return f"{named} at {endpoint}" if endpoint else named
