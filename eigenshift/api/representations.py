"""How results look in a terminal (rich), in a notebook (HTML) and in a traceback (one line).

Text that may be offensive is not shown unless asked for; what is shown is escaped, control
characters too. Reads nothing; what a result says of itself is its own module's.
"""

from __future__ import annotations

import html
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

HIDDEN = "hidden"
"""Stands for a text that was not asked for."""
MAX_CELL = 60
"""Characters of a cell; the rest is left out."""


@dataclass(frozen=True)
class Panel:
    """What a result says of itself.

    Attributes:
        title: One line.
        columns: Headings.
        rows: Cells as text, as many in each row as there are headings.
        notes: Lines below.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


class Shown(ABC):
    """A result that describes itself in one place and is shown everywhere."""

    @abstractmethod
    def describe(self) -> Panel:
        """What is shown."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe().title}>"

    def __rich__(self) -> Group:
        return draw_rich(self.describe())

    def _repr_html_(self) -> str:
        return draw_html(self.describe())


def draw_rich(panel: Panel) -> Group:
    """A panel for rich's console."""
    parts: list[Table | Text] = [Text(panel.title, style="bold")]
    if panel.columns:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, is_number in zip(panel.columns, _find_numbers(panel), strict=True):
            table.add_column(escape(name), justify="right" if is_number else "left")
        for row in panel.rows:
            table.add_row(*map(escape, row))
        parts.append(table)
    parts += [Text(note) for note in panel.notes]
    return Group(*parts)


def draw_html(panel: Panel) -> str:
    """A panel as HTML of its own: no script, no style sheet, nothing loaded."""
    lines = [f"<p><strong>{html.escape(panel.title)}</strong></p>"]
    if panel.columns:
        styles = [
            f' style="text-align: {"right" if is_number else "left"}"'
            for is_number in _find_numbers(panel)
        ]
        headings = _write_row('th scope="col"', panel.columns, styles)
        lines += ["<table>", f"<thead>{headings}</thead>"]
        lines += ["<tbody>", *(_write_row("td", row, styles) for row in panel.rows), "</tbody>"]
        lines.append("</table>")
    if panel.notes:
        lines.append("<p>" + "<br>".join(map(html.escape, panel.notes)) + "</p>")
    return "\n".join(lines)


def _write_row(tag: str, cells: Sequence[str], styles: Sequence[str]) -> str:
    name = tag.partition(" ")[0]
    found = (
        f"<{tag}{style}>{html.escape(cell)}</{name}>"
        for cell, style in zip(cells, styles, strict=True)
    )
    return f"<tr>{''.join(found)}</tr>"


def _find_numbers(panel: Panel) -> list[bool]:
    """Whether a column is of numbers, which stand at the right."""
    columns = zip(*panel.rows, strict=True) if panel.rows else ((),) * len(panel.columns)
    return [any(cells) and all(map(_may_be_number, cells)) for cells in columns]


def _may_be_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "-+"


def write_cell(value: Any) -> str:
    """A value as a person reads it, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return shorten(" ".join(map(str, value)))
    return shorten(str(value))


def shorten(text: str) -> str:
    """A text on one line, without control characters, cut where it is long."""
    visible = "".join(
        " " if unicodedata.category(letter) in {"Cc", "Cf", "Zl", "Zp"} else letter
        for letter in text
    )
    return visible if len(visible) <= MAX_CELL else f"{visible[: MAX_CELL - 1]}…"


def write_interval(value: float | None, low: float | None, high: float | None) -> str:
    """An estimate with the ends of its interval, where it has one."""
    if value is None or low is None or high is None:
        return write_cell(value)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
