"""The benchmarks of volumes, tiny: they run, count what they say that they count, leave nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from bench.mounts import why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def run(folder: Path, module: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{module}", *words, "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, said = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.terminate()  # It ends what it has started.
            process.wait()
    assert process.returncode == 0, said + output
    assert list(folder.iterdir()) == []
    return cast("dict[str, Any]", json.loads(output))


def test_publishes_are_timed_and_read_the_origin_once(tmp_path: Path) -> None:
    figures = run(tmp_path, "publish", *("--size", "32MiB", "--publishes", "5", "--at-once", "8"))

    cached, uncached = figures["cached"], figures["uncached"]
    assert 0 < cached["publish_ms"]["p50"] <= cached["publish_ms"]["p99"]
    # To know where tensors begin, 256 KiB of each of the four shards are read once more.
    assert cached["origin_of_model"] < 1.05
    assert uncached["origin_of_model"] < 1.1
    assert cached["left"] == uncached["left"] == {}


def test_reads_through_the_mount_are_compared_with_the_store(tmp_path: Path) -> None:
    figures = run(tmp_path, "volume", *("--size", "4MiB", "--passes", "1"))

    for what in ("read_cold", "read_warm", "mmap_cold", "mmap_warm"):
        assert figures[what]["mount_of_store"] > 0


def test_a_short_soak_restarts_both_and_finds_nothing_left(tmp_path: Path) -> None:
    figures = run(tmp_path, "soak", *("--minutes", "0.1", "--rate", "5"))

    assert figures["restarts"] >= 2
    assert figures["outcomes"]["published"] == figures["outcomes"]["unpublished"] > 20
    assert figures["left"] == figures["leaked"] == {}
    assert figures["wrong"] == []
