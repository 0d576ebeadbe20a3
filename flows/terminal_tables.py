"""Tables on the terminal: cells stay whole, a table wider than the screen is as wide as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CELL_WIDTH = 60


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print rows under headings."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", max_width=MAX_CELL_WIDTH)
    for row in rows:
        table.add_row(*(escape(show_cell(value)) for value in row), style=None)
    unbounded = console.options.update(width=3 * MAX_CELL_WIDTH * max(1, len(columns)))
    wanted = Measurement.get(console, unbounded, table).maximum
    Console(file=console.file, width=max(console.width, wanted)).print(table)


def print_answer(console: Console, answer: pa.Table) -> None:
    """Print the answer to a question."""
    print_table(console, answer.column_names, (row.values() for row in answer.to_pylist()))


def show_cell(value: Any) -> str:
    """A value as a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
