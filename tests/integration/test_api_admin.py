"""The admin page over TCP."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from damselfly.agent.admin import AdminServer
from damselfly.client.answers import Status
from damselfly.errors import ConfigError, StoreFullError
from damselfly.metrics import Metrics
from tests.fakes.memory_node import MemoryNode


async def get(admin: AdminServer, path: str, method: str = "GET") -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{admin.port}{path}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=20) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
async def admin(tmp_path: Path, reasons: list[str]) -> AsyncIterator[AdminServer]:
    node = MemoryNode(tmp_path, {})
    async with AdminServer("127.0.0.1:0", Metrics(), lambda: reasons, node.status) as server:
        yield server


async def test_metrics_are_what_prometheus_reads(admin: AdminServer) -> None:
    status, text = await get(admin, "/metrics")

    assert status == 200
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["damselfly_store_capacity_bytes"] == 1 << 40
    assert samples["damselfly_build_info"] == 1


async def test_readiness_gives_its_reasons(admin: AdminServer, reasons: list[str]) -> None:
    assert await get(admin, "/readyz") == (200, "ready\n")

    reasons.append("the agent is draining")

    assert await get(admin, "/readyz") == (503, "the agent is draining\n")
    assert await get(admin, "/healthz") == (200, "ok\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_nothing_can_be_changed(admin: AdminServer, method: str, path: str) -> None:
    assert (await get(admin, path, method))[0] == 405


@pytest.mark.parametrize("path", ["/", "/v1/status", "/v1/chunks/00", "/debug"])
async def test_nothing_else_is_there(admin: AdminServer, path: str) -> None:
    assert (await get(admin, path))[0] == 404


async def test_counts_are_told_when_the_store_is_not_well(tmp_path: Path) -> None:
    class Sick(MemoryNode):
        async def status(self) -> Status:
            raise StoreFullError("reading the catalog")

    metrics = Metrics()
    metrics.chunk_served(4096)
    async with AdminServer("127.0.0.1:0", metrics, list, Sick(tmp_path, {}).status) as server:
        status, text = await get(server, "/metrics")

    assert status == 200
    assert "damselfly_served_bytes_total 4096.0" in text


async def test_an_address_in_use_is_said(admin: AdminServer) -> None:
    second = AdminServer(f"127.0.0.1:{admin.port}", Metrics(), list)

    with pytest.raises(ConfigError, match="agent.admin"):
        await second.__aenter__()
