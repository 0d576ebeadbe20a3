"""Charts of arms: what they say in words, and where what they draw lies."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from eigenshift.charts.arm_charts import chart_comparison, chart_operating_points
from eigenshift.charts.rendering import NARROW_INCHES, WIDE_INCHES, render_png, render_svg
from eigenshift.charts.run_charts import Chart, Palette

WORDS = ("within +5%", "within +1%", "at KL 0.02")
PALETTE = Palette()


def make_row(name: str, reduction: float | None, **more: Any) -> dict[str, Any]:
    """An arm with an interval of +-0.1 and costs that are easy to tell."""
    ends = (None, None) if reduction is None else (reduction - 0.1, reduction + 0.1)
    return {
        "arm": name,
        "intervention": name,
        "toxicity_reduction": reduction,
        "toxicity_reduction_low": ends[0],
        "toxicity_reduction_high": ends[1],
        "perplexity_change": 0.05,
        "perplexity_change_low": 0.04,
        "perplexity_change_high": 0.06,
        "perplexity_change_indomain": 0.03,
        "kl_to_base": 0.0125,
        "is_hooked_only": False,
        **more,
    }


POINTS = (
    (
        "within +5%",
        [
            make_row("leace", 0.2, is_hooked_only=True),
            make_row("eigenshift_fisher", 0.6),
            make_row("damp", None),
            make_row("aura", -0.05),
        ],
    ),
    (
        "at KL 0.02",
        [
            make_row("leace", 0.3, toxicity_reduction_low=None, toxicity_reduction_high=None),
            make_row("damp", 0.1, kl_to_base=None),
        ],
    ),
)
"""Not at every point: fisher and aura. Without a reduction at the first: damp."""


def draw(chart: Chart, width: float = WIDE_INCHES) -> Axes:
    """The axes as they are laid out."""
    height = chart.height if width == WIDE_INCHES else min(1.6, 1.7 * chart.height)
    figure = Figure(figsize=(width, width * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    chart.draw(axes, PALETTE)
    figure.draw_without_rendering()
    return axes


def list_markers(axes: Axes) -> list[tuple[float, float, str]]:
    """x, y and filling of each marker that has a place."""
    drawn = [item[0] for item in axes.containers if isinstance(item, ErrorbarContainer)]
    return [
        (line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_markerfacecolor()))  # type: ignore[index]
        for line in drawn
        if line is not None
    ]


def test_one_operating_point_has_no_chart_of_its_own() -> None:
    """Nor have points at which nothing has a reduction."""
    assert chart_operating_points(POINTS[:1]) is None
    assert chart_operating_points([]) is None
    nothing = [make_row("leace", None)]
    assert chart_operating_points([("within +5%", nothing), ("at KL 0.02", nothing)]) is None


def test_numbers_of_the_points_are_in_a_table_and_the_best_in_words() -> None:
    """Best at the run's own budget first; what has no number there is last."""
    chart = chart_operating_points(POINTS)
    assert chart is not None
    assert chart.columns == (
        *("arm", "point", "reduction", "perplexity change", "in-domain change", "KL to base"),
    )
    costs = ("+5.0%", "+3.0%", "0.0125")
    assert chart.rows == (
        ("eigenshift_fisher", "within +5%", "60.0% [50.0%, 70.0%]", *costs),
        ("leace", "within +5%", "20.0% [10.0%, 30.0%]", *costs),
        ("leace", "at KL 0.02", "30.0%", *costs),
        ("aura", "within +5%", "5.0% rise [-5.0%, 15.0%]", *costs),
        ("damp", "within +5%", "-", *costs),
        ("damp", "at KL 0.02", "10.0% [0.0%, 20.0%]", *costs[:2], "-"),
    )
    assert chart.summary == (
        "4 interventions at 2 operating points. The largest reduction: within +5% 60.0% "
        "(eigenshift_fisher); at KL 0.02 30.0% (leace)."
    )


