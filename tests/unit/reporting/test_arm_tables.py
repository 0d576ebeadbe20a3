"""A comparison's arms as a table: one row each, in order, equal ones explained."""

from __future__ import annotations

from typing import Any

from eigenshift.reporting.arm_tables import HEADINGS, explain_arms, tabulate_arms

METRICS = (
    *("toxicity_rate", "toxicity_reduction", "perplexity_change"),
    *("perplexity_change_indomain", "kl_to_base", "tph"),
)


def make_row(arm: str, rate: float | None, *, is_hooked_only: bool = False) -> dict[str, Any]:
    """A `schemas.COMPARISONS` row; every other metric is the rate too."""
    ends = {f"{metric}{end}": None for metric in METRICS for end in ("_low", "_high")}
    return {"arm": arm, "is_hooked_only": is_hooked_only, **dict.fromkeys(METRICS, rate), **ends}


def test_rows_go_by_operating_point() -> None:
    """The run's own first; an arm that only hooks can apply is marked, and the mark explained."""
    rows = [
        make_row("leace@kl0.02", 0.2),
        make_row("leace", 0.1),
        make_row("chars", -0.1, is_hooked_only=True),
        make_row("base", None),
    ]
    shown = tabulate_arms(rows)
    assert [row[0] for row in shown] == ["leace", "chars *", "base", "leace@kl0.02"]
    assert all(len(row) == len(HEADINGS) for row in shown)
    assert shown[0][1:4] == ["10.0%", "10.0%", "10.0%"]
    assert shown[1][2] == "10.0% rise"
    assert set(shown[2][1:]) == {"-"}
    assert explain_arms(rows) == ["*: measured with hooks; it cannot be folded into the weights."]


def test_equal_arms_are_explained() -> None:
    """As the terminal explains them."""
    rows = [make_row("eigenshift", 0.1), make_row("a", None), make_row("eigenshift_tuned", 0.1)]
    (note,) = explain_arms(rows)
    assert note.startswith("eigenshift and eigenshift_tuned are equal in every number")
