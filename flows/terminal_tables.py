"""Tables on the terminal: cells stay whole, and as much as can be fits the screen.

What is wider than the screen has its headings broken first, then sentences in its cells. A table
whose first columns name its rows is then cut into several that each fit; any other is as wide as it
is. Where nobody looks (a pipe without COLUMNS) nothing is broken or cut but headings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
LEAST_PROSE = 12
"""Letters that a column of sentences keeps."""
SENTENCE = re.compile(r"[a-z]{2,} \S+ \S+ ")
"""Three words and more; an interval is none, and is not broken."""
NUMBER = re.compile(r"([-+]?\d[\d,]*(\.\d+)?(e[-+]\d+)?%?|-|)")


@dataclass(frozen=True)
class _Layout:
    """A table before it is drawn.

    Attributes:
        headings: Of the columns, broken into lines where the screen is narrow.
        cells: Row by row.
        widths: Letters that each column takes.
        is_number: Whether a column holds numbers alone.
    """

    headings: list[str]
    cells: list[list[str]]
    widths: list[int]
    is_number: list[bool]


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Iterable[Any]], *, keys: int = 0
) -> None:
    """Print rows under headings.

    Args:
        console: Where.
        columns: Headings.
        rows: Values.
        keys: How many columns, the first ones, say what a row is about: a table that is too wide
            is cut into several with these in each. 0: it is never cut.
    """
    found = _lay_out(columns, rows, console.width)
    widths = found.widths
    parts: list[Sequence[int]] = [range(len(columns))]
    if has_screen(console):
        widths = _narrow(found, console.width)
        parts = _cut(widths, keys, console.width) if keys else parts
    for number, part in enumerate(parts):
        has_lines = widths != found.widths or any(
            "\n" in cell for row in found.cells for cell in row
        )
        table = Table(
            box=SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            collapse_padding=True,
            leading=int(has_lines),
        )
        for place in part:
            table.add_column(
                found.headings[place],
                overflow="fold",
                max_width=widths[place],
                justify="right" if found.is_number[place] else "left",
            )
        for row in found.cells:
            table.add_row(*(escape(row[place]) for place in part))
        if number:
            console.print()
        width = max(console.width, _add_up([widths[place] for place in part]))
        Console(file=console.file, width=width).print(table)
    console.print()


def fits(console: Console, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> bool:
    """Whether a table is no wider than the screen; where nobody looks there is none."""
    return not has_screen(console) or _add_up(_lay_out(columns, rows, 1).widths) <= console.width


def has_screen(console: Console) -> bool:
    """Whether somebody looks, or has said how wide a line may be."""
    return console.is_terminal or "COLUMNS" in os.environ


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
    shown: list[Column] = []
    left_out: list[str] = []
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


def _holds_numbers(cells: Sequence[str]) -> bool:
    """Whether cells are numbers, with a sign or a percentage, or empty."""
    return any(cells) and all(NUMBER.fullmatch(cell) for cell in cells)


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


def _lay_out(columns: Sequence[str], rows: Iterable[Iterable[Any]], room: int) -> _Layout:
    cells = [[show_cell(value) for value in row] for row in rows]
    by_column = [[row[place] for row in cells] for place in range(len(columns))]
    is_number = [_holds_numbers(column) for column in by_column]
    headings = list(columns)
    widths = [_measure([name, *column]) for name, column in zip(columns, by_column, strict=True)]
    if _add_up(widths) > room:
        headings = [_break(*pair) for pair in zip(columns, by_column, strict=True)]
        widths = [
            _measure([name, *column]) for name, column in zip(headings, by_column, strict=True)
        ]
    return _Layout(headings, cells, widths, is_number)


def _narrow(found: _Layout, room: int) -> list[int]:
    """Widths with which a table fits, as far as the breaking of sentences allows."""
    widths = list(found.widths)
    prose = [
        place
        for place in range(len(widths))
        if any(SENTENCE.search(row[place]) for row in found.cells)
    ]
    excess = _add_up(widths) - room
    while excess > 0 and any(widths[place] > LEAST_PROSE for place in prose):
        widest = max(prose, key=lambda place: widths[place])
        widths[widest] -= 1
        excess -= 1
    return widths


def _measure(texts: Sequence[str]) -> int:
    """Letters of the longest line, as far as a cell is shown on one."""
    longest = max((cell_len(line) for text in texts for line in text.split("\n")), default=0)
    return min(longest, MAX_CELL_WIDTH)


def _add_up(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _break(name: str, cells: Sequence[str]) -> str:
    """A heading in lines no longer than its cells, or its longest word."""
    words = re.findall(r"[^_ ]+[_ ]?|[_ ]", name)
    limit = _measure([*cells, *(word.rstrip() for word in words)])
    lines = [""]
    for word in words:
        if lines[-1] and cell_len(lines[-1] + word.rstrip()) > limit:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def _cut(widths: Sequence[int], keys: int, room: int) -> list[Sequence[int]]:
    """Places of the columns of each part, the first ones in every part."""
    if _add_up(widths) <= room or len(widths) <= keys:
        return [range(len(widths))]
    first = list(range(keys))
    parts = [first]
    for place in range(keys, len(widths)):
        wanted = _add_up([widths[column] for column in (*parts[-1], place)])
        if wanted > room and len(parts[-1]) > keys:
            parts.append(first)
        parts[-1] = [*parts[-1], place]
    return list(parts)
