"""A table that a step found: Arrow inside, pandas on demand, a few rows of it on the screen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from typing_extensions import Self

from eigenshift.api.representations import HIDDEN, Panel, Shown, write_cell
from eigenshift.base.schemas import TEXT_COLUMNS

MAX_ROWS = 10


@dataclass(frozen=True, eq=False, repr=False)
class ResultTable(Shown):
    """A table with a title. Texts in it are hidden when it is shown, unless asked for.

    Attributes:
        arrow: All of it, texts included; what columns mean is in the fields' metadata
            (docs/tables.md).
        title: What it is.
        columns: Those that are shown; empty: all.
        first: Places of the rows that are shown; None: the first ones.
        notes: What has to be known beside it.
        show_text: Texts, which may be offensive, are shown.
    """

    arrow: pa.Table
    title: str
    columns: tuple[str, ...] = ()
    first: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    show_text: bool = False

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def with_text(self) -> Self:
        """The same, showing texts."""
        return replace(self, show_text=True)

    def to_pandas(self, *, show_text: bool | None = None) -> Any:
        """A data frame, which notebooks show by themselves: so without texts unless asked for.

        Args:
            show_text: Keep texts as they are; None: as the table does.
        """
        is_shown = self.show_text if show_text is None else show_text
        return (self.arrow if is_shown else hide_text(self.arrow)).to_pandas()

    def describe(self) -> Panel:
        """Its first rows."""
        names = self.columns or tuple(self.arrow.column_names)
        places = range(min(len(self), MAX_ROWS)) if self.first is None else self.first[:MAX_ROWS]
        rows = self.arrow.select(names).take(pa.array(places, pa.int64()))
        shown = rows if self.show_text else hide_text(rows)
        cells = [[write_cell(value) for value in row.values()] for row in shown.to_pylist()]
        notes = [] if len(cells) == len(self) else [f"{len(cells)} of {len(self)} rows"]
        return Panel(self.title, names, cells, [*notes, *self.notes])


def hide_text(table: pa.Table) -> pa.Table:
    """A table in which texts that may be offensive are replaced; nulls stay."""
    for place, name in enumerate(table.column_names):
        if name in TEXT_COLUMNS:
            is_null = table[name].is_null().to_pylist()
            hidden = pa.array([None if missing else HIDDEN for missing in is_null], pa.string())
            table = table.set_column(place, name, hidden)
    return table
