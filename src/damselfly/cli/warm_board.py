"""How far many nodes are, told on stderr: a few rows and a summary that move, or a line at times.

On a terminal the board is redrawn in place, in one write, never wider or higher than the terminal.
It shows the nodes that a warm-up waits for, the slowest ones, and counts the others: a hundred rows
tell nobody anything. A row stays until its node is done or far from the slowest, so that eyes can
follow it. Elsewhere (a log, a CI job) a plain line is written every few seconds.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from damselfly.cli.quantities import bytes_text, countdown_text, rate_text, share_text
from damselfly.cli.terminal import (
    BLUE,
    BOLD,
    DIM,
    GREEN,
    RED,
    YELLOW,
    columns,
    is_coloured,
    is_terminal,
    is_unicode,
    paint,
    plain,
    rows,
    shorten,
)
from damselfly.client.answers import WarmNode, WarmProgress

ROWS_MAX = 8
PLAIN_INTERVAL_S = 5.0
WINDOW_S = 4.0  # rates are means over this: steadier than the eye, quicker than patience
BAR_CELLS_MIN = 8
BAR_CELLS_MAX = 32
NAME_CELLS_MAX = 32

FAILED = frozenset({"failed", "unreachable", "cancelled"})
OVER = FAILED | {"done"}
STATE_COLOURS = {"done": GREEN, "trying": YELLOW, "waiting": DIM, "pulling": BLUE}


class Size(NamedTuple):
    """How large the terminal is."""

    columns: int
    rows: int


class Board:
    """Shows a warm-up while the context is entered; leaving it clears what moves."""

    def __init__(
        self,
        stream: TextIO,
        *,
        is_quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
        size: Callable[[], Size] | None = None,
    ) -> None:
        self._stream = stream
        self._size = size or (lambda: Size(columns(stream), rows(stream)))
        self._is_quiet = is_quiet
        self._is_moving = is_terminal(stream)
        self._is_coloured = is_coloured(stream)
        self._cells = ("━", "─") if is_unicode(stream) else ("#", "-")
        self._now = now
        self._window: deque[tuple[float, dict[str, int]]] = deque()
        self._told_s = -1e9
        self._told: Counter[str] = Counter()
        self._rows_drawn = 0
        self._chosen: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def show(self, progress: WarmProgress) -> None:
        """Take note of how far the nodes are, and show it if it is time to."""
        now = self._now()
        self._window.append((now, {node.agent: node.bytes_done for node in progress.nodes}))
        while now - self._window[0][0] > WINDOW_S and len(self._window) > 2:
            self._window.popleft()
        if self._is_quiet:
            return
        if self._is_moving:
            self._draw(progress.nodes)
            return
        counts = Counter(node.state for node in progress.nodes)
        has_failures = sum(counts[state] for state in FAILED) > sum(
            self._told[state] for state in FAILED
        )
        if now - self._told_s >= PLAIN_INTERVAL_S or has_failures:
            self._told_s = now
            self._told = counts
            self._stream.write(plain(self._plain_line(progress.nodes)) + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """Leave nothing behind that moves."""
        if self._rows_drawn:
            self._stream.write(f"{self._to_top()}\x1b[J")
            self._stream.flush()
            self._rows_drawn = 0

    def say(self, text: str) -> None:
        """Write a line that stays, unless nothing is to be shown."""
        self.clear()
        if not self._is_quiet:
            print(plain(text), file=self._stream, flush=True)

    # --- drawing ------------------------------------------------------------------------------

    def _to_top(self) -> str:
        return "\r" + (f"\x1b[{self._rows_drawn - 1}A" if self._rows_drawn > 1 else "")

    def _draw(self, nodes: Sequence[WarmNode]) -> None:
        size = self._size()
        # Two cells are left for the `^C` that a terminal echoes: it must not wrap the line.
        width = max(1, size.columns - 3)
        shown = self._choose(nodes, max(0, min(ROWS_MAX, size.rows - 2)))
        cells = min(NAME_CELLS_MAX, width // 3, max((len(_name(n)) for n in shown), default=0))
        lines = [self._row(node, cells, width) for node in shown]
        lines.append(self._summary(nodes, width))
        text = "\x1b[K\n".join(lines)
        self._stream.write(f"{self._to_top()}{text}\x1b[K\x1b[J")
        self._stream.flush()
        self._rows_drawn = len(lines)

    def _choose(self, nodes: Sequence[WarmNode], count: int) -> list[WarmNode]:
        if len(nodes) <= count:
            return list(nodes)
        troubled = [node for node in nodes if node.state == "trying"]
        troubled += [node for node in nodes if node.state in FAILED]
        # Many that are dead must not hide how those get on that live.
        troubled = troubled[: count // 2]
        count -= len(troubled)
        slowest = sorted((n for n in nodes if n.state in {"waiting", "pulling"}), key=_how_far)
        near = slowest[: 2 * count]
        kept = [node for node in near if node.agent in self._chosen][:count]
        fresh = [node for node in near if node.agent not in self._chosen][: count - len(kept)]
        chosen = {node.agent for node in (*kept, *fresh)}
        self._chosen = frozenset(chosen)
        chosen.update(node.agent for node in troubled)
        return [node for node in nodes if node.agent in chosen]

    def _row(self, node: WarmNode, name_cells: int, width: int) -> str:
        name = shorten(_name(node), name_cells).ljust(name_cells)
        if node.state in FAILED or node.state == "trying":
            head = "tries again" if node.state == "trying" else node.state
            note = f"{head}: {plain(node.message or '')}" if node.message else head
            colour = YELLOW if node.state == "trying" else RED
            room = max(0, width - name_cells - 2)
            return f"{name}  {self._paint(note[:room], colour)}"[: None if room else width]
        rate = self._rate(node.agent)
        left_s = _left_s(node, rate)
        doing = {"done": "done", "waiting": "waiting"}.get(node.state, node.phase)
        if node.waiting_for and node.state == "pulling":
            doing = f"waiting for {plain(node.waiting_for)}"
        parts = [  # (importance, text, colour), in the order of the line
            (9, name, ""),
            (8, share_text(node.bytes_done, node.bytes_total) if node.bytes_total else "", ""),
            (7, bytes_text(node.bytes_total) if node.bytes_total else "", ""),
            (6, rate_text(rate) if node.state == "pulling" and rate else "", ""),
            (4, countdown_text(left_s) if left_s else "", ""),
            (5, plain(doing), STATE_COLOURS.get(node.state, "")),
        ]
        widths = (name_cells, 4, 8, 10, 5, 0)
        parts = [
            (weight, text.rjust(cells) if cells and place else text, colour)
            for place, ((weight, text, colour), cells) in enumerate(zip(parts, widths, strict=True))
        ]
        return self._fitted(parts, width, node)

    def _fitted(
        self, parts: list[tuple[int, str, str]], width: int, node: WarmNode | None = None
    ) -> str:
        """The parts beside each other: what matters least goes first when there is no room."""
        bar_cells = BAR_CELLS_MIN + 2 if node is not None else 0
        while len(parts) > 1 and _length(parts) + bar_cells > width:
            if bar_cells and min(parts)[0] > 5:
                bar_cells = 0
                continue
            parts.remove(min(parts, key=lambda part: part[0]))
        if _length(parts) > width:
            return shorten(parts[0][1], width)
        texts = [self._paint(text, colour) for _, text, colour in parts]
        if node is not None and bar_cells:
            cells = min(BAR_CELLS_MAX, width - _length(parts) - 2)
            texts.insert(min(2, len(texts)), self._bar(node, cells))
        return "  ".join(texts)

    def _bar(self, node: WarmNode, cells: int) -> str:
        full, empty = self._cells
        filled = min(cells, cells * node.bytes_done // max(1, node.bytes_total))
        return self._paint(full * filled, GREEN) + self._paint(empty * (cells - filled), DIM)

    def _summary(self, nodes: Sequence[WarmNode], width: int) -> str:
        facts = _Facts.of(nodes)
        rate = self._rate()
        parts = [
            (7, "warming", BOLD),
            (9, facts.share, ""),
            (8, facts.counts, ""),
            (6, rate_text(rate) if rate else "", ""),
            (5, f"{left} left" if (left := self._left_of_all(nodes)) else "", ""),
            (4, facts.origin, YELLOW),
        ]
        return self._fitted([part for part in parts if part[1]], width)

    def _plain_line(self, nodes: Sequence[WarmNode]) -> str:
        facts = _Facts.of(nodes)
        rate = self._rate()
        left = self._left_of_all(nodes)
        parts = [
            f"warming {facts.share}",
            facts.counts,
            rate_text(rate) if rate else "",
            facts.origin,
            f"{left} left" if left else "",
        ]
        slowest = sorted((n for n in nodes if n.state not in OVER), key=_how_far)[:3]
        if len(nodes) > 1 and slowest:
            names = (
                f"{_name(node)} ({node.state})"
                if node.state != "pulling"
                else f"{_name(node)} ({share_text(node.bytes_done, node.bytes_total or 1)})"
                for node in slowest
            )
            parts.append(f"slowest {' '.join(names)}")
        return ", ".join(part for part in parts if part)

    def _left_of_all(self, nodes: Sequence[WarmNode]) -> str:
        """All are done when the slowest is."""
        left_s = max((_left_s(node, self._rate(node.agent)) for node in nodes), default=0.0)
        return countdown_text(left_s) if left_s else ""

    def _rate(self, agent: str | None = None) -> float:
        (then_s, then), (now_s, now) = self._window[0], self._window[-1]
        if now_s <= then_s:
            return 0.0
        agents = now.keys() if agent is None else (agent,)
        moved = sum(max(0, now[each] - then.get(each, now[each])) for each in agents)
        return moved / (now_s - then_s)

    def _paint(self, text: str, code: str) -> str:
        return paint(text, code, coloured=self._is_coloured)


class _Facts(NamedTuple):
    """What all nodes together are."""

    share: str
    counts: str
    origin: str

    @classmethod
    def of(cls, nodes: Sequence[WarmNode]) -> "_Facts":
        size = max((node.bytes_total for node in nodes), default=0)
        wanted = [node for node in nodes if node.state not in FAILED]
        done = sum(node.bytes_done for node in wanted)
        total = sum(node.bytes_total or size for node in wanted)
        counts = Counter(node.state for node in nodes)
        others = (
            f"{counts[state]} {state}"
            for state in ("pulling", "waiting", "trying", *sorted(FAILED))
            if counts[state]
        )
        origin = sum(node.bytes_from_origin for node in nodes)
        return cls(
            share=share_text(done, total) if total else "0%",
            counts=", ".join((f"{counts['done']} of {len(nodes)} done", *others)),
            origin=f"origin {bytes_text(origin)}" if origin else "",
        )


def _name(node: WarmNode) -> str:
    return plain(node.node or node.agent)


def _left_s(node: WarmNode, rate: float) -> float:
    left = node.bytes_total - node.bytes_done
    return left / rate if node.state == "pulling" and rate > 0 and left > 0 else 0.0


def _how_far(node: WarmNode) -> tuple[bool, float, str]:
    """Who is behind comes first: who does not answer, then by the share that has come."""
    return node.state != "trying", node.bytes_done / max(1, node.bytes_total), node.agent


def _length(parts: Sequence[tuple[int, str, str]]) -> int:
    return sum(len(text) for _, text, _ in parts) + 2 * (len(parts) - 1)