def test_each_arm_with_a_reduction_has_a_marker_in_its_row() -> None:
    """Those measured with hooks are hollow; one without an interval is drawn all the same."""
    chart = chart_operating_points(POINTS)
    assert chart is not None
    axes = draw(chart)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["eigenshift fisher", "leace", "aura", "damp"]
    found = [(x, labels[round(y)], filling) for x, y, filling in list_markers(axes)]
    ink, second, paper = PALETTE.ink, PALETTE.before, PALETTE.paper
    assert sorted(found) == [
        (-0.05, "aura", ink),
        (0.1, "damp", second),
        (0.2, "leace", paper),
        (0.3, "leace", second),
        (0.6, "eigenshift fisher", ink),
    ]
    assert render_png(chart)
    solid = chart_operating_points([(words, rows[1:]) for words, rows in POINTS])
    assert solid is not None
    assert ("hollow" in chart.title, "hollow" in solid.title) == (True, False)


def test_ours_are_in_the_accent_colour_and_no_point_is() -> None:
    """The name says whose it is, the marker which point."""
    chart = chart_operating_points([(words, POINTS[0][1]) for words in WORDS])
    assert chart is not None
    axes = draw(chart)
    colours = {label.get_text(): label.get_color() for label in axes.get_yticklabels()}
    assert colours.pop("eigenshift fisher") == PALETTE.after
    assert set(colours.values()) == {PALETTE.ink}
    assert PALETTE.after not in {filling for _, _, filling in list_markers(axes)}
    legend = axes.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(WORDS)


@pytest.mark.parametrize("width", [WIDE_INCHES, NARROW_INCHES])
@pytest.mark.parametrize("n_rows", [2, 8, 24])
def test_names_keep_to_their_rows_and_markers_apart(n_rows: int, width: float) -> None:
    """From few rows to more than there are interventions; three equal numbers in each row."""
    rows = [make_row(f"a_name_as_long_as_any_{n}", 0.5 - n / 50) for n in range(n_rows)]
    chart = chart_operating_points([(words, rows) for words in WORDS])
    assert chart is not None
    axes = draw(chart, width)
    names = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for upper, lower in pairwise(names))
    frame, page = axes.get_window_extent(), axes.figure.bbox
    assert frame.width > 0.4 * page.width
    assert all(page.x0 <= box.x0 and box.x1 <= frame.x0 for box in names)
    heights = sorted(axes.transData.transform((x, y))[1] for x, y, _ in list_markers(axes))
    apart = min(upper - lower for lower, upper in pairwise(heights))
    assert apart > 3 * axes.figure.dpi / 72  # points


def test_operating_points_follow_the_page_in_light_and_dark() -> None:
    """No fixed colours, both widths."""
    chart = chart_operating_points(POINTS)
    assert chart is not None
    for is_narrow in (False, True):
        svg = render_svg(chart, is_narrow=is_narrow)
        assert "within +5%" in svg
        assert "var(--after)" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_comparison_leaves_out_arms_without_both_numbers() -> None:
    """In words too."""
    rows = [make_row("leace", 0.2), make_row("damp", None), make_row("base_again", 0.0)]
    chart = chart_comparison(rows)
    assert [row[0] for row in chart.rows] == ["leace", "base_again"]
    assert chart.summary.startswith("Of 2 arms leace reduces toxicity most, by 20.0%")
    assert render_png(chart)
    assert chart_comparison([]).summary.startswith("No arm has a reduction")


def test_where_every_arm_makes_it_worse_none_is_called_the_best() -> None:
    """A rise is told as one, in the words, the table and the label of the axis."""
    chart = chart_comparison([make_row("leace", -0.3), make_row("damp", -0.05)])
    assert chart.summary == "None of 2 arms reduces toxicity."
    assert [row[1] for row in chart.rows] == ["30.0% rise", "5.0% rise"]
    assert draw(chart).get_ylabel() == "reduction of the toxicity rate (below 0: a rise)"
    better = chart_comparison([make_row("leace", 0.3)])
    assert draw(better).get_ylabel() == "reduction of the toxicity rate"
