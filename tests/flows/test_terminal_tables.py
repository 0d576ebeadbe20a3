"""Tables on a screen: what fits, what is cut, what is hidden."""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from eigenshift.audit import HIDDEN_TEXT
from eigenshift.reporting.history_tables import Column
from flows import command_line
from flows.terminal_tables import print_answer, print_fitting, print_table, show_cell
from tests.support.small_store import build_small_store


def show(columns: list[str], rows: list[list[object]], width: int, *, keys: int = 0) -> list[str]:
    """Lines of a table on a screen of a width."""
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    print_table(console, columns, rows, keys=keys)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_numbers_stand_under_each_other() -> None:
    """Text at the left, numbers at the right, two letters between."""
    assert show(["name", "n"], [["a", 5], ["bcdef", 12]], 80) == [
        "name    n",
        "─────────",
        "a       5",
        "bcdef  12",
        "",
    ]


def test_headings_are_broken_where_a_table_is_too_wide() -> None:
    """At underscores and spaces; never a cell."""
    lines = show(["inclusion_frequency", "is in patch"], [[0.5, "yes"]], 20)
    assert lines[:3] == ["inclusion_  is in", " frequency  patch", "─────────────────"]


def test_a_table_of_named_rows_is_cut_into_tables_that_fit() -> None:
    """The name in each; no row takes two lines."""
    columns = ["arm", "one", "two", "three"]
    rows: list[list[object]] = [["base", "x" * 20, "y" * 20, "z" * 20], ["patched", "x", "y", "z"]]
    lines = show(columns, rows, 60, keys=1)
    assert max(map(len, lines)) <= 60
    assert [line.split() for line in lines if line.startswith(("arm", "patched"))] == [
        ["arm", "one", "two"],
        ["patched", "x", "y"],
        ["arm", "three"],
        ["patched", "z"],
    ]
    whole = show(columns, rows, 60)
    assert len([line for line in whole if line.startswith("patched")]) == 1


def test_sentences_are_broken_where_a_table_is_too_wide() -> None:
    """Between words, as much as is needed; names, numbers and intervals stay whole."""
    rows: list[list[object]] = [
        ["20260101T000000.000Z-aaaaaa", "one two three four five", "5 [3, 7]"]
    ]
    lines = show(["run", "found", "value"], rows, 58)
    assert max(map(len, lines)) <= 58
    assert lines[2].split("  ")[:2] == ["20260101T000000.000Z-aaaaaa", "one two three four"]
    assert lines[2].endswith("5 [3, 7]")
    assert lines[3].strip() == "five"


def test_nothing_is_cut_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe lines are for other programs."""
    monkeypatch.delenv("COLUMNS", raising=False)
    output = io.StringIO()
    rows = [["base", "x" * 50, "y" * 50]]
    print_table(Console(file=output), ["arm", "one", "two"], rows, keys=1)
    assert len([line for line in output.getvalue().splitlines() if line.startswith("arm")]) == 1


def test_hidden_text_takes_no_room() -> None:
    """Columns with nothing else are named below, with what shows them."""
    answer = pa.table(
        {
            "n": [1, 2],
            "tokens": [[HIDDEN_TEXT], None],
            "text": [HIDDEN_TEXT, HIDDEN_TEXT],
            "mixed": [HIDDEN_TEXT, "shown"],
        }
    )
    output = io.StringIO()
    print_answer(Console(file=output, width=80), answer, ".text on")
    head, *_, last = output.getvalue().splitlines()
    assert head.split() == ["n", "mixed"]
    assert last == "Not shown, since text may be offensive: tokens, text. .text on shows it."


def test_columns_that_are_not_essential_come_while_there_is_room() -> None:
    """In their order; the first that does not fit ends it."""
    columns = [
        Column("run", ("a" * 10,), True),
        Column("model", ("m" * 10,)),
        Column("release", ("r" * 30,)),
        Column("n", ("1",)),
    ]
    output = io.StringIO()
    assert print_fitting(Console(file=output, width=30), columns) == ["release", "n"]
    assert output.getvalue().splitlines()[0].split() == ["run", "model"]
    assert print_fitting(Console(file=io.StringIO(), width=80), columns) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456789, "0.123457"),
        (None, ""),
        ([1, "a"], "1, a"),
        (
            datetime(2026, 11, 28, 1, 2, 3, 456, tzinfo=timezone(timedelta(hours=8))),
            "2026-11-27 17:02:03",
        ),
    ],
)
def test_a_cell_is_for_a_person(value: object, shown: str) -> None:
    """No brackets, no parts of a second, no other zone than UTC."""
    assert show_cell(value) == shown


@pytest.mark.parametrize(
    "words", [("runs",), ("releases",), ("audit", "--ask", "damped_components")]
)
def test_what_people_look_at_first_fits_eighty_columns(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With ids as they are; the note below may be longer."""
    small = build_small_store(str(tmp_path / "store"))
    with monkeypatch.context() as patched:
        for module in ("flows.store_commands", "flows.options"):
            patched.setattr(f"{module}.console", Console(width=80))
        with pytest.raises(SystemExit) as leaving:
            command_line.main([*words, "--store", small.url])
    assert leaving.value.code in (0, None)
    lines = capfd.readouterr().out.splitlines()
    table = [
        line for line in lines if not line.startswith(("*  led", "* led", "* in", "Not shown"))
    ]
    assert len(table) > 2
    assert max(map(len, table)) <= 80
