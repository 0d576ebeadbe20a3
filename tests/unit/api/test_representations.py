"""Cells and panels."""

from __future__ import annotations

import pytest

from eigenshift.api.representations import Panel, draw_html, write_cell, write_interval


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "-"),
        (True, "yes"),
        (0.123456, "0.1235"),
        (12, "12"),
        (["a", "b"], "a b"),
        ("two\nlines", "two lines"),
        ("x" * 99, "x" * 59 + "…"),
    ],
)
def test_a_cell_is_one_short_line(value: object, cell: str) -> None:
    """Whatever the value."""
    assert write_cell(value) == cell


def test_an_estimate_is_shown_with_its_interval() -> None:
    """Where it has one."""
    assert write_interval(0.5, 0.25, 0.75) == "0.5 [0.25, 0.75]"
    assert write_interval(0.5, None, None) == "0.5"
    assert write_interval(None, None, None) == "-"


def test_html_is_a_table_that_a_screen_reader_reads() -> None:
    """Headings are headings; numbers stand at the right."""
    found = draw_html(Panel("a & b", ("name", "n"), [("x", "1"), ("y", "")], ["a < b"]))
    assert '<th scope="col" style="text-align: right">n</th>' in found
    assert '<td style="text-align: left">x</td>' in found
    assert "a &amp; b" in found
    assert "a &lt; b" in found
    assert "<script" not in found
    assert "<table" not in draw_html(Panel("no table"))
