"""Is anything left behind when pods come and go for minutes, and agent and driver with them?

Twenty volumes a second are published, looked at, kept for up to two seconds and unpublished, by
turns of several models and filters, while the driver and the agent are ended and started again:
killed and stopped by turns, the one some seconds after the other. A call that fails is made again
until it is OK. In the last third nobody is restarted, so that what leaks a little with every volume
has been adding up for a third of the time when it is counted.

    python -m bench.soak --minutes 5 --rate 20

At the end there must be no mount, no lease, no directory of a pod, no record, and neither process
may have more descriptors or threads than it had before the last third, but for a few.
"""

import argparse
import json
import queue
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

from bench import machine
from bench.agents import BenchError, end_on_sigterm
from bench.model import write_model
from bench.mounts import mounts_at, why_not
from bench.node import Node, descriptor_count, running_node, thread_count
from bench.publish import quantile
from damselfly.errors import DamselflyError, explain

_WORKERS = 32
_MODEL_BYTES = 2 << 20
_ATTRIBUTES: tuple[dict[str, str], ...] = (
    {"model": "a/"},
    {"model": "b/"},
    {"model": "a/", "include": "*.json"},
    {"model": "b/", "exclude": "*.safetensors"},
)
_KEPT_S_MAX = 2.0
_RETRY_S = 0.1
_CALL_PATIENCE_S = 120.0
_SETTLE_S = 15.0
_SLACK = 16
"""Connections and worker threads that come and go; a leak per volume would be hundreds."""


@dataclass
class Tally:
    """What happened, counted by all workers."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    publish_s: list[float] = field(default_factory=list[float])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str) -> None:
        """Count one."""
        with self.lock:
            self.outcomes[outcome] += 1

    def published(self, seconds: float) -> None:
        """Count a publish, retries included."""
        with self.lock:
            self.outcomes["published"] += 1
            self.publish_s.append(seconds)


class Pods:
    """Pods that come and go, on threads; `jobs` are the numbers of those that shall come."""

    def __init__(self, node: Node, rng: random.Random) -> None:
        self.tally = Tally()
        self.jobs: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._node = node
        self._rng = rng
        self._threads = [
            threading.Thread(target=self._work, name=f"pods-{number}", daemon=True)
            for number in range(_WORKERS)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let those that are here go, and return when they have."""
        for _ in self._threads:
            self.jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (number := self.jobs.get()) is not None:
            try:
                self._live(number)
            except (AssertionError, OSError, BenchError) as exc:
                self.tally.add(f"wrong: {type(exc).__name__}: {exc}")

    def _live(self, number: int) -> None:
        driver = self._node.driver
        volume_id, target = f"soak-{number}", driver.target_of(f"soak-{number}")
        attributes = dict(_ATTRIBUTES[number % len(_ATTRIBUTES)])
        attributes["model"] = self._node.origin.url + attributes["model"]
        start_s = time.monotonic()
        if self._until_ok("publish", lambda: driver.publish(volume_id, target, attributes)):
            self.tally.published(time.monotonic() - start_s)
            assert len(mounts_at(target)) == 1, "not one mount"
            assert (target / "config.json").read_bytes(), "an empty file"
            time.sleep(self._rng.random() * _KEPT_S_MAX)
            assert (target / "config.json").read_bytes(), "an empty file, later"
        if self._until_ok("unpublish", lambda: driver.unpublish(volume_id, target)):
            self.tally.add("unpublished")
            assert not target.exists(), "the target is still there"
            shutil.rmtree(self._node.root / "pods" / volume_id)

    def _until_ok(self, what: str, call: Callable[[], None]) -> bool:
        deadline_s = time.monotonic() + _CALL_PATIENCE_S
        while True:
            try:
                call()
            except grpc.RpcError as exc:
                self.tally.add(f"{what} {cast('grpc.Call', exc).code().name}")
                if time.monotonic() > deadline_s:
                    self.tally.add(f"wrong: {what} never ended well")
                    return False
                time.sleep(_RETRY_S)
            else:
                return True


