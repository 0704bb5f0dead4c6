"""The board of a warm-up: a few rows and a summary, on any terminal, for any number of nodes."""

import io

import pytest
from hypothesis import given, settings, strategies as st

from damselfly.cli.warm_board import Board, Size
from damselfly.client.answers import WarmNode, WarmProgress
from tests.fakes.screen import Screen

GIB = 1 << 30
STATES = ("waiting", "pulling", "trying", "done", "failed", "unreachable", "cancelled")


@pytest.fixture(autouse=True)
def _a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pulling(number: int, share: float) -> WarmNode:
    return WarmNode(
        agent=f"10.0.0.{number}:7460",
        node=f"gpu-{number:03}",
        state="done" if share >= 1 else "pulling",
        phase="fetching",
        bytes_done=int(15 * GIB * share),
        bytes_total=15 * GIB,
        bytes_from_origin=int(GIB * share),
    )


def broken(number: int, state: str, message: str) -> WarmNode:
    return WarmNode(
        agent=f"10.0.0.{number}:7460", node=f"gpu-{number:03}", state=state, message=message
    )


def shown(screen: Screen, *moments: list[WarmNode]) -> str:
    """What the screen shows after these moments, a second apart."""
    clock = Clock()
    board = Board(screen, now=clock, size=lambda: Size(screen.width, screen.height))
    for nodes in moments:
        board.show(WarmProgress(ref="https://host/x/", nodes=tuple(nodes)))
        clock.now_s += 1.0
    return screen.text


def test_a_few_nodes_are_all_shown_with_a_summary_below() -> None:
    screen = Screen(110, 24)

    text = shown(
        screen,
        [pulling(1, 0.2), pulling(2, 0.3), broken(3, "trying", "dialling 10.0.0.3:7460: refused")],
        [pulling(1, 0.3), pulling(2, 1.0), broken(3, "unreachable", "dialling 10.0.0.3:7460")],
    )

    one, two, three, summary = text.split("\n")
    assert one.split()[:2] == ["gpu-001", "30%"]
    assert "1.5 GiB/s" in one
    assert "0:07" in one
    assert two.split()[:2] == ["gpu-002", "100%"]
    assert two.endswith("done")
    assert three == "gpu-003  unreachable: dialling 10.0.0.3:7460"
    assert summary.startswith("warming  65%  1 of 3 done, 1 pulling, 1 unreachable  12 GiB/s")
    assert "0:07 left" in summary
    assert "origin 1.3 GiB" in summary


def test_of_a_hundred_nodes_the_slowest_are_shown_and_the_others_counted() -> None:
    screen = Screen(110, 24)
    nodes = [pulling(number, number / 200) for number in range(100)]

    text = shown(screen, nodes, nodes)

    *rows, summary = text.split("\n")
    assert [row.split()[0] for row in rows] == [f"gpu-{number:03}" for number in range(8)]
    assert "0 of 100 done, 100 pulling" in summary


def test_many_dead_nodes_do_not_hide_those_that_live() -> None:
    screen = Screen(110, 24)
    dead = [broken(number, "trying", "dialling") for number in range(50)]
    nodes = dead + [pulling(number, 0.5) for number in range(50, 100)]

    text = shown(screen, nodes)

    *rows, summary = text.split("\n")
    assert sum("tries again" in row for row in rows) == 4
    assert sum("50%" in row for row in rows) == 4
    assert "50 pulling, 50 trying" in summary


def test_rows_stay_where_they_are_while_their_nodes_are_slow() -> None:
    screen = Screen(110, 24)
    first = [pulling(number, 0.1 + number / 1000) for number in range(100)]
    then = [pulling(number, 0.1 + (99 - number) / 1000) for number in range(100)]
    mixed = [then[number] if number > 90 else first[number] for number in range(100)]

    before = shown(Screen(110, 24), first).split("\n")[:-1]
    after = shown(screen, first, mixed).split("\n")[:-1]

    assert [row.split()[0] for row in after] == [row.split()[0] for row in before]


def test_nothing_is_left_when_it_ends() -> None:
    screen = Screen(80, 24)
    with Board(screen, now=Clock(), size=lambda: Size(80, 24)) as board:
        board.show(WarmProgress(ref="x", nodes=tuple(pulling(n, 0.5) for n in range(5))))
        assert screen.text

    assert screen.text == ""


def test_what_is_said_stays_above_nothing() -> None:
    screen = Screen(80, 24)
    board = Board(screen, now=Clock(), size=lambda: Size(80, 24))
    board.show(WarmProgress(ref="x", nodes=(pulling(1, 0.5),)))

    board.say("done \x1b[2J")

    assert screen.text == "done \N{REPLACEMENT CHARACTER}[2J"


def test_what_nodes_say_cannot_command_the_terminal() -> None:
    screen = Screen(80, 24)

    text = shown(screen, [broken(1, "failed", "\x1b[2J\x07"), broken(2, "trying", "a\nb")])

    assert "\x1b" not in text
    assert len(text.split("\n")) == 3


def test_a_log_gets_a_line_at_times_and_at_once_when_a_node_fails() -> None:
    stream, clock = io.StringIO(), Clock()
    with Board(stream, now=clock) as board:
        for second in range(12):
            nodes = [pulling(number, second / 100) for number in range(100)]
            if second >= 7:
                nodes[3] = broken(3, "failed", "no room")
            board.show(WarmProgress(ref="x", nodes=tuple(nodes)))
            clock.now_s += 1.0

    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("warming 0%, 0 of 100 done, 100 pulling, slowest gpu-000 (0%)")
    assert lines[1].startswith("warming 5%")
    assert "99 pulling, 1 failed" in lines[2]
    assert max(map(len, lines)) < 200


def test_quiet_is_quiet() -> None:
    screen = Screen(80, 24)
    with Board(screen, is_quiet=True, now=Clock()) as board:
        board.show(WarmProgress(ref="x", nodes=(pulling(1, 0.5),)))
        board.say("done")

    assert screen.text == ""


node = st.builds(
    WarmNode,
    agent=st.text(min_size=1, max_size=60),
    node=st.text(max_size=60),
    state=st.sampled_from(STATES),
    phase=st.text(max_size=20),
    bytes_done=st.integers(0, 1 << 45),
    bytes_total=st.integers(0, 1 << 45),
    bytes_from_origin=st.integers(0, 1 << 45),
    waiting_for=st.none() | st.text(max_size=60),
    message=st.none() | st.text(max_size=200),
)


@settings(max_examples=200)
@given(
    width=st.integers(4, 200),
    height=st.integers(1, 30),
    moments=st.lists(
        st.lists(node, min_size=1, max_size=30, unique_by=lambda one: one.agent),
        min_size=1,
        max_size=4,
    ),
)
def test_no_board_is_ever_wider_or_higher_than_the_terminal(
    width: int, height: int, moments: list[list[WarmNode]]
) -> None:
    screen = Screen(width, height)

    shown(screen, *moments)

    assert not screen.has_wrapped
    assert screen.rows_max <= max(1, height - 1)
