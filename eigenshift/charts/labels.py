"""Words on a chart, placed so that they can be read: names beside points, names of axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from textwrap import fill
from typing import Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_Side = Literal["left", "right"]
_SIDES: tuple[_Side, ...] = get_args(_Side)
"""Of the text that lies at the point: "left" writes it to the right of it."""
_GAP = 6
_MARKER_POINTS = 8
_RISES = (5, -11, 14, -20, 24, -30)
"""Heights above the point to try, in points: the nearest first."""
_FULL_LINES = 0.92
"""Letters differ in width: lines are broken this much earlier than they need to be."""


def name_points(axes: Axes, points: Sequence[tuple[str, float, float]], colour: str) -> None:
    """Write each name right or left of its point, at the nearest height that is free.

    To be called last: scales and limits decide what is free. Names go from the highest point down,
    so that of two points near each other the higher has the higher name. A name for which nothing
    is free takes the place where it covers least.

    Args:
        axes: Of a figure; its layout is computed once.
        points: Name, x and y of each point, in units of the data.
        colour: Of the names.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("name_points: expected axes of a figure, found axes of none")
    fit_axis_labels(figure)
    size = _MARKER_POINTS * figure.dpi / 72
    taken = [
        Bbox.from_bounds(x - size / 2, y - size / 2, size, size)
        for x, y in axes.transData.transform([(x, y) for _, x, y in points])
    ]
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        label = axes.annotate(
            name, (x, y), (0, 0), textcoords="offset points", color=colour, fontsize=8
        )
        taken.append(_place(label, taken, axes.get_window_extent()))


def _place(label: Annotation, taken: Sequence[Bbox], inside: Bbox) -> Bbox:
    """Move a label to where it covers least; what it covers there, in pixels of the screen."""

    def cost(place: tuple[float, _Side]) -> float:
        box = _move(label, *place)
        outside: float = box.width * box.height - _overlap(box, inside)
        return outside + sum(_overlap(box, other) for other in taken)

    return _move(label, *min(product(_RISES, _SIDES), key=cost))


def _move(label: Annotation, rise: float, side: _Side) -> Bbox:
    label.xyann = (_GAP if side == "left" else -_GAP, rise)
    label.set_horizontalalignment(side)
    return label.get_window_extent()


def _overlap(one: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)


def fit_axis_labels(figure: Figure) -> None:
    """Break the names of axes that reach beyond the figure into lines; its layout is computed.

    A name is centred at its axis: what is free on its shorter side counts twice.
    """
    figure.draw_without_rendering()
    page = figure.bbox
    is_changed = False
    for axes in figure.axes:
        for label, start, end, low, high in (
            (axes.xaxis.label, "x0", "x1", page.x0, page.x1),
            (axes.yaxis.label, "y0", "y1", page.y0, page.y1),
        ):
            extent = label.get_window_extent()
            ends = getattr(extent, start), getattr(extent, end)
            middle, length = sum(ends) / 2, ends[1] - ends[0]
            free = 2 * min(middle - low, high - middle)
            text = label.get_text()
            if length > free > 0 and "\n" not in text:
                label.set_text(fill(text, max(8, int(_FULL_LINES * len(text) * free / length))))
                is_changed = True
    if is_changed:
        figure.draw_without_rendering()
