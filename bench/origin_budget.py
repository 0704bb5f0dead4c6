"""How gently is an origin read: requests, bytes, and rests that are kept?

A model of 4 shards, 8 agents as processes that pull it at once, and an origin that counts. Every
chunk has to be read once by somebody, so requests are the claims that homes grant, plus the
listing and the safetensors headers; bytes are the model's. With `--throttled` the origin answers
every third request with 429 and `Retry-After: 1`; then no request may come during a rest, but for
those that were on their way when the 429 left. They are told by the time between the 429 and their
arrival, both on the server's clock: within MARGIN_S the word goes from the agent that was told to
the home of the host and on to the others, on two cores that ten processes share.

    python -m bench.origin_budget --size 64MiB --throttled
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from bench import machine
from bench.agents import Agent, BenchError, Fleet, end_on_sigterm, free_addresses
from damselfly.agent.quantities import parse_bytes

MARGIN_S = 0.25
SHARDS = 4
TENSOR_BYTES = 8 << 20


def main() -> int:
    """Pull, count, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.origin_budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--throttled", action="store_true")
    parser.add_argument("--requests", type=int, default=0, help="--origin-requests of the agents")
    given = parser.parse_args()
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="damselfly-budget-") as folder:
        result = measured(
            Path(folder), given.size, given.nodes, given.requests, is_throttled=given.throttled
        )
    print(json.dumps(result | {"machine": machine.describe()}))
    return 0


def measured(
    folder: Path, size: int, nodes: int, requests: int, *, is_throttled: bool
) -> dict[str, object]:
    """Let `nodes` agents pull a model of about `size` bytes, and count."""
    model = folder / "model"
    _write_shards(model, size)
    files = [file for file in model.rglob("*") if file.is_file()]
    model_bytes = sum(file.stat().st_size for file in files)
    with Fleet(folder / "fleet") as fleet:
        options = ("--throttle", "3") if is_throttled else ()
        origin = fleet.start_origin(model, free_addresses(1)[0], *options)
        admins = free_addresses(nodes)
        addresses = free_addresses(nodes)
        rate = ("--origin-requests", str(requests)) if requests else ()
        for number, address in enumerate(addresses):
            fleet.start_agent(
                f"n{number}",
                address,
                addresses,
                *("--store-keep-free", "1MiB", "--admin", admins[number]),
                *rate,
            )
        fleet.wait_until_met()
        began_s = time.monotonic()
        _pull_all(fleet.agents, origin.url)
        took_s = time.monotonic() - began_s
        stats = origin.stats()
        claims = sum(_metric(admin, "damselfly_origin_claims_total") for admin in admins)
    by_path: dict[str, int] = stats["requests_by_path"]
    early_s: list[float] = stats["early_s"]
    chunk_requests = sum(count for path, count in by_path.items() if path.endswith(".safetensors"))
    return {
        "bench": "origin_budget",
        "nodes": nodes,
        "files": len(files),
        "shards": sum(file.suffix == ".safetensors" for file in files),
        "model_bytes": model_bytes,
        "throttled": is_throttled,
        "requests_s_max": requests or None,
        "took_s": round(took_s, 2),
        "requests": stats["requests"],
        "requests_of_shards": chunk_requests,
        "requests_answered_429": stats["busy"],
        "claims": claims,
        "requests_besides_claims": stats["requests"] - stats["busy"] - claims,
        "bytes_of_model": round(stats["bytes"] / model_bytes, 4),
        "margin_s": MARGIN_S,
        "requests_on_their_way": sum(each <= MARGIN_S for each in early_s),
        "requests_in_rests": sum(each > MARGIN_S for each in early_s),
        "latest_on_its_way_s": max(early_s, default=0.0),
    }


def _write_shards(model: Path, size: int) -> None:
    """As many files of random tensors, 8 MiB each, as make `size` bytes: digests must differ."""
    model.mkdir(parents=True)
    tensors = max(1, size // SHARDS // TENSOR_BYTES)
    for number in range(SHARDS):
        header = {
            f"t{each}": {
                "dtype": "U8",
                "shape": [TENSOR_BYTES],
                "data_offsets": [each * TENSOR_BYTES, (each + 1) * TENSOR_BYTES],
            }
            for each in range(tensors)
        }
        text = json.dumps(header).encode()
        with (model / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _ in range(tensors):
                file.write(os.urandom(TENSOR_BYTES))


def _pull_all(agents: list[Agent], url: str) -> None:
    failures: list[BaseException] = []

    def pull(agent: Agent) -> None:
        try:
            agent.pull(url)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=pull, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(f"a pull failed: {failures[0]}") from failures[0]


def _metric(admin: str, name: str) -> int:
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name} ([0-9.e+]+)$", text, re.MULTILINE)
    assert found is not None, f"an agent tells {name}"
    return int(float(found[1]))


if __name__ == "__main__":
    sys.exit(main())
