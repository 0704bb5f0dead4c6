"""The processes of demo and benchmarks: started, watched, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import agents
from bench.agents import BenchError, Fleet, free_addresses, same_tree

SLEEP = ("sleep", "1000")
HOLD = "x = bytearray(50 << 20); print('held', flush=True); import time; time.sleep(1000)"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to that"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_no_process_outlives_its_fleet(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with Fleet(tmp_path) as fleet:
            pids.extend(fleet.start(name, SLEEP).pid for name in ("one", "other"))
            assert all(is_running(pid) for pid in pids)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_no_process_outlives_a_starter_that_is_killed(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from bench.agents import Fleet
with Fleet(Path({str(tmp_path)!r})) as fleet:
    print(fleet.start("sleeper", {SLEEP!r}).pid, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Nobody removes the sockets' folder of one that is killed.
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()[:6])

        starter.kill()

        wait_until(lambda: not is_running(pid))


def test_the_peak_of_anonymous_memory_is_seen(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        process = fleet.start("holder", (sys.executable, "-c", HOLD))
        wait_until(lambda: "held" in process.log.read_text())

        usage = process.usage()

    assert 50 << 20 < usage.rss_anon_peak_bytes < 150 << 20
    assert usage.cpu_s < 20


def test_usage_of_an_ended_process_is_what_was_last_seen(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        process = fleet.start("holder", (sys.executable, "-c", HOLD))
        wait_until(lambda: process.usage().rss_anon_peak_bytes > 50 << 20)

        process.kill()

        assert process.usage().rss_anon_peak_bytes > 50 << 20


def test_last_words_tell_the_end_of_the_log_and_of_the_process(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        process = fleet.start("speaker", ("sh", "-c", "echo one; echo two >&2; exit 3"))
        wait_until(lambda: not process.is_alive)

        words = process.last_words(lines=1)

    assert "speaker ended with 3" in words
    assert "two" in words
    assert "one" not in words


def test_a_process_is_stopped_as_an_operator_does_it(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"
        process = fleet.start("polite", ("sh", "-c", script))
        wait_until(lambda: "up" in process.log.read_text())

        assert process.stop() == 7


def test_settings_of_this_shell_do_not_reach_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAMSELFLY_LOG_LEVEL", "debug")
    with Fleet(tmp_path) as fleet:
        process = fleet.start("shell", ("sh", "-c", "echo level=$DAMSELFLY_LOG_LEVEL."))

        wait_until(lambda: "level=." in process.log.read_text())


def test_an_agent_that_does_not_start_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "DAMSELFLY", ("sh", "-c", "echo no disk; exit 41"))
    with Fleet(tmp_path) as fleet:
        (address,) = free_addresses(1)
        agent = fleet.start_agent("agent1", address, [address])

        with pytest.raises(BenchError, match=r"(?s)agent1 ended with 41.*no disk"):
            agent.wait_until_ready()


def test_sigterm_unwinds_the_stack(tmp_path: Path) -> None:
    script = """
import time
from bench.agents import end_on_sigterm
end_on_sigterm()
try:
    print("up", flush=True)
    time.sleep(1000)
finally:
    print("cleaned", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        process.send_signal(signal.SIGTERM)

        assert process.stdout.read() == "cleaned\n"
        assert process.wait() == 143


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("left", "right"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "data").write_bytes(bytes(3_000_001))
        (tmp_path / name / "folder" / "empty").touch()
    return tmp_path / "left", tmp_path / "right"


def test_equal_trees_are_the_same(trees: tuple[Path, Path]) -> None:
    assert same_tree(*trees)


@pytest.mark.parametrize("place", [0, 1_500_000, 3_000_000])
def test_one_other_byte_is_another_tree(trees: tuple[Path, Path], place: int) -> None:
    with (trees[1] / "data").open("r+b") as file:
        os.pwrite(file.fileno(), b"\x01", place)

    assert not same_tree(*trees)


def test_a_missing_an_extra_and_a_shorter_file_are_another_tree(trees: tuple[Path, Path]) -> None:
    left, right = trees
    (right / "folder" / "empty").unlink()
    assert not same_tree(left, right)

    (right / "folder" / "empty").touch()
    (right / "more").touch()
    assert not same_tree(left, right)

    (right / "more").unlink()
    os.truncate(right / "data", 3_000_000)
    assert not same_tree(left, right)
