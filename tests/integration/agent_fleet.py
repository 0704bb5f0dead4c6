"""Whole agents in this process, and an origin that publishes digests of whole files, right or not.

Everything is real but for the origin's word: sockets, stores, homes. What a test looks at, or
spoils, is at hand.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from aiohttp import web

from bench.agents import free_addresses
from damselfly.agent.config import load_config
from damselfly.agent.daemon import _Agent  # pyright: ignore[reportPrivateUsage]
from damselfly.cache.limits import Limits
from damselfly.cache.store import Store
from damselfly.client.agent import AgentClient
from damselfly.client.answers import Opened, Progress, Pulled, PullRequest, VolumeRequest
from damselfly.clock import SystemClock
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin.access import ANONYMOUS, Access
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import Origin, OriginLimits, Resolved
from damselfly.origin.registry import Origins
from damselfly.p2p.homes import Homes
from tests.integration.origin_servers import served

LIMITS = Limits(keep_free_bytes=0, free_again_bytes=0)


def sha256(data: bytes) -> str:
    """As origins publish it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class ServedModel:
    """Files behind HTTP, whose versions stay the same whatever is in them."""

    files: dict[str, bytes]
    published: dict[str, str] = field(default_factory=dict[str, str])
    """Digests of whole files, by path."""
    bytes_by_path: dict[str, int] = field(default_factory=dict[str, int])
    url: str = ""

    def publish(self) -> None:
        """Say of every file what is true."""
        self.published = {path: sha256(data) for path, data in self.files.items()}

    @property
    def bytes_sent(self) -> int:
        """Of all bodies."""
        return sum(self.bytes_by_path.values())

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        path = request.match_info["path"]
        if not path:
            links = "".join(f'<a href="{name}">{name}</a>' for name in sorted(self.files))
            page = f"<title>Index of /m/</title><h1>Index of /m/</h1>{links}"
            return web.Response(text=page, content_type="text/html")
        data = self.files.get(path)
        if data is None:
            raise web.HTTPNotFound
        headers = {"ETag": '"1"', "Accept-Ranges": "bytes"}
        asked = request.http_range
        start, stop = asked.start or 0, min(asked.stop or len(data), len(data))
        is_part = "Range" in request.headers
        if is_part and start >= len(data):
            headers["Content-Range"] = f"bytes */{len(data)}"
            return web.Response(status=416, headers=headers)
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if request.method == "HEAD":
            headers["Content-Length"] = str(stop - start)
            return web.Response(headers=headers)
        self.bytes_by_path[path] = self.bytes_by_path.get(path, 0) + stop - start
        return web.Response(status=206 if is_part else 200, body=data[start:stop], headers=headers)


class PublishingOrigin(HTTPOrigin):
    """Reads over HTTP, and publishes what the model says."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(OriginLimits())
        self._model = model

    async def resolve(self, ref: Ref, access: Access = ANONYMOUS) -> Resolved:
        """The same plan, with digests."""
        found = await super().resolve(ref, access)
        if found.manifest is not None or not str(ref).startswith(self._model.url):
            return found
        said = self._model.published
        files = [
            replace(file, digests=(said[file.path],)) if file.path in said else file
            for file in found.plan.files
        ]
        return Resolved(Plan.of(found.plan.ref, files), None, found.revision)


class PublishingOrigins(Origins):
    """One origin for everything."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self._publishing = PublishingOrigin(model)

    def for_ref(self, ref: Ref) -> Origin:
        """The one."""
        return self._publishing if ref.scheme == "http" else super().for_ref(ref)

    async def close(self) -> None:
        """Both."""
        await self._publishing.close()
        await super().close()


class FleetAgent:
    """One agent."""

    def __init__(self, store: Store, agent: _Agent, socket: str, address: str) -> None:
        self.store = store
        self.address = address
        self.client = AgentClient(socket)
        self._agent = agent

    @property
    def homes(self) -> Homes:
        """What it keeps as a home."""
        return self._agent._homes  # pyright: ignore[reportPrivateUsage]

    async def pull(self, ref: str, age_s_max: float | None = None) -> Pulled:
        """Pull, as whoever commands it."""
        return (await self.watched(ref, age_s_max))[0]

    async def watched(
        self, ref: str, age_s_max: float | None = None
    ) -> tuple[Pulled, list[Progress]]:
        """Pull, and keep what it said meanwhile."""
        request = PullRequest(ref=ref, age_s_max=age_s_max)
        said = await asyncio.to_thread(lambda: list(self.client.pull(request)))
        last = said[-1]
        assert isinstance(last, Pulled)
        return last, [one for one in said if isinstance(one, Progress)]

    async def opened(self, ref: str, lease: str = "pod-1") -> Opened:
        """Open a volume, as a pod that shows nothing."""
        request = VolumeRequest(ref=ref, lease=lease)
        said = await asyncio.to_thread(lambda: list(self.client.open_volume(request)))
        last = said[-1]
        assert isinstance(last, Opened)
        return last


@asynccontextmanager
async def fleet(
    model: ServedModel, folder: Path, count: int
) -> AsyncGenerator[Sequence[FleetAgent]]:
    """So many agents around one model, met and ready."""
    app = web.Application()
    app.router.add_get("/m/{path:.*}", model.answer)
    async with AsyncExitStack() as stack:
        model.url = await stack.enter_async_context(served(app)) + "/m/"
        addresses = free_addresses(count)
        agents: list[FleetAgent] = []
        tasks: list[asyncio.Task[None]] = []
        stop = asyncio.Event()
        for number, address in enumerate(addresses):
            socket = str(folder / f"s{number}")
            flags = {
                "store.path": str(folder / f"n{number}"),
                "agent.listen": address,
                "agent.socket": socket,
                "swarm.peers": ",".join(addresses),
                "agent.drain_s": "0",
                "volumes.accept": model.url,
            }
            store = Store.open(folder / f"n{number}", LIMITS, SystemClock())
            stack.callback(store.close)
            agent = _Agent(load_config(flags, {}), store)
            agent._origins = PublishingOrigins(model)  # pyright: ignore[reportPrivateUsage]
            agents.append(FleetAgent(store, agent, socket, address))
            tasks.append(asyncio.ensure_future(agent.run(stop)))
        try:
            async with asyncio.timeout(60):
                for each in agents:
                    await _ready(each, tasks)
            yield agents
        finally:
            stop.set()
            for task in tasks:
                await task


async def _ready(agent: FleetAgent, tasks: list[asyncio.Task[None]]) -> None:
    while True:
        ended = next((task for task in tasks if task.done()), None)
        if ended is not None:
            ended.result()
        try:
            status = await asyncio.to_thread(agent.client.status)
        except Exception:
            await asyncio.sleep(0.02)
            continue
        if status.state == "ready":
            return
        await asyncio.sleep(0.02)
