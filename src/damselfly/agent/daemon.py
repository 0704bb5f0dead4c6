"""The agent's composition root: builds everything, runs until SIGTERM, takes it apart again."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import uvloop

from damselfly import __version__
from damselfly.agent.accusations import Accusations
from damselfly.agent.admin import AdminServer
from damselfly.agent.advertise import is_loopback
from damselfly.agent.api import APIServer
from damselfly.agent.config import AgentConfig
from damselfly.agent.credentials import CredentialsFile
from damselfly.agent.endpoints import endpoints
from damselfly.agent.heap import keep_heap
from damselfly.agent.holdings import Holdings, plan_of
from damselfly.agent.kubernetes_targets import KubernetesTargets
from damselfly.agent.node import Counters, LocalNode
from damselfly.agent.order_client import OrderClient
from damselfly.agent.order_desk import OrderDesk
from damselfly.agent.orders import Orders
from damselfly.agent.pull import Pull, Workshop
from damselfly.agent.resolver import Resolver, ref_key
from damselfly.agent.rights import Rights
from damselfly.agent.seeds import leave_unsound
from damselfly.agent.settings import PeerFile, PeerList, PeerName, PeerService, ZoneOfNode
from damselfly.agent.signature_rules import Rules
from damselfly.agent.signatures import Signatures
from damselfly.agent.swarms import Swarms
from damselfly.agent.targets import TargetFinder, Targets
from damselfly.agent.warm import WarmLimits
from damselfly.agent.warming import CANCELS_MAX, Warmups
from damselfly.agent.zone import zone_of_node
from damselfly.cache.limits import Limits as StoreLimits
from damselfly.cache.report import ArtifactState, Removed
from damselfly.cache.store import Store
from damselfly.clock import Clock, SystemClock
from damselfly.errors import CancelledError, ConfigError, DamselflyError
from damselfly.log import configure
from damselfly.metrics import Metrics
from damselfly.model.bitmap import Bitmap
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.ref import Ref
from damselfly.origin.clouds import Clouds
from damselfly.origin.gate import Gate
from damselfly.origin.port import OriginLimits
from damselfly.origin.registry import Origins
from damselfly.origin.s3_place import S3Place
from damselfly.p2p.address import split_address
from damselfly.p2p.agents import Agents, hello_bytes
from damselfly.p2p.budget import Rates
from damselfly.p2p.budgets import Budgets
from damselfly.p2p.discovery import DNSPeers, FilePeers, PeerSource, StaticPeers
from damselfly.p2p.homes import Homes
from damselfly.p2p.kubernetes.cluster import Kubernetes
from damselfly.p2p.kubernetes.peers import KubernetesPeers
from damselfly.p2p.membership import Hello
from damselfly.p2p.messages import AgentID
from damselfly.p2p.planner import PlannerLimits
from damselfly.p2p.refs import RefHome, RefLimits
from damselfly.p2p.rendezvous import home_of
from damselfly.p2p.routes import Routes, ServeLimits, Shelf
from damselfly.p2p.swarm import Source, Surroundings
from damselfly.p2p.transport import (
    BufferPool,
    CertificateFiles,
    Certificates,
    Limits as TransportLimits,
    PeerPool,
    PeerServer,
    Request,
    Response,
)

logger = logging.getLogger(__name__)

WORKER_THREADS = 4
"""Hashing and writing release the interpreter: two keep a fast link busy, four hide slow writes."""
READER_THREADS = 2
"""Each reads back a whole file at a gigabyte per second; more would starve what lands."""
LOOKUP_THREADS = 2
"""It takes microseconds, but may wait for the catalog: neither in the loop nor behind writes."""
OPENING_S = 0.25
"""Between meeting the others and granting anything: who was at something when this agent came, and
has a new home here, tells it so at once."""
TELL_INTERVAL_S = 15.0
UNSTEADY_S = 30.0
"""How long what is small is asked for again where the origin says 503: deployments take so long."""
NO_REF = "file:///"
"""Where an artifact came from that no ref is known for: a seed reads no origin."""


def run(config: AgentConfig) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code.

    Raises:
        DamselflyError: it cannot start, or cannot go on.
    """
    configure(config.log.level, config.log.format)
    keep_heap()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))
    except BaseExceptionGroup as group:
        errors = group.subgroup(DamselflyError)
        if errors is None:
            raise
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        # From its own cause: `explain` tells the chain, and not the groups around it.
        raise first from first.__cause__
    return 0


