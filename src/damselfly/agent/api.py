"""The agent's own API: HTTP/1.1 and JSON on a unix socket.

Who may open the socket may do everything, so the file's mode is the access control. A stream of a
pull is a window on it: closing the window stops nothing, and the same request opens it again.

    POST /v1/pulls PullRequest             -> a line per Progress, then Pulled
    GET  /v1/pulls                         -> {"pulls": [Progress]}
    POST /v1/warm {ref, include, ...}      -> a line per WarmProgress, then Warmed
    POST /v1/warm/cancel {ref, ...}        -> Warmed
    POST /v1/volumes VolumeRequest         -> a line per Progress, then Opened
    POST /v1/capacity CapacityRequest      -> Capacity
    POST /v1/explain {target}              -> Explained
    POST /v1/cancel {target}               -> {"cancelled": [Cancelled]}
    GET  /v1/artifacts                     -> {"artifacts": [HeldArtifact]}
    GET  /v1/status                        -> Status
    POST /v1/verify {artifact, repair}     -> a line per VerifyProgress or BadChunk, then Verified
    POST /v1/rm {artifact}                 -> Removed
    POST /v1/pin, /v1/unpin {artifact}     -> HeldArtifact
    POST /v1/gc {}                         -> Collected
    GET  /v1/doctor                        -> Diagnosis

The records are those of `damselfly.client.answers`. A line of a stream carries its `event`;
`{"event": "failed", "error": CLASS, "message": TEXT}` ends one that fails, and an empty line says
`still here`. What fails otherwise answers with a status of its own and `{"error", "message"}`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from aiohttp import web

from damselfly.agent.socket_file import SocketFile
from damselfly.client.answers import (
    ArtifactRequest,
    BadChunk,
    Cancelled,
    CancelRequest,
    Capacity,
    CapacityRequest,
    Collected,
    Diagnosis,
    Explained,
    HeldArtifact,
    Opened,
    Progress,
    Pulled,
    PullRequest,
    Removed,
    Status,
    Verified,
    VerifyProgress,
    VerifyRequest,
    VolumeRequest,
    Warmed,
    WarmProgress,
    WarmRequest,
)
from damselfly.client.record import Record
from damselfly.errors import (
    AgentUnavailableError,
    CancelledError,
    CapacityError,
    DamselflyError,
    DeniedError,
    IntegrityError,
    LeaseHeldError,
    LocalProtocolError,
    NotFoundError,
    ProtocolError,
    RemoteProtocolError,
    StoreInUseError,
    UnavailableError,
    UsageError,
    class_name,
    explain,
)
from damselfly.log import redact

logger = logging.getLogger(__name__)


class Node(Protocol):
    """What the API needs from the agent behind it.

    Every method raises DamselflyErrors and nothing else. An `artifact` or `target` is a digest
    (`blake3:<hex>`), an unambiguous prefix of at least 6 hex digits, or a ref.
    """

    def pull(self, request: PullRequest) -> AsyncIterator[Progress | Pulled]:
        """Start a pull, or join the one that runs, and watch it.

        The first item comes at once, then about five a second, each the newest state (a slow
        watcher misses some); the last is `Pulled`. A pull that fails raises from the iterator.
        Closing the iterator (`aclose`, as an async generator has it) leaves the pull going. With
        `hold` there is nothing after `Pulled`, and what was pulled is leased until it is closed.
        """
        ...

    def open_volume(self, request: VolumeRequest) -> AsyncIterator[Progress | Opened]:
        """Open a volume, and watch what it takes; the last item is `Opened`.

        What is here already and may be seen is answered at once. Otherwise it is found out what
        the ref is, proved at the origin that these credentials open it, and pulled, all of it once
        for everybody who asks for the same. A failure leaves no lease; closing the iterator before
        it has ended leaves the pull going, and no lease but one that was there before.

        Raises:
            OriginDeniedError: the credentials, or none, do not open the ref.
            OriginUnavailableError: the origin is needed, and does not answer.
        """
        ...

    async def capacity(self, request: CapacityRequest) -> Capacity:
        """How much could be stored; nobody but the store is asked, and the origin never."""
        ...

    async def pulls(self) -> Sequence[Progress]:
        """The pulls that run."""
        ...

    async def cancel(self, target: str) -> Sequence[Cancelled]:
        """Stop the pulls of `target`; every watcher of one meets CancelledError.

        Raises:
            JobNotFoundError: None of that name runs.
        """
        ...

    async def explain(self, target: str) -> Explained:
        """Where the chunks of the latest pull of `target` came from, and why.

        Raises:
            JobNotFoundError: None of that name is remembered.
        """
        ...

    async def artifacts(self) -> Sequence[HeldArtifact]:
        """What the store holds, most recently used first."""
        ...

    async def status(self) -> Status:
        """The agent at a glance."""
        ...

    def verify(
        self, artifact: str | None, *, repair: bool
    ) -> AsyncIterator[VerifyProgress | BadChunk | Verified]:
        """Re-read and re-hash one artifact, or all; the last item is `Verified`.

        Closing the iterator stops the work.
        """
        ...

    async def remove(self, artifact: str) -> Removed:
        """Take an artifact out of the store.

        Raises:
            LeaseHeldError: It is pinned or in use.
        """
        ...

    async def pin(self, artifact: str) -> HeldArtifact:
        """Keep an artifact from eviction until it is unpinned."""
        ...

    async def unpin(self, artifact: str) -> HeldArtifact:
        """Let an artifact be evicted again."""
        ...

    async def gc(self) -> Collected:
        """Remove what no artifact and no pull refers to."""
        ...

    async def doctor(self) -> Diagnosis:
        """Look at everything that commonly goes wrong."""
        ...


class Warmer(Protocol):
    """What the API needs to warm nodes. Every method raises DamselflyErrors and nothing else."""

    def warm(self, request: WarmRequest) -> AsyncIterator[WarmProgress | Warmed]:
        """Start or join a warm-up, and watch it; the last item is `Warmed`, whatever the outcome.

        Closing the iterator leaves the warm-up going.
        """
        ...

    async def cancel(self, request: WarmRequest) -> Warmed:
        """Stop to warm the nodes of the request."""
        ...


@dataclass(frozen=True, kw_only=True)
class APILimits:
    """Every bound of the API, with its reason."""

    body_bytes_max: int = 256 * 1024
    """A request is a ref and some globs."""
    still_here_s: float = 5.0
    """The longest silence of a stream: clients give up after a minute, hang-ups are noticed."""
    first_item_s: float = 1.0
    """How long a stream waits to answer with a status instead of a `failed` line."""
    farewell_s: float = 1.0
    """How long a stop waits for answers that are being written."""


# The status that tells a person with curl who has to act. The nearest class of an error counts;
# clients go by the class in the body.
STATUSES: Mapping[type[DamselflyError], int] = {
    DamselflyError: 500,
    UsageError: 400,
    NotFoundError: 404,
    IntegrityError: 422,
    UnavailableError: 503,
    CapacityError: 507,
    LeaseHeldError: 409,
    StoreInUseError: 409,
    ProtocolError: 502,
    LocalProtocolError: 500,
    DeniedError: 403,
    CancelledError: 409,
}


def status_of(error: type[DamselflyError]) -> int:
    """The HTTP status of an error's class."""
    return next(STATUSES[cls] for cls in error.__mro__ if cls in STATUSES)


