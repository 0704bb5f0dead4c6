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
    for number, row in enumerate([list(heads), *cells]):
        if is_terminal(stream):
            row[last] = shorten(row[last], widths[last])
        parts = [
            cell.rjust(width) if head in right else cell.ljust(width)
            for head, cell, width in zip(heads, row, widths, strict=True)
        ]
        print(paint(GAP.join(parts).rstrip(), BOLD, coloured=coloured and number == 0), file=stream)
