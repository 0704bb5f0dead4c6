"""`make demo`, small: real agents as processes, every byte compared, nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import agents, demo

SIZE = 12 << 20


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_a_swarm_pulls_a_model_and_leaves_nothing_but_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = demo.run(size_bytes=SIZE, nodes=3, keep=False, cache=tmp_path)

    told = capsys.readouterr().out
    assert code == 0, told
    assert told.count("yes\n") == 3
    assert "NO\n" not in told
    assert leftovers(tmp_path) == [f"model-{SIZE}", f"model-{SIZE}.json"]


def test_an_agent_that_cannot_start_ends_the_demo_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "DAMSELFLY", ("sh", "-c", "echo no such flag; exit 2"))

    code = demo.run(size_bytes=1 << 20, nodes=2, keep=False, cache=tmp_path)

    told = capsys.readouterr().err
    assert code == 1
    assert "agent1 ended with 2" in told
    assert "no such flag" in told
    assert leftovers(tmp_path) == ["model-1048576", "model-1048576.json"]


def test_a_disk_too_small_is_said_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = demo.run(size_bytes=1 << 60, nodes=4, keep=False, cache=tmp_path)

    assert code == 1
    assert "GB of disk" in capsys.readouterr().err
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bench.demo", "--size", "128MiB", "--cache", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "at once" in line:
                break

        process.send_signal(number)
        told = process.stdout.read()

    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
    assert [name for name in leftovers(tmp_path) if not name.startswith("model-")] == []
