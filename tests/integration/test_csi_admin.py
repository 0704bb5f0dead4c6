"""The driver's page for scrapers and probes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from damselfly.csi.admin import AdminPage
from damselfly.errors import ConfigError
from damselfly.metrics import DriverMetrics


class Page:
    def __init__(self) -> None:
        self.metrics = DriverMetrics()
        self.reasons: list[str] = []
        self.server = AdminPage("127.0.0.1:0", self.metrics, lambda: self.reasons)

    async def get(self, path: str, method: str = "GET") -> tuple[str, str]:
        return await self.say(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def say(self, data: bytes) -> tuple[str, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(data)
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition("\r\n\r\n")
        return head.split("\r\n")[0], body


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    page = Page()
    async with page.server:
        yield page


async def test_metrics_have_every_call_by_method_and_code(page: Page) -> None:
    page.metrics.operation_ended("NodePublishVolume", "ABORTED", 100.0)

    status, body = await page.get("/metrics")

    assert status == "HTTP/1.1 200 OK"
    assert (
        'damselfly_csi_operation_duration_seconds_count{grpc_status_code="ABORTED",'
        'method="NodePublishVolume"} 1.0'
    ) in body


async def test_it_is_ready_when_there_is_no_reason_not_to_be(page: Page) -> None:
    ready = await page.get("/readyz?verbose")
    page.reasons.append("not registered yet")
    unready = await page.get("/readyz")

    assert ready == ("HTTP/1.1 200 OK", "ready\n")
    assert unready == ("HTTP/1.1 503 Service Unavailable", "not registered yet\n")
    assert (await page.get("/healthz"))[0] == "HTTP/1.1 200 OK"


async def test_other_requests_are_refused_and_garbage_is_hung_up_on(page: Page) -> None:
    assert (await page.get("/"))[0] == "HTTP/1.1 404 Not Found"
    assert (await page.get("/metrics", "POST"))[0] == "HTTP/1.1 405 Method Not Allowed"
    assert await page.say(b"x" * 20_000) == ("", "")


@pytest.mark.parametrize("address", ["here", "127.0.0.1:port", "203.0.113.1:1", ":70000"])
async def test_an_address_that_cannot_be_listened_on_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--admin"):
        async with AdminPage(address, DriverMetrics(), list):
            pass
