"""One member's part in one swarm: the shell around a `Planner`.

    facts:   replies, live lines, have lines, chunks that landed, failures, time
    actions: reports, streams, asks, origin reads

A chunk is received into a pooled buffer, hashed and kept by a worker thread, and only then told to
the planner and to those who follow us. Facts are told where they arise; one callback drains the
actions soon after. Every task belongs to `run`, which ends them all. A bug that one of them finds
ends this membership, and no other.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Protocol

from damselfly.clock import Clock
from damselfly.errors import (
    DamselflyError,
    DeniedError,
    DigestMismatchError,
    IntegrityError,
    LocalProtocolError,
    NotFoundError,
    OriginDeniedError,
    OriginUnavailableError,
    PeerUnavailableError,
    ProtocolError,
    RemoteProtocolError,
)
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.p2p.actions import (
    Action,
    Ask,
    AskFailure,
    CancelAsk,
    CancelOrigin,
    CloseLive,
    FetchOrigin,
    Finish,
    Follow,
    GiveUp,
    GiveUpReason,
    OpenLive,
    OriginFailure,
    OriginReason,
    ReportFailure,
    SendReport,
    TellCorrupt,
    Unfollow,
)
from damselfly.p2p.agents import Agents
from damselfly.p2p.feed import HaveFeed
from damselfly.p2p.hashing import HashReply, HashReport
from damselfly.p2p.homes import Homes
from damselfly.p2p.journal import How, Journal
from damselfly.p2p.lines import Lines
from damselfly.p2p.messages import AgentID, HaveLine, LiveLine, Reply, Run, SwarmID
from damselfly.p2p.planner import Planner, PlannerLimits
from damselfly.p2p.transport import BufferPool, BufferShare, PeerPool
from damselfly.waiting import Waiting, heard, waiting_for

logger = logging.getLogger(__name__)


HASHES_S = 3.0
"""A home answers at once; this long only when its machine is in trouble."""


class Source(StrEnum):
    """Where a chunk came from."""

    ORIGIN = "origin"
    PEER = "peer"
    STORE = "store"


class Keeper(Protocol):
    """Where chunks are kept; thread-safe, called by workers."""

    def have(self) -> Bitmap:
        """The chunks held, verified."""
        ...

    def digests(self) -> Sequence[Digest | None]:
        """The digests known, by index."""
        ...

    def write(self, index: int, digest: Digest, data: memoryview) -> None:
        """Keep a verified chunk; on return it survives the end of this process."""
        ...

    def copy_local(self, index: int, digest: Digest) -> bool:
        """Take the chunk from elsewhere on this node, verified; False if it is not there."""
        ...

    @property
    def has_others(self) -> bool:
        """There are chunks elsewhere on this node: looking for one may be worth it."""
        ...


class SpanStream(Protocol):
    """A span of a file at the origin, read in order."""

    @property
    def first_byte_s(self) -> float | None:
        """How long the first byte took; None before it came."""
        ...

    async def readinto(self, view: memoryview) -> None:
        """Fill `view` with the next bytes."""
        ...


OpenSpan = Callable[[PlannedFile, int, int], AbstractAsyncContextManager[SpanStream]]
"""Reads bytes `[start, stop)` of a file from the origin."""


@dataclass(frozen=True, kw_only=True)
class SwarmLimits:
    """What one swarm may take, and how patient it is."""

    stall_s: float = 10.0
    """A transfer without a byte for so long is given up; the planner hedges long before."""
    progress_interval_s: float = 0.25
    origin_slice_bytes: int = 1 << 20
    origin_patience_s: float = 60.0
    """The origin fails, and nobody has brought a chunk for so long: the pull fails."""
    followers_max: int = 512
    lines_waiting_max: int = 256


@dataclass(frozen=True)
class Surroundings:
    """What every swarm of an agent shares."""

    agents: Agents
    homes: Homes
    talk: PeerPool
    """For words: on the connection that brings chunks they would wait behind megabytes."""
    pool: PeerPool
    """For chunks."""
    buffers: BufferPool
    workers: Executor
    clock: Clock
    landed: Callable[[Source, int, float], None]
    """Hears of every chunk that came: from where, its bytes, the seconds it took."""
    corrupt: Callable[[Source], None]
    """Hears of every chunk that does not match its digest: where it came from."""
    claimed: Callable[[], None] = lambda: None
    """Hears of every run that is read from an origin."""
    read: Callable[[OriginReason], None] = lambda why: None
    """Hears of every chunk that came from an origin: why it was asked."""
    limits: SwarmLimits = field(default_factory=SwarmLimits)
    planner_limits: PlannerLimits = field(default_factory=PlannerLimits)


class Swarm:
    """A membership in one swarm, from `run` until it is cancelled. Belongs to one event loop.

    `completed` returns once every wanted chunk is held, or raises what made that impossible.
    """

    def __init__(
        self,
        swarm: SwarmID,
        plan: Plan,
        keeper: Keeper,
        around: Surroundings,
        *,
        wanted: int,
        open_span: OpenSpan | None,
        is_sealed: bool,
        is_eager: bool = False,
    ) -> None:
        """Who `is_eager` reads everything from the origin (`--origin always`)."""
        self.journal = Journal()
        self.origin_name = "origin"
        self.swarm = swarm
        self.plan = plan
        self._name = Ref.parse(plan.ref).safe  # A query may hold a signature.
        self.bytes_by_source: dict[Source, int] = dict.fromkeys(Source, 0)
        self._keeper = keeper
        self._around = around
        self._room = BufferShare(around.buffers)
        self._open_span = open_span
        me = around.agents.me
        now = around.clock.monotonic_s()
        digests = {i: d for i, d in enumerate(keeper.digests()) if d is not None}
        self.planner = Planner(
            swarm,
            me.agent,
            me.boot,
            chunk_count=plan.chunk_count,
            have=keeper.have().bits,
            wanted=wanted,
            digests=digests,
            is_sealed=is_sealed,
            can_claim=open_span is not None,
            is_eager=is_eager,
            zone=me.zone,
            lengths=plan.lengths,
            limits=around.planner_limits,
            now=now,
        )
        self._feed = HaveFeed(now=now)
        self._followers: set[Lines[HaveLine]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[object, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_drain_due = False
        self._finished = asyncio.Event()
        self._ended = asyncio.Event()
        self._failure: DamselflyError | None = None
        self._origin_error: DamselflyError | None = None
        self.journal_from_s = now
        self._landed_s = now
        self._waits: dict[int, Waiting] = {}
        """What each run from the origin waits for."""
        self.idle_since_s = now
        """Since when nobody follows us."""

    def __repr__(self) -> str:
        return f"<Swarm {self.swarm[:19]} {self.planner!r}>"

    # --- for the agent -------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled or `end`ed."""
        stop_listening = self._around.agents.on_change(self._look)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._look()
                await self._ended.wait()
                for task in self._running.values():
                    task.cancel()
        finally:
            stop_listening()
            self._tasks = None
            if self._timer is not None:
                self._timer.cancel()
            for lines in self._followers:
                lines.cut()

    async def completed(self) -> None:
        """Wait until every wanted chunk is held.

        Raises:
            DamselflyError: that cannot be; says why.
        """
        await self._finished.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def is_finished(self) -> bool:
        """Every wanted chunk was held, or that was given up."""
        return self._finished.is_set()

    async def end(self) -> None:
        """Stop taking part; say goodbye to the home and to those who follow us.

        A `run` that has not begun yet ends as it begins, and there is nobody to say goodbye to.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        if self._tasks is None:
            return
        try:
            self.planner.leave(self._now())
            self._feed.leave()
            self._tell_followers()
            while (action := self.planner.next_action()) is not None:
                if isinstance(action, SendReport):  # All else ends with `run`.
                    await self._report(action)
        except Exception as exc:
            self._break(exc)

    @property
    def digests(self) -> Mapping[int, Digest]:
        """The digests known, by index."""
        return self.planner.digests

    @property
    def follower_count(self) -> int:
        """How many follow us."""
        return len(self._followers)

    @property
    def waiting_for(self) -> str | None:
        """What holds the pull up, in words for people."""
        if self.planner.is_resting and not self.planner.asks:
            return next((reason for each in self._waits.values() if (reason := each.reason)), None)
        return self.planner.waiting_for

    async def haves(self) -> AsyncGenerator[HaveLine]:
        """Our have stream, for one follower.

        Raises:
            PeerUnavailableError: too many follow us already.
        """
        if len(self._followers) >= self._around.limits.followers_max:
            raise PeerUnavailableError(f"{len(self._followers)} follow {self.swarm} here already")
        lines = Lines[HaveLine](self._around.limits.lines_waiting_max)
        self._tell_followers()
        lines.put(self._feed.first_line(self.planner.have))
        self._followers.add(lines)
        try:
            while (line := await lines.next()) is not None:
                yield line
        finally:
            self._followers.discard(lines)
            self.idle_since_s = self._now()

    def lost(self, index: int) -> None:
        """A chunk was found bad on our disk."""
        self.planner.chunk_lost(index, self._now())
        self._feed.chunk_lost(index)
        self._wake()

    def refuted(self, indexes: Sequence[int]) -> None:
        """These are chunks of a file that is wrong, and are not on our disk any more."""
        self.planner.chunks_refuted(indexes, self._now())
        for index in indexes:
            self._feed.chunk_lost(index)
        self._wake()

    def fail(self, error: DamselflyError) -> None:
        """Whoever waits for this swarm to complete is told that it cannot."""
        self._fail(error)

    async def tell_hashes(self, report: HashReport) -> HashReply | None:
        """Tell the home what we found of whole files; None if it cannot be heard."""
        home, count = self.planner.home, self.plan.chunk_count
        try:
            if home == self._around.agents.me.agent:
                return self._around.homes.hashed(self.swarm, count, report, is_ours=True)
            path = f"/v1/swarms/{self.swarm}/hashes?chunks={count}"
            answer = await self._around.talk.request(
                home, "POST", path, body=report.to_json(), deadline_s=HASHES_S
            )
            if answer.status != 200:
                raise RemoteProtocolError(f"home {home} answers with {answer.status}")
            return HashReply.parse(answer.body, report.file_count)
        except (PeerUnavailableError, ProtocolError) as exc:
            logger.debug("hashes.untold", extra={"home": home, "error": str(exc)})
            return None

    @property
    def me(self) -> tuple[AgentID, str]:
        """Our id, and our boot."""
        me = self._around.agents.me
        return me.agent, me.boot

    # --- the loop --------------------------------------------------------------------------

    def _now(self) -> float:
        return self._around.clock.monotonic_s()

    def _look(self) -> None:
        self.planner.view_changed(list(self._around.agents.view), self._now())
        self._wake()

    def _wake(self) -> None:
        if not self._is_drain_due and self._tasks is not None:
            self._is_drain_due = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        self._is_drain_due = False
        if self._tasks is None or self._ended.is_set():
            return
        try:
            self._act()
        except Exception as exc:
            self._break(exc)

    def _act(self) -> None:
        """Let the planner see the time, and do what it wants done."""
        now = self._now()
        deadline = self.planner.next_deadline()
        if deadline is not None and deadline <= now:
            self.planner.handle_timer(now)
        while (action := self.planner.next_action()) is not None:
            self._do(action)
        self._mind_patience(now)
        self._tell_followers()
        if self._timer is not None:
            self._timer.cancel()
        deadlines = [self.planner.next_deadline(), self._feed.next_deadline(len(self._followers))]
        soonest = min((d for d in deadlines if d is not None), default=None)
        if soonest is not None:
            # The loop's timers are a millisecond coarse: less would spin.
            wait_s = max(0.001, soonest - now)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _tell_followers(self) -> None:
        line = self._feed.next_line(len(self._followers), self._now())
        if line is None:
            return
        for lines in self._followers:
            lines.put(line)

    def _mind_patience(self, now: float) -> None:
        patience_s = self._around.limits.origin_patience_s
        if (
            self._origin_error is not None
            and not self.planner.is_complete
            and not self.planner.is_resting
            and now - self._landed_s > patience_s
        ):
            self._fail(self._origin_error)

    def _fail(self, error: DamselflyError) -> None:
        if not self._finished.is_set():
            self._failure = error
            self._finished.set()

    def _break(self, cause: Exception) -> None:
        """End this membership, and nothing else, because of a bug (see `LocalProtocolError`)."""
        logger.error("swarm.broken", exc_info=cause, extra={"swarm": self.swarm})
        self._fail(LocalProtocolError.found(f"taking part in the swarm of {self._name}", cause))
        self._ended.set()

    def _do(self, action: Action) -> None:
        match action:
            case SendReport():
                self._start(("report", action.report.serial), partial(self._report, action))
            case OpenLive():
                self._start(("live", action.home), partial(self._listen, action.home))
            case CloseLive():
                self._stop(("live", action.home))
            case Follow():
                self._start(("have", action.peer), partial(self._follow, action.peer))
            case Unfollow():
                self._stop(("have", action.peer))
            case Ask():
                self._start(("ask", action.ask_id), partial(self._ask, action))
            case CancelAsk():
                self._stop(("ask", action.ask_id))
            case FetchOrigin():
                self._start(("run", action.run_id), partial(self._fetch, action))
            case CancelOrigin():
                self._stop(("run", action.run_id))
            case TellCorrupt():
                self._start(("corrupt", action.peer, action.index), partial(self._accuse, action))
            case Finish():
                self._finished.set()
            case GiveUp():
                self._give_up(action.reason)

    def _start(self, key: object, work: Callable[[], Coroutine[None, None, None]]) -> None:
        assert self._tasks is not None
        self._stop(key)
        task = self._tasks.create_task(self._carry_out(work))
        self._running[key] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self._running.get(key) is done:
                del self._running[key]

        task.add_done_callback(forget)

    async def _carry_out(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except Exception as exc:
            self._break(exc)

    def _stop(self, key: object) -> None:
        task = self._running.pop(key, None)
        if task is not None:
            task.cancel()

    def _give_up(self, reason: GiveUpReason) -> None:
        cause = self._origin_error
        if cause is not None:
            self._fail(cause)
        elif reason is GiveUpReason.DENIED:
            self._fail(OriginDeniedError(f"the origin of {self._name} refuses us"))
        else:
            self._fail(
                OriginUnavailableError(
                    f"nobody in the swarm of {self._name} can read its origin, or may, and"
                    f" {self.planner.unoffered} chunks are missing that nobody holds"
                )
            )

    # --- the home --------------------------------------------------------------------------

    async def _report(self, action: SendReport) -> None:
        report, home = action.report, action.home
        serial = report.serial
        try:
            if home == self._around.agents.me.agent:
                reply = self._around.homes.report(self.swarm, report, is_ours=True)
            else:
                answer = await self._around.talk.request(
                    home,
                    "POST",
                    f"/v1/swarms/{self.swarm}/report",
                    body=report.to_json(),
                    deadline_s=action.patience_s,
                )
                if answer.status == 503:
                    self._around.agents.suspect(home)  # It does not know us: we greet each other.
                if answer.status != 200:
                    raise RemoteProtocolError(f"home {home} answers with {answer.status}")
                reply = Reply.parse(answer.body, self.plan.chunk_count)
        except PeerUnavailableError as exc:
            is_silent = isinstance(exc.__cause__, TimeoutError)
            failure = ReportFailure.SILENT if is_silent else ReportFailure.UNREACHABLE
            self._around.agents.suspect(home)
            self.planner.report_failed(serial, failure, self._now())
        except ProtocolError as exc:
            logger.warning("report.refused", extra={"home": home, "error": str(exc)})
            self.planner.report_failed(serial, ReportFailure.REFUSED, self._now())
        else:
            self.planner.reply_received(serial, reply, self._now())
        self._wake()

    async def _listen(self, home: AgentID) -> None:
        count = self.plan.chunk_count
        me = self._around.agents.me.agent
        try:
            if home == me:
                async with contextlib.aclosing(
                    self._around.homes.live(self.swarm, me, count, is_ours=True)
                ) as lines:
                    async for line in lines:
                        await self._copy(line)
                        self._heard(home, line)
            else:
                path = f"/v1/swarms/{self.swarm}/live?agent={me}&chunks={count}"
                async with self._around.talk.stream(home, "GET", path) as stream:
                    if stream.status == 200:
                        async for data in stream.lines():
                            line = LiveLine.parse(data, count)
                            await self._copy(line)
                            self._heard(home, line)
        except (PeerUnavailableError, ProtocolError) as exc:
            logger.debug("live.lost", extra={"home": home, "error": str(exc)})
        self.planner.live_lost(home, self._now())
        self._wake()

    async def _copy(self, line: LiveLine) -> None:
        """At first contact: what another model here has too need not come from anybody."""
        if not line.digests or not self._keeper.has_others:
            return
        planner = self.planner
        missing = planner.wanted & ~planner.have & ~planner.fetching
        sought = [(index, digest) for index, digest in line.digests.items() if missing >> index & 1]
        if not sought:
            return
        began_s = self._now()
        try:
            copied = await asyncio.get_running_loop().run_in_executor(
                self._around.workers, _copied, self._keeper, sought
            )
        except DamselflyError as exc:
            self._fail(exc)  # Our own store failed.
            return
        for index, digest in copied:
            if planner.chunk_copied(index, digest, self._now()):
                self._kept(index, Source.STORE, began_s, "", "")

    def _heard(self, home: AgentID, line: LiveLine) -> None:
        self.planner.live_received(home, line, self._now())
        self._wake()

    # --- peers -----------------------------------------------------------------------------

    async def _follow(self, peer: AgentID) -> None:
        count = self.plan.chunk_count
        try:
            path = f"/v1/swarms/{self.swarm}/have?chunks={count}"
            async with self._around.talk.stream(peer, "GET", path) as stream:
                if stream.status == 200:
                    async for data in stream.lines():
                        self.planner.peer_told(peer, HaveLine.parse(data, count), self._now())
                        self._wake()
        except (PeerUnavailableError, ProtocolError) as exc:
            logger.debug("peer.lost", extra={"peer": peer, "error": str(exc)})
            self._around.agents.suspect(peer)
        self.planner.peer_lost(peer, self._now())
        self._wake()

    async def _ask(self, action: Ask) -> None:
        length = self.plan.lengths[action.index]
        began_s = self._now()
        try:
            async with self._around.buffers.buffer(length) as view:
                reply = await self._around.pool.fetch_into(
                    action.peer,
                    f"/v1/chunks/{action.digest.hex}",
                    view,
                    headers=(("priority", "u=0" if action.is_urgent else "u=3"),),
                    stall_s=self._around.limits.stall_s,
                    on_bytes=self._progress(partial(self.planner.ask_progressed, action.ask_id)),
                )
                if reply.status == 200 and reply.length == length:
                    await self._land(action.index, action.digest, view, Source.PEER, action.peer)
        except PeerUnavailableError as exc:
            is_stalled = isinstance(exc.__cause__, TimeoutError)
            self._around.agents.suspect(action.peer)
            self._failed(action, AskFailure.STALLED if is_stalled else AskFailure.DEAD)
        except RemoteProtocolError as exc:
            logger.warning("peer.misbehaved", extra={"peer": action.peer, "error": str(exc)})
            self._failed(action, AskFailure.DEAD)
        except DigestMismatchError as exc:
            logger.warning("chunk.corrupt", extra={"peer": action.peer, "error": str(exc)})
            self._failed(action, AskFailure.CORRUPT)
        except DamselflyError as exc:
            self._fail(exc)  # Our own store failed: no peer can mend that.
        else:
            if reply.status == 200 and reply.length == length:
                if self.planner.chunk_arrived(action.ask_id, self._now()):
                    why = "another peer was late" if action.is_hedge else ""
                    self._kept(action.index, Source.PEER, began_s, action.peer, why)
            elif reply.status == 200:
                self._failed(action, AskFailure.CORRUPT)
            elif reply.status == 503:
                retry_after_s = _milliseconds(reply.header("retry-after-ms")) / 1000
                self.planner.ask_failed(action.ask_id, AskFailure.BUSY, self._now(), retry_after_s)
            else:
                self._failed(action, AskFailure.MISSING)
        self._wake()

    def _failed(self, action: Ask, failure: AskFailure) -> None:
        self.planner.ask_failed(action.ask_id, failure, self._now())

    async def _accuse(self, action: TellCorrupt) -> None:
        with contextlib.suppress(PeerUnavailableError, ProtocolError):
            path = f"/v1/chunks/{action.digest.hex}/corrupt"
            await self._around.talk.request(action.peer, "POST", path, deadline_s=5.0)

    # --- the origin ------------------------------------------------------------------------

    async def _fetch(self, action: FetchOrigin) -> None:
        run_id = action.run_id
        why = _told(action, self.planner.home)
        self._around.claimed()
        waits = self._waits[run_id] = Waiting(partial(self._rests, run_id))
        try:
            with heard(waits):
                for file, indexes in _by_file(self.plan, action.run):
                    await self._fetch_span(action, why, file, indexes)
        except OriginDeniedError as exc:
            self._origin_failed(run_id, OriginFailure.DENIED, exc)
        except (OriginUnavailableError, ProtocolError) as exc:
            self._origin_failed(run_id, OriginFailure.FAILED, exc)
        except (IntegrityError, NotFoundError, DeniedError) as exc:
            self._origin_failed(run_id, OriginFailure.CHANGED, exc)
        except DamselflyError as exc:
            self._fail(exc)  # Our own store failed.
        finally:
            del self._waits[run_id]
        self._wake()

    def _rests(self, run_id: int) -> None:
        """The origin makes a run wait, or lets it go on."""
        is_resting = self._waits[run_id].reason is not None
        self.planner.origin_waits(run_id, self._now(), is_resting=is_resting)

    async def _fetch_span(
        self, action: FetchOrigin, why: str, file: PlannedFile, indexes: range
    ) -> None:
        run_id = action.run_id
        assert self._open_span is not None, "a claim without an origin"
        spans = [self.plan.span(index) for index in indexes]
        start, stop = spans[0].start, spans[-1].start + spans[-1].length
        slice_bytes = self._around.limits.origin_slice_bytes
        is_first = True
        received = 0
        progressed_s = self._now()
        async with self._open_span(file, start, stop) as stream:
            for index, span in zip(indexes, spans, strict=True):
                began_s = self._now()
                async with self._room.buffer(span.length, _waits_for_room) as view:
                    for offset in range(0, span.length, slice_bytes):
                        await stream.readinto(view[offset : offset + slice_bytes])
                        received += min(slice_bytes, span.length - offset)
                        now = self._now()
                        if is_first:
                            is_first = False
                            first_byte_s = stream.first_byte_s or 0.0
                            self.planner.origin_answered(run_id, first_byte_s, now)
                        if now - progressed_s > self._around.limits.progress_interval_s:
                            progressed_s = now
                            self.planner.origin_progressed(run_id, received, now)
                    expected = self.planner.digests.get(index)
                    digest = await self._land(
                        index, expected, view, Source.ORIGIN, f"the origin ({file.path})"
                    )
                self._origin_error = None
                self._around.read(action.why)
                self._kept(index, Source.ORIGIN, began_s, self.origin_name, why)
                self.planner.origin_chunk_arrived(run_id, index, digest, self._now())
                self._wake()

    def _origin_failed(self, run_id: int, failure: OriginFailure, error: DamselflyError) -> None:
        logger.warning("origin.failed", extra={"ref": self._name, "error": str(error)})
        self._origin_error = error
        self.planner.origin_failed(run_id, failure, self._now())

    # --- chunks ----------------------------------------------------------------------------

    async def _land(
        self, index: int, expected: Digest | None, view: memoryview, source: Source, name: str
    ) -> Digest:
        """Verify and keep a chunk, in a worker; `name` is what errors call its source."""
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._around.workers, _keep, self._keeper, index, expected, view, name
            )
        except DigestMismatchError:
            self._around.corrupt(source)
            raise

    def _kept(self, index: int, source: Source, began_s: float, by: str, why: str) -> None:
        now = self._now()
        length = self.plan.lengths[index]
        self._landed_s = now
        self.bytes_by_source[source] += length
        self._around.landed(source, length, now - began_s)
        how = How("copied" if source is Source.STORE else source.value, by, why)
        self.journal.note(index, how, began_s - self.journal_from_s, now - began_s)
        self._feed.chunk_held(index)

    def _progress(self, tell: Callable[[int, float], None]) -> Callable[[int], None]:
        received = 0
        told_s = self._now()

        def count(new_bytes: int) -> None:
            nonlocal received, told_s
            received += new_bytes
            now = self._now()
            if now - told_s > self._around.limits.progress_interval_s:
                told_s = now
                tell(received, now)

        return count


def _waits_for_room() -> contextlib.AbstractContextManager[None]:
    return waiting_for(lambda: "memory for chunks (other reads of origins hold it)")


def _told(action: FetchOrigin, home: AgentID) -> str:
    """Why the origin is asked, in words."""
    match action.why:
        case OriginReason.ALWAYS:
            return "the policy is always"
        case OriginReason.ALONE:
            return "no other agent is in the swarm"
        case OriginReason.LACKING:
            count = action.peers_tried
            return f"{count} peer{'' if count == 1 else 's'} could not give it, granted by {home}"
        case OriginReason.CLAIM:
            return f"nobody had it, granted by {home}"


def _keep(
    keeper: Keeper, index: int, expected: Digest | None, view: memoryview, source: str
) -> Digest:
    actual = Digest.of(view)
    if expected is not None and actual != expected:
        raise DigestMismatchError(str(expected), str(actual), source)
    keeper.write(index, actual, view)
    return actual


def _copied(keeper: Keeper, sought: list[tuple[int, Digest]]) -> list[tuple[int, Digest]]:
    copied: list[tuple[int, Digest]] = []
    for index, digest in sought:
        with contextlib.suppress(FileNotFoundError, DigestMismatchError):
            if keeper.copy_local(index, digest):
                copied.append((index, digest))
    return copied


def _by_file(plan: Plan, run: Run) -> list[tuple[PlannedFile, range]]:
    """Cut a run where files end: one request reads one file."""
    cuts: list[tuple[PlannedFile, range]] = []
    index, stop = run.start, run.start + run.count
    while index < stop:
        number = plan.span(index).file
        end = min(stop, plan.indexes(number).stop)
        cuts.append((plan.files[number], range(index, end)))
        index = end
    return cuts


def _milliseconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
