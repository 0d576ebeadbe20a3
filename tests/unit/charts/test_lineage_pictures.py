"""What was made from what, as boxes in rows: by hand."""

from __future__ import annotations

import re
from graphlib import CycleError

import pytest

from eigenshift.charts.lineage_pictures import (
    NARROW_ROW,
    Box,
    draw_lineage,
    rank_boxes,
    reduce_lines,
)

LINES = {
    "texts": frozenset(),
    "model": frozenset(),
    "states": frozenset({"texts", "model"}),
    "patch": frozenset({"states", "model"}),
    "evaluation": frozenset({"patch", "texts"}),
}
BOXES = {
    "texts": Box("texts", "10 rows", is_outside=True),
    "model": Box("model", is_outside=True),
    "states": Box("states"),
    "patch": Box("patch", is_accented=True),
    "evaluation": Box("evaluation <1>", is_accented=True),
}


def test_lines_that_follow_from_others_are_left_out() -> None:
    """The patch rests on the model by way of the states."""
    assert reduce_lines(LINES) == {
        "texts": frozenset(),
        "model": frozenset(),
        "states": frozenset({"texts", "model"}),
        "patch": frozenset({"states"}),
        "evaluation": frozenset({"patch"}),
    }


def test_boxes_stand_below_all_they_were_made_from() -> None:
    """By the longest way."""
    ranks = rank_boxes(LINES, BOXES)
    assert ranks == {"texts": 0, "model": 0, "states": 1, "patch": 2, "evaluation": 3}


@pytest.mark.parametrize("is_narrow", [False, True])
def test_picture_has_all_boxes_and_lines(is_narrow: bool) -> None:
    """Inside the drawing, none on another; named; everything escaped; colours are the page's."""
    svg = draw_lineage(BOXES, LINES, 'What "it" is', is_narrow=is_narrow)
    assert svg.startswith("<svg")
    assert 'aria-label="What &quot;it&quot; is"' in svg
    assert "evaluation &lt;1&gt;" in svg
    assert svg.count("<path") == 4
    assert svg.count("stroke-dasharray") == 2
    assert not re.search(r"#[0-9a-f]{3}", svg)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert view is not None
    boxes = [
        tuple(map(float, found))
        for found in re.findall(
            r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
        )
    ]
    assert len(boxes) == 5
    for number, (x, y, width, height) in enumerate(boxes):
        assert 0 <= x <= float(view[1]) - width
        assert 0 <= y <= float(view[2]) - height
        for other in boxes[number + 1 :]:
            assert abs(x - other[0]) >= width or abs(y - other[1]) >= height


def test_full_row_is_wrapped_on_a_phone() -> None:
    """No more boxes side by side than fit."""
    boxes = {str(number): Box(str(number)) for number in range(5)}
    svg = draw_lineage(boxes, {key: frozenset() for key in boxes}, "five", is_narrow=True)
    rows = re.findall(r'<rect x="[\d.]+" y="([\d.]+)"', svg)
    assert max(rows.count(row) for row in rows) == NARROW_ROW


def test_circles_are_refused() -> None:
    """Nothing is made from itself."""
    with pytest.raises(CycleError):
        draw_lineage(
            {"a": Box("a"), "b": Box("b")},
            {"a": frozenset("b"), "b": frozenset("a")},
            "circle",
            is_narrow=False,
        )
