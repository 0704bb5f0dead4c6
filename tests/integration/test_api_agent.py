"""A real agent, held to what every agent does on its socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from bench.agents import Fleet, free_addresses
from tests.conformance.agent_api import TOKEN, AgentAPIConformance, Served
from tests.integration.origin_servers import served as web_served, weights

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": weights(1, 3 << 20, 300, 2 << 20),
    "tokenizer/vocab.txt": b"",
}


class TestAgent(AgentAPIConformance):
    @pytest.fixture
    async def served(self, tmp_path: Path) -> AsyncIterator[Served]:
        model = tmp_path / "model"
        for path, data in FILES.items():
            (model / path).parent.mkdir(parents=True, exist_ok=True)
            (model / path).write_bytes(data)
        may_go = asyncio.Event()
        may_go.set()

        @web.middleware
        async def held(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if request.path.endswith(".safetensors"):
                await may_go.wait()
            return await handler(request)

        @web.middleware
        async def guarded(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            is_private = request.path.startswith("/private/")
            if is_private and request.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise web.HTTPUnauthorized
            return await handler(request)

        app = web.Application(middlewares=[guarded, held])
        app.router.add_static("/m", model, show_index=True)
        app.router.add_static("/private", model, show_index=True)
        address = free_addresses(1)[0]
        async with web_served(app) as origin:
            with Fleet(tmp_path / "fleet") as fleet:
                agent = fleet.start_agent("n0", address, [address], "--store-keep-free", "1MiB")
                await asyncio.to_thread(agent.wait_until_ready)
                yield Served(
                    socket=Path(agent.client.socket_path),
                    ref=f"{origin}/m/",
                    files=FILES,
                    missing_ref=f"{origin}/none/",
                    private_ref=f"{origin}/private/",
                    hold=may_go.clear,
                    release=may_go.set,
                )
                may_go.set()
