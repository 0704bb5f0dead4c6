"""Every metric of Damselfly, in one place.

Names are `damselfly_<thing>_<unit>[_total]` in base units, labels have a closed set of values, and
the sum over all labels of a metric makes sense. Digests, refs and peers belong in logs.
"""

import platform
from collections.abc import Iterable
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from damselfly import __version__

# A `_created` series for each counter doubles what is scraped, and nobody asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]

SOURCES = ("origin", "peer", "store")
PEER_STATES = ("connected", "resting", "quarantined")
LEASE_KINDS = ("lease", "pin")
EVICTION_REASONS = ("capacity", "free_space", "removed")
STARTS = ("cold", "warm")
OUTCOMES = ("completed", "failed", "cancelled")
ORDER_OUTCOMES = (*OUTCOMES, "refused")
ORIGIN_OUTCOMES = ("answered", "busy", "denied", "refused", "failed")
ORIGIN_REASONS = ("claim", "lacking", "alone", "always")

# A chunk of 4 MiB takes 3 ms at 10 Gbit/s and 3 s at 10 Mbit/s.
CHUNK_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# A warm start is a lookup; 800 GB at 10 Gbit/s take eleven minutes.
READY_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
# A republish is a lookup, a publish from the store takes milliseconds, and none more than 120 s.
OPERATION_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0)


