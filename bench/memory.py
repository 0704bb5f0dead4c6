"""How much anonymous memory does an agent need, whatever the model's size?

Back of the envelope: chunks on their way to the disk sit in a pool of 120 MiB, an interpreter
with its libraries takes 35 MiB, and what is served goes from the page cache to the socket without
passing through the agent. So 300 MiB must suffice, for 4 GiB as for 400.

    python -m bench.memory --size 4GiB --served-size 1GiB --peers 8

Two figures of RssAnon (sampled every 100 ms): the peak of one agent while it pulls a model alone
from a fast origin, and the peak of one agent that has a model while others pull it at once. Over
loopback, which is faster, and so harder, than any network.
"""

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.agents import Agent, BenchError, Fleet, end_on_sigterm, free_addresses, same_tree
from bench.model import cached_model
from damselfly.agent.quantities import parse_bytes
from damselfly.client.answers import Pulled
from damselfly.errors import DamselflyError, explain


def measure_pull(size_bytes: int, folder: Path) -> dict[str, Any]:
    """One agent pulls a model alone."""
    model = cached_model(size_bytes)
    with Fleet(folder) as fleet:
        listen, address = free_addresses(2)
        origin = fleet.start_origin(model.path, listen)
        agent = fleet.start_agent("agent", address, [address])
        agent.wait_until_ready()
        idle_bytes = agent.process.usage().rss_anon_peak_bytes
        pulled = agent.pull(origin.url)
        peak_bytes = agent.process.usage().rss_anon_peak_bytes
        return {
            "idle_mib": _mib(idle_bytes),
            "pulling_peak_mib": _mib(peak_bytes),
            "pulled_bytes": pulled.bytes,
            "pull_s": round(pulled.seconds, 2),
            "verified": same_tree(Path(pulled.path), model.path),
        }


def measure_serving(size_bytes: int, peers: int, folder: Path) -> dict[str, Any]:
    """One agent has a model, and others pull it at once."""
    model = cached_model(size_bytes)
    with Fleet(folder) as fleet:
        listen, *addresses = free_addresses(peers + 2)
        origin = fleet.start_origin(model.path, listen)
        for number, address in enumerate(addresses):
            fleet.start_agent("holder" if number == 0 else f"peer{number}", address, addresses)
        fleet.wait_until_met()
        holder, *others = fleet.agents
        holder.pull(origin.url)
        sent_before = origin.bytes_sent()
        holder.process.forget_peak()
        pulled = _pull_on_all(others, origin.url)
        return {
            "peers": peers,
            "serving_peak_mib": _mib(holder.process.usage().rss_anon_peak_bytes),
            "peers_peak_mib": _mib(
                max(agent.process.usage().rss_anon_peak_bytes for agent in others)
            ),
            "bytes_served": holder.client.status().traffic.bytes_served,
            "origin_of_model_again": round((origin.bytes_sent() - sent_before) / model.bytes, 4),
            "verified": all(same_tree(Path(each.path), model.path) for each in pulled),
        }


def _pull_on_all(agents: Sequence[Agent], ref: str) -> list[Pulled]:
    answers: dict[str, Pulled] = {}
    errors: list[str] = []

    def follow(agent: Agent) -> None:
        try:
            answers[agent.name] = agent.pull(ref)
        except (DamselflyError, BenchError) as exc:
            errors.append(f"{agent.name}: {explain(exc)}")

    threads = [threading.Thread(target=follow, args=(agent,), daemon=True) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise BenchError("pulls failed: " + "; ".join(errors))
    return [answers[agent.name] for agent in agents]


def _mib(count: int) -> float:
    return round(count / 2**20, 1)


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=4 << 30)
    parser.add_argument("--served-size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the stores go")
    given = parser.parse_args()
    end_on_sigterm()
    figures: dict[str, Any] = {"bench": "memory", "size_bytes": given.size}
    try:
        with tempfile.TemporaryDirectory(prefix="damselfly-memory-", dir=given.folder) as place:
            figures["alone"] = measure_pull(given.size, Path(place))
        with tempfile.TemporaryDirectory(prefix="damselfly-memory-", dir=given.folder) as place:
            figures["serving"] = measure_serving(given.served_size, given.peers, Path(place))
    except (BenchError, DamselflyError) as exc:
        print(explain(exc), file=sys.stderr)
        return 1
    figures["machine"] = machine.describe()
    print(json.dumps(figures))
    return 0 if figures["alone"]["verified"] and figures["serving"]["verified"] else 1


if __name__ == "__main__":
    sys.exit(main())
