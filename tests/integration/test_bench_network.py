"""Rate-limited namespaces: they carry, they limit, and nothing of them stays."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.network import Network, NetworkError, Node, Port, parse_rate, why_not

MISSING = why_not()
needs_network = [
    pytest.mark.root,
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
]
PORT = Port(rate_bits_s=parse_rate("100mbit"))

LISTEN = """
import socket, sys
with socket.create_server(("0.0.0.0", 7700)) as listener:
    print("listening", flush=True)
    link, (address, _) = listener.accept()
    count = 0
    while block := link.recv(1 << 20):
        count += len(block)
    print(address, count, flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7700)) as link:
    link.sendall(bytes(int(sys.argv[2])))
"""


def send(sender: Node, receiver: Node, count: int) -> tuple[str, float]:
    """Send bytes from node to node; returns what the receiver saw and how long it took."""
    with subprocess.Popen(
        [*receiver.prefix, sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        start_s = time.monotonic()
        command = [*sender.prefix, sys.executable, "-c", SEND, receiver.address, str(count)]
        subprocess.run(command, check=True)
        return listener.stdout.readline().strip(), time.monotonic() - start_s


def can_run(prefix: tuple[str, ...]) -> bool:
    done = subprocess.run([*prefix, "true"], stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def interfaces() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


@pytest.mark.parametrize(
    ("text", "bits"),
    [("400mbit", 400_000_000), ("10Gbit", 10_000_000_000), ("1.5 mbit/s", 1_500_000)],
)
def test_rates_are_read_as_tc_reads_them(text: str, bits: int) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["", "400", "mbit", "400MB", "-1mbit"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a rate"):
        parse_rate(text)


class TestNetwork:
    pytestmark = needs_network

    def test_nodes_reach_each_other(self) -> None:
        with Network({"one": PORT, "other": PORT, "third": PORT}) as network:
            one, other = network.nodes["one"], network.nodes["other"]

            seen, _ = send(one, other, 1000)

        assert seen == f"{one.address} 1000"

    def test_nothing_is_faster_than_its_port(self) -> None:
        slow = Port(rate_bits_s=parse_rate("20mbit"))
        with Network({"slow": slow, "fast": PORT}) as network:
            nodes = network.nodes

            _, out_s = send(nodes["slow"], nodes["fast"], 1_000_000)
            _, in_s = send(nodes["fast"], nodes["slow"], 1_000_000)

        least_s = (1_000_000 - slow.burst_bytes) / (slow.rate_bits_s / 8)
        assert out_s > least_s
        assert in_s > least_s

    def test_the_hosts_own_network_is_not_touched(self) -> None:
        before = interfaces()

        with Network({"one": PORT, "other": PORT}):
            during = interfaces()

        assert during == before
        assert interfaces() == before

    def test_an_exception_takes_the_network_down(self) -> None:
        network = Network({"one": PORT})
        prefixes: list[tuple[str, ...]] = []

        def fail() -> None:
            with network:
                prefixes.append(network.nodes["one"].prefix)
                assert can_run(prefixes[0])
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()

        assert not can_run(prefixes[0])

    def test_what_the_kernel_refuses_is_named_and_taken_down(self) -> None:
        network = Network({"one": PORT}, congestion_control="no-such-thing")

        with pytest.raises(NetworkError, match="no-such-thing"), network:
            pass

        assert network.nodes == {}

    def test_two_networks_have_the_same_addresses_and_do_not_meet(self) -> None:
        ports = {"one": PORT, "other": PORT}
        with Network(ports) as first, Network(ports) as second:
            assert first.nodes["one"].address == second.nodes["one"].address

            seen_first, _ = send(first.nodes["one"], first.nodes["other"], 10)
            seen_second, _ = send(second.nodes["one"], second.nodes["other"], 20)

        assert seen_first.endswith(" 10")
        assert seen_second.endswith(" 20")
