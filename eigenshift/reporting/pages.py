"""What every page is made with: templates, charts in both widths, tables with numbers in line.

Fills `templates/` and writes files. What a page says is `html_report.py`'s and
`comparison_report.py`'s.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eigenshift.audit import AuditSession
from eigenshift.base.durations import format_duration
from eigenshift.base.errors import SettingsError
from eigenshift.charts.rendering import render_svg
from eigenshift.charts.run_charts import Chart
from eigenshift.reporting.story import is_told

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
DASH = "-"
NUMBER = re.compile(
    r"(?P<value>[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?( ?(%|s|GB|MB|kB|bytes|points))*( rise)?)"
    r"(?P<more> \[[^\]]*\]( \(holds 0\))?)?"
)
"""A cell that is a number, with its unit, and its interval."""
_SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class DrawnChart:
    """A chart as a template takes it."""

    title: str
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    wide: str
    narrow: str


@dataclass(frozen=True)
class Cell:
    """What a table shows at one place.

    Attributes:
        value: The number, or the whole text.
        more: The interval of a number.
    """

    value: str
    more: str = ""


@dataclass(frozen=True)
class Column:
    """Of a table.

    Attributes:
        title: Its heading.
        is_number: Its cells are numbers, one below the other in line.
        has_intervals: Some of them have an interval.
        is_row_name: It names the row: the first one, unless it is a number.
    """

    title: str
    is_number: bool
    has_intervals: bool
    is_row_name: bool


@dataclass(frozen=True)
class ShapedTable:
    """A table as a template takes it."""

    columns: list[Column]
    rows: list[list[Cell]]


def render_page(template: str, context: dict[str, Any]) -> str:
    """Fill a template; everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": show_number,
        "moment": show_moment,
        "size": show_size,
    }
    environment.tests["told"] = is_told
    environment.globals |= {"shape_table": shape_table, "show_span": show_span}
    return environment.get_template(template).render(context)


def draw(chart: Chart) -> DrawnChart:
    """A chart in both widths."""
    return DrawnChart(
        title=chart.title,
        summary=chart.summary,
        columns=chart.columns,
        rows=chart.rows,
        wide=render_svg(chart, is_narrow=False),
        narrow=render_svg(chart, is_narrow=True),
    )


def shape_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> ShapedTable:
    """Tell numbers from words, column by column, and values from their intervals.

    Args:
        columns: Headings.
        rows: Of cells; each is shown as `str` gives it.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    shaped = []
    for number, title in enumerate(columns):
        cells = [row[number] for row in texts]
        found = [NUMBER.fullmatch(cell) for cell in cells if cell not in (DASH, "")]
        is_number = bool(found) and all(found)
        shaped.append(
            Column(
                title,
                is_number,
                is_number and any(match["more"] for match in found if match),
                number == 0 and not is_number,
            )
        )
    return ShapedTable(
        shaped,
        [
            [
                _split(cell) if column.is_number else Cell(cell)
                for cell, column in zip(row, shaped, strict=True)
            ]
            for row in texts
        ],
    )


def _split(cell: str) -> Cell:
    match = NUMBER.fullmatch(cell)
    return Cell(cell) if match is None else Cell(match["value"], (match["more"] or "").strip())


def show_number(value: float | None, digits: int = 3) -> str:
    """With so many decimals, or a dash."""
    return DASH if value is None or value != value else f"{value:.{digits}f}"


def show_moment(iso: str) -> str:
    """`27 Nov 2026, 20:02 UTC` of a time in ISO 8601."""
    moment = datetime.fromisoformat(iso.replace("Z", "+00:00")).astimezone(timezone.utc)
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC"


def show_span(start: str, end: str) -> str:
    """`3m 27s` between two times in ISO 8601."""
    first, last = (datetime.fromisoformat(iso.replace("Z", "+00:00")) for iso in (start, end))
    return format_duration((last - first).total_seconds())


def show_size(n_bytes: int) -> str:
    """`24.1 MB`, in powers of ten."""
    for unit, size in _SIZES:
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"


def ask(session: AuditSession, sql: str) -> list[dict[str, Any]]:
    """Rows of an answer."""
    return list(session.query(sql).to_pylist())


def write_whole(out: Path, html: str) -> None:
    """Write beside and rename, so that a report is there whole or not at all.

    Raises:
        SettingsError: The file cannot be written.
    """
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(html, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise SettingsError(
            f"{out}: expected to write a file, found: {error.strerror or error}. Choose another "
            "--out."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
