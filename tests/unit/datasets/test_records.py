"""Cells as labels, numbers, lists and JSON."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal

import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.records import (
    RejectedRecordError,
    check_columns,
    encode_attributes,
    parse_cell,
    parse_label,
)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("7", 7),
        ("-3", -3),
        ("0", 0),
        ("0.50", 0.5),
        ("1e-05", 1e-05),
        ("1.5E+3", 1500.0),
        ("007", "007"),
        ("5e1012345678", "5e1012345678"),
        ("1.0e999", "1.0e999"),
        ("1_000", "1_000"),
        ("١٢", "١٢"),
        ("nan", "nan"),
        ("inf", "inf"),
        (" 7", " 7"),
        ("9" * 19, "9" * 19),
        ("", ""),
    ],
)
def test_only_plain_numbers_become_numbers(cell: str, value: object) -> None:
    """What is not certainly a number keeps its spelling."""
    parsed = parse_cell(cell)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, (True, None)),
        (False, (False, None)),
        ("True", (True, None)),
        ("no", (False, None)),
        ("0", (False, None)),
        (0.5, (True, 0.5)),
        ("0.49", (False, 0.49)),
        (1.0, (True, 1.0)),
    ],
)
def test_labels_are_verdicts_or_scores(value: object, expected: tuple[bool, float | None]) -> None:
    """Integers and words are verdicts; decimals are scores, toxic from the threshold on."""
    assert parse_label(value, "y", 0.5) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "label_missing"),
        (" ", "label_missing"),
        (float("nan"), "label_missing"),
        (-1, "unscored"),
        ("-1.0", "unscored"),
        (3, "label_out_of_range"),
        (1.01, "label_out_of_range"),
        ("rather", "label_unreadable"),
        (b"1", "label_unreadable"),
    ],
)
def test_labels_that_are_none(value: object, reason: str) -> None:
    """Each way of not being a label has its own code, and the cell is not repeated."""
    with pytest.raises(RejectedRecordError) as caught:
        parse_label(value, "y", 0.5)
    assert caught.value.reason == reason
    assert "rather" not in caught.value.detail


def test_attributes_are_sorted_readable_json() -> None:
    """Keys are sorted, Chinese stays Chinese, dates and decimals are text."""
    attributes = {"b": "茶", "a": [1, None], "d": date(2024, 1, 2), "c": Decimal("1.50")}
    text = encode_attributes(attributes)
    assert text == '{"a": [1, null], "b": "茶", "c": "1.50", "d": "2024-01-02"}'


def test_attributes_too_deep_to_write_are_refused() -> None:
    """Absurd nesting rejects its record instead of ending the run."""
    value: object = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(RejectedRecordError, match="nested too deep"):
        encode_attributes({"x": value})


def test_attributes_that_are_not_finite_are_null() -> None:
    """JSON has no NaN; DuckDB would refuse the whole column."""
    assert json.loads(encode_attributes({"x": float("nan"), "y": {"z": float("inf")}})) == {
        "x": None,
        "y": {"z": None},
    }


def test_odd_column_names_are_not_shown() -> None:
    """Beside a known name, a cell that is no column name may still be text."""
    with pytest.raises(DatasetError, match=r"found id, \(another\)\."):
        check_columns("t.csv", ["id", "some words, quite a few"], ["text"])
