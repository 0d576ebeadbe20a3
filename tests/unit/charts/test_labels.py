"""Names beside points, measured as they are drawn."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from eigenshift.charts.labels import name_points


def test_names_of_points_in_one_place_do_not_cover_each_other() -> None:
    """Three points in one place, one at the right edge: every name is readable and inside."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [(name, 0.5, 0.5) for name in ("one arm", "another arm", "a third arm")]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    name_points(axes, [*points, ("at the edge", 0.99, 0.2)], "black")
    figure.draw_without_rendering()
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    boxes = [label.get_window_extent() for label in labels]
    assert [label.get_text() for label in labels] == [*(p[0] for p in points), "at the edge"]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_of_two_points_near_each_other_the_higher_has_the_higher_name() -> None:
    """In whatever order they are given."""
    for order in (1, -1):
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        name_points(axes, [("lower", 0.5, 0.5), ("higher", 0.51, 0.53)][::order], "black")
        figure.draw_without_rendering()
        middles = {
            text.get_text(): text.get_window_extent().y0
            for text in axes.texts
            if isinstance(text, Annotation)
        }
        assert middles["higher"] > middles["lower"]


def test_axes_of_no_figure_are_refused() -> None:
    """There is no screen to measure on."""
    axes = Figure().add_subplot()
    axes.remove()
    with pytest.raises(ValueError, match="axes of a figure"):
        name_points(axes, [("a", 0.0, 0.0)], "black")
