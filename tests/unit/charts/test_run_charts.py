"""What charts say in words, by hand."""

from __future__ import annotations

from eigenshift.charts.rendering import render_png
from eigenshift.charts.run_charts import chart_slices, chart_toxicity


def test_toxicity_in_words() -> None:
    """Shares at and above 0.5 by hand: 1 of 4 before, 1 of 2 after."""
    rows = [
        {"bin": 0, "n_before": 3, "n_after": 1},
        {"bin": 10, "n_before": 1, "n_after": 0},
        {"bin": 19, "n_before": 0, "n_after": 1},
    ]
    chart = chart_toxicity(rows)
    assert chart is not None
    assert chart.summary.startswith("25.0% of 4 continuations before and 50.0% of 2 after")
    assert chart.rows[10] == ("0.50", "0.55", "25.0%", "0.0%")
    assert chart_toxicity([]) is None


def test_slices_with_and_without_intervals() -> None:
    """A slice that was not measured after is still shown before."""
    full = {"value": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"slice": "language=en", "n": 4, "before": full, "after": {**full, "low": None}},
        {"slice": "language=zh", "n": 2, "before": full, "after": None},
        {"slice": "nothing", "n": 0, "before": None, "after": None},
    ]
    chart = chart_slices(rows)
    assert chart is not None
    assert chart.rows == (
        ("language=en", 4, "50.0% [40.0%, 60.0%]", "50.0%"),
        ("language=zh", 2, "50.0% [40.0%, 60.0%]", "-"),
    )
    assert render_png(chart)
