"""How much of a rate-limited network does plain TCP get, and what does that cost in CPU?

The bound of every swarm here is F / (0.956 min(O, B)). What plain sockets do on the same ports
(recv into a buffer, sendfile out, no protocol, no hash) is the ceiling of what agents can reach.
Three patterns: one flow; many senders into one receiver; and all to all, where every node sends to
and receives from every other at once, as in the middle of a swarm.

    python -m bench.ceiling --nodes 8 --rate 400mbit

`share` is the payload that receivers got, of what their ports can carry; `flow_share` compares each
flow with an equal part of its receiver's port. `cpu_s_per_gb` is of the processes on both ends,
`softirq_s_per_gb` of the whole machine's interrupts (which pay for the switch as well).
"""

import argparse
import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.network import Network, Node, Port, parse_rate, why_not

_PORT = 7700
_BLOCK_BYTES = 1 << 20
_SOURCE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one node's process does: whom it sends to, and between which moments it counts."""

    sends_to: Sequence[str]
    start_s: float  # of the monotonic clock, which all processes share
    count_from_s: float
    count_until_s: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one node's process saw: bytes by the address that sent them, and its own CPU."""

    received: Mapping[str, int]
    cpu_s: float


def exchange(task: Task, listener: socket.socket) -> Report:
    """Send as fast as the sockets take it, and count what arrives, until the time is over."""
    source = os.memfd_create("bytes")
    os.truncate(source, _SOURCE_BYTES)
    poll = select.epoll()
    listener.setblocking(False)
    poll.register(listener, select.EPOLLIN)
    links: dict[int, socket.socket] = {}
    senders: dict[int, str] = {}
    offsets: dict[int, int] = {}
    received: defaultdict[str, int] = defaultdict(int)
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    time.sleep(max(0.0, task.start_s - time.monotonic()))
    cpu_before_s = _own_cpu_s()
    for address in task.sends_to:
        link = socket.create_connection((address, _PORT))
        link.setblocking(False)
        links[link.fileno()] = link
        offsets[link.fileno()] = 0
        poll.register(link, select.EPOLLOUT)
    while (now := time.monotonic()) < task.count_until_s:
        for number, _ in poll.poll(task.count_until_s - now):
            if number == listener.fileno():
                link, (address, _) = listener.accept()
                link.setblocking(False)
                links[link.fileno()] = link
                senders[link.fileno()] = address
                poll.register(link, select.EPOLLIN)
                continue
            try:
                if number in offsets:
                    offset = offsets[number]
                    sent = os.sendfile(number, source, offset, _BLOCK_BYTES)
                    offsets[number] = (offset + sent) % (_SOURCE_BYTES - _BLOCK_BYTES)
                    continue
                count = links[number].recv_into(buffer)
            except ConnectionError:
                count = 0  # The other end's time was over a moment before ours.
            if count == 0:
                poll.unregister(number)
            elif now >= task.count_from_s:
                received[senders[number]] += count
    report = Report(received=dict(received), cpu_s=_own_cpu_s() - cpu_before_s)
    for link in links.values():
        link.close()
    poll.close()
    os.close(source)
    return report


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _softirq_s() -> float:
    with Path("/proc/stat").open() as stat:
        return int(stat.readline().split()[7]) / os.sysconf("SC_CLK_TCK")


def be_a_node() -> None:
    """Be one node's process: listen, say so, read the task, do it, report."""
    with socket.create_server(("0.0.0.0", _PORT)) as listener:
        print("listening", flush=True)
        task = Task(**json.loads(sys.stdin.readline()))
        print(json.dumps(asdict(exchange(task, listener))), flush=True)


def measure(
    nodes: Mapping[str, Node],
    flows: Mapping[str, Sequence[str]],
    *,
    seconds: float,
    settle_s: float,
) -> dict[str, float]:
    """Run a pattern of flows (sender to receivers, by name) and say what the receivers got."""
    softirq_before_s = _softirq_s()
    processes = {
        name: subprocess.Popen(
            [*node.prefix, sys.executable, "-m", "bench.ceiling", "--be-a-node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, node in nodes.items()
    }
    try:
        for process in processes.values():
            _line_from(process)
        start_s = time.monotonic() + 0.3
        for name, process in processes.items():
            task = Task(
                sends_to=[nodes[to].address for to in flows.get(name, ())],
                start_s=start_s,
                count_from_s=start_s + settle_s,
                count_until_s=start_s + settle_s + seconds,
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(task)) + "\n")
            process.stdin.flush()
        reports = {
            name: Report(**json.loads(_line_from(process))) for name, process in processes.items()
        }
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    shares: list[float] = []
    flow_shares: list[float] = []
    for name, report in reports.items():
        if counts := report.received.values():
            room_bytes = nodes[name].port.payload_bytes_s * seconds
            shares.append(sum(counts) / room_bytes)
            flow_shares += [count * len(counts) / room_bytes for count in counts]
    received_bytes = sum(sum(report.received.values()) for report in reports.values())
    moved_bytes = received_bytes * (settle_s + seconds) / seconds  # CPU counts from the start.
    cpu_s = sum(report.cpu_s for report in reports.values())
    return {
        "share_mean": round(sum(shares) / len(shares), 4),
        "share_min": round(min(shares), 4),
        "flow_share_min": round(min(flow_shares), 3),
        "flow_share_max": round(max(flow_shares), 3),
        "cpu_s_per_gb": round(cpu_s / moved_bytes * 1e9, 3),
        "softirq_s_per_gb": round((_softirq_s() - softirq_before_s) / moved_bytes * 1e9, 3),
    }


def _line_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def main() -> int:
    """Measure the three patterns and print one JSON line each."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ceiling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rate", type=parse_rate, default=parse_rate("400mbit"))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--settle-s", type=float, default=0.5)
    parser.add_argument("--burst-bytes", type=int, default=Port.burst_bytes)
    parser.add_argument("--host-queue-s", type=float, default=Port.host_queue_s)
    parser.add_argument("--switch-queue-s", type=float, default=Port.switch_queue_s)
    parser.add_argument("--congestion-control", default="cubic")
    parser.add_argument("--patterns", default="one,incast,all")
    parser.add_argument("--be-a-node", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_a_node:
        be_a_node()
        return 0
    if (reason := why_not()) is not None:
        print(f"cannot measure the network: {reason}", file=sys.stderr)
        return 1
    port = Port(
        rate_bits_s=options.rate,
        burst_bytes=options.burst_bytes,
        host_queue_s=options.host_queue_s,
        switch_queue_s=options.switch_queue_s,
    )
    names = [f"node{number}" for number in range(options.nodes)]
    patterns = {
        "one": {names[0]: [names[1]]},
        "incast": {name: [names[0]] for name in names[1:]},
        "all": {name: [to for to in names if to != name] for name in names},
    }
    ports = dict.fromkeys(names, port)
    for pattern in options.patterns.split(","):
        with Network(ports, congestion_control=options.congestion_control) as network:
            figures = measure(
                network.nodes,
                patterns[pattern],
                seconds=options.seconds,
                settle_s=options.settle_s,
            )
        figures_of = {"bench": "ceiling", "pattern": pattern, "nodes": options.nodes}
        print(json.dumps({**figures_of, "rate_bits_s": options.rate, **figures}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
