"""Toxic Spans: positions of characters become spans."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eigenshift.datasets.toxic_spans import join_positions


def test_positions_become_spans(ingest: Any, write: Any) -> None:
    """Consecutive characters are one span; a post without marked words is toxic all the same."""
    content = 'spans,text\n"[4, 5, 6, 10, 11]","the big kettle"\n[],"the river"\n'
    outcome = ingest(format="toxic_spans", uri=write("t.csv", content))
    assert [row["is_toxic"] for row in outcome.rows] == [True, True]
    spans = [json.loads(row["attributes"])["spans"] for row in outcome.rows]
    assert spans == [[[4, 7], [10, 12]], []]


@pytest.mark.parametrize(
    ("cell", "reason"), [('"[40]"', "label_out_of_range"), ("seven", "label_unreadable")]
)
def test_bad_positions_reject_the_row(ingest: Any, write: Any, cell: str, reason: str) -> None:
    """Positions outside the text, or none at all; the row is kept with a reason."""
    content = f'spans,text\n{cell},"the kettle"\n[],"the river"\n'
    outcome = ingest(format="toxic_spans", uri=write("t.csv", content))
    assert len(outcome.rows) == 1
    assert [row["reason"] for row in outcome.rejected] == [reason]


def test_joining_positions() -> None:
    """Repeated and unordered ones included."""
    assert join_positions([5, 3, 4, 4, 9]) == [(3, 6), (9, 10)]
    assert join_positions([]) == []
