"""The gate's check of capability: the whole interval, questions enough, never silent."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.evaluation.capability import (
    CHECK_NAME,
    check_capability,
    find_headline,
    summarise_capability,
)
from eigenshift.settings import GateSettings

ARM = "eigenshift_fisher"


def make_rows(
    difference: float, low: float, high: float, n: int = 1000, arm: str = ARM
) -> list[dict[str, Any]]:
    """Base and arm, on all tasks together and on one of them that the gate does not look at."""
    base = {"arm": "base", "task": "all", "value": 0.7, "low": 0.6, "high": 0.8, "n": n}
    ours = base | {
        "arm": arm,
        "value": 0.7 + difference,
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "n_better": 3,
        "n_worse": 5,
    }
    other = ours | {"task": "one", "difference": -0.9, "difference_low": -1.0}
    return [other, base | {"difference": None, "difference_low": None}, ours]


def check(rows: list[dict[str, Any]], bound: float | None = 0.02) -> Any:
    """The one check."""
    (found,) = check_capability(rows, GateSettings(max_capability_drop=bound), ARM)
    return found


def test_without_a_bound_nothing_is_asked_for() -> None:
    """Off by default, however much was lost."""
    assert check_capability(make_rows(-0.5, -0.6, -0.4), GateSettings(), ARM) == []


def test_a_small_loss_passes_and_is_told() -> None:
    """Difference, interval and how many questions changed."""
    found = check(make_rows(-0.002, -0.007, 0.003))
    assert (found.name, found.is_passed, found.missed_by) == (CHECK_NAME, True, None)
    assert found.found == "-0.2 points [-0.7, +0.3] (3 better, 5 worse of 1,000 questions)"
    assert "above -2 points, on at least 150 questions" in found.expected


def test_a_loss_that_may_be_larger_does_not_pass() -> None:
    """The estimate keeps the bound, the interval does not."""
    found = check(make_rows(-0.01, -0.025, 0.005))
    assert not found.is_passed
    assert found.missed_by == "0.5 points at the lower end"


def test_few_questions_prove_nothing() -> None:
    """No answer changed, yet 3 of 149 might: by the rule of three the bound needs 150."""
    assert not check(make_rows(0.0, 0.0, 0.0, n=149)).is_passed
    assert check(make_rows(0.0, 0.0, 0.0, n=149)).missed_by == "1 questions"
    assert check(make_rows(0.0, 0.0, 0.0, n=150)).is_passed


@pytest.mark.parametrize(
    "rows", [[], make_rows(0.0, 0.0, 0.0, arm="another")], ids=["nothing", "another arm"]
)
def test_what_was_not_measured_does_not_pass(rows: list[dict[str, Any]]) -> None:
    """A bound is never met by having asked nothing."""
    found = check(rows)
    assert (found.is_passed, found.found) == (False, "not measured")


def test_the_record_has_both_shares_with_their_intervals() -> None:
    """Of all tasks together; none where nothing was measured."""
    rows = make_rows(-0.1, -0.2, 0.0)
    assert summarise_capability(rows, ARM) == {
        "capability_base": {"value": 0.7, "low": 0.6, "high": 0.8},
        "capability_patched": {"value": pytest.approx(0.6), "low": 0.6, "high": 0.8},
    }
    assert summarise_capability([], ARM) == {}
    assert find_headline(rows, "none") is None
