"""How far something has come, told on stderr: one moving line, or a line now and then.

On a terminal the line is redrawn in place, in one write and never wider than the terminal, so it
neither flickers nor wraps. Elsewhere (a log, a CI job) a plain line is written every few seconds.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from damselfly.cli.quantities import bytes_text, countdown_text, rate_text, share_text
from damselfly.cli.terminal import (
    BLUE,
    BOLD,
    DIM,
    GREEN,
    RESET,
    YELLOW,
    columns,
    is_coloured,
    is_terminal,
    is_unicode,
    paint,
    plain,
    shorten,
)

REDRAW_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 5.0
WINDOW_S = 4.0  # rates are means over this: steadier than the eye, quicker than patience
BAR_CELLS_MIN = 10
BAR_CELLS_MAX = 40

SOURCE_COLOURS = {"origin": YELLOW, "peers": GREEN, "store": BLUE}


class Moment(NamedTuple):
    """How far something is: what it does, its bytes, and of those, how many came from where."""

    doing: str
    bytes_done: int
    bytes_total: int
    sources: tuple[tuple[str, int], ...] = ()
    note: str = ""
    waiting_for: str = ""


class Progress:
    """Shows moments while the context is entered; leaving it clears the moving line."""

    def __init__(
        self,
        stream: TextIO,
        *,
        is_quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
        width: Callable[[], int] | None = None,
    ) -> None:
        self._stream = stream
        self._width = width or (lambda: columns(stream))
        self._is_quiet = is_quiet
        self._is_moving = is_terminal(stream)
        self._is_coloured = is_coloured(stream)
        self._cells = ("━", "╸", "─") if is_unicode(stream) else ("#", ">", "-")
        self._now = now
        self._window: deque[tuple[float, Moment]] = deque()
        self._shown_s = -1e9
        self._shown_doing = ""
        self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def show(self, moment: Moment) -> None:
        """Take note of a moment, and show it if it is time to."""
        now = self._now()
        if self._window and self._window[-1][1].bytes_total != moment.bytes_total:
            self._window.clear()  # What was counted is not what is counted now.
        self._window.append((now, moment))
        while now - self._window[0][0] > WINDOW_S and len(self._window) > 2:
            self._window.popleft()
        if self._is_quiet:
            return
        interval_s = REDRAW_INTERVAL_S if self._is_moving else PLAIN_INTERVAL_S
        if now - self._shown_s < interval_s and moment.doing == self._shown_doing:
            return
        self._shown_s = now
        self._shown_doing = moment.doing
        if self._is_moving:
            # Two cells are left for the `^C` that a terminal echoes: it must not wrap the line.
            line = self._line(moment, self._width() - 3)
            self._stream.write(f"\r{line}\x1b[K")
            self._is_drawn = True
        else:
            self._stream.write(self._plain_line(moment) + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Leave no moving line behind."""
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._is_drawn = False

    def say(self, text: str) -> None:
        """Write a line that stays, unless nothing is to be shown."""
        self.clear()
        if not self._is_quiet:
            print(text, file=self._stream, flush=True)

    # --- what is told -------------------------------------------------------------------------

    def _rate(self, source: str | None = None) -> float:
        (then_s, then), (now_s, now) = self._window[0], self._window[-1]
        if now_s <= then_s:
            return 0.0
        if source is None:
            moved = now.bytes_done - then.bytes_done
        else:
            moved = dict(now.sources).get(source, 0) - dict(then.sources).get(source, 0)
        return max(0.0, moved / (now_s - then_s))

    def _left(self, moment: Moment) -> str:
        rate = self._rate()
        if rate <= 0 or moment.bytes_done >= moment.bytes_total:
            return ""
        return countdown_text((moment.bytes_total - moment.bytes_done) / rate)

    def _plain_line(self, moment: Moment) -> str:
        parts = [moment.doing]
        if moment.bytes_total:
            parts[0] += f" {share_text(moment.bytes_done, moment.bytes_total)}"
            parts.append(f"{bytes_text(moment.bytes_done)} of {bytes_text(moment.bytes_total)}")
            parts.append(rate_text(self._rate()))
        parts += [f"{name} {bytes_text(count)}" for name, count in moment.sources if count]
        if moment.note:
            parts.append(moment.note)
        if left := self._left(moment):
            parts.append(f"{left} left")
        if moment.waiting_for:
            parts.append(f"waiting for {moment.waiting_for}")
        return plain(", ".join(parts))

    def _line(self, moment: Moment, width: int) -> str:
        """The moving line: what matters least goes first when the terminal is narrow."""
        doing = plain(moment.doing)
        if not moment.bytes_total:
            waiting = f"  waiting for {plain(moment.waiting_for)}" if moment.waiting_for else ""
            return shorten(f"{doing} ...{waiting}", width)
        share = share_text(moment.bytes_done, moment.bytes_total).rjust(4)
        parts = [  # (importance, text, colour), in the order of the line
            (9, doing, BOLD),
            (10, share, ""),
            (6, self._size(moment), ""),
            (8, rate_text(self._rate()), ""),
            (7, f"{left} left" if (left := self._left(moment)) else "", ""),
            *(
                (4, f"{name} {rate_text(self._rate(name))}", SOURCE_COLOURS.get(name, ""))
                for name, count in moment.sources
                if count
            ),
            (2, plain(moment.note), DIM),
            (8, f"waiting for {plain(moment.waiting_for)}" if moment.waiting_for else "", YELLOW),
        ]
        parts = [part for part in parts if part[1]]
        bar_cells = BAR_CELLS_MIN + 2
        while len(parts) > 1 and _length(parts) + bar_cells > width:
            if bar_cells and min(parts)[0] > 6:
                bar_cells = 0
                continue
            parts.remove(min(parts, key=lambda part: part[0]))
        texts = [paint(text, code, coloured=self._is_coloured) for _, text, code in parts]
        if bar_cells:
            cells = min(BAR_CELLS_MAX, width - _length(parts) - 2)
            at = next((i for i, part in enumerate(parts) if part[0] == 10), 0) + 1
            texts.insert(at, self._bar(moment, cells))
        elif _length(parts) > width:
            return shorten(parts[0][1], width)
        return "  ".join(texts)

    def _size(self, moment: Moment) -> str:
        done, total = bytes_text(moment.bytes_done), bytes_text(moment.bytes_total)
        return f"{done.rjust(8)} of {total}"

    def _bar(self, moment: Moment, cells: int) -> str:
        """A bar whose cells have the colours of where their bytes came from."""
        full, head, empty = self._cells
        filled = min(cells, cells * moment.bytes_done // max(1, moment.bytes_total))
        if not self._is_coloured:
            tip = head if filled < cells else ""
            return full * filled + tip + empty * (cells - filled - len(tip))
        parts: list[str] = []
        drawn = 0
        counted = 0
        for name, count in moment.sources:
            counted += count
            stop = min(filled, cells * counted // max(1, moment.bytes_total))
            parts.append(
                paint(full * (stop - drawn), SOURCE_COLOURS.get(name, GREEN), coloured=True)
            )
            drawn = max(drawn, stop)
        parts.append(paint(full * (filled - drawn), GREEN, coloured=True))
        parts.append(f"\x1b[{DIM}m{empty * (cells - filled)}{RESET}")
        return "".join(parts)


def _length(parts: Sequence[tuple[int, str, str]]) -> int:
    return sum(len(text) for _, text, _ in parts) + 2 * (len(parts) - 1)
