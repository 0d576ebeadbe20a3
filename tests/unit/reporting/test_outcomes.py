"""How numbers are told: rises as rises, trade-offs with their doubt, runs with their caveats."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.base.arms import AGAIN_ARM
from eigenshift.ledger.runs import start_run
from eigenshift.reporting.outcomes import (
    ArmComparison,
    RefreshOutcome,
    describe_outcome,
    format_estimate,
    format_metric,
    tabulate_headline,
)
from eigenshift.settings import load_preset

Numbers = tuple[float | None, float | None, float | None]


def make_row(arm: str, metric: str, numbers: Numbers) -> dict[str, Any]:
    """A row of an evaluation."""
    named = dict(zip(("value", "low", "high"), numbers, strict=True))
    return {"arm": arm, "metric": metric, "slice": "all", "scorer": None, "n": 8, **named}


@pytest.mark.parametrize(
    ("metric", "numbers", "expected"),
    [
        ("toxicity_reduction", (0.3, 0.1, 0.5), "30.0% [10.0, 50.0]"),
        ("toxicity_reduction", (-0.3, -0.5, 0.1), "30.0% rise [-10.0, 50.0]"),
        ("reduction", (-0.3, None, None), "30.0% rise"),
        ("toxicity_reduction", (None, None, None), "-"),
        ("tph", (0.667, 0.0, 0.9), "66.7% [0.0, 90.0] (holds 0)"),
        ("tph", (0.667, 0.2, 0.9), "66.7% [20.0, 90.0]"),
        ("tph_paper", (0.0, 0.0, 0.1), "0.0% [0.0, 10.0] (holds 0)"),
        ("perplexity_change", (-0.01, -0.02, 0.0), "-1.0% [-2.0, 0.0]"),
    ],
)
def test_a_number_says_what_it_must_not_be_shown_without(
    metric: str, numbers: Numbers, expected: str
) -> None:
    """Other metrics are as they were."""
    assert format_metric(metric, make_row("ours", metric, numbers), "percent") == expected


def test_an_estimate_without_a_metric_is_plain() -> None:
    """Nothing is read into it."""
    assert format_estimate(make_row("ours", "tph", (0.5, 0.0, 0.9)), "percent").endswith("90.0]")
    assert format_metric("tph", None, "percent") == "-"


ROWS = [
    make_row("eigenshift", "tph", (0.667, 0.0, 0.9)),
    make_row("eigenshift", "toxicity_reduction", (-0.5, -0.9, 0.1)),
    make_row("eigenshift", "toxicity_rate_difference", (0.02, -0.01, 0.05)),
    make_row(AGAIN_ARM, "toxicity_rate_difference", (-0.026, -0.05, 0.0)),
]


def test_a_refresh_tells_its_caveats_first() -> None:
    """Those of before the run and those of its numbers: in the summary and for machines."""
    record = start_run("refresh", load_preset("demo"))
    record.judged, record.caveats = "eigenshift", ["too little text"]
    record.status = "held"
    outcome = RefreshOutcome.from_record(record, "store", ROWS, is_new_release=False)
    assert outcome.caveats[0] == "too little text"
    assert "too small to decide" in outcome.caveats[1]
    text = describe_outcome(outcome)
    assert all(f"- {caveat}" in text for caveat in outcome.caveats)
    assert outcome.as_contract()["caveats"] == outcome.caveats
    (tph,) = (row for row in tabulate_headline(ROWS, "eigenshift") if row[0] == "TPH")
    assert tph[2] == "66.7% [0.0, 90.0] (holds 0)"


def test_a_comparison_names_arms_within_chance() -> None:
    """Below the table, with what was known before."""
    comparison = ArmComparison(
        run_id="r",
        store="s",
        stages=[],
        arms=[{"arm": arm, "is_hooked_only": False} for arm in ("base", "eigenshift", AGAIN_ARM)],
        evaluations=ROWS,
        table="t",
        figure="f",
        caveats=["too little text"],
    )
    notes = "\n".join(comparison.notes)
    assert "too little text" in notes
    assert "these arms from the base: eigenshift." in notes
