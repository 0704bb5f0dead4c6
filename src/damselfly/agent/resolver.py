"""From a ref to a plan or a manifest, asking the swarm before the origin.

Nothing is resolved before this agent has met the others (`p2p/membership.py`): it would rank
another home than they do, and read what somebody reads already.

The home of the ref says who resolves it (`p2p/refs.py`); the others fetch the outcome from holders
and check it against its digest, so a holder that lies costs a retry and nothing else.

**A ref without a pin trusts the agents.** Its home may lie about which plan or artifact it is: a
pull then brings what the liar means, whole and verified against the liar's digests. What it cannot
do: make a manifest count for a plan with other files or cuts, have credentials shown to another
host, or stop the agent. A ref with a pin trusts nobody: the manifest is verified against the pin,
and every chunk against the manifest.

**A manifest that peers tell is a hint** (`Target.is_told`). Where the origin published digests of
whole files, the pull compares them for itself; where those differ, or the origin serves other
bytes, the home hears that the artifact is refuted, and the pull begins anew as at first contact.
Whoever says `always` or wants a ref afresh is not content with hints. What was told and not found
out here answers for no ref by itself.

**What is known is not asked for again.** A pin whose manifest this node or the swarm has, and a ref
that never changes (a commit, a digest) whose plan or manifest is here, are answered without a word
to the origin. For others the home says how old its answer may be (`--origin-fresh`), and whoever
asks may say it. An outcome that nobody hands out is asked for anew, so that no long belief keeps a
lost one; a home that insists on it is passed over.

Others know a ref and its plan by `Ref.named`: no query of a ref leaves the agent that was given it.
"""

import asyncio
import logging
from asyncio import FIRST_COMPLETED
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from damselfly.agent.rights import Rights
from damselfly.clock import Clock
from damselfly.errors import (
    ArtifactNotFoundError,
    DamselflyError,
    IntegrityError,
    OriginUnavailableError,
    PeerUnavailableError,
    ProtocolError,
    RemoteProtocolError,
)
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.port import Origin, OriginLimits, Resolved
from damselfly.origin.registry import Origins
from damselfly.p2p.agents import Agents
from damselfly.p2p.messages import AgentID
from damselfly.p2p.refs import AGE_S_MAX, RefHome, RefNews, RefReply, RefReport
from damselfly.p2p.rendezvous import ranked
from damselfly.p2p.transport import PeerPool

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

ANSWER_S = 5.0
"""A home answers at once; this long only when its machine is in trouble."""
HEARTBEAT_S = 5.0
OWN_UP_S = 1.0
"""Whoever cancels a resolution waits no longer for it to be told."""
PLANS_KEPT_MAX = 64
RETRY_S = 0.2
RETRY_S_MAX = 2.0
LOSSES_MAX = 6
"""So often an outcome may have nobody who hands it out, until the home is not listened to."""
PARSED_IN_LOOP_BYTES = 64 << 10
"""What a peer sends is read elsewhere when it is longer: the loop has others to serve."""
NAMED_KEPT_MAX = 8


@dataclass(frozen=True)
class Target:
    """What a ref was found to be: how it is cut, and its manifest once anybody has sealed it."""

    plan: Plan
    manifest: Manifest | None
    is_shared: bool = True
    """Whether other agents can read the same origin."""
    is_told: bool = False
    """The manifest is a word of peers: nobody here has compared it with what the origin has."""
    place: Ref | None = None
    """Where to read it, if that is not where the plan says: where it was proved."""

    def __post_init__(self) -> None:
        """Assert what whoever makes one has checked."""
        assert self.manifest is None or self.manifest.is_of(self.plan), "a manifest of its plan"

    @property
    def untold(self) -> "Target":
        """The same without what peers said: as at first contact."""
        return replace(self, manifest=None, is_told=False) if self.is_told else self