def _kubernetes(config: AgentConfig) -> Kubernetes | None:
    """The API server, if the configuration needs one.

    Raises:
        UsageError: the extra `damselfly[kubernetes]` is not installed.
    """
    is_needed = isinstance(config.swarm.peers, PeerService) or isinstance(
        config.swarm.zone, ZoneOfNode
    )
    return Kubernetes() if is_needed else None


def _peer_source(config: AgentConfig, kubernetes: Kubernetes | None, clock: Clock) -> PeerSource:
    match config.swarm.peers:
        case PeerList(addresses):
            return StaticPeers(addresses)
        case PeerFile(path):
            return FilePeers(path)
        case PeerName(name, port):
            return DNSPeers(name, port)
        case PeerService(service):
            assert kubernetes is not None, "a Service needs an API server"
            is_ipv6 = _is_ipv6(config)
            return KubernetesPeers(kubernetes, service, clock, prefers_ipv6=is_ipv6)


def _target_finder(config: AgentConfig, kubernetes: Kubernetes | None) -> TargetFinder | None:
    """Who knows the nodes of agents: the API server, if it lists the agents."""
    if kubernetes is None or not isinstance(config.swarm.peers, PeerService):
        return None
    service = config.swarm.peers.service
    return KubernetesTargets(kubernetes, service, prefers_ipv6=_is_ipv6(config))


def _is_ipv6(config: AgentConfig) -> bool:
    return ":" in split_address(config.agent.advertise)[0]


def _certificates(config: AgentConfig) -> Certificates | None:
    """What peers speak TLS with; None: they speak plainly, which is told.

    Raises:
        ConfigError: the files cannot be used.
    """
    agent = config.agent
    if agent.tls_cert is None:
        is_alone = is_loopback(split_address(agent.listen)[0])
        level = logging.INFO if is_alone else logging.WARNING
        logger.log(level, "peers.plain", extra={"listen": agent.listen})
        return None
    assert agent.tls_key is not None, "checked with the configuration"
    assert agent.tls_ca is not None, "checked with the configuration"
    files = CertificateFiles(agent.tls_cert, agent.tls_key, agent.tls_ca)
    return Certificates(files, agent.tls_names)


@asynccontextmanager
async def _opened_store(config: AgentConfig) -> AsyncGenerator[Store]:
    settings = config.store
    limits = StoreLimits(
        capacity_bytes=settings.capacity_bytes,
        keep_free_bytes=settings.keep_free_bytes,
        free_again_bytes=2 * settings.keep_free_bytes,
        high=settings.high,
        low=settings.low,
    )
    store = await asyncio.to_thread(Store.open, settings.path, limits, SystemClock())
    try:
        if not store.reconciled.is_clean:
            logger.warning("store.reconciled", extra={"found": repr(store.reconciled)})
        yield store
    finally:
        await asyncio.to_thread(store.close)


