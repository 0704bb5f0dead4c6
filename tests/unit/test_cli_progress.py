"""The progress line: never wider than the terminal, redrawn in place, gone at the end."""

import io
import re
import unicodedata

import pytest
from hypothesis import given, strategies as st

from damselfly.cli.progress import Moment, Progress

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
MIB = 1 << 20


class Terminal(io.StringIO):
    """A terminal that remembers every write."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        """What stood on the line after each redraw, without colours."""
        return [
            ESCAPES.sub("", text[1:].removesuffix("\x1b[K"))
            for text in self.writes
            if text.startswith("\r")
        ]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def fetching(done: int, total: int = 1024 * MIB, **more: str) -> Moment:
    return Moment(
        doing="fetching",
        bytes_done=done,
        bytes_total=total,
        sources=(("store", 0), ("peers", done * 3 // 4), ("origin", done - done * 3 // 4)),
        note="3 peers",
        **more,
    )


def shown(width: int, *moments: Moment, step_s: float = 1.0) -> Terminal:
    terminal, clock = Terminal(), Clock()
    with Progress(terminal, now=clock, width=lambda: width) as progress:
        for moment in moments:
            progress.show(moment)
            clock.now_s += step_s
    return terminal


def test_a_wide_terminal_is_told_everything() -> None:
    terminal = shown(160, fetching(0), fetching(128 * MIB))

    line = terminal.lines[-2]
    for part in (
        "fetching",
        "12%",
        "━",
        "128 MiB of 1.0 GiB",
        "128 MiB/s",
        "peers 96 MiB/s",
        "origin 32 MiB/s",
        "0:07 left",
        "3 peers",
    ):
        assert part in line
    assert "store" not in line


def test_what_it_waits_for_is_told() -> None:
    waiting = fetching(MIB, waiting_for="the home 10.0.0.3:7460")

    assert "waiting for the home 10.0.0.3:7460" in shown(120, waiting).lines[0]
    resolving = Moment(doing="resolving", bytes_done=0, bytes_total=0, waiting_for="the origin")
    assert shown(80, resolving).lines[0] == "resolving ...  waiting for the origin"


def test_a_narrow_terminal_is_told_how_far_it_is() -> None:
    for width in (12, 20, 30):
        assert "12%" in shown(width, fetching(128 * MIB)).lines[0]


@given(
    width=st.integers(1, 250),
    done=st.integers(0, 1 << 45),
    total=st.integers(0, 1 << 45),
    shares=st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2)),
    doing=st.text(max_size=30),
    note=st.text(max_size=30),
    waiting_for=st.text(max_size=60),
)
def test_no_line_is_ever_wider_than_the_terminal(
    width: int,
    done: int,
    total: int,
    shares: tuple[float, float, float],
    doing: str,
    note: str,
    waiting_for: str,
) -> None:
    counts = [int(done * share) for share in shares]
    moment = Moment(
        doing=doing,
        bytes_done=done,
        bytes_total=total,
        sources=tuple(zip(("store", "peers", "origin"), counts, strict=True)),
        note=note,
        waiting_for=waiting_for,
    )

    terminal = shown(width, moment, moment)

    for line in terminal.lines:
        assert len(line) <= max(width - 3, 0)
        assert not any(unicodedata.category(char) == "Cc" for char in line)


def test_each_redraw_is_one_write_in_place() -> None:
    terminal = shown(80, fetching(0), fetching(MIB), fetching(2 * MIB))

    assert len(terminal.writes) == 4
    for text in terminal.writes:
        assert text.startswith("\r")
        assert text.endswith("\x1b[K")
        assert "\n" not in text


def test_nothing_is_left_behind() -> None:
    assert shown(80, fetching(MIB)).writes[-1] == "\r\x1b[K"


def test_moments_that_follow_fast_are_not_all_drawn() -> None:
    moments = [fetching(count * MIB) for count in range(100)]

    terminal = shown(80, *moments, step_s=0.01)

    assert 5 <= len(terminal.writes) <= 15


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(log, now=clock) as progress:
        for count in range(12):
            progress.show(fetching(count * MIB))
            clock.now_s += 1.0
        progress.say("pulled")

    lines = log.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("fetching <1%, 5.0 MiB of 1.0 GiB, 1.0 MiB/s, ")
    assert lines[-1] == "pulled"
    assert "\x1b" not in log.getvalue()
    assert "\r" not in log.getvalue()


def test_a_new_phase_is_told_at_once() -> None:
    log = io.StringIO()
    with Progress(log, now=Clock()) as progress:
        progress.show(fetching(MIB))
        progress.show(Moment(doing="sealing", bytes_done=MIB, bytes_total=MIB))

    assert [line.split()[0] for line in log.getvalue().splitlines()] == ["fetching", "sealing"]


def test_quiet_says_nothing() -> None:
    for stream in (Terminal(), io.StringIO()):
        with Progress(stream, is_quiet=True) as progress:
            progress.show(fetching(MIB))
            progress.say("pulled")

        assert stream.getvalue() == ""


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", "")])
def test_a_dumb_terminal_is_treated_as_a_log(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    assert "\x1b" not in shown(80, fetching(MIB)).getvalue()


def test_no_color_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    terminal = shown(80, fetching(512 * MIB))

    assert not ESCAPES.search(terminal.getvalue())
    assert "━━━" in terminal.getvalue()


def test_a_terminal_of_ascii_gets_ascii() -> None:
    class Old(Terminal):
        encoding = "ascii"

    terminal = Old()
    with Progress(terminal, now=Clock(), width=lambda: 80) as progress:
        progress.show(fetching(512 * MIB))

    assert terminal.getvalue().isascii()
    assert "###" in terminal.getvalue()


def test_the_bars_colours_are_where_the_bytes_came_from() -> None:
    terminal = shown(100, fetching(512 * MIB))

    cells = re.findall(r"\x1b\[(\d+)m(━+)", terminal.writes[0])
    assert [code for code, _ in cells] == ["32", "33"]
    peers, origin = (len(run) for _, run in cells)
    assert peers == pytest.approx(3 * origin, abs=3)


def test_a_rate_is_of_the_last_seconds() -> None:
    slow_then_fast = [fetching(count * MIB) for count in range(10)]
    slow_then_fast += [fetching((10 + 50 * count) * MIB) for count in range(10)]

    terminal = shown(160, *slow_then_fast)

    assert " 50 MiB/s" in terminal.lines[-2]
