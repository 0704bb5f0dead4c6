"""An origin for the volume tests: a real HTTP server that wants tokens, and can be taken down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from bench.agents import Agent, Fleet
from damselfly.client.answers import Credentials, Opened, VolumeRequest
from tests.integration.origin_servers import served as web_served, weights

SECRET = "s3cret-of-the-owner"
OWNER = Credentials(token=SECRET)
STRANGER = Credentials(token="s3cret-of-a-stranger")
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": weights(1, 3 << 20, 300, 2 << 20),
    "tokenizer/vocab.txt": b"",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GuardedOrigin:
    """Serves `FILES` below `/m/` to whoever shows one of `tokens`; to everybody if there is none.

    `open_to_look` lets everybody list and measure, and asks for a token only where bytes of the
    weights are read. `asked` has every request line, `reads` only those that read weights.
    """

    def __init__(self, model: Path) -> None:
        self.tokens: set[str] = {SECRET}
        self.open_to_look = False
        self.asked: list[str] = []
        self.reads: list[str] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.url = ""
        self._model = model
        self._stack = contextlib.AsyncExitStack()

    @property
    def ref(self) -> str:
        """Where the model is."""
        return f"{self.url}/m/"

    async def up(self) -> None:
        """Serve."""
        for path, data in FILES.items():
            (self._model / path).parent.mkdir(parents=True, exist_ok=True)
            (self._model / path).write_bytes(data)

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.asked.append(f"{request.method} {request.path}")
            start = request.http_range.start or 0
            stop = request.http_range.stop or 0
            is_read = (
                request.path.endswith(".safetensors")
                and request.method == "GET"
                and (start > 0 or stop > 256 << 10)
            )
            said = request.headers.get("Authorization", "")
            is_known = not self.tokens or said.removeprefix("Bearer ") in self.tokens
            if is_read:
                await self.may_read.wait()
            if not is_known and (is_read or not self.open_to_look):
                raise web.HTTPUnauthorized
            if is_read:
                self.reads.append(request.path)
            return await handler(request)

        app = web.Application(middlewares=[guard])
        app.router.add_static("/m", self._model, show_index=True)
        self.url = await self._stack.enter_async_context(web_served(app))

    async def down(self) -> None:
        """Answer nobody any more."""
        self.may_read.set()
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def guarded_origin(model: Path) -> AsyncIterator[GuardedOrigin]:
    """An origin that is up."""
    origin = GuardedOrigin(model)
    await origin.up()
    try:
        yield origin
    finally:
        await origin.down()


async def ready(fleet: Fleet, name: str, address: str, peers: list[str], *options: str) -> Agent:
    """An agent that is ready; started anew under its name, it has its store again."""
    agent = fleet.start_agent(name, address, peers, "--store-keep-free", "1MiB", *options)
    await asyncio.to_thread(agent.wait_until_ready)
    return agent


def open_volume(agent: Agent, request: VolumeRequest) -> Opened:
    """Open a volume to the end. Blocks."""
    *_, last = agent.client.open_volume(request)
    assert isinstance(last, Opened)
    return last


async def opened(agent: Agent, ref: str, lease: str, owner: Credentials | None = None) -> Opened:
    """Open a volume to the end."""
    request = VolumeRequest(ref=ref, lease=lease, credentials=owner)
    return await asyncio.to_thread(open_volume, agent, request)


def files_below(root: str) -> dict[str, bytes]:
    """What a view shows."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def leases_of(fleet: Fleet, agent: Agent) -> list[str]:
    """The leases of an agent's store, as the disk has them."""
    folder = fleet.folder / agent.name / "leases"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
