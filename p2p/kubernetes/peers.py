"""Peers by a Service of Kubernetes: shell around `EndpointSlices`. Lists, watches, waits."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from damselfly.clock import Clock
from damselfly.errors import DamselflyError, UnavailableError, explain
from damselfly.p2p.kubernetes.cluster import ExpiredError, Kubernetes, ServiceName
from damselfly.p2p.kubernetes.endpoint_slices import (
    EndpointSlices,
    EndpointSlicesLimits,
    List,
    Wait,
    Watch,
)

logger = logging.getLogger(__name__)


class KubernetesPeers:
    """A source of peers: the addresses of a Service, as they change. Belongs to one event loop.

    While the API server is gone, the last addresses stay.
    """

    def __init__(
        self,
        kubernetes: Kubernetes,
        service: ServiceName,
        clock: Clock,
        *,
        prefers_ipv6: bool = False,
        limits: EndpointSlicesLimits | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare to watch. `jitter` draws from [0, 1)."""
        self._kubernetes = kubernetes
        self._service = service
        self._clock = clock
        self._core = EndpointSlices(prefers_ipv6=prefers_ipv6, limits=limits)
        self._jitter = jitter
        self._trouble = ""
        self._problems: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"<KubernetesPeers {self._service} {self._core!r}>"

    async def changes(self) -> AsyncGenerator[frozenset[str]]:
        """The addresses, once they are known, and after every change. Never ends."""
        told: frozenset[str] | None = None
        if self._core.has_listed:
            yield (told := frozenset(self._core.view))
        async with aclosing(self._facts()) as facts:
            async for _ in facts:
                self._complain_of_slices()
                addresses = frozenset(self._core.view)
                if addresses != told:
                    yield (told := addresses)

    async def _facts(self) -> AsyncGenerator[None]:
        """Carry out commands; yields after everything that was learned."""
        core = self._core
        while True:
            now = self._clock.monotonic_s()
            try:
                match core.next_command(now):
                    case Wait(until_s):
                        await asyncio.sleep(until_s - now)
                    case List():
                        slices, version = await self._kubernetes.list_slices(self._service)
                        core.listed(slices, version, self._clock.monotonic_s())
                        self._recovered()
                        yield
                    case Watch(version):
                        watch = self._kubernetes.watch_slices(self._service, version)
                        async with aclosing(watch) as events:
                            async for kind, found in events:
                                core.event(kind, found, self._clock.monotonic_s())
                                self._recovered()
                                yield
                        core.closed(self._clock.monotonic_s(), jitter=self._jitter())
            except DamselflyError as exc:
                self._failed(exc)

    def _failed(self, exc: DamselflyError) -> None:
        # An overloaded server, or none at all, says nothing about the version.
        is_version_bad = isinstance(exc, ExpiredError) or not isinstance(exc, UnavailableError)
        now = self._clock.monotonic_s()
        self._core.failed(now, jitter=self._jitter(), is_version_bad=is_version_bad)
        trouble = explain(exc)
        if trouble != self._trouble:  # Hours of the same are told once.
            level = logging.DEBUG if isinstance(exc, ExpiredError) else logging.WARNING
            extra = {"service": str(self._service), "error": trouble}
            logger.log(level, "peers.unwatched", extra=extra)
            self._trouble = trouble

    def _recovered(self) -> None:
        if self._trouble:
            extra = {"service": str(self._service), "addresses": len(self._core.view)}
            logger.info("peers.watched", extra=extra)
            self._trouble = ""

    def _complain_of_slices(self) -> None:
        problems = self._core.problems
        for name in problems.keys() - self._problems.keys():
            logger.warning("peers.slice_ignored", extra={"slice": name, "problem": problems[name]})
        self._problems = problems
