"""Fuzz every parser for a while, one process each: `make fuzz SECONDS=60`.

    python -m tests.fuzz --seconds 60 [--target NAME]

The fuzzer (atheris, libFuzzer underneath) changes input so that new code is reached. What it keeps
lies in `.fuzz/` for the next time; what breaks a target is written to `tests/fuzz/corpus/TARGET/`,
where it is a test from then on. The exit code is 1 if anything broke.
"""

import argparse
import hashlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import CORPUS, inputs
from tests.fuzz.targets import TARGETS

KEPT = Path(".fuzz")
INPUT_BYTES_MAX = 4096
RSS_MIB_MAX = 2048
INPUT_S_MAX = 10
"""One input may take so long: no parser may be slower than its input is long."""


def fuzz(name: str, seconds: int) -> int:
    """Fuzz one target in this process; it does not come back when something breaks."""
    fuzzer: Any = importlib.import_module("atheris")  # An extra of its own, without types.
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(name):
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    found = CORPUS / name
    found.mkdir(parents=True, exist_ok=True)
    fuzzer.instrument_all()
    fuzzer.Setup(
        [
            sys.argv[0],
            str(folder),
            f"-max_total_time={seconds}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-rss_limit_mb={RSS_MIB_MAX}",
            f"-timeout={INPUT_S_MAX}",
            f"-artifact_prefix={found}/",
            "-verbosity=0",
            "-print_final_stats=1",
        ],
        TARGETS[name],
    )
    fuzzer.Fuzz()
    return 0


def main() -> int:
    """Fuzz one target, or each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return fuzz(given.target, given.seconds)
    broken: list[str] = []
    for name in [given.target] if given.target else TARGETS:
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--one", "--target", name]
        process = subprocess.run(
            [*command, "--seconds", str(given.seconds)], capture_output=True, text=True, check=False
        )
        runs = [line for line in process.stderr.splitlines() if "executed_units" in line]
        print(f"  {' '.join(runs) or 'no run was counted'}", flush=True)
        if process.returncode:
            broken.append(name)
            print(process.stdout[-4000:] + process.stderr[-4000:], file=sys.stderr, flush=True)
    for folder in CORPUS.iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
    if broken:
        print(f"broke: {', '.join(broken)}; what broke them is in {CORPUS}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
