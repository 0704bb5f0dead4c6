"""What an agent answers to its peers.

    GET  /v1/hello                              who is here
    GET  /v1/chunks/{hex}                       a verified chunk we hold; 404, or 503 when busy
    POST /v1/chunks/{hex}/corrupt               those bytes of yours were wrong
    GET  /v1/manifests/{hex}, /v1/plans/{hex}   what we know of an artifact or a plan
    POST /v1/refs                               as the home of a ref
    POST /v1/budget                             as the home of an origin's host; its rests, told
    POST /v1/swarms/{swarm}/report              as the home of a swarm
    POST /v1/swarms/{swarm}/hashes?chunks=      ... who reads which whole files, and what was found
    GET  /v1/swarms/{swarm}/live?agent=&chunks= ... its live stream
    GET  /v1/swarms/{swarm}/have?chunks=        our have stream
    POST /v1/warm, /v1/warm/cancel              orders, for whoever takes them (`orders`)

A home takes reports, and has live streams, of agents in its view alone: who is not is answered with
503, greeted if it is listed, and comes again.

Nothing here reads an origin or resolves a ref: a peer can make us say what we have, no more. Orders
can; they go to a handler of their own, which takes those that the administrator allowed.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from damselfly.clock import Clock
from damselfly.errors import CapacityError, DamselflyError, ProtocolError, RemoteProtocolError
from damselfly.model.digest import Digest
from damselfly.p2p.budget import BudgetQuestion
from damselfly.p2p.budgets import Budgets
from damselfly.p2p.handover import handed_over
from damselfly.p2p.hashing import HashReport
from damselfly.p2p.homes import Homes
from damselfly.p2p.messages import (
    AGENT_PATTERN,
    BOOT_PATTERN,
    CHUNK_COUNT_MAX,
    AgentID,
    Report,
    SwarmID,
)
from damselfly.p2p.refs import RefHome, RefReport
from damselfly.p2p.swarm import Swarm
from damselfly.p2p.transport import FileBody, Handler, Request, Response

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_PATH = re.compile(r"/v1/(chunks|manifests|plans)/([0-9a-f]{64})(/corrupt)?", re.ASCII)
_ORDERS = ("/v1/warm", "/v1/warm/cancel")
_SWARM = re.compile(r"/v1/swarms/(blake3:[0-9a-f]{64})/(report|hashes|live|have)", re.ASCII)


class HeldChunk(Protocol):
    """A chunk on disk, kept from eviction until closed."""

    @property
    def fd(self) -> int:
        """An open descriptor; not to be moved."""
        ...

    @property
    def offset(self) -> int:
        """Where the chunk begins."""
        ...

    @property
    def length(self) -> int:
        """Its bytes."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


@dataclass(frozen=True)
class Shelf:
    """What we can hand out; the functions that touch the disk run in a worker."""

    locate: Callable[[Digest], HeldChunk | None]
    manifest: Callable[[Digest], bytes | None]
    plan: Callable[[Digest], bytes | None]
    swarm: Callable[[SwarmID], Swarm | None]
    greeted_by: Callable[[AgentID, str], bool]
    """Hears who greets us, with its boot; tells whether we know it."""
    accused: Callable[[Digest], None]
    served: Callable[[int], None]
    """Hears of the bytes of every chunk handed to the kernel."""
    knows: Callable[[AgentID, str], bool] = lambda agent, boot: True
    """Whether this agent, with its boot if it said one, is another of our view."""


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """How much is served at once."""

    slots: int = 8
    """One more than a member asks at once: few asks meet a busy peer, and flows stay few."""
    retry_after_ms: int = 50


