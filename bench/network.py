"""A switch with rate-limited ports, made of network namespaces, up while a `with` block lasts.

    switch namespace            node namespace
    ┌────────────────┐  veth   ┌──────────────────────┐
    │ bridge ─ port0 ├─────────┤ eth0  10.77.0.1/24   │   one per node, as many as are asked for
    │        ─ port1 ├─────────┤ ...                  │
    └────────────────┘         └──────────────────────┘
      port: rate towards the node      eth0: rate towards the switch

A namespace here has no name and no process: this process holds a descriptor of it, and the kernel
takes the namespace, its interfaces and its limits down with the last descriptor and the last
process inside. So nothing is left behind, not even by `kill -9`, and nothing of the host's network
is touched.

Each direction of a port is a token bucket (`tc tbf`). It counts what `tc` sees of a full frame:
1514 bytes, of which 1448 are payload (TCP with timestamps, IPv4, Ethernet without its checksum). So
0.956 of the rate is the most payload that fits.

Why the numbers of `Port` are what they are (`python -m bench.ceiling` measures it; 9 nodes of
400 Mbit/s on 2 cores). Segmentation offload stays on: veth passes frames of up to 64 KiB whole, the
bucket counts the headers of every segment in them, and it splits what is larger than its burst,
which costs four times the CPU and starves the machine (burst 20 kB: all-to-all gets 0.39-0.66 of
the bound; 70 kB: 0.987; 100 kB: 0.992; 140 kB: 0.997, but one burst is then 3 ms of the line).
Queues of 2, 4 and 16 ms at the switch make no difference to the sum (0.986-1.00), only to fairness
between flows; Cubic (the default of most hosts) gets 0.99, BBR 0.98 and shares worse.
"""

import ctypes
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PAYLOAD_SHARE = 1448 / 1514
"""Payload bytes per byte that a port's rate limit counts."""

_CLONE_NEWNET = 0x40000000
_SETTINGS = (
    "net.ipv4.tcp_rmem=4096 131072 6291456",
    "net.ipv4.tcp_wmem=4096 16384 4194304",
)
"""Linux' own defaults: what this host is tuned to decides nothing."""
_SUBNET = "10.77.0"
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g)bit(?:/s)?", re.ASCII | re.IGNORECASE)
_BITS = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def parse_rate(text: str) -> int:
    """Read a rate as `tc` writes it, `400mbit` or `10gbit`, into bits per second.

    Raises:
        ValueError: `text` is no rate.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a rate like 400mbit")
    return int(float(match[1]) * _BITS[match[2].lower()])


class NetworkError(Exception):
    """The kernel refused a part of the network."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One node's link, alike in both directions.

    A host does not lose frames on its own way out (a full queue stalls its sockets), so
    `host_queue_s` is generous; a switch drops what does not fit in `switch_queue_s` of the rate.
    """

    rate_bits_s: int
    burst_bytes: int = 100_000  # more than the largest GSO frame: 45 segments of 1514 bytes
    host_queue_s: float = 0.02
    switch_queue_s: float = 0.004

    @property
    def payload_bytes_s(self) -> float:
        """The most payload that fits through, each way."""
        return PAYLOAD_SHARE * self.rate_bits_s / 8

    def bucket(self, device: str, queue_s: float) -> list[str]:
        """The words for `tc` that limit what leaves `device` to this port's rate."""
        queue_bytes = self.burst_bytes + round(queue_s * self.rate_bits_s / 8)
        return [
            *("qdisc", "replace", "dev", device, "root", "tbf"),
            *("rate", f"{self.rate_bits_s}bit"),
            *("burst", f"{self.burst_bytes}b"),
            *("limit", f"{queue_bytes}b"),
        ]


@dataclass(frozen=True)
class Node:
    """One end of a cable: its address, and the words that put a command there."""

    name: str
    address: str
    prefix: tuple[str, ...]
    port: Port


def why_not() -> str | None:
    """The reason why no network can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (iproute2, util-linux)"
    try:
        os.close(_new_namespace())
    except OSError as exc:
        return f"the kernel refuses a network namespace: {exc.strerror}"
    return None


def _new_namespace() -> int:
    """Make a network namespace and return a descriptor of it: a thread enters it and is gone."""
    results: list[int | OSError] = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            results.append(OSError(number, os.strerror(number)))
            return
        path = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        results.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=enter, name="namespace")
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise results[0]
    return results[0]


class Network:
    """A switch with a port per node, up while the context lasts.

    `ports` names the nodes, in order; the first gets address 10.77.0.1. The processes inside belong
    to whoever started them (with a node's `prefix`), and should end before the context does.
    """

    def __init__(self, ports: Mapping[str, Port], *, congestion_control: str = "cubic") -> None:
        assert len(ports) < 250, "more nodes than addresses"
        self._ports = dict(ports)
        self._congestion = congestion_control
        self._descriptors: list[int] = []
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every namespace. Safe to call twice."""
        while self._descriptors:
            os.close(self._descriptors.pop())
        self.nodes.clear()

    def _build(self) -> None:
        switch = self._namespace()
        _ip(switch, "link add name br0 type bridge", "link set dev br0 up")
        for number, (name, port) in enumerate(self._ports.items()):
            inside = self._namespace()
            address = f"{_SUBNET}.{number + 1}"
            route = f"{_SUBNET}.0/24 dev eth0 src {address} congctl {self._congestion}"
            _ip(
                switch,
                f"link add name port{number} type veth peer name eth0 netns {inside}",
                f"link set dev port{number} master br0 up",
            )
            _ip(
                inside,
                "link set dev lo up",
                f"addr add {address}/24 dev eth0",
                "link set dev eth0 up",
                f"route change {route}",  # A namespace may not change the default; a route may.
            )
            _run(inside, "sysctl", "-q", "-w", *_SETTINGS)
            _run(switch, "tc", *port.bucket(f"port{number}", port.switch_queue_s))
            _run(inside, "tc", *port.bucket("eth0", port.host_queue_s))
            self.nodes[name] = Node(name, address, _prefix(inside), port)

    def _namespace(self) -> str:
        """Make a namespace and return its path, good for as long as we hold the descriptor."""
        self._descriptors.append(_new_namespace())
        return f"/proc/{os.getpid()}/fd/{self._descriptors[-1]}"


def _prefix(namespace: str) -> tuple[str, ...]:
    return ("nsenter", f"--net={namespace}", "--")


def _ip(namespace: str, *lines: str) -> None:
    _run(namespace, "ip", "-batch", "-", text="\n".join((*lines, "")))


def _run(namespace: str, *command: str, text: str | None = None) -> str:
    done = subprocess.run(
        (*_prefix(namespace), *command), input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {text or ''}{done.stderr.strip()}")
    return done.stdout
