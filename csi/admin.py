"""/metrics, /healthz and /readyz over TCP, in the little of HTTP that a scraper speaks."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from damselfly.errors import ConfigError
from damselfly.metrics import DriverMetrics

logger = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HEAD_BYTES_MAX = 8 * 1024
PATIENCE_S = 5.0


class AdminPage:
    """Answers while the context is entered. `unready` gives the reasons why we are not, or none."""

    def __init__(
        self, address: str, metrics: DriverMetrics, unready: Callable[[], Sequence[str]]
    ) -> None:
        self._address = address
        self._metrics = metrics
        self._unready = unready
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listen; `port` is then the port in use.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        host, _, port = self._address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._answer, host.strip("[]"), int(port), limit=HEAD_BYTES_MAX
            )
        except (OSError, ValueError, OverflowError) as exc:
            raise ConfigError(f"listening on {self._address} (--admin HOST:PORT)") from exc
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._page(head.split(b"\r\n", 1)[0].decode("latin-1"))
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()

    def _page(self, line: str) -> tuple[str, str, bytes]:
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        text = "text/plain; charset=utf-8"
        if method != "GET":
            return "405 Method Not Allowed", text, b"only GET\n"
        match path:
            case "/metrics":
                return "200 OK", METRICS_TYPE, self._metrics.render()
            case "/healthz":
                # The event loop that answers this is the one that does the work.
                return "200 OK", text, b"ok\n"
            case "/readyz":
                reasons = self._unready()
                if reasons:
                    told = "".join(f"{reason}\n" for reason in reasons).encode()
                    return "503 Service Unavailable", text, told
                return "200 OK", text, b"ready\n"
            case _:
                return "404 Not Found", text, b"/metrics, /healthz and /readyz\n"
