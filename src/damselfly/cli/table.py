"""Aligned tables: numbers to the right, the last column as wide as the terminal allows."""

from collections.abc import Sequence
from typing import TextIO

from damselfly.cli.terminal import BOLD, columns, is_coloured, is_terminal, paint, plain, shorten

GAP = "  "


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    stream: TextIO,
    *,
    right: frozenset[str] = frozenset(),
) -> None:
    """Print rows below their heads; columns named in `right` hold numbers.

    On a terminal the last column is shortened to what is left of the line; a program that reads a
    pipe gets all of it.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [
        max(len(head), *(len(row[column]) for row in cells)) if cells else len(head)
        for column, head in enumerate(heads)
    ]
    last = len(heads) - 1
    if is_terminal(stream):
        before = sum(widths[:last]) + len(GAP) * last
        widths[last] = max(12, min(widths[last], columns(stream) - before - 1))
    coloured = is_coloured(stream)
    for row in (list(heads), *cells):
        parts: list[str] = []
        for head, cell, width in zip(heads, row, widths, strict=True):
            shown = shorten(cell, width) if head == heads[last] and is_terminal(stream) else cell
            parts.append(shown.rjust(width) if head in right else shown.ljust(width))
        line = GAP.join(parts).rstrip()
        print(paint(line, BOLD, coloured=coloured and row is not None and row == list(heads)), file=stream)