class APIServer:
    """Serves a node on a unix socket while the context is entered.

    Leaving it ends the streams with a word of farewell; pulls are the node's business.
    """

    def __init__(
        self,
        node: Node,
        socket_path: Path,
        *,
        mode: int = 0o660,
        limits: APILimits | None = None,
        warmer: Warmer | None = None,
    ) -> None:
        self._node = node
        self._warmer = warmer
        self._file = SocketFile(socket_path, mode)
        self._limits = limits or APILimits()
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            StoreInUseError: Another agent answers on the socket.
            ConfigError: The socket cannot be made.
        """
        app = web.Application(
            middlewares=[_errors_become_answers], client_max_size=self._limits.body_bytes_max
        )
        app.add_routes(self._routes())
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=self._limits.farewell_s, handle_signals=False
        )
        await self._runner.setup()
        try:
            assert self._runner.server is not None
            await self._file.serve(self._runner.server)
        except BaseException:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        self._stopping.set()
        self._file.close()
        await self._runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        node = self._node
        warming = [
            web.post("/v1/warm", self._warm),
            web.post("/v1/warm/cancel", self._cancel_warm),
        ]
        return [
            *(warming if self._warmer is not None else ()),
            web.post("/v1/pulls", self._pull),
            web.post("/v1/volumes", self._volume),
            web.post("/v1/capacity", self._capacity),
            web.get("/v1/pulls", _listing("pulls", node.pulls)),
            web.post("/v1/cancel", self._cancel),
            web.post("/v1/explain", self._explain),
            web.get("/v1/artifacts", _listing("artifacts", node.artifacts)),
            web.get("/v1/status", _answer(node.status)),
            web.post("/v1/verify", self._verify),
            web.post("/v1/rm", _about_artifact(node.remove)),
            web.post("/v1/pin", _about_artifact(node.pin)),
            web.post("/v1/unpin", _about_artifact(node.unpin)),
            web.post("/v1/gc", _answer(node.gc)),
            web.get("/v1/doctor", _answer(node.doctor)),
        ]

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        question = await _read(request, PullRequest)
        return await self._stream(request, self._node.pull(question))

    async def _warm(self, request: web.Request) -> web.StreamResponse:
        assert self._warmer is not None
        question = await _read(request, WarmRequest)
        return await self._stream(request, self._warmer.warm(question))

    async def _cancel_warm(self, request: web.Request) -> web.StreamResponse:
        assert self._warmer is not None
        question = await _read(request, WarmRequest)
        return web.json_response((await self._warmer.cancel(question)).to_json())

    async def _volume(self, request: web.Request) -> web.StreamResponse:
        question = await _read(request, VolumeRequest)
        return await self._stream(request, self._node.open_volume(question))

    async def _capacity(self, request: web.Request) -> web.StreamResponse:
        question = await _read(request, CapacityRequest)
        return web.json_response((await self._node.capacity(question)).to_json())

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        question = await _read(request, CancelRequest)
        cancelled = await self._node.cancel(question.target)
        return web.json_response({"cancelled": [item.to_json() for item in cancelled]})

    async def _explain(self, request: web.Request) -> web.StreamResponse:
        question = await _read(request, CancelRequest)
        return web.json_response((await self._node.explain(question.target)).to_json())

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        question = await _read(request, VerifyRequest)
        items = self._node.verify(question.artifact, repair=question.repair)
        return await self._stream(request, items)

    async def _stream(
        self, request: web.Request, items: AsyncIterator[Record]
    ) -> web.StreamResponse:
        """Write items as lines while somebody reads them.

        The iterator is only ever advanced by one task and closed after that task, so that it is
        never entered twice, and a hang-up reaches it as `aclose`.
        """
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        stopping = asyncio.ensure_future(self._stopping.wait())
        following = asyncio.ensure_future(_next(items))
        try:
            await asyncio.wait({following}, timeout=self._limits.first_item_s)
            if following.done():
                following.result()  # An error now is still an answer with a status.
            await response.prepare(request)
            while True:
                await asyncio.wait(
                    {following, stopping},
                    timeout=self._limits.still_here_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if following.done():
                    item = following.result()
                    if item is None:
                        break
                    await response.write(_line(item.event, item.to_json()))
                    following = asyncio.ensure_future(_next(items))
                elif stopping.done():
                    await response.write(_line("failed", _told(_FAREWELL)))
                    break
                else:
                    await response.write(b"\n")
        except ConnectionError:
            pass  # They hung up.
        except Exception as exc:
            if not response.prepared:
                raise
            with suppress(ConnectionError):
                await response.write(_line("failed", _told(_named(exc, request))))
        finally:
            stopping.cancel()
            following.cancel()
            await asyncio.wait({following})
            if not following.cancelled():
                following.exception()  # Told already, or nobody is there to be told.
            if isinstance(items, AsyncGenerator):
                await items.aclose()
        return response


# --- requests ---------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
R = TypeVar("R", bound=Record)


async def _read(request: web.Request, kind: type[R]) -> R:
    """Read the question from a body. A key that is misspelt must not be taken for one left out."""
    try:
        return kind.parse(json.loads(await request.read()), unknown_is_error=True)
    except (ValueError, RecursionError, RemoteProtocolError) as exc:
        raise UsageError(
            f"{request.method} {request.path} takes a {kind.__name__} in JSON"
        ) from exc


def _answer(ask: Callable[[], Awaitable[Record]]) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response((await ask()).to_json())

    return handler


def _listing(key: str, ask: Callable[[], Awaitable[Sequence[Record]]]) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({key: [item.to_json() for item in await ask()]})

    return handler


def _about_artifact(ask: Callable[[str], Awaitable[Record]]) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        question = await _read(request, ArtifactRequest)
        return web.json_response((await ask(question.artifact)).to_json())

    return handler


# --- answers ----------------------------------------------------------------------------------


_FAREWELL = AgentUnavailableError(
    "the agent stops; what it was doing goes on when it is back and asked again"
)


async def _next(items: AsyncIterator[R]) -> R | None:
    return await anext(items, None)


def _line(event: str, fields: Mapping[str, object]) -> bytes:
    return json.dumps({"event": event, **fields}).encode() + b"\n"


def _told(error: DamselflyError) -> dict[str, object]:
    return {"error": class_name(error), "message": redact(explain(error))}


def _named(error: Exception, request: web.Request) -> DamselflyError:
    """What the other side is told: our errors as they are, anything else as a bug of ours."""
    if isinstance(error, DamselflyError):
        return error
    logger.error("api.failed", extra={"path": request.path}, exc_info=error)
    return LocalProtocolError(
        f"the agent met a bug in {request.method} {request.path}: its log has the traceback"
    )


@web.middleware
async def _errors_become_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as exc:
        text = f"{request.method} {request.path}: {exc.reason.lower()}"
        return web.json_response(_told(UsageError(text)), status=exc.status)
    except ConnectionError:
        raise
    except Exception as exc:
        error = _named(exc, request)
        return web.json_response(_told(error), status=status_of(type(error)))