async def _serve(config: AgentConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _opened_store(config) as store:
        await _Agent(config, store).run(stop)


async def _not_yet(_: Request) -> Response:
    return Response(503, (("retry-after-ms", "200"),))


class _Agent:
    """Everything that runs while the store is open."""

    def __init__(self, config: AgentConfig, store: Store) -> None:
        self._config = config
        self._store = store
        self._clock = SystemClock()
        self._counters = Counters()
        self._metrics = Metrics()
        store.on_removed(self._removed)
        self._workers = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="worker")
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="reader")
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="lookup")
        self._boot = secrets.token_hex(16)
        self._certificates = _certificates(config)
        self._rules = Rules.of(config.file, endpoints(config.origin))
        self._talk = PeerPool(None, self._certificates)
        self._pool = PeerPool(None, self._certificates)
        # Cancellations are asked for while every order has its stream.
        asks_max = WarmLimits().asks_max
        self._errands = PeerPool(
            TransportLimits(pooled_max=asks_max + CANCELS_MAX), self._certificates
        )
        self._homes = Homes(self._boot, self._clock, is_open=False)
        self._refs = RefHome(RefLimits(fresh_s=config.origin.fresh_s), is_open=False)
        file = config.origin.credentials
        schemes = config.origin.fsspec
        self._credentials = (
            None if file is None else CredentialsFile(file, os.environ, schemes=schemes)
        )
        self._rights = Rights(self._credentials, self._work)
        self._kubernetes = _kubernetes(config)
        self._gate = Gate()
        self._gate.counted = self._origin_asked
        origin = config.origin
        self._origins = Origins(
            OriginLimits(connections_per_host_max=origin.connections, unsteady_s=UNSTEADY_S),
            gate=self._gate,
            s3=S3Place.of(origin.s3_endpoint, origin.s3_region),
            clouds=Clouds(origin.gs_endpoint, origin.az_account, origin.az_endpoint, origin.fsspec),
            insecure=frozenset(origin.insecure),
        )

    async def _work(self, function: "partial[Any]") -> Any:  # noqa: ANN401  As it comes.
        return await asyncio.get_running_loop().run_in_executor(self._lookups, function)

    async def run(self, stop: asyncio.Event) -> None:
        """Listen, and take part until `stop` is set."""
        host, port = split_address(self._config.agent.listen)
        server = PeerServer(_not_yet, certificates=self._certificates)
        try:
            await server.start(host, port)
        except OSError as exc:
            raise ConfigError(f"listening on {self._config.agent.listen}") from exc
        try:
            if self._kubernetes is not None:
                await self._kubernetes.check()
            agent = AgentID(self._config.advertised(server.port))
            me = Hello(agent, self._boot, await self._zone())
            source = _peer_source(self._config, self._kubernetes, self._clock)
            agents = Agents(me, source, self._talk, self._clock)
            async with asyncio.TaskGroup() as tasks:
                await self._take_part(stop, server, agents, tasks)
        finally:
            await server.close()
            if self._kubernetes is not None:
                await self._kubernetes.close()
            await self._talk.close()
            await self._pool.close()
            await self._errands.close()
            await self._origins.close()
            self._workers.shutdown()
            self._readers.shutdown()
            self._lookups.shutdown()
        logger.info("agent.stopped", extra={"agent": me.agent})

    async def _zone(self) -> str:
        zone = self._config.swarm.zone
        if isinstance(zone, str):
            return zone
        assert self._kubernetes is not None, "a node's zone needs an API server"
        return await zone_of_node(self._kubernetes, zone.node)

    def _surroundings(self, agents: Agents) -> Surroundings:
        settings = self._config.swarm
        defaults = PlannerLimits()
        fetch = settings.fetch_limit
        return Surroundings(
            agents=agents,
            homes=self._homes,
            talk=self._talk,
            pool=self._pool,
            buffers=BufferPool(max(2, settings.buffer_bytes // CHUNK_BYTES_MAX), CHUNK_BYTES_MAX),
            workers=self._workers,
            clock=self._clock,
            landed=self._landed,
            corrupt=self._corrupt,
            claimed=self._metrics.origin_claims.inc,
            read=lambda why: self._metrics.origin_chunks.labels(why=why.value).inc(),
            planner_limits=replace(
                defaults,
                asks_max=fetch or defaults.asks_max,
                origin_connections_max=self._config.origin.connections,
            ),
        )

    async def _take_part(
        self, stop: asyncio.Event, server: PeerServer, agents: Agents, tasks: asyncio.TaskGroup
    ) -> None:
        config, store = self._config, self._store
        swarms = Swarms(self._surroundings(agents), tasks)
        resolver = Resolver(
            self._origins,
            agents,
            self._talk,
            self._refs,
            self._clock,
            store.manifest,
            rights=self._rights,
            known=Holdings(store).whole,
        )
        shop = Workshop(
            store,
            self._origins,
            resolver,
            swarms,
            self._workers,
            self._clock,
            readers=self._readers,
            rights=self._rights,
            signatures=Signatures(self._rules),
            endpoint_of=self._origins.endpoint_of,
            policy=config.origin.policy,
        )
        accusations = Accusations(store, swarms, self._corrupt)
        node = LocalNode(
            config,
            shop,
            agents,
            self._counters,
            tasks,
            self._pull_ended,
            self._certificates,
            self._credentials,
        )
        budgets = Budgets(
            agents,
            self._talk,
            self._clock,
            Rates(
                requests=config.origin.requests_max or None, bytes=config.origin.bytes_max or None
            ),
            self._gate,
            tasks,
        )
        self._gate.shares = budgets
        orders = Orders(node, tasks, self._order_ended)
        warmups = Warmups(
            orders,
            Targets(agents, _target_finder(config, self._kubernetes)),
            OrderClient(self._errands, self._boot),
            agents.me.agent,
            self._clock,
            tasks,
            WarmLimits(patience_s=config.warm.patience_s),
        )
        server.handler = Routes(
            hello=partial(hello_bytes, agents.me, __version__),
            homes=self._homes,
            refs=self._refs,
            shelf=Shelf(
                locate=store.locate,
                manifest=self._manifest_bytes,
                plan=resolver.plan,
                swarm=swarms.get,
                greeted_by=agents.greeted_by,
                accused=accusations.accuse,
                served=self._served,
                knows=agents.knows,
            ),
            workers=self._lookups,
            clock=self._clock,
            limits=ServeLimits(slots=config.swarm.serve_limit or ServeLimits().slots),
            orders=OrderDesk(orders, config.warm.accept, self._boot),
            budgets=budgets,
        )
        running = (agents.run(), self._homes.run(), accusations.run())
        background = [tasks.create_task(one) for one in running]
        async with contextlib.AsyncExitStack() as stack:
            api = APIServer(
                node, config.agent.socket, mode=config.agent.socket_mode, warmer=warmups
            )
            await stack.enter_async_context(api)
            if config.agent.admin is not None:
                admin = AdminServer(config.agent.admin, self._metrics, node.unready, node.status)
                await stack.enter_async_context(admin)
            background.append(tasks.create_task(self._begin(node, shop, agents)))
            await stop.wait()
            logger.info("agent.draining", extra={"agent": agents.me.agent})
            await warmups.stop()
            await node.stop(config.agent.drain_s)
        budgets.stop()
        for task in background:
            task.cancel()
        await swarms.leave_all()
        await server.drain(config.agent.drain_s)

    async def _begin(self, node: LocalNode, shop: Workshop, agents: Agents) -> None:
        """Meet the others, then do our part until cancelled."""
        await agents.met()
        if len(agents.view) > 1:
            await asyncio.sleep(OPENING_S)
        self._homes.opened()
        self._refs.opened()
        node.state = "ready"
        extra = {"agent": agents.me.agent, "zone": agents.me.zone, "peers": len(agents.view) - 1}
        logger.info("agent.started", extra=extra)
        await self._keep_seeding(shop, agents)

    async def _keep_seeding(self, shop: Workshop, agents: Agents) -> None:
        """Be in the swarm of every artifact we hold; tell the homes of refs what they became."""
        told: dict[str, tuple[AgentID | None, str]] = {}
        while True:
            if self._certificates is not None:
                self._metrics.certificate_end_seconds.set(self._certificates.ends_s)
            await leave_unsound(shop)
            infos = await shop.work(partial(self._store.artifacts))
            complete = [info for info in infos if info.state is ArtifactState.COMPLETE]
            for info in complete:
                manifest = await shop.work(partial(self._store.manifest, info.artifact))
                if manifest is None:
                    continue
                have = Bitmap.full(manifest.chunk_count)
                await shop.swarms.seed(manifest, have, info.refs[0] if info.refs else NO_REF)
                for text in info.refs:
                    await self._tell_home(text, info.artifact, shop, agents, told)
            await shop.swarms.tidy()
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _tell_home(
        self,
        text: str,
        artifact: Digest,
        shop: Workshop,
        agents: Agents,
        told: dict[str, tuple[AgentID | None, str]],
    ) -> None:
        ref = Ref.parse(text)
        if ref.scheme == "file":
            return
        view = agents.view
        home = home_of(ref_key(ref), view)
        seen = (home, view[home].boot if home is not None else "")
        if told.get(text) == seen:
            return
        told[text] = seen
        revision = await shop.work(partial(self._store.revision_of, text, artifact))
        plan_id = plan_of(revision) if revision is not None else None
        if plan_id is not None:
            await shop.resolver.sealed_before(ref, plan_id, artifact)

    # --- what others tell us -------------------------------------------------------------------

    def _manifest_bytes(self, artifact: Digest) -> bytes | None:
        manifest = self._store.manifest(artifact)
        return manifest.canonical() if manifest is not None else None

    def _corrupt(self, source: Source) -> None:
        self._metrics.integrity_failures.labels(source=source.value).inc()

    def _pull_ended(self, pull: Pull) -> None:
        outcome = pull.outcome
        if outcome is None:
            is_cancelled = isinstance(pull.failure, CancelledError)
            self._metrics.pull_failed(is_cancelled=is_cancelled)
        else:
            moved = outcome.bytes_from_origin + outcome.bytes_from_peers
            self._metrics.pull_completed(outcome.seconds, is_warm=not moved)

    def _removed(self, reason: str, removed: Removed) -> None:
        self._metrics.removed(reason, removed.file_count, removed.bytes)

    def _landed(self, source: Source, length: int, seconds: float) -> None:
        self._counters.landed(source, length)
        self._metrics.chunk_fetched(source.value, length, seconds)

    def _origin_asked(self, outcome: str) -> None:
        self._metrics.origin_requests.labels(outcome=outcome).inc()

    def _order_ended(self, outcome: str) -> None:
        self._metrics.warm_orders.labels(outcome=outcome).inc()

    def _served(self, length: int) -> None:
        self._counters.served += length
        self._metrics.chunk_served(length)
