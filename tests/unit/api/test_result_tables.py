"""Tables as they are shown: offensive text is not, unless asked for."""

from __future__ import annotations

import io

import pyarrow as pa
from rich.console import Console

from eigenshift.api.representations import HIDDEN
from eigenshift.api.result_tables import MAX_ROWS, ResultTable

SECRET = "grumblefish"  # noqa: S105 - stands for a word that must not be seen
TABLE = pa.table(
    {
        "component_index": list(range(20)),
        "auroc": [0.5 + place / 100 for place in range(20)],
        "tokens_up": [[SECRET, "<b>\x1b[31m"]] * 20,
        "context": [SECRET, None] * 10,
    }
)


def show(table: ResultTable) -> str:
    """In a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_text_is_hidden_unless_asked_for() -> None:
    """In a terminal, in a notebook, in a data frame and in a traceback."""
    table = ResultTable(TABLE, "components")
    frame = table.to_pandas()
    assert not any(
        SECRET in shown
        for shown in (show(table), table._repr_html_(), repr(table), frame.to_html())
    )
    assert list(frame["context"][:2].fillna("null")) == [HIDDEN, "null"]
    asked = table.with_text()
    assert SECRET in show(asked)
    assert SECRET in asked._repr_html_()
    assert asked.to_pandas()["context"][0] == SECRET
    assert table.to_pandas(show_text=True)["tokens_up"][0][0] == SECRET


def test_what_is_shown_is_escaped() -> None:
    """A token may look like HTML, like markup of the terminal, or be a control character."""
    asked = ResultTable(TABLE, "components [bold]").with_text()
    assert "<b>" not in asked._repr_html_()
    assert "&lt;b&gt;" in asked._repr_html_()
    assert "\x1b" not in show(asked) + asked._repr_html_()
    assert "[bold]" in show(asked)


def test_few_rows_are_shown_in_the_order_that_matters() -> None:
    """And how many there are; the table itself is whole."""
    table = ResultTable(TABLE, "components", ("component_index",), (7, 3))
    assert [row[0] for row in table.describe().rows] == ["7", "3"]
    first = ResultTable(TABLE, "components")
    assert len(first.describe().rows) == MAX_ROWS
    assert f"{MAX_ROWS} of 20 rows" in show(first)
    assert len(first) == len(first.arrow) == 20
    assert len(ResultTable(TABLE.slice(0, 0), "none").describe().rows) == 0
