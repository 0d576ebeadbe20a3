"""What happened, in a sentence; the gate as a light: by hand."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.ledger.runs import RunRecord, StageSummary
from eigenshift.reporting.story import judge_light, tell_comparison, tell_difference, tell_story

PASSED = {"name": "toxicity is reduced", "is_passed": True}
FAILED = {"name": "perplexity stays in budget", "is_passed": False}
TOLD = {"name": "told, not required: a word filter is not clearly beaten", "is_passed": True}


def make_record(**fields: Any) -> RunRecord:
    """Of a refresh."""
    known = {
        "run_id": "run",
        "command": "refresh",
        "status": "promoted",
        "started_at": "2026-01-01T00:00:00.000+00:00",
        "model_id": "m",
        "settings": {},
        "versions": {},
    }
    return RunRecord(**(known | fields))


def list_rows(
    after: float, low: float, high: float, reduction: float | None
) -> list[dict[str, Any]]:
    """An evaluation in which the base has 0.3."""

    def row(arm: str, metric: str, value: float | None, **ends: float | None) -> dict[str, Any]:
        found = {"arm": arm, "metric": metric, "slice": "all", "value": value}
        return found | {"low": None, "high": None} | ends

    return [
        row("base", "toxicity_rate", 0.3),
        row("eigenshift", "toxicity_rate", after),
        row("eigenshift", "toxicity_rate_difference", after - 0.3, low=low, high=high),
        row("eigenshift", "toxicity_reduction", reduction),
        row("eigenshift", "perplexity_change", -0.004),
    ]


def test_released_patch_in_a_sentence() -> None:
    """What it brings, what it costs, what became of it."""
    record = make_record(release="v1", checks=[PASSED])
    assert tell_story(record, list_rows(0.06, -0.3, -0.2, 0.8)) == (
        "The patch lowers toxic continuations from 30.0% to 6.0% (80% fewer) and changes "
        "perplexity by -0.4%. The gate let it through and released it."
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            list_rows(0.29, -0.05, 0.03, 0.03),
            "to 29.0% (3% fewer) and changes perplexity by -0.4%; that may be chance alone.",
        ),
        (list_rows(0.4, 0.05, 0.15, -0.33), "raises toxic continuations from 30.0% to 40.0% and"),
        (list_rows(0.3, -0.05, 0.05, 0.0), "leaves toxic continuations at 30.0% and changes"),
    ],
)
def test_effect_that_is_none_is_not_called_one(rows: list[dict[str, Any]], words: str) -> None:
    """Chance, a rise and no difference are said as such; so is why the gate held it."""
    told = tell_story(make_record(status="held", checks=[PASSED, FAILED, FAILED]), rows)
    assert words in told
    assert told.endswith("The gate held it; not met: perplexity stays in budget, and 1 more.")


def test_runs_without_a_judged_patch() -> None:
    """Failed early, held before a patch, or of another command: each says what there is to say."""
    stage = StageSummary(name="s", shards=1, shards_cached=0, elapsed_seconds=1.0)
    failed = make_record(status="failed", stages=[stage, stage])
    assert tell_story(failed, []) == "The run failed after 2 stages: nothing was released."
    assert tell_story(make_record(status="failed"), []).startswith("The run failed before its")
    held = make_record(status="held", checks=[FAILED])
    assert tell_story(held, []).startswith("No patch was judged. The gate held it; not met:")
    detect = make_record(command="detect", status="finished")
    assert tell_story(detect, [], "The best layer is 3.") == "The best layer is 3."
    assert tell_story(detect, []) == "The run (detect) ended."


def test_light_goes_by_the_checks_that_are_required() -> None:
    """What is only told holds nothing; a caveat lights the middle lamp; the failed are named."""
    record = make_record(checks=[PASSED, TOLD])
    light = judge_light(record, [])
    assert light is not None
    assert (light.state, light.words) == ("go", "Passed: 1 of 1 checks")
    mind = judge_light(record, ["too small"])
    assert mind is not None
    assert mind.state == "mind"
    stop = judge_light(make_record(checks=[PASSED, FAILED, TOLD]), ["too small"])
    assert stop is not None
    assert (stop.state, stop.failed) == ("stop", ("perplexity stays in budget",))
    assert stop.words == "Held: 1 of 2 checks failed"
    assert judge_light(make_record(checks=[TOLD]), []) is None


def test_comparison_is_won_within_its_budget() -> None:
    """An arm that costs more, one at another point, and the base itself do not win."""
    rows = [
        {"arm": arm, "toxicity_rate": rate, "perplexity_change": change}
        for arm, rate, change in (
            ("base", 0.3, None),
            ("base_again", 0.29, 0.0),
            ("leace", 0.1, 0.04),
            ("ruin", 0.0, 3.0),
            ("leace@kl0.02", 0.05, 0.02),
            ("unknown", None, None),
        )
    ]
    assert tell_comparison(rows, 0.05) == (
        "Of 3 arms, leace leaves the fewest toxic continuations within the budget of +5% "
        "perplexity: 10.0% instead of 30.0%, at a change of +4.0%."
    )
    assert "none has a known result" in tell_comparison(rows, 0.01)
    assert "ruin leaves the fewest toxic continuations: 0.0%" in tell_comparison(rows, None)


def test_two_runs_in_a_sentence() -> None:
    """What either leaves; one that was not evaluated is said to be so."""
    record = make_record()
    told = tell_difference((record, list_rows(0.06, -0.3, -0.2, 0.8)), (record, []))
    assert told == (
        "Toxic continuations: the patch of A leaves 6.0% of 30.0% at -0.4% perplexity; B was not "
        "evaluated."
    )
