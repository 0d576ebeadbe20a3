"""Tables whose numbers stand in line; times and sizes as people read them."""

from __future__ import annotations

import pytest

from eigenshift.reporting.pages import shape_table, show_moment, show_number, show_size, show_span


def test_columns_of_numbers_are_told_from_words() -> None:
    """By all their cells; dashes and empty ones are neither."""
    shaped = shape_table(
        ("arm", "rate", "dose", "mixed", "nothing"),
        [
            ("base", "30.8% [27.0, 34.5]", "1,234", "5", "-"),
            ("2", "-", "1.23e-05", "five", ""),
            ("x", "5.0% rise [1.0, 9.0]", "-0.1 points", "-", "-"),
            ("y", "0.0% [0.0, 5.0] (holds 0)", "12 s", "-", "-"),
        ],
    )
    assert [column.is_number for column in shaped.columns] == [False, True, True, False, False]
    assert [column.has_intervals for column in shaped.columns] == [False, True, *[False] * 3]
    assert [column.is_row_name for column in shaped.columns] == [True, *[False] * 4]
    assert [(row[1].value, row[1].more) for row in shaped.rows] == [
        ("30.8%", "[27.0, 34.5]"),
        ("-", ""),
        ("5.0% rise", "[1.0, 9.0]"),
        ("0.0%", "[0.0, 5.0] (holds 0)"),
    ]


def test_first_column_of_numbers_names_no_row() -> None:
    """A layer's number is aligned as others are."""
    shaped = shape_table(("layer", "AUROC"), [(0, "0.9"), (1, "0.8")])
    assert (shaped.columns[0].is_number, shaped.columns[0].is_row_name) == (True, False)


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        ("2026-11-27T19:58:44.679+00:00", "2026-11-27T20:02:11.400+00:00", "3m 27s"),
        ("2026-11-27T19:58:44+00:00", "2026-11-27T19:58:54Z", "10s"),
        ("2026-11-27T19:58:44+00:00", "2026-11-27T22:03:44+00:00", "2h 05m"),
    ],
)
def test_spans_are_read_at_a_glance(start: str, end: str, span: str) -> None:
    """Hours with minutes, minutes with seconds."""
    assert show_span(start, end) == span


def test_moments_sizes_and_numbers() -> None:
    """No milliseconds, no bytes by the million, no invented numbers."""
    assert show_moment("2026-11-27T19:58:44.679+00:00") == "27 Nov 2026, 19:58 UTC"
    assert show_moment("2026-11-27T21:58:44+02:00") == "27 Nov 2026, 19:58 UTC"
    assert [show_size(n) for n in (999, 1234, 24_123_456, 5_000_000_000)] == [
        *("999 bytes", "1.2 kB", "24.1 MB", "5.0 GB")
    ]
    assert [show_number(value) for value in (None, float("nan"), 0.12345)] == ["-", "-", "0.123"]