class MetricSet:
    """The metrics of one process, in a registry of their own. Every label is there from the start.

    The registry is not the process-wide one: two agents in one test do not add up.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.table: list[tuple[str, str, str]] = []
        """Name, kind, and label values of every metric, as the documentation lists them."""

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, **labels: Iterable[str]) -> Counter:
        self._row(f"{name}_total", "counter", labels)
        return _spread(
            Counter(f"damselfly_{name}", meaning, tuple(labels), registry=self.registry), labels
        )

    def _gauge(self, name: str, meaning: str, **labels: Iterable[str]) -> Gauge:
        self._row(name, "gauge", labels)
        return _spread(
            Gauge(f"damselfly_{name}", meaning, tuple(labels), registry=self.registry), labels
        )

    def _histogram(
        self, name: str, meaning: str, buckets: tuple[float, ...], **labels: Iterable[str]
    ) -> Histogram:
        self._row(name, "histogram", labels)
        return _spread(
            Histogram(
                f"damselfly_{name}", meaning, tuple(labels), registry=self.registry, buckets=buckets
            ),
            labels,
        )

    def _row(self, name: str, kind: str, labels: dict[str, Iterable[str]]) -> None:
        spoken = ", ".join(f"{label}={'|'.join(values)}" for label, values in labels.items())
        self.table.append((f"damselfly_{name}", kind, spoken))


class Metrics(MetricSet):
    """The metrics of one agent."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks_fetched = self._counter(
            "chunks_fetched", "Chunks that arrived and verified.", source=SOURCES
        )
        self.fetched_bytes = self._counter(
            "fetched_bytes", "Bytes of chunks that arrived and verified.", source=SOURCES
        )
        self.chunk_fetch_duration_seconds = self._histogram(
            "chunk_fetch_duration_seconds",
            "From asking for a chunk to having verified it.",
            CHUNK_SECONDS,
            source=SOURCES,
        )
        self.chunks_served = self._counter("chunks_served", "Chunks that peers got from us.")
        self.served_bytes = self._counter("served_bytes", "Bytes that peers got from us.")
        self.integrity_failures = self._counter(
            "integrity_failures", "Chunks that did not match their digest.", source=SOURCES
        )
        self.origin_requests = self._counter(
            "origin_requests",
            "Requests to origins; busy: answered with 429, or with 503 and Retry-After.",
            outcome=ORIGIN_OUTCOMES,
        )
        self.origin_claims = self._counter(
            "origin_claims", "Runs of chunks that we were granted to read, or took."
        )
        self.origin_chunks = self._counter(
            "origin_chunks",
            "Chunks read from origins: under a claim, because no holder could give it (lacking),"
            " without other agents, or because we are told to.",
            why=ORIGIN_REASONS,
        )
        self.peers = self._gauge("peers", "Agents that we know.", state=PEER_STATES)
        self.certificate_end_seconds = self._gauge(
            "certificate_end_seconds",
            "When our certificate ends, in seconds since 1970; 0: peers speak plainly.",
        )
        self.pulls = self._gauge("pulls", "Pulls that run.")
        self.pulls_ended = self._counter("pulls_ended", "Pulls that ended.", outcome=OUTCOMES)
        self.warm_orders = self._counter(
            "warm_orders", "Orders to warm this node that ended.", outcome=ORDER_OUTCOMES
        )
        self.store_bytes = self._gauge("store_bytes", "Our bytes on the disk.")
        self.store_capacity_bytes = self._gauge(
            "store_capacity_bytes", "Bytes that we may have on the disk."
        )
        self.store_free_bytes = self._gauge(
            "store_free_bytes", "Bytes that the store's file system still has."
        )
        self.leases = self._gauge("leases", "What protects from eviction.", kind=LEASE_KINDS)
        self.evictions = self._counter(
            "evictions", "Files that were taken out of the store.", reason=EVICTION_REASONS
        )
        self.evicted_bytes = self._counter(
            "evicted_bytes", "Bytes that were taken out of the store.", reason=EVICTION_REASONS
        )
        self.artifact_ready_duration_seconds = self._histogram(
            "artifact_ready_duration_seconds",
            "From asking for an artifact to having all of it; warm if nothing was fetched.",
            READY_SECONDS,
            start=STARTS,
        )
        self.build_info = Gauge(
            "damselfly_build_info",
            "Always 1; the labels say what runs.",
            ("version", "python"),
            registry=self.registry,
        )
        self.build_info.labels(version=__version__, python=platform.python_version()).set(1)
        self.table.append(("damselfly_build_info", "gauge", "version, python"))

    def chunk_fetched(self, source: str, length: int, seconds: float) -> None:
        """Count a chunk that arrived and verified."""
        assert source in SOURCES
        self.chunks_fetched.labels(source=source).inc()
        self.fetched_bytes.labels(source=source).inc(length)
        self.chunk_fetch_duration_seconds.labels(source=source).observe(seconds)

    def pull_completed(self, seconds: float, *, is_warm: bool) -> None:
        """An artifact is ready; `is_warm`: no byte of it had to be moved."""
        self.pulls_ended.labels(outcome="completed").inc()
        start = "warm" if is_warm else "cold"
        self.artifact_ready_duration_seconds.labels(start=start).observe(seconds)

    def pull_failed(self, *, is_cancelled: bool) -> None:
        """A pull ended without an artifact."""
        self.pulls_ended.labels(outcome="cancelled" if is_cancelled else "failed").inc()

    def removed(self, reason: str, files: int, length: int) -> None:
        """Files were taken out of the store."""
        self.evictions.labels(reason=reason).inc(files)
        self.evicted_bytes.labels(reason=reason).inc(length)

    def chunk_served(self, length: int) -> None:
        """Count a chunk that a peer got from us."""
        self.chunks_served.inc()
        self.served_bytes.inc(length)


class DriverMetrics(MetricSet):
    """The metrics of one CSI driver, which is a process of its own beside the agent."""

    def __init__(self) -> None:
        super().__init__()
        # Its labels are closed by CSI and gRPC; all pairs would be 200 series of zeros.
        name = "damselfly_csi_operation_duration_seconds"
        self.table.append((name, "histogram", "method, grpc_status_code"))
        self._operations = Histogram(
            name,
            "From a call's arrival to its answer; a publish waits for its pull.",
            ("method", "grpc_status_code"),
            registry=self.registry,
            buckets=OPERATION_SECONDS,
        )

    def operation_ended(self, method: str, grpc_status_code: str, seconds: float) -> None:
        """Observe a call that was answered."""
        self._operations.labels(method=method, grpc_status_code=grpc_status_code).observe(seconds)


Metric = TypeVar("Metric", bound=MetricWrapperBase)


def _spread(metric: Metric, labels: dict[str, Iterable[str]]) -> Metric:
    """Touch every label value, so that a rate over it does not miss the first event."""
    for label, values in labels.items():
        for value in values:
            metric.labels(**{label: value})
    return metric