class Restarts:
    """Ends and starts the driver and the agent, by turns, until it is told to stop."""

    def __init__(self, node: Node, interval_s: float) -> None:
        self.count = 0
        self.error = ""
        self._node = node
        self._interval_s = interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="restarts", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Restart nobody any more; both are running when this returns."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_over.wait(self._interval_s):
                self._restart()
                self.count += 1
        except BenchError as exc:
            self.error = str(exc)

    def _restart(self) -> None:
        is_driver, is_killed = self.count % 2 == 0, self.count % 4 < 2
        process = self._node.driver.process if is_driver else self._node.agent.process
        if is_killed:
            process.kill()
        elif (code := process.stop()) != 0:
            raise BenchError(f"ended with {code} when it was stopped; {process.last_words()}")
        if is_driver:
            self._node.driver.start()
        else:
            self._node.restart_agent()


def soak(seconds: float, rate: float, rng_seed: int, folder: Path) -> dict[str, Any]:
    """Let pods come and go, and count what is left."""
    for number, name in enumerate(("a", "b")):
        write_model(folder / "models" / name, _MODEL_BYTES, rng_seed=number + 1)
    with running_node(folder / "node", folder / "models") as node:
        pods = Pods(node, random.Random(rng_seed))
        start_s = time.monotonic()
        restarts = Restarts(node, max(1.0, min(10.0, seconds / 10)))
        calm_s = start_s + seconds * 2 / 3
        before: dict[str, int] | None = None
        number = 0
        while (now := time.monotonic()) < start_s + seconds:
            if before is None and now > calm_s:
                restarts.end()
                before = held(node)
            due_s = start_s + number / rate
            time.sleep(max(0.0, due_s - now))
            pods.jobs.put(number)
            number += 1
        restarts.end()
        before = before or held(node)
        pods.end()
        after, leaked = settled(node, before)
        wrong = {what: n for what, n in pods.tally.outcomes.items() if what.startswith("wrong")}
        return {
            "seconds": round(time.monotonic() - start_s, 1),
            "rate": rate,
            "restarts": restarts.count,
            "outcomes": dict(sorted(pods.tally.outcomes.items())),
            "publish_p50_ms": round(quantile(pods.tally.publish_s or [0.0], 0.5) * 1000, 1),
            "held_before": before,
            "held_after": after,
            "leaked": leaked,
            "left": {kind: len(names) for kind, names in node.leftovers().items()},
            "wrong": [*wrong, *([restarts.error] if restarts.error else [])],
        }


def held(node: Node) -> dict[str, int]:
    """What the two processes have open now."""
    return {
        f"{name}_{what}": count(process)
        for name, process in (("driver", node.driver.process), ("agent", node.agent.process))
        for what, count in (("descriptors", descriptor_count), ("threads", thread_count))
    }


def settled(node: Node, before: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """What they have open when all has calmed down, and how much of it is too much."""
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        after = held(node)
        leaked = {what: after[what] - n for what, n in before.items() if after[what] > n + _SLACK}
        if (not leaked and not node.leftovers()) or time.monotonic() > deadline_s:
            return after, leaked
        time.sleep(0.2)


def main() -> int:
    """Soak, and print one JSON object; the exit code says whether something was left."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=20.0, help="volumes a second")
    parser.add_argument("--rng-seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="twelve seconds, 5 a second")
    parser.add_argument("--folder", type=Path, help="where the store goes")
    given = parser.parse_args()
    if given.quick:
        given.minutes, given.rate = 0.2, 5.0
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    end_on_sigterm()
    figures: dict[str, Any] = {"bench": "soak"}
    try:
        with tempfile.TemporaryDirectory(prefix="damselfly-soak-", dir=given.folder) as place:
            figures |= soak(given.minutes * 60, given.rate, given.rng_seed, Path(place))
    except (BenchError, DamselflyError) as exc:
        print(explain(exc), file=sys.stderr)
        return 1
    figures["machine"] = machine.describe()
    print(json.dumps(figures))
    return 1 if figures["left"] or figures["leaked"] or figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
