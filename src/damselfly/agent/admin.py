"""The admin page: /metrics, /healthz and /readyz over TCP. Everything is read, nothing changed."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from aiohttp import web

from damselfly.client.answers import Status
from damselfly.errors import ConfigError, DamselflyError
from damselfly.metrics import PEER_STATES, Metrics
from damselfly.p2p.address import split_address

logger = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAREWELL_S = 1.0


class AdminServer:
    """Serves the admin page while the context is entered.

    `unready` gives the reasons why the agent should get no work now, none when it should. `status`
    is asked at every scrape for what is a state and not a count (the store, the peers).
    """

    def __init__(
        self,
        address: str,
        metrics: Metrics,
        unready: Callable[[], Sequence[str]],
        status: Callable[[], Awaitable[Status]] | None = None,
    ) -> None:
        self._address = address
        self._metrics = metrics
        self._unready = unready
        self._status = status
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listen; `port` is then the port in use.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        app = web.Application(client_max_size=0)
        app.add_routes(
            [
                web.get("/metrics", self._show_metrics),
                web.get("/healthz", self._show_health),
                web.get("/readyz", self._show_readiness),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=FAREWELL_S, handle_signals=False
        )
        await self._runner.setup()
        host, port = split_address(self._address)
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as exc:
            await self._runner.cleanup()
            raise ConfigError(f"listening on {self._address} (agent.admin)") from exc
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _show_metrics(self, _: web.Request) -> web.Response:
        if self._status is not None:
            try:
                _observe(self._metrics, await self._status())
            except DamselflyError as exc:
                # Counts are worth having even when the store does not answer.
                logger.warning("metrics.incomplete", extra={"error": exc})
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_TYPE})

    async def _show_health(self, _: web.Request) -> web.Response:
        # The event loop that answers this is the one that does the work.
        return web.Response(text="ok\n")

    async def _show_readiness(self, _: web.Request) -> web.Response:
        reasons = self._unready()
        if reasons:
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ready\n")


def _observe(metrics: Metrics, status: Status) -> None:
    metrics.store_bytes.set(status.store.bytes)
    metrics.store_capacity_bytes.set(status.store.capacity_bytes)
    metrics.store_free_bytes.set(status.store.free_bytes)
    metrics.leases.labels(kind="lease").set(status.store.leases)
    metrics.leases.labels(kind="pin").set(status.store.pins)
    metrics.pulls.set(len(status.pulls))
    for state in PEER_STATES:
        count = sum(peer.state == state for peer in status.peers)
        metrics.peers.labels(state=state).set(count)
