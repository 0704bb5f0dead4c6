"""How much of a rate-limited network does plain TCP get, and what does that cost in CPU?

The bound of every swarm here is F / (0.956 min(O, B)); what plain sockets do on the same ports (recv into
a buffer, sendfile out, no protocol, no hash) is the ceiling of what an agent can reach. Three patterns:
one flow, many senders into one receiver, and all to all, where every node sends to and receives from
every other at once, as in the middle of a swarm.

    python -m bench.ceiling --nodes 8 --rate 400mbit
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
from dataclasses import asdict, dataclass, replace

from bench.network import Network, Node, Port, parse_rate, why_not

_PORT = 7700
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one node's process has to do: whom to send to, and between which moments to count."""

    listen: str
    sends_to: list[str]
    start_s: float  # of the monotonic clock, which all processes share
    count_from_s: float
    count_until_s: float


def exchange(traffic: Traffic, listener: socket.socket) -> dict[str, object]:
    """Send as fast as the sockets take it, and count what arrives, until the time is over."""
    source = os.memfd_create("bytes")
    os.truncate(source, 64 * _BLOCK_BYTES)
    poll = select.epoll()
    listener.setblocking(False)
    poll.register(listener, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    sources: dict[int, str] = {}
    offsets: dict[int, int] = {}
    received: defaultdict[str, int] = defaultdict(int)
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    time.sleep(max(0.0, traffic.start_s - time.monotonic()))
    cpu_before_s = _cpu_s()
    for address in traffic.sends_to:
        out = socket.create_connection((address, _PORT))
        out.setblocking(False)
        sockets[out.fileno()] = out
        offsets[out.fileno()] = 0
        poll.register(out, select.EPOLLOUT)
    while (now := time.monotonic()) < traffic.count_until_s:
        counts = now >= traffic.count_from_s
        for descriptor, _ in poll.poll(traffic.count_until_s - now):
            if descriptor == listener.fileno():
                came, (address, _) = listener.accept()
                came.setblocking(False)
                sockets[came.fileno()] = came
                sources[came.fileno()] = address
                poll.register(came, select.EPOLLIN)
            else:
                try:
                    if descriptor in offsets:
                        at = offsets[descriptor]
                        sent = os.sendfile(descriptor, source, at, _BLOCK_BYTES)
                        offsets[descriptor] = (at + sent) % (63 * _BLOCK_BYTES)
                        continue
                    count = sockets[descriptor].recv_into(buffer)
                except ConnectionError:
                    count = 0  # The other end's time was over a moment before ours.
                if count == 0:
                    poll.unregister(descriptor)
                elif counts:
                    received[sources[descriptor]] += count
    cpu_s = _cpu_s() - cpu_before_s
    for each in sockets.values():
        each.close()
    return {"received": received, "cpu_s": cpu_s}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve_as_node() -> None:
    """Be one node's process: listen, say so, read the task, do it, answer."""
    listener = socket.create_server(("0.0.0.0", _PORT))
    print("listening", flush=True)
    traffic = Traffic(**json.loads(sys.stdin.readline()))
    print(json.dumps(exchange(traffic, listener)), flush=True)


def measure(
    nodes: list[Node], flows: dict[str, list[str]], *, seconds: float, settle_s: float
) -> dict[str, object]:
    """Run a pattern of flows (sender to receivers, by name) and say what each receiver got."""
    by_name = {node.name: node for node in nodes}
    busy_before = _softirq_s()
    processes = {
        node.name: subprocess.Popen(
            [*node.prefix, sys.executable, "-m", "bench.ceiling", "--be-a-node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in nodes
    }
    try:
        for process in processes.values():
            assert process.stdout is not None
            process.stdout.readline()
        start_s = time.monotonic() + 0.3
        for name, process in processes.items():
            traffic = Traffic(
                listen=by_name[name].address,
                sends_to=[by_name[to].address for to in flows.get(name, [])],
                start_s=start_s,
                count_from_s=start_s + settle_s,
                count_until_s=start_s + settle_s + seconds,
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(traffic)) + "\n")
            process.stdin.flush()
        answers = {}
        for name, process in processes.items():
            assert process.stdout is not None
            answers[name] = json.loads(process.stdout.readline())
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    softirq_s = _softirq_s() - busy_before
    shares = {}
    flow_shares = []
    total = 0
    for name, answer in answers.items():
        got = answer["received"]
        if not got:
            continue
        limit = by_name[name].port.payload_bytes_s * seconds
        shares[name] = sum(got.values()) / limit
        flow_shares += [count * len(got) / limit for count in got.values()]
        total += sum(got.values())
    moved = total * (settle_s + seconds) / seconds  # CPU was counted while settling, too.
    cpu_s = sum(answer["cpu_s"] for answer in answers.values())
    return {
        "share_mean": round(sum(shares.values()) / len(shares), 4),
        "share_min": round(min(shares.values()), 4),
        "flow_share_min": round(min(flow_shares), 3),
        "flow_share_max": round(max(flow_shares), 3),
        "cpu_s_per_gb": round(cpu_s / moved * 1e9, 3),
        "softirq_s_per_gb": round(softirq_s / moved * 1e9, 3),
    }


def _softirq_s() -> float:
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[7]) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure the three patterns and print one JSON line each."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceiling", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rate", type=parse_rate, default="400mbit")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--settle", type=float, default=0.5)
    parser.add_argument("--burst-bytes", type=int, default=Port.burst_bytes)
    parser.add_argument("--host-queue-s", type=float, default=Port.host_queue_s)
    parser.add_argument("--switch-queue-s", type=float, default=Port.switch_queue_s)
    parser.add_argument("--congestion-control", default="cubic")
    parser.add_argument("--patterns", default="one,incast,all")
    parser.add_argument("--be-a-node", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_a_node:
        serve_as_node()
        return 0
    if (reason := why_not()) is not None:
        print(f"cannot measure: {reason}", file=sys.stderr)
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
    for name in options.patterns.split(","):
        with Network(
            {each: port for each in names}, congestion_control=options.congestion_control
        ) as network:
            figures = measure(
                list(network.nodes.values()),
                patterns[name],
                seconds=options.seconds,
                settle_s=options.settle,
            )
        print(json.dumps({"pattern": name, "nodes": options.nodes, **figures}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
