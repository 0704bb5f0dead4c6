"""The agent's answers to its own socket: what `damselfly` verbs do on this node."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from damselfly import __version__
from damselfly.agent.config import AgentConfig
from damselfly.agent.credentials import CredentialsFile
from damselfly.agent.explaining import Remembered, explained
from damselfly.agent.keeping import kept
from damselfly.agent.preparation import Preparation, Wish
from damselfly.agent.pull import Pull, Workshop, is_held, signature_of
from damselfly.agent.resolver import Target
from damselfly.agent.signature_rules import Rules
from damselfly.agent.verifying import Verifier
from damselfly.agent.volume import VolumeLimits, Volumes
from damselfly.agent.watch import watched
from damselfly.cache import report
from damselfly.client.answers import (
    BadChunk,
    Cancelled,
    Capacity,
    CapacityRequest,
    Check,
    Collected,
    Diagnosis,
    Explained,
    HeldArtifact,
    Opened,
    PeerStatus,
    Progress,
    Pulled,
    PullRequest,
    Removed,
    Setting,
    Status,
    StoreStatus,
    Traffic,
    Verified,
    VerifyProgress,
    VolumeRequest,
)
from damselfly.errors import (
    AgentUnavailableError,
    ArtifactNotFoundError,
    DamselflyError,
    JobNotFoundError,
    SignatureError,
    StoreFullError,
    UnavailableError,
    UsageError,
    explain,
)
from damselfly.model.digest import Digest
from damselfly.model.ref import Ref
from damselfly.origin.access import OWN, Access
from damselfly.origin.signature import INSTALL, is_installed
from damselfly.p2p.agents import Agents
from damselfly.p2p.swarm import Source
from damselfly.p2p.transport import Certificates

PULLS_MAX = 256
POLICIES = ("auto", "never", "always")
HOLD_ATTEMPTS = 3
"""How often what is evicted before it could be leased is pulled again."""
CERTIFICATE_HOURS_MIN = 2.0
"""Short-lived ones are renewed when a third of their life is left: of 6 hours, in two."""
_Task = tuple[Wish, tuple[Digest, Ref | None] | None, float | None]
"""What makes two pulls one: what is wished for, what was proved, how old the answer may be."""
_PREFIX = re.compile(r"(?:blake3:)?([0-9a-f]{6,64})", re.ASCII)


@dataclass(slots=True)
class Counters:
    """Bytes moved since the agent started."""

    origin: int = 0
    peers: int = 0
    store: int = 0
    served: int = 0

    def landed(self, source: Source, length: int) -> None:
        """Count a chunk that came."""
        match source:
            case Source.ORIGIN:
                self.origin += length
            case Source.PEER:
                self.peers += length
            case Source.STORE:
                self.store += length


class LocalNode:
    """This node, for the API. Belongs to one event loop; pulls run in the given task group."""

    def __init__(
        self,
        config: AgentConfig,
        workshop: Workshop,
        agents: Agents,
        counters: Counters,
        tasks: asyncio.TaskGroup,
        ended: Callable[[Pull], None] = lambda pull: None,
        certificates: Certificates | None = None,
        credentials: CredentialsFile | None = None,
    ) -> None:
        self._certificates = certificates
        self._credentials = credentials
        self._config = config
        self._ended = ended
        self._shop = workshop
        self._agents = agents
        self._counters = counters
        self._tasks = tasks
        self._pulls: dict[_Task, Pull] = {}
        self._remembered = Remembered()
        self._verifier = Verifier(workshop, self.pull)
        volume_limits = VolumeLimits(fresh_s=config.origin.fresh_s)
        self._volumes = Volumes(config.volumes, workshop, self._begun, tasks, volume_limits)
        self._began_s = workshop.clock.monotonic_s()
        self.state = "starting"

    # --- pulls -------------------------------------------------------------------------------

    async def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        """Start or join a pull, and watch it; keep what it brought while `hold` says so."""
        for _ in range(HOLD_ATTEMPTS):
            pull = self._started(request)
            with pull.watched():
                async for progress in watched(pull.ended, pull.progress):
                    yield progress
            if pull.failure is not None:
                raise pull.failure
            assert pull.outcome is not None
            assert pull.shown is not None
            yield pull.progress()
            if not request.hold:
                yield pull.outcome
                return
            async with kept(self._shop, pull.shown.artifact) as keeping:
                if await self._shop.work(partial(Path(pull.outcome.path).is_dir)):
                    yield pull.outcome
                    await keeping
        raise StoreFullError(f"{Ref.parse(request.ref).safe} is evicted as soon as it is pulled")

    def _started(self, request: PullRequest) -> Pull:
        return self._begun(_wish_of(request), age_s_max=request.age_s_max)

    def _begun(
        self, wish: Wish, target: Target | None = None, age_s_max: float | None = None
    ) -> Pull:
        """Begin a pull, or join the one that runs: one for a ref, filters, and credentials.

        With a `target` also one for its plan and place: who proved them gets no others.
        """
        if self.state == "draining":
            raise AgentUnavailableError("the agent is stopping: it takes no new pulls")
        proved = None if target is None else (target.plan.id, target.place)
        task = (wish, proved, age_s_max)
        pull = self._pulls.get(task)
        if pull is not None:
            return pull
        if len(self._pulls) >= PULLS_MAX:
            raise UnavailableError(f"{PULLS_MAX} pulls run already")
        request = PullRequest(
            ref=str(wish.ref),
            include=wish.include,
            exclude=wish.exclude,
            age_s_max=age_s_max,
            origin=wish.policy,
        )
        pull = self._pulls[task] = Pull(request, wish.ref, self._shop, wish.access, target)
        self._remembered.add(pull)
        pull.task = self._tasks.create_task(pull.run())

        def forget(_: asyncio.Task[None]) -> None:
            del self._pulls[task]
            if not pull.ended.is_set():
                pull.cancelled()
            self._ended(pull)

        pull.task.add_done_callback(forget)
        return pull

    def open_volume(self, request: VolumeRequest) -> AsyncIterator[Progress | Opened]:
        """Open a volume, and watch what it takes."""
        if self.state == "draining":
            raise AgentUnavailableError("the agent is stopping: it opens no volumes")
        return self._volumes.open(request)

    async def capacity(self, request: CapacityRequest) -> Capacity:
        """How much could be stored."""
        return await self._volumes.capacity(request)

    async def pulls(self) -> Sequence[Progress]:
        """The pulls that run."""
        begun = [pull.progress() for pull in self._pulls.values()]
        return begun + [preparation.progress() for preparation in self._volumes.resolving()]

    async def cancel(self, target: str) -> Sequence[Cancelled]:
        """Stop the pulls of `target`."""
        running: list[Pull | Preparation] = [*self._pulls.values(), *self._volumes.resolving()]
        found = [job for job in running if _is_meant(job, target)]
        if not found:
            raise JobNotFoundError(f"no pull of {target[:200]} is running")
        for job in found:
            if job.task is not None:
                job.task.cancel()
        for job in found:
            await job.ended.wait()
        return [
            Cancelled(ref=job.ref.safe, artifact=str(job.artifact) if job.artifact else None)
            for job in found
        ]

    async def explain(self, target: str) -> Explained:
        """Where the chunks of the latest pull of `target` came from."""
        for pull in self._remembered.latest():
            if _is_meant(pull, target):
                return explained(pull)
        raise JobNotFoundError(f"no pull of {target[:200]} is remembered")

    def is_pulling(self, request: PullRequest) -> bool:
        """Whether such a pull runs."""
        return _task_of(request) in self._pulls

    async def give_up(self, request: PullRequest) -> bool:
        """Stop a pull that nobody watches; tells whether it was stopped."""
        pull = self._pulls.get(_task_of(request))
        if pull is None or pull.task is None or pull.watcher_count:
            return False
        pull.task.cancel()
        await asyncio.wait({pull.task})
        return True

    async def stop(self, patience_s: float) -> None:
        """Take no new pulls, and end those that run."""
        self.state = "draining"
        await self._volumes.stop()
        tasks = [pull.task for pull in self._pulls.values() if pull.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=patience_s)

    def unready(self) -> list[str]:
        """Why the agent should not be asked for anything now; empty when it may."""
        return [] if self.state == "ready" else [f"the agent is {self.state}"]

    # --- artifacts ---------------------------------------------------------------------------

    async def artifacts(self) -> Sequence[HeldArtifact]:
        """What the store holds, most recently used first."""
        return await self._shop.work(partial(self._all_held))

    def _all_held(self) -> list[HeldArtifact]:
        held = [info for info in self._shop.store.artifacts() if is_held(info.state)]
        return [self._held(info) for info in sorted(held, key=lambda info: -info.used_ns)]

    def _held(self, info: report.ArtifactInfo) -> HeldArtifact:
        verdict = next(iter(self._shop.store.verdicts(info.artifact)), None)
        return HeldArtifact(
            artifact=str(info.artifact),
            # Stores of 0.1 have kept queries.
            refs=tuple(str(Ref.parse(text).named) for text in info.refs),
            bytes=info.bytes,
            bytes_held=info.bytes_held,
            files=info.file_count,
            pinned=info.is_pinned,
            leases=len(info.leases),
            used_ns=info.used_ns,
            signature=signature_of(verdict),
        )

    async def _find(self, name: str) -> report.ArtifactInfo:
        infos = await self._shop.work(partial(self._shop.store.artifacts))
        match = _PREFIX.fullmatch(name)
        if match is not None:
            found = [info for info in infos if info.artifact.hex.startswith(match[1])]
        else:
            ref = Ref.parse(name)
            found = [
                info
                for info in infos
                if str(ref.unpinned.named) in info.refs and ref.pin in {None, info.artifact}
            ]
            found.sort(key=lambda info: -info.used_ns)
            found = found[:1]
        if not found:
            raise ArtifactNotFoundError(f"the store has no artifact {name[:200]}")
        if len(found) > 1:
            raise UsageError(f"{name} could be any of {len(found)} artifacts: give more digits")
        return found[0]

    async def remove(self, artifact: str) -> Removed:
        """Take an artifact out of the store."""
        info = await self._find(artifact)
        removed = await self._shop.work(partial(self._shop.store.remove, info.artifact))
        await self._shop.swarms.leave(info.artifact)
        return Removed(artifact=str(info.artifact), bytes_freed=removed.bytes)

    async def pin(self, artifact: str) -> HeldArtifact:
        """Keep an artifact from eviction."""
        info = await self._find(artifact)
        await self._shop.work(partial(self._shop.store.pin, info.artifact))
        found = await self._find(str(info.artifact))
        return await self._shop.work(partial(self._held, found))

    async def unpin(self, artifact: str) -> HeldArtifact:
        """Let an artifact be evicted again."""
        info = await self._find(artifact)
        await self._shop.work(partial(self._shop.store.unpin, info.artifact))
        found = await self._find(str(info.artifact))
        return await self._shop.work(partial(self._held, found))

    async def keep(self, pulled: Pulled, *, pin: bool, lease_id: str, ttl_s: float | None) -> bool:
        """Pin what was pulled, or lease it; False if it was evicted before that."""
        artifact = Digest.parse(pulled.artifact)
        store = self._shop.store
        if ttl_s is not None:
            await self._shop.work(partial(store.lease, artifact, lease_id, ttl_s))
        if pin:
            try:
                await self._shop.work(partial(store.pin, artifact))
            except ArtifactNotFoundError:
                return False
        return await self._shop.work(partial(os.path.isdir, pulled.path))

    async def gc(self) -> Collected:
        """Remove what nothing refers to."""
        removed = await self._shop.work(partial(self._shop.store.gc))
        return Collected(bytes_freed=removed.bytes, files=removed.file_count)

    # --- verify ------------------------------------------------------------------------------

    async def verify(
        self, artifact: str | None, *, repair: bool
    ) -> AsyncIterator[VerifyProgress | BadChunk | Verified]:
        """Re-read and re-hash; fetch what is bad again if asked to."""
        target = (await self._find(artifact)).artifact if artifact is not None else None
        async with aclosing(self._verifier.verify(target, repair=repair)) as items:
            async for item in items:
                yield item

    # --- at a glance -------------------------------------------------------------------------

    async def status(self) -> Status:
        """The agent at a glance."""
        usage = await self._shop.work(partial(self._shop.store.usage))
        me = self._agents.me
        counters = self._counters
        return Status(
            version=__version__,
            agent=me.agent,
            state=self.state,
            zone=me.zone,
            pid=os.getpid(),
            uptime_s=round(self._shop.clock.monotonic_s() - self._began_s, 3),
            store=StoreStatus(
                path=str(self._config.store.path),
                bytes=usage.bytes,
                capacity_bytes=usage.capacity_bytes
                or usage.bytes + max(0, usage.free_bytes - usage.keep_free_bytes),
                reserved_bytes=usage.reserved_bytes,
                free_bytes=usage.free_bytes,
                artifacts=usage.artifact_count,
                leases=usage.lease_count,
                pins=usage.pin_count,
            ),
            peers=tuple(
                PeerStatus(agent=hello.agent, state="connected", zone=hello.zone)
                for agent, hello in sorted(self._agents.view.items())
                if agent != me.agent
            ),
            pulls=tuple(await self.pulls()),
            traffic=Traffic(
                bytes_from_origin=counters.origin,
                bytes_from_peers=counters.peers,
                bytes_from_store=counters.store,
                bytes_served=counters.served,
            ),
        )

    async def doctor(self) -> Diagnosis:
        """Look at everything that commonly goes wrong."""
        path = self._config.store.path
        disk = await self._shop.work(partial(shutil.disk_usage, path))
        checks = [_disk_check(path, disk.free, self._config.store.keep_free_bytes)]
        checks.append(await self._shop.work(partial(_signature_check, self._shop.signatures.rules)))
        checks.append(_tls_check(self._certificates, self._shop.clock.wall_ns() / 1e9))
        if self._credentials is not None:
            await self._shop.work(partial(self._credentials.look))
            checks.append(_credentials_check(self._credentials))
        alive = len(self._agents.view) - 1
        checks.append(
            Check(
                name="peers",
                verdict="ok" if alive else "warning",
                detail=f"{alive} alive, listed by {self._config.swarm.peers}",
                advice="" if alive else "alone, every byte comes from the origin: see --peers",
            )
        )
        try:
            infos = await self._shop.work(partial(self._shop.store.artifacts))
            degraded = [i for i in infos if i.state is report.ArtifactState.DEGRADED]
            checks.append(
                Check(
                    name="artifacts",
                    verdict="bad" if degraded else "ok",
                    detail=f"{len(infos)} known, {len(degraded)} degraded",
                    advice="damselfly verify --repair" if degraded else "",
                )
            )
        except DamselflyError as exc:
            checks.append(Check(name="artifacts", verdict="bad", detail=str(exc)))
        settings = tuple(
            Setting(key=key, value=value, source=source)
            for key, value, source in self._config.effective()
        )
        return Diagnosis(checks=tuple(checks), settings=settings)


def _signature_check(rules: Rules) -> Check:
    """Look at the rules, and whether there is everything that they name."""
    found = rules.all()
    if rules.trouble:
        return Check(
            name="signatures",
            verdict="bad",
            detail=f"the old rules ({len(found)}) count: {rules.trouble}",
            advice="correct [[signatures]] in the configuration; it is read again by itself",
        )
    unread: list[str] = []
    for rule in found:
        try:
            if rule.method is not None:
                rule.trust()
        except SignatureError as exc:
            unread.append(f"{rule.prefix} is refused: {explain(exc)}")
    if unread:
        return Check(name="signatures", verdict="bad", detail="; ".join(unread)[:1000])
    if any(rule.method for rule in found) and not is_installed():
        return Check(
            name="signatures",
            verdict="bad",
            detail="nothing verifies them here: what must be signed is refused",
            advice=INSTALL,
        )
    detail = ", ".join(f"{rule.prefix} {rule.require}" for rule in found)[:1000]
    return Check(name="signatures", verdict="ok", detail=detail or "no rules: nothing is verified")


def _tls_check(certificates: Certificates | None, now_s: float) -> Check:
    if certificates is None:
        return Check(name="tls", verdict="ok", detail="none: peers speak plainly (see --tls-cert)")
    hours = (certificates.ends_s - now_s) / 3600
    names = ", ".join(certificates.names)
    if hours < CERTIFICATE_HOURS_MIN:
        return Check(
            name="tls",
            verdict="bad" if hours <= 0 else "warning",
            detail=f"the certificate ends in {hours:.0f} h" if hours > 0 else "it has ended",
            advice="whoever renews it does not: its files are read again as soon as they change",
        )
    return Check(name="tls", verdict="ok", detail=f"peers are {names}; ends in {hours:.0f} h")


def _credentials_check(credentials: CredentialsFile) -> Check:
    detail = f"{len(credentials.prefixes)} prefixes in {credentials.path}"
    if credentials.trouble is None:
        return Check(name="credentials", verdict="ok", detail=detail)
    return Check(
        name="credentials",
        verdict="warning",
        detail=f"{credentials.trouble}; {detail} as it was before count",
        advice="repair the file: it is read again as soon as it changes",
    )


def _disk_check(path: Path, free: int, keep_free: int) -> Check:
    is_low = free < keep_free
    return Check(
        name="disk",
        verdict="bad" if is_low else "ok",
        detail=f"{free >> 20} MiB free at {path}, {keep_free >> 20} MiB are kept free",
        advice="free some space, or give the store a larger disk" if is_low else "",
    )


def _wish_of(request: PullRequest) -> Wish:
    """Who asks through the socket and shows nothing asks for the agent itself."""
    given = request.credentials
    access = (
        OWN
        if given is None
        else Access.of(token=given.token, username=given.username, password=given.password)
    )
    include = tuple(sorted(set(request.include)))
    exclude = tuple(sorted(set(request.exclude)))
    if request.origin is not None and request.origin not in POLICIES:
        known = ", ".join(POLICIES)
        raise UsageError(f"no policy is called {request.origin[:40]!a}: there are {known}")
    return Wish(Ref.parse(request.ref), include, exclude, access, request.origin)


def _task_of(request: PullRequest) -> _Task:
    """Equal for requests that are one pull."""
    return _wish_of(request), None, request.age_s_max


def _is_meant(job: Pull | Preparation, target: str) -> bool:
    match = _PREFIX.fullmatch(target)
    if match is not None:
        return job.artifact is not None and job.artifact.hex.startswith(match[1])
    return Ref.parse(target).unpinned.named == job.ref.unpinned.named
