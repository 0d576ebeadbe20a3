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
    explain_twins,
    format_estimate,
    format_metric,
    summarise_outcome,
    tabulate_headline,
)
from eigenshift.settings import load_preset
from tests.support.compared_arms import make_arm

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


def test_the_gate_is_a_list_with_what_failed_first() -> None:
    """Its words wrap; columns leave a narrow screen."""
    record = start_run("refresh", load_preset("demo"))
    record.status, record.judged = "held", "eigenshift"
    record.checks = [
        {"name": "first", "is_passed": True, "expected": "x", "found": "0.1"},
        {
            **{"name": "second", "is_passed": False, "expected": "at most 1"},
            **{"found": "2", "missed_by": "1"},
        },
    ]
    text = describe_outcome(RefreshOutcome.from_record(record, "s", ROWS, is_new_release=False))
    gate = text.partition("## Gate")[2].partition("## Stages")[0].strip().splitlines()
    assert gate == [
        "- **failed**: **second**: 2; expected at most 1, missed by 1",
        "- passed: **first**: 0.1",
    ]
    columns = [line.count("|") - 1 for line in text.splitlines() if line.startswith("| TPH")]
    assert columns == [3, 4]


def test_a_promoted_run_is_told_in_one_line() -> None:
    """What is in force, and what it brings."""
    record = start_run("refresh", load_preset("demo"))
    record.status, record.judged, record.release = "promoted", "eigenshift", "v1"
    rows = [
        make_row("base", "toxicity_rate", (0.3, 0.2, 0.4)),
        make_row("eigenshift", "toxicity_rate", (0.1, 0.0, 0.2)),
    ]
    for is_new, expected in ((True, "Released v1. "), (False, "Released v1 (already in force). ")):
        outcome = RefreshOutcome.from_record(record, "s", rows, is_new_release=is_new)
        told = summarise_outcome(outcome)
        assert told.startswith(
            f"{expected}toxicity rate 30.0% [20.0, 40.0] before, 10.0% [0.0, 20.0] after;"
        )
        assert "\n" not in told


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


def test_arms_that_are_equal_are_explained() -> None:
    """The tuned one beside ours has its reason; base and A/A are equal in nothing that counts."""
    base = make_arm("base", 0.0)
    arms = [
        base,
        base | {"arm": AGAIN_ARM},
        make_arm("eigenshift"),
        make_arm("det0", 0.2),
        make_arm("eigenshift_tuned"),
        make_arm("det0@kl0.02", 0.2),
        make_arm("damp", 0.3),
    ]
    ours, theirs = explain_twins(arms)
    assert ours.startswith("eigenshift and eigenshift_tuned are equal in every number")
    assert ours.endswith("The search found no better choice than the one it began with.")
    assert theirs == (
        "det0 and det0@kl0.02 are equal in every number: they change the model alike."
    )


def test_the_essentials_of_a_comparison_fit_a_terminal() -> None:
    """The longest names there are, beside what each brings with its interval, and costs."""
    rows = [make_arm("token_suppression_bias@kl0.02", -0.409, is_hooked_only=True)]
    comparison = ArmComparison(
        run_id="r", store="s", stages=[], arms=rows, evaluations=[], table="t", figure="f"
    )
    columns = comparison.essentials
    widths = [
        max(map(len, (column.name, *column.cells))) for column in columns if column.is_essential
    ]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    found = {column.name: column.cells for column in columns}
    assert found["arm"] == ("token_suppression_bias@kl0.02 *",)
    assert found["reduction"] == ("40.9% rise [30.9, 50.9]",)
    assert (found["perplexity"], found["KL"]) == (("+10.0%",), ("0.100",))
