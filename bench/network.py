"""A switch with rate-limited ports, made of network namespaces, for as long as a `with` block lasts.

    switch namespace            node namespace
    ┌────────────────┐  veth   ┌──────────────────────┐
    │ bridge ─ port0 ├─────────┤ eth0  10.77.0.1/24   │   one per node, as many as are asked for
    │        ─ port1 ├─────────┤ ...                  │
    └────────────────┘         └──────────────────────┘
      port: rate towards the node      eth0: rate towards the switch

A namespace here has no name and no process: this process holds a descriptor of it, and the kernel
takes the namespace, its interfaces and its limits down with the last descriptor and the last process
inside. So nothing is left behind even by `kill -9`, and nothing of the host's network is touched.

Each direction of a port is a token bucket (`tc tbf`). It counts what `tc` sees of a full frame: 1514
bytes, of which 1448 are payload (TCP with timestamps, IPv4, Ethernet without its checksum). So the most
payload that fits is 0.956 of the rate. `python -m bench.ceiling` measures how much of it plain TCP gets
here, and why the numbers in `Port` are what they are.
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

    A host does not lose frames on its own way out (a full queue stalls its sockets), so `host_queue_s`
    is generous; a switch drops what does not fit, after `switch_queue_s` of the port's rate.
    """

    rate_bits_s: int
    burst_bytes: int = 70_000  # the largest GSO frame, 45 segments of 1514, and a little more
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

    `ports` names the nodes, in order; the first gets address 10.77.0.1. The processes inside belong to
    whoever started them (with a node's `prefix`), and should end before the context does.
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
        _run(
            switch, "ip", "-batch", "-", text="link add name br0 type bridge\nlink set dev br0 up\n"
        )
        for number, (name, port) in enumerate(self._ports.items()):
            inside = self._namespace()
            address = f"{_SUBNET}.{number + 1}"
            _run(
                switch,
                "ip",
                "-batch",
                "-",
                text=f"link add name port{number} type veth peer name eth0 netns {inside}\n"
                f"link set dev port{number} master br0 up\n",
            )
            _run(
                inside,
                "ip",
                "-batch",
                "-",
                text=f"link set dev lo up\naddr add {address}/24 dev eth0\nlink set dev eth0 up\n"
                f"route change {_SUBNET}.0/24 dev eth0 src {address} congctl {self._congestion}\n",
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


def _run(namespace: str, *command: str, text: str | None = None) -> str:
    done = subprocess.run(
        (*_prefix(namespace), *command), input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)} {text or ''}: {done.stderr.strip()}")
    return done.stdout
