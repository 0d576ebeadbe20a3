"""Tables on the terminal: cells stay whole, and as much as can be fits the screen.

What is wider than the screen has its headings broken first. A table whose first column names its
rows is then cut into several that each fit; any other is as wide as it is. Where nobody looks (a
pipe without COLUMNS) nothing is cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

    from eigenshift.reporting.history_tables import Column

MAX_CELL_WIDTH = 60
GAP = 2
"""Letters between two columns."""


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    names_rows: bool = False,
) -> None:
    """Print rows under headings.

    Args:
        console: Where.
        columns: Headings.
        rows: Values.
        names_rows: Whether the first column says what a row is about, so that a table that is too
            wide may be cut into several with that column in each.
    """
    values = [list(row) for row in rows]
    cells = [[show_cell(value) for value in row] for row in values]
    is_number = [
        bool(values) and all(_is_number(row[place]) for row in values)
        for place in range(len(columns))
    ]
    widths = [
        max([cell_len(name), *(cell_len(row[place]) for row in cells)])
        for place, name in enumerate(columns)
    ]
    headings = list(columns)
    if _add_up(widths) > console.width:
        headings = [_break(name, [row[place] for row in cells]) for place, name in enumerate(columns)]
        widths = [
            max(cell_len(line) for line in (*heading.split("\n"), *(row[place] for row in cells)))
            for place, heading in enumerate(headings)
        ]
    widths = [min(width, MAX_CELL_WIDTH) for width in widths]
    for number, part in enumerate(
        _cut(widths, console.width if names_rows and _has_screen(console) else None)
    ):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        for place in part:
            table.add_column(
                headings[place],
                overflow="fold",
                max_width=MAX_CELL_WIDTH,
                justify="right" if is_number[place] else "left",
            )
        for row in cells:
            table.add_row(*(escape(row[place]) for place in part))
        width = max(console.width, _add_up([widths[place] for place in part]))
        if number:
            console.print()
        Console(file=console.file, width=width).print(table)
    console.print()


def print_answer(console: Console, answer: pa.Table, shown_by: str = "--show-text") -> None:
    """Print the answer to a question; columns that hold nothing but hidden text are named below.

    Args:
        console: Where.
        answer: The rows.
        shown_by: What the reader may say to see text.
    """
    hidden = _find_hidden(answer)
    if len(hidden) < len(answer.column_names):
        answer = answer.drop_columns(hidden)
    print_table(console, answer.column_names, (row.values() for row in answer.to_pylist()))
    if hidden:
        console.print(
            f"Not shown, since text may be offensive: {', '.join(hidden)}. {shown_by} shows it.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def print_fitting(console: Console, columns: Sequence[Column]) -> list[str]:
    """Print the essential columns and of the others, in order, those that fit.

    Returns:
        Names of the columns left out.
    """
    shown, left_out = [], []
    room = console.width
    for column in columns:
        width = max(map(cell_len, (column.name, *column.cells))) + (GAP if shown else 0)
        if column.is_essential or (width <= room and not left_out):
            shown.append(column)
            room -= width
        else:
            left_out.append(column.name)
    rows = zip(*(column.cells for column in shown), strict=True)
    print_table(console, [column.name for column in shown], rows)
    return left_out


def show_cell(value: Any) -> str:
    """A value as a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        in_utc = value if value.tzinfo is None else value.astimezone(timezone.utc)
        return f"{in_utc:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(show_cell(item) for item in value)
    return "" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _find_hidden(answer: pa.Table) -> list[str]:
    """Columns with nothing but marks of hidden text, and columns of text that are empty beside."""
    from eigenshift.audit import HIDDEN_TEXT
    from eigenshift.base.schemas import TEXT_COLUMNS

    marks = (HIDDEN_TEXT, [HIDDEN_TEXT])
    columns = {name: answer[name].to_pylist() for name in answer.column_names}
    bare = {
        name: any(value in marks for value in values)
        for name, values in columns.items()
        if all(value is None or value in marks for value in values)
    }
    if not any(bare.values()):
        return []
    return [name for name, has_marks in bare.items() if has_marks or name in TEXT_COLUMNS]


def _has_screen(console: Console) -> bool:
    return console.is_terminal or "COLUMNS" in os.environ


def _add_up(widths: Sequence[int]) -> int:
    return sum(min(width, MAX_CELL_WIDTH) for width in widths) + GAP * (len(widths) - 1)


def _break(name: str, cells: Sequence[str]) -> str:
    """A heading in lines no longer than its cells, or its longest word."""
    words = re.findall(r"[^_ ]+[_ ]?|[_ ]", name)
    limit = max([0, *map(cell_len, cells), *(cell_len(word.rstrip()) for word in words)])
    lines = [""]
    for word in words:
        if lines[-1] and cell_len(lines[-1] + word.rstrip()) > limit:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def _cut(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """Places of the columns of each part, the first column in every one."""
    if room is None or _add_up(widths) <= room or len(widths) < 3:
        return [list(range(len(widths)))]
    parts = [[0]]
    for place in range(1, len(widths)):
        wanted = _add_up([widths[column] for column in (*parts[-1], place)])
        if wanted > room and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(place)
    return parts
