"""How long does a pod wait for a model that is on its node, and fifty pods for one that is not?

Back of the envelope. Cached: a dial and a call on a unix socket, the agent's word on its own, a
lease and a record (three fsyncs, a millisecond each on NVMe), two mount calls: 20 ms at the median,
100 ms for one in a hundred. Uncached: fifty calls share one pull, so the origin sends the model
once; a call needs some 10 ms of two cores after the pull's end, so all are done within a second.

    python -m bench.publish --size 1GiB --publishes 200 --at-once 50

Publishes are timed one after the other, each of another volume at a target of its own, with a
connection of its own as the kubelet makes it, from the call until a file of the model is seen in
the target; each is unpublished before the next. The end of the pull is what somebody sees who
pulls the same ref on the same agent.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc

from bench import machine
from bench.agents import BenchError, end_on_sigterm
from bench.model import Model, cached_model
from bench.mounts import mounts_at, why_not
from bench.node import Node, running_node
from damselfly.agent.quantities import parse_bytes
from damselfly.errors import DamselflyError, explain

_WARM_UP = 10
_SEEN = "config.json"


def measure_cached(model: Model, count: int, folder: Path) -> dict[str, Any]:
    """Publish what is cached, again and again."""
    with running_node(folder, model.path) as node:
        first_s, _ = publish_once(node, 0)
        published: list[float] = []
        unpublished: list[float] = []
        for number in range(1, _WARM_UP + count + 1):
            there_s, gone_s = publish_once(node, number)
            if number > _WARM_UP:
                published.append(there_s)
                unpublished.append(gone_s)
        return {
            "publishes": count,
            "first_s": round(first_s, 3),
            "publish_ms": _spread_ms(published),
            "unpublish_ms": _spread_ms(unpublished),
            "origin_of_model": round(node.origin.bytes_sent() / model.bytes, 4),
            "left": node.leftovers(),
        }


def publish_once(node: Node, number: int) -> tuple[float, float]:
    """Publish a new volume and take it away: seconds until it is seen, and until it has gone."""
    volume_id = f"bench-{number}"
    target = node.driver.target_of(volume_id)
    target.parent.mkdir(parents=True)
    start_s = time.monotonic()
    node.driver.publish(volume_id, target, {"model": node.origin.url})
    (target / _SEEN).stat()
    there_s = time.monotonic() - start_s
    assert len(mounts_at(target)) == 1
    start_s = time.monotonic()
    node.driver.unpublish(volume_id, target)
    gone_s = time.monotonic() - start_s
    assert not target.exists()
    shutil.rmtree(node.root / "pods" / volume_id)
    return there_s, gone_s


def measure_at_once(model: Model, count: int, folder: Path) -> dict[str, Any]:
    """Publish what nobody has, as many times as there are pods, all at once."""
    with running_node(folder, model.path) as node:
        ready = threading.Barrier(count + 2)

        def publish(number: int) -> float:
            volume_id = f"pod-{number}"
            target = node.driver.target_of(volume_id)
            ready.wait()
            node.driver.publish(volume_id, target, {"model": node.origin.url})
            (target / _SEEN).stat()
            return time.monotonic()

        def pull() -> float:
            ready.wait()
            node.agent.pull(node.origin.url)
            return time.monotonic()

        with ThreadPoolExecutor(count + 1) as pool:
            calls = [pool.submit(publish, number) for number in range(count)]
            end = pool.submit(pull)
            ready.wait()
            start_s = time.monotonic()
            pulled_s = end.result()
            done_s = sorted(call.result() for call in calls)
        mounted = sum(
            len(mounts_at(node.driver.target_of(f"pod-{number}"))) for number in range(count)
        )
        assert mounted == count
        for number in range(count):
            node.driver.unpublish(f"pod-{number}", node.driver.target_of(f"pod-{number}"))
            shutil.rmtree(node.root / "pods" / f"pod-{number}")
        return {
            "at_once": count,
            "pull_s": round(pulled_s - start_s, 3),
            "first_after_pull_s": round(done_s[0] - pulled_s, 3),
            "last_after_pull_s": round(done_s[-1] - pulled_s, 3),
            "origin_of_model": round(node.origin.bytes_sent() / model.bytes, 4),
            "left": node.leftovers(),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _spread_ms(seconds: Sequence[float]) -> dict[str, float]:
    return {
        name: round(quantile(seconds, share) * 1000, 2)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--publishes", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="64 MiB, 20 publishes, 10 at once")
    parser.add_argument("--folder", type=Path, help="where the stores go")
    given = parser.parse_args()
    if given.quick:
        given.size, given.publishes, given.at_once = 64 << 20, 20, 10
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    end_on_sigterm()
    model = cached_model(given.size)
    figures: dict[str, Any] = {"bench": "publish", "size_bytes": model.bytes}
    try:
        with tempfile.TemporaryDirectory(prefix="damselfly-publish-", dir=given.folder) as place:
            figures["cached"] = measure_cached(model, given.publishes, Path(place) / "cached")
        with tempfile.TemporaryDirectory(prefix="damselfly-publish-", dir=given.folder) as place:
            figures["uncached"] = measure_at_once(model, given.at_once, Path(place) / "uncached")
    except (BenchError, DamselflyError) as exc:
        print(explain(exc), file=sys.stderr)
        return 1
    except grpc.RpcError as exc:
        print(f"the driver: {cast('grpc.Call', exc).details()}", file=sys.stderr)
        return 1
    figures["machine"] = machine.describe()
    print(json.dumps(figures))
    return 1 if figures["cached"]["left"] or figures["uncached"]["left"] else 0


if __name__ == "__main__":
    sys.exit(main())