class Resolver:
    """Resolves refs, and remembers the plans it has seen. Belongs to one event loop."""

    def __init__(
        self,
        origins: Origins,
        agents: Agents,
        pool: PeerPool,
        homes: RefHome,
        clock: Clock,
        kept_manifest: Callable[[Digest], Manifest | None],
        *,
        rights: Rights | None = None,
        known: Callable[[Ref], Manifest | None] = lambda ref: None,
        resolve_s: float = OriginLimits().resolve_s,
    ) -> None:
        self._origins = origins
        self._agents = agents
        self._pool = pool
        self._homes = homes
        self._clock = clock
        self._kept_manifest = kept_manifest
        self._rights = rights or Rights()
        self._known = known
        self._resolve_s = resolve_s
        self._plans: OrderedDict[Digest, Plan] = OrderedDict()
        self._fixed: OrderedDict[Ref, Target] = OrderedDict()
        """What refs are that never change."""
        self._named: OrderedDict[Digest, Manifest] = OrderedDict()
        """Manifests that origins left beside their files, and that no pull has kept yet."""
        agents.on_change(self._look)

    @property
    def waiting_for(self) -> str:
        """What a resolution waits for that takes long."""
        if self._agents.has_met:
            return "origin (finding out what there is)"
        return "peers (this agent has just started, and meets them)"

    def plan(self, plan_id: Digest) -> bytes | None:
        """A plan we know, for a peer."""
        plan = self._plans.get(plan_id)
        return plan.canonical() if plan is not None else None

    async def resolve(
        self,
        ref: Ref,
        access: Access = ANONYMOUS,
        age_s_max: float | None = None,
        policy: str = "auto",
    ) -> Target:
        """Find out what `ref` means now; if we are to ask the origin, then with `access`.

        It may have been found out `age_s_max` ago; None: as long ago as agents believe such things.
        `policy` says whether we may ask: `auto`, `never`, or `always` without asking others before.

        Raises:
            DamselflyError: the origin cannot be asked, or what it has is unusable.
        """
        origin = self._origins.for_ref(ref)
        if ref.pin is None and not origin.shared:
            resolved = await self._found(ref, origin, access)
            return Target(resolved.plan, resolved.manifest, is_shared=False)
        if ref.is_immutable and ref.pin is None and age_s_max is None:
            if (known := await self._known_for_ever(ref)) is not None:
                return known
            age_s_max = AGE_S_MAX
        await self._agents.met()
        if ref.pin is not None:
            return await self._pinned(ref, ref.pin, access, policy)
        if policy == "always":
            return (await self._resolve(ref, origin, access)).untold
        target = await self._agreed(ref, origin, access, age_s_max, policy)
        return target.untold if age_s_max == 0.0 and policy != "never" else target

    async def _agreed(
        self, ref: Ref, origin: Origin, access: Access, age_s_max: float | None, policy: str
    ) -> Target:
        """What the home of the ref says, or gives us to find out."""
        asked_s = self._clock.monotonic_s()
        losses = 0
        while True:
            # What was found out after we began to ask is new enough whatever was asked for.
            waited_s = self._clock.monotonic_s() - asked_s
            age = None if age_s_max is None else min(age_s_max + waited_s, AGE_S_MAX)
            async with self._or_failed(ref):
                reply = await self._tell(RefNews.ASK, ref, age_s_max=age)
                must_resolve = reply.must_resolve or losses > LOSSES_MAX
                if must_resolve and policy == "never":
                    return await self._recalled(ref)
                if must_resolve:
                    return await self._resolve(ref, origin, access)
            target = await self._from_holders(ref, reply)
            if target is not None:
                return target
            pause_s = reply.retry_after_s or RETRY_S
            if reply.plan is not None or reply.artifact is not None:
                # Who found it out has gone, and others who have it may come back: asked again
                # once, and then for what is found out from now on.
                losses += 1
                if losses > 1:
                    age_s_max, asked_s = 0.0, self._clock.monotonic_s()
                pause_s = min(RETRY_S * 2**losses, RETRY_S_MAX)
            await asyncio.sleep(pause_s)

    async def _known_for_ever(self, ref: Ref) -> Target | None:
        """What a ref that never changes is: by our own finding, never by what others said."""
        target = self._fixed.get(ref)
        if target is not None:
            return target
        manifest = await asyncio.to_thread(self._known, ref)
        if manifest is None:
            return None
        is_file = [file.path for file in manifest.files] == [ref.name]
        place = ref.as_directory if ref.scheme == "hf" and not is_file else ref
        return Target(manifest.plan(str(place)), manifest)

    async def _recalled(self, ref: Ref) -> Target:
        """What `ref` last was, as far as anybody remembers: the origin is not to be asked."""
        await self._tell(RefNews.FAILED, ref)  # Somebody else may resolve it.
        reply = await self._tell(RefNews.RECALL, ref)
        target = await self._from_holders(ref, reply)
        if target is None:
            raise OriginUnavailableError(
                f"finding out what {ref.safe} is: nobody here remembers, and the origin is never"
                " asked (--origin never)"
            )
        return target

    async def sealed(self, ref: Ref, plan: Plan, artifact: Digest) -> None:
        """Tell the home of `ref` that the plan has become an artifact, and that we have it."""
        with suppress(DamselflyError):
            await self._tell(RefNews.SEALED, ref, plan.id, artifact)

    async def refuted(self, ref: Ref, plan: Plan, artifact: Digest | None = None) -> None:
        """Tell the home of `ref` that the files of this plan are not what the origin had said.

        With an `artifact`: that the plan did not become this one.
        """
        with suppress(DamselflyError):
            await self._tell(RefNews.REFUTED, ref, plan.id, artifact)

    async def sealed_before(self, ref: Ref, plan_id: Digest | None, artifact: Digest) -> None:
        """Tell a new home of `ref` what we know from earlier."""
        with suppress(DamselflyError):
            await self._tell(RefNews.SEALED, ref, plan_id, artifact)

    async def _resolve(self, ref: Ref, origin: Origin, access: Access) -> Target:
        resolved = await self._asked(ref, origin, access)
        plan, manifest = resolved.plan, resolved.manifest
        if ref.is_immutable:
            self._fixed[ref] = Target(plan, manifest)
            if len(self._fixed) > PLANS_KEPT_MAX:
                self._fixed.popitem(last=False)
        if manifest is not None:
            self._named[manifest.digest] = manifest
            if len(self._named) > NAMED_KEPT_MAX:
                self._named.popitem(last=False)
            await self._tell(RefNews.PLANNED, ref, plan.id, manifest.digest)
            return Target(plan, manifest)
        reply = await self._tell(RefNews.PLANNED, ref, plan.id)
        # If somebody sealed exactly this plan before, the digests are known.
        return await self._told_of(plan, reply)

    def _look(self) -> None:
        self._homes.view_changed([(each.agent, each.boot) for each in self._agents.view.values()])

    async def _asked(self, ref: Ref, origin: Origin, access: Access) -> Resolved:
        """Ask the origin, and let the home of `ref` know all the while that we are at it."""
        work = asyncio.ensure_future(self._found(ref, origin, access))
        changed = asyncio.Event()
        stop_listening = self._agents.on_change(changed.set)
        try:
            while not await _done(work, changed, HEARTBEAT_S):
                changed.clear()
                await self._tell(RefNews.RESOLVING, ref)
            return work.result()
        finally:
            stop_listening()
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError, DamselflyError):
                    await work

    async def _found(self, ref: Ref, origin: Origin, access: Access) -> Resolved:
        """Ask the origin, and call what it has as others may know it."""
        shown = await self._rights.shown(ref, access)
        try:
            async with asyncio.timeout(self._resolve_s):
                resolved = await origin.resolve(ref, shown)
        except TimeoutError:
            raise OriginUnavailableError(
                f"finding out what {ref.safe} is takes longer than {self._resolve_s:g} s"
            ) from None
        named = str(Ref.parse(resolved.plan.ref).named)
        if named != resolved.plan.ref:
            resolved = replace(resolved, plan=Plan(named, resolved.plan.files))
        self._keep(resolved.plan)
        return resolved

    @asynccontextmanager
    async def _or_failed(self, ref: Ref) -> AsyncGenerator[None]:
        """Own up to the home of `ref` when this ends badly, or others would wait for us.

        Also when it is cancelled, and when the home was asked and could not be heard: it may have
        given us the task.
        """
        try:
            yield
        except BaseException:
            with suppress(DamselflyError, TimeoutError):
                async with asyncio.timeout(OWN_UP_S):
                    await self._tell(RefNews.FAILED, ref)
            raise

    async def _from_holders(self, ref: Ref, reply: RefReply) -> Target | None:
        if reply.plan is not None:
            plan = await self._plan_of(reply.plan, reply.holders)
            return None if plan is None else await self._told_of(plan, reply)
        if reply.artifact is not None:
            manifest = await self._manifest(reply.artifact, reply.holders)
            if manifest is not None:
                return Target(manifest.plan(str(ref.unpinned.named)), manifest, is_told=True)
        return None

    async def _told_of(self, plan: Plan, reply: RefReply) -> Target:
        """The plan, and what peers say it became."""
        manifest = await self._manifest_of(plan, reply)
        return Target(plan, manifest, is_told=manifest is not None)

    async def _manifest_of(self, plan: Plan, reply: RefReply) -> Manifest | None:
        """The manifest that `plan` became, if the home knows one that can be."""
        if reply.artifact is None:
            return None
        manifest = await self._manifest(reply.artifact, reply.holders)
        if manifest is None or manifest.is_of(plan):
            return manifest
        extra = {"artifact": str(reply.artifact), "plan": str(plan.id)}
        logger.warning("manifest.refused", extra=extra | {"error": "it is of other files or cuts"})
        return None

    async def _pinned(self, ref: Ref, pin: Digest, access: Access, policy: str) -> Target:
        manifest = await self._manifest(pin, list(self._agents.view)[:64])
        if manifest is None and policy == "never":
            raise OriginUnavailableError(
                f"finding out what {ref.safe} is: nobody here has {pin}, and the origin is never"
                " asked (--origin never)"
            )
        if manifest is None:
            origin = self._origins.for_ref(ref)
            resolved = await self._found(ref.unpinned, origin, access)
            manifest = resolved.manifest
            if manifest is None:
                return Target(resolved.plan, None, is_shared=origin.shared)
            if manifest.digest != pin:
                raise ArtifactNotFoundError(
                    f"{ref.safe} is {manifest.digest} now, and nobody here has {pin}"
                )
        return Target(manifest.plan(str(ref.unpinned.named)), manifest)

    async def _manifest(
        self, artifact: Digest, holders: "tuple[AgentID, ...] | list[AgentID]"
    ) -> Manifest | None:
        kept = self._kept_manifest(artifact) or self._named.get(artifact)
        if kept is not None:
            return kept
        for holder in holders:
            data = await self._fetch(holder, f"/v1/manifests/{artifact.hex}")
            if data is None:
                continue
            try:
                artifact.verify(data, holder)
                return await _parsed(Manifest.parse, data)
            except IntegrityError as exc:
                logger.warning("manifest.refused", extra={"peer": holder, "error": str(exc)})
        return None

    async def _plan_of(self, plan_id: Digest, holders: tuple[AgentID, ...]) -> Plan | None:
        known = self._plans.get(plan_id)
        if known is not None:
            return known
        for holder in holders:
            data = await self._fetch(holder, f"/v1/plans/{plan_id.hex}")
            if data is None:
                continue
            try:
                plan_id.verify(data, holder)
                plan = await _parsed(Plan.parse, data)
            except (IntegrityError, ProtocolError) as exc:
                logger.warning("plan.refused", extra={"peer": holder, "error": str(exc)})
                continue
            self._keep(plan)
            return plan
        return None

    async def _fetch(self, holder: AgentID, path: str) -> bytes | None:
        if holder == self._agents.me.agent:
            return None
        try:
            reply = await self._pool.request(holder, "GET", path, deadline_s=30.0)
        except (PeerUnavailableError, ProtocolError) as exc:
            logger.info("peer.lost", extra={"peer": holder, "error": str(exc)})
            self._agents.suspect(holder)
            return None
        return reply.body if reply.status == 200 else None

    async def _tell(
        self,
        news: RefNews,
        ref: Ref,
        plan: Digest | None = None,
        artifact: Digest | None = None,
        age_s_max: float | None = None,
    ) -> RefReply:
        me = self._agents.me
        key = ref_key(ref)
        report = RefReport(news, key, me.agent, me.boot, plan, artifact, age_s_max)
        for home in ranked(key, self._agents.view):
            if home == me.agent:
                break
            try:
                reply = await self._pool.request(
                    home, "POST", "/v1/refs", body=report.to_json(), deadline_s=ANSWER_S
                )
                if reply.status != 200:
                    raise RemoteProtocolError(f"home {home} answers with {reply.status}")
                return RefReply.parse(reply.body)
            except (PeerUnavailableError, ProtocolError) as exc:
                logger.info("peer.lost", extra={"peer": home, "error": str(exc)})
                self._agents.suspect(home)
        return self._homes.reported(report, self._clock.monotonic_s())

    def _keep(self, plan: Plan) -> None:
        self._plans[plan.id] = plan
        self._plans.move_to_end(plan.id)
        if len(self._plans) > PLANS_KEPT_MAX:
            self._plans.popitem(last=False)


async def _done(
    work: "asyncio.Future[Resolved]", changed: asyncio.Event, patience_s: float
) -> bool:
    """Wait until `work` is done, or something changed, or for so long; tell whether it is done."""
    waiter = asyncio.ensure_future(changed.wait())
    try:
        both: set[asyncio.Future[Any]] = {work, waiter}
        await asyncio.wait(both, timeout=patience_s, return_when=FIRST_COMPLETED)
    finally:
        waiter.cancel()
    return work.done()


async def _parsed(parse: Callable[[bytes], _T], data: bytes) -> _T:
    """Parse what a peer sent, beside the loop if that may take a while."""
    if len(data) <= PARSED_IN_LOOP_BYTES:
        return parse(data)
    return await asyncio.to_thread(parse, data)


def ref_key(ref: Ref) -> str:
    """What homes know a ref by: the digest of what others may know of it."""
    return str(Digest.of(str(ref.unpinned.named).encode()))
