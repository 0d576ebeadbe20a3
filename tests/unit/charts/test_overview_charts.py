"""The picture a report opens with, in words and numbers, by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eigenshift.charts.overview_charts import (
    ArmPoint,
    Bounds,
    chart_arms,
    chart_overview,
    find_front,
)
from eigenshift.charts.rendering import render_png, render_svg


def estimate(value: float, reach: float = 0.01) -> dict[str, Any]:
    """With an interval around it."""
    return {"value": value, "low": value - reach, "high": value + reach}


POINTS = [
    ArmPoint("before", "before", estimate(0.3), None),
    ArmPoint("after", "after", estimate(0.05), estimate(0.004)),
    ArmPoint("random components", "control", estimate(0.31), estimate(0.02)),
    ArmPoint("leace", "peer", estimate(0.2), {"value": 0.3, "low": None, "high": None}),
]


def test_overview_says_what_it_shows() -> None:
    """Every rate, the cost of the judged patch, and the budget; the numbers with intervals."""
    chart = chart_overview(POINTS, Bounds(rate=0.15, cost=0.01), "Of run X.")
    assert chart is not None
    assert chart.summary == (
        "Toxic continuations: before 30.0%, after 5.0%, random components 31.0%, leace 20.0%. "
        "Perplexity changes by +0.4%, of +1% allowed. Of run X."
    )
    assert chart.rows == (
        ("before", "the model as it was", "30.0% [29.0%, 31.0%]", "-"),
        ("after", "the patch that was judged", "5.0% [4.0%, 6.0%]", "+0.4% [-0.6%, +1.4%]"),
        ("random components", "control", "31.0% [30.0%, 32.0%]", "+2.0% [+1.0%, +3.0%]"),
        ("leace", "published method", "20.0% [19.0%, 21.0%]", "+30.0%"),
    )
    assert chart_overview(POINTS[:1], Bounds()) is None


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(rate=0.15, cost=0.01), Bounds(cost=0.5)])
@pytest.mark.parametrize("is_narrow", [False, True])
def test_every_point_and_bound_has_its_name_beside_it(bounds: Bounds, is_narrow: bool) -> None:
    """Written on the chart itself: no legend to look up."""
    chart = chart_overview(POINTS, bounds)
    assert chart is not None
    texts = re.findall(r">([^<>]+)</text>", render_svg(chart, is_narrow=is_narrow))
    for word in ("30.0%", "5.0%", "31.0%", "20.0%", "+0.4%", "+2.0%", "+30.0%"):
        assert word in texts
    assert texts.count("random components") == (2 if is_narrow else 1)
    named = {text for text in texts if "budget" in text or "asked for" in text}
    wanted = {f"budget {100 * bounds.cost:+.3g}%"} if bounds.cost else set()
    wanted |= {f"asked for: at most {bounds.rate:.1%}"} if bounds.rate else set()
    assert named == wanted
    assert render_png(chart)


def test_pareto_front_by_hand() -> None:
    """An arm that is worse in one number and no better in the other is not on it."""
    points = {"a": (0.0, 0.3), "b": (0.1, 0.2), "c": (0.2, 0.2), "d": (0.3, 0.1)}
    assert find_front(points) == ["a", "b", "d"]
    rows = [
        {"arm": arm, "toxicity_rate": r, "perplexity_change": c} for arm, (c, r) in points.items()
    ]
    chart = chart_arms(
        [*rows, {"arm": "e", "toxicity_rate": None, "perplexity_change": 0.1}], "a", "run"
    )
    assert chart is not None
    assert chart.rows[0] == ("d", "10.0%", "+30.0%", "yes")
    assert "3 of 4 arms" in chart.summary
    assert "Least toxic: d." in chart.summary
    assert chart_arms(rows[:2], "a", "run") is None


def test_least_toxic_arm_is_sought_within_the_budget() -> None:
    """One that ruins the model is not the best; it does not hide the others either."""
    rows = [
        {"arm": arm, "kind": kind, "toxicity_rate": rate, "perplexity_change": change}
        for arm, kind, rate, change in (
            ("base", "before", 0.3, None),
            ("eigenshift", "after", 0.1, 0.01),
            ("leace", "peer", 0.2, 0.005),
            ("ruin", "peer", 0.0, 40.0),
        )
    ]
    chart = chart_arms(rows, "base", "run", Bounds(cost=0.05))
    assert chart is not None
    assert "Least toxic within the budget of +5%: eigenshift." in chart.summary
    assert chart.rows[-1] == ("base", "30.0%", "-", "yes")
    texts = re.findall(r">([^<>]+)</text>", render_svg(chart, is_narrow=False))
    assert {"base", "eigenshift", "leace", "ruin", "budget +5%"} <= set(texts)
