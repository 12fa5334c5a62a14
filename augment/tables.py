"""Tables on windows of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Column, Table

_LEAST = 8
_ENDLESS = 100_000


def print_whole(console: Console, table: Table) -> None:
    """Print a table with each figure whole, if need be in lines longer than the window.

    Columns on the right margin are figures and stay as they are; the others fold, down to their
    `min_width`.
    """
    folding = []
    for column in table.columns:
        column.no_wrap = column.no_wrap or column.justify == "right"
        if not column.no_wrap:
            column.min_width = column.min_width or min(_LEAST, _longest(column))
            folding.append(column)
    endless = console.options.update(max_width=_ENDLESS)
    natural = console.measure(table, options=endless).maximum
    need = natural - sum(_longest(c) - (c.min_width or 0) for c in folding)
    if need > console.width:
        console = Console(file=console.file, width=need, force_terminal=console.is_terminal)
    console.print(table)


def _longest(column: Column) -> int:
    texts = [str(cell) for cell in (column.header, *column.cells)]
    widest = max(cell_len(line) for text in texts for line in text.splitlines() or [""])
    return max(widest, column.min_width or 0)
