"""Every metric that tells of pulls and of the store moves when what it counts happens."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from bench.agents import Agent, Fleet, free_addresses

MIB = 1 << 20


def metric(admin: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as page:
        text = page.read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no {name}"
    return float(found[1])


def damselfly(*words: str, agent: Agent) -> int:
    command = [sys.executable, "-m", "damselfly", *words, "--socket", agent.client.socket_path]
    return subprocess.run(command, capture_output=True, timeout=90, check=False).returncode


def test_pulls_evictions_and_removals_are_counted(tmp_path: Path) -> None:
    models: list[Path] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights.bin").write_bytes(os.urandom(6 * MIB))
        models.append(folder)
    address, admin = free_addresses(2)
    with Fleet(tmp_path / "fleet") as fleet:
        options = ("--store-keep-free", "1MiB", "--store-capacity", "8MiB", "--admin", admin)
        agent = fleet.start_agent("n0", address, [address], *options)
        fleet.wait_until_met()
        first, second = (f"file://{folder}/" for folder in models)

        assert damselfly("pull", first, agent=agent) == 0
        assert damselfly("pull", first, agent=agent) == 0
        assert damselfly("pull", second, agent=agent) == 0
        assert damselfly("pull", f"file://{tmp_path}/none/", agent=agent) != 0
        assert damselfly("rm", second, agent=agent) == 0

        def labelled(name: str, label: str, value: str) -> float:
            return metric(admin, f'damselfly_{name}{{{label}="{value}"}}')

        assert labelled("pulls_ended_total", "outcome", "completed") == 3
        assert labelled("pulls_ended_total", "outcome", "failed") == 1
        assert labelled("artifact_ready_duration_seconds_count", "start", "cold") == 2
        assert labelled("artifact_ready_duration_seconds_count", "start", "warm") == 1
        assert labelled("evictions_total", "reason", "capacity") == 1
        assert labelled("evicted_bytes_total", "reason", "capacity") == 6 * MIB
        assert labelled("evicted_bytes_total", "reason", "removed") == 6 * MIB
