"""Every figure that README quotes: `make bench`.

Runs the benchmarks one after the other, each a process of its own, and writes their JSON objects,
one a line, to stdout and to `bench/results/<machine>.jsonl`. What needs root says so and is left
out. `--quick` runs everything small and once: it shows that all of it works, and measures nothing.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import machine, network
from bench.agents import end_on_sigterm

RESULTS = Path(__file__).parent / "results"
_SWARM = ("swarm", "--nodes", "8", "--rate", "400mbit", "--origin-rate", "400mbit")
_CAPPED = ("--rate", "400mbit", "--origin-rate-per-connection", "40mbit")


@dataclass(frozen=True)
class Run:
    """One benchmark: its module and words; `quick` is said after them for a quick look."""

    name: str
    words: tuple[str, ...]
    quick: tuple[str, ...] = ()
    needs_root: bool = False


RUNS = (
    Run("transfer", ("transfer",), ("--size", "128MiB", "--passes", "1")),
    Run("first", ("first", "--size", "1GiB"), ("--size", "64MiB", "--passes", "1")),
    Run("ceiling", ("ceiling",), ("--seconds", "1"), needs_root=True),
    Run(
        "swarm",
        (*_SWARM, "--size", "2GiB"),
        ("--size", "128MiB", "--passes", "1", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "swarm-512MiB",
        (*_SWARM, "--size", "512MiB", "--passes", "5"),
        ("--size", "64MiB", "--passes", "1", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "swarm-late",
        (*_SWARM, "--size", "2GiB", "--late", "4@3s", "--passes", "1"),
        ("--size", "128MiB", "--late", "4@1s", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "swarm-kill",
        (*_SWARM, "--size", "2GiB", "--kill", "1@50%", "--passes", "1"),
        ("--size", "128MiB", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "swarm-kill-home",
        (*_SWARM, "--size", "2GiB", "--kill-home", "--passes", "1"),
        ("--size", "128MiB", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "one-capped",
        ("swarm", "--nodes", "1", *_CAPPED, "--size", "1GiB"),
        ("--size", "128MiB", "--passes", "1", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "two-capped",
        ("swarm", "--nodes", "2", *_CAPPED, "--size", "1GiB"),
        ("--size", "128MiB", "--passes", "1", "--no-warm-up"),
        needs_root=True,
    ),
    Run(
        "memory",
        ("memory", "--size", "4GiB"),
        ("--size", "256MiB", "--served-size", "128MiB", "--peers", "3"),
    ),
    Run("origin-budget", ("origin_budget",), ("--size", "64MiB")),
    Run("origin-throttled", ("origin_budget", "--throttled"), ("--size", "64MiB")),
    Run("finetune", ("finetune", "--size", "512MiB"), ("--size", "48MiB")),
    Run("publish", ("publish",), ("--quick",), needs_root=True),
    Run("volume", ("volume",), ("--quick",), needs_root=True),
    Run("soak", ("soak",), ("--quick",), needs_root=True),
    Run("simulator", ("simulator",), ("--world", "eight")),
)


def run(each: Run, *, quick: bool) -> list[str] | None:
    """Run one benchmark and return its JSON lines; None if it failed."""
    command = [sys.executable, "-m", f"bench.{each.words[0]}", *each.words[1:]]
    if quick:
        command += each.quick
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # It ends what it has started.
            process.wait()
    return _objects(output) if process.returncode == 0 else None


def _objects(output: str) -> list[str]:
    """The lines that are JSON objects: a benchmark may also print for people."""
    found: list[str] = []
    for line in output.splitlines():
        try:
            value: object = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(line)
    return found


def main() -> int:
    """Run them all; the exit code says whether all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=[each.name for each in RUNS])
    given = parser.parse_args()
    end_on_sigterm()
    failed: list[str] = []
    results = RESULTS / f"{machine.slug()}.jsonl"
    no_network = network.why_not()
    for each in RUNS:
        if given.only and each.name not in given.only:
            continue
        if each.needs_root and no_network:
            print(f"{each.name}: left out, {no_network}", file=sys.stderr)
            continue
        print(f"{each.name} ...", file=sys.stderr, flush=True)
        lines = run(each, quick=given.quick)
        if lines is None:
            failed.append(each.name)
            continue
        for line in lines:
            print(line, flush=True)
        if not given.quick:
            _keep(each, lines, results)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _keep(each: Run, lines: list[str], results: Path) -> None:
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as file:
        for line in lines:
            told = {"run": each.name, "day": time.strftime("%Y-%m-%d"), **json.loads(line)}
            file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    sys.exit(main())
