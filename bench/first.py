"""One agent, one file, nothing known before: is it as fast as `curl` and a hash?

The bound is what somebody does without us: `curl -o FILE URL`, then BLAKE3 over the file on all
cores, as `b3sum` does it. An agent hashes while it fetches, on several connections, and writes
once; it also asks what there is, resolves, seals and links. So it should come to 0.9 of that at
least, and may pass it where a core is free.

    python -m bench.first --size 1GiB

The same server (`bench.origin`) is behind `http://` and `s3://`, over loopback. Each pass has a new
agent with an empty store, which is started before the clock is. Sides take turns in rotation; the
first pass of each is thrown away, and medians of the others are told.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from bench import machine
from bench.agents import BenchError, Fleet, OriginServer, end_on_sigterm, free_addresses
from damselfly.agent.quantities import parse_bytes
from damselfly.errors import DamselflyError, explain

TARGET = 0.9
_BUCKET = "models"
_NAME = "weights.bin"
_BLOCK_BYTES = 4 << 20


def write_file(path: Path, size_bytes: int) -> str:
    """Write a file of random bytes; returns its digest."""
    hasher = blake3()
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for start in range(0, size_bytes, _BLOCK_BYTES):
            block = os.urandom(min(_BLOCK_BYTES, size_bytes - start))
            hasher.update(block)
            file.write(block)
    return hasher.hexdigest()


def by_hand(url: str, folder: Path, digest: str) -> dict[str, float]:
    """Fetch and hash the file without us.

    Raises:
        BenchError: there is no curl, or the bytes are others.
    """
    target = folder / "by-hand"
    begun_s = time.monotonic()
    try:
        subprocess.run(["curl", "-sSf", "-o", str(target), url], check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise BenchError(f"curl: {exc}") from exc
    fetched_s = time.monotonic()
    found = blake3(max_threads=blake3.AUTO).update_mmap(target).hexdigest()
    ended_s = time.monotonic()
    target.unlink()
    if found != digest:
        raise BenchError("curl brought other bytes")
    return {"seconds": ended_s - begun_s, "hash_s": ended_s - fetched_s}


def by_agent(ref: str, folder: Path, digest: str, endpoint: str) -> dict[str, float]:
    """Pull the file with a new agent.

    Raises:
        BenchError, DamselflyError: the pull failed, or the bytes are others.
    """
    try:
        with Fleet(folder) as fleet:
            (address,) = free_addresses(1)
            agent = fleet.start_agent("agent", address, [address], "--s3-endpoint", endpoint)
            agent.wait_until_ready()
            cpu_before_s = agent.process.usage().cpu_s
            begun_s = time.monotonic()
            pulled = agent.pull(ref)
            seconds = time.monotonic() - begun_s
            cpu_s = agent.process.usage().cpu_s - cpu_before_s
            found = blake3(max_threads=blake3.AUTO).update_mmap(Path(pulled.path) / _NAME)
            if found.hexdigest() != digest:
                raise BenchError("the agent brought other bytes")
            if code := agent.process.stop():
                raise BenchError(f"the agent ended with {code}")
            return {"seconds": seconds, "cpu_s": cpu_s}
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)  # Views are read-only directories.
    shutil.rmtree(folder, ignore_errors=True)


def measure(
    origin: OriginServer, folder: Path, size_bytes: int, passes: int, digest: str
) -> dict[str, object]:
    """Let the sides take turns, and compare them."""
    url = f"{origin.url}{_BUCKET}/{_NAME}"
    endpoint = origin.url.rstrip("/")
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "by_hand": lambda: by_hand(url, folder, digest),
        "http": lambda: by_agent(f"{origin.url}{_BUCKET}/", folder / "run", digest, endpoint),
        "s3": lambda: by_agent(f"s3://{_BUCKET}/", folder / "run", digest, endpoint),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(passes + 1):
        # Each begins as often as the others: what ran before leaves memory warm, or cold.
        for at in range(len(names)):
            name = names[(turn + at) % len(names)]
            found[name].append(sides[name]())
    medians = {
        name: {key: statistics.median(each[key] for each in told[1:]) for key in told[0]}
        for name, told in found.items()
    }
    bound_s = medians["by_hand"]["seconds"]
    gigabytes = size_bytes / 1e9
    return {
        "bench": "first",
        "machine": machine.describe(),
        "bytes": size_bytes,
        "passes": passes,
        "target": TARGET,
        "by_hand": {
            "gb_per_s": round(gigabytes / bound_s, 3),
            "hash_s": round(medians["by_hand"]["hash_s"], 3),
        },
        **{
            name: {
                "gb_per_s": round(gigabytes / medians[name]["seconds"], 3),
                "cpu_s_per_gb": round(medians[name]["cpu_s"] / gigabytes, 3),
                "of_by_hand": round(bound_s / medians[name]["seconds"], 3),
            }
            for name in ("http", "s3")
        },
    }


def main() -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.first",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the file and the stores go")
    given = parser.parse_args()
    end_on_sigterm()
    # What the environment has for S3 is for others.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    try:
        with tempfile.TemporaryDirectory(prefix="damselfly-first-", dir=given.folder) as place:
            folder = Path(place)
            digest = write_file(folder / "root" / _BUCKET / _NAME, given.size)
            with Fleet(folder / "origin") as fleet:
                origin = fleet.start_origin(folder / "root", free_addresses(1)[0])
                print(json.dumps(measure(origin, folder, given.size, given.passes, digest)))
    except (BenchError, DamselflyError) as exc:
        print(explain(exc), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