class Routes:
    """The handler of the peer plane. Belongs to one event loop."""

    def __init__(
        self,
        *,
        hello: Callable[[bool], bytes],
        homes: Homes,
        refs: RefHome,
        shelf: Shelf,
        workers: Executor,
        clock: Clock,
        limits: ServeLimits | None = None,
        orders: Handler | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        """`hello` says what we are to somebody whom we know (True), or do not know yet."""
        self._refs = refs
        self._orders = orders
        self._budgets = budgets
        self._hello = hello
        self._homes = homes
        self._shelf = shelf
        self._workers = workers
        self._clock = clock
        self._limits = limits or ServeLimits()
        self._serving = 0

    def __repr__(self) -> str:
        return f"<Routes {self._serving}/{self._limits.slots} slots, {self._refs!r}>"

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._route(request)
        except CapacityError:
            raise  # The server knows what to say of a body that is too long.
        except ProtocolError as exc:
            logger.warning("request.refused", extra={"peer": request.remote[0], "error": str(exc)})
            return Response(400, (), b"bad request\n")

    async def _route(self, request: Request) -> Response:
        if request.path == "/v1/hello":
            return _only("GET", request) or self._greeted(request)
        if request.path == "/v1/refs":
            return _only("POST", request) or await self._ref(request)
        if request.path == "/v1/budget" and self._budgets is not None:
            return _only("POST", request) or await self._budget(request, self._budgets)
        if request.path in _ORDERS and self._orders is not None:
            return _only("POST", request) or await self._orders(request)
        if match := _PATH.fullmatch(request.path):
            kind, digits, corrupt = match.groups()
            digest = Digest(bytes.fromhex(digits))
            if kind == "chunks" and corrupt:
                return _only("POST", request) or self._accused(digest)
            if corrupt:
                return Response(404)
            return _only("GET", request) or await self._held(kind, digest)
        if match := _SWARM.fullmatch(request.path):
            swarm, what = SwarmID(match[1]), match[2]
            if what == "report":
                return _only("POST", request) or await self._report(swarm, request)
            if what == "hashes":
                return _only("POST", request) or await self._hashes(swarm, request)
            if refusal := _only("GET", request):
                return refusal
            return self._live(swarm, request) if what == "live" else self._have(swarm, request)
        return Response(404)

    def _greeted(self, request: Request) -> Response:
        agent, boot = request.query.get("from", ""), request.query.get("boot", "")
        knows_you = bool(
            AGENT_PATTERN.fullmatch(agent)
            and BOOT_PATTERN.fullmatch(boot)
            and self._shelf.greeted_by(AgentID(agent), boot)
        )
        return Response(200, (), self._hello(knows_you))

    # --- what we hold ------------------------------------------------------------------------

    async def _held(self, kind: str, digest: Digest) -> Response:
        if kind == "chunks":
            return await self._chunk(digest)
        find = self._shelf.manifest if kind == "manifests" else self._shelf.plan
        found = await self._work(find, digest)
        if found is None:
            return Response(404)
        return Response(200, (("content-type", "application/json"),), found)

    async def _chunk(self, digest: Digest) -> Response:
        limits = self._limits
        if self._serving >= limits.slots:
            return Response(503, (("retry-after-ms", str(limits.retry_after_ms)),))
        self._serving += 1
        held = None
        try:
            held = await handed_over(
                self._workers, partial(self._shelf.locate, digest), _close_unsent
            )
        finally:
            if held is None:
                self._serving -= 1
        if held is None:
            return Response(404)
        return Response(
            200,
            (("content-type", "application/octet-stream"),),
            FileBody(held.fd, held.offset, held.length, self._closer(held)),
        )

    def _closer(self, held: HeldChunk) -> Callable[[], None]:
        def close() -> None:
            self._serving -= 1
            self._shelf.served(held.length)
            held.close()

        return close

    def _accused(self, digest: Digest) -> Response:
        self._shelf.accused(digest)
        return Response(202)

    def _work(self, function: Callable[[Digest], _T], digest: Digest) -> Awaitable[_T]:
        return asyncio.get_running_loop().run_in_executor(self._workers, function, digest)

    # --- as a home, and as a member ------------------------------------------------------------

    async def _ref(self, request: Request) -> Response:
        report = RefReport.parse(await request.read())
        reply = self._refs.reported(report, self._clock.monotonic_s())
        return Response(200, (), reply.to_json())

    async def _budget(self, request: Request, budgets: Budgets) -> Response:
        question = BudgetQuestion.parse(await request.read())
        return Response(200, (), budgets.answer(question).to_json())

    async def _report(self, swarm: SwarmID, request: Request) -> Response:
        report = Report.parse(await request.read())
        if not self._shelf.knows(report.agent, report.boot):
            return _stranger(report.agent)
        return Response(200, (), self._homes.report(swarm, report).to_json())

    async def _hashes(self, swarm: SwarmID, request: Request) -> Response:
        report = HashReport.parse(await request.read())
        if not self._shelf.knows(report.agent, report.boot):
            return _stranger(report.agent)
        reply = self._homes.hashed(swarm, _count(request), report)
        return Response(200, (), reply.to_json())

    def _live(self, swarm: SwarmID, request: Request) -> Response:
        agent = request.query.get("agent", "")
        count = _count(request)
        if not AGENT_PATTERN.fullmatch(agent):
            raise RemoteProtocolError("a live stream for nobody")
        if not self._shelf.knows(AgentID(agent), ""):
            return _stranger(AgentID(agent))

        async def lines() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(self._homes.live(swarm, AgentID(agent), count)) as live:
                async for line in live:
                    yield line.to_json(count) + b"\n"

        return Response(200, (("content-type", "application/x-ndjson"),), lines())

    def _have(self, swarm: SwarmID, request: Request) -> Response:
        found = self._shelf.swarm(swarm)
        count = _count(request)
        if found is None or found.plan.chunk_count != count:
            return Response(404)

        async def lines() -> AsyncIterator[bytes]:
            with contextlib.suppress(DamselflyError):
                async with contextlib.aclosing(found.haves()) as haves:
                    async for line in haves:
                        yield line.to_json(count) + b"\n"

        return Response(200, (("content-type", "application/x-ndjson"),), lines())


def _close_unsent(held: HeldChunk | None) -> None:
    if held is not None:
        held.close()


def _stranger(agent: AgentID) -> Response:
    """Who is not in our view has to greet us, and we it, before it has a home here."""
    logger.info("peer.unknown", extra={"peer": agent})
    return Response(503, (("retry-after-ms", "200"),), b"greet first\n")


def _only(method: str, request: Request) -> Response | None:
    return None if request.method == method else Response(405, (("allow", method),))


def _count(request: Request) -> int:
    text = request.query.get("chunks", "")
    if not (text.isascii() and text.isdigit() and len(text) < 9) or int(text) > CHUNK_COUNT_MAX:
        raise RemoteProtocolError("a stream without a chunk count")
    return int(text)
