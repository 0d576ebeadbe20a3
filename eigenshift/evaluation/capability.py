"""Whether a patch left the model's capability: the gate's check, and the headline numbers.

Reads `schemas.BENCHMARKS` rows; decides on the questions of all tasks together. How they come about
is `benchmarks/`'s. What was asked for and not measured does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation.gate import GateCheck
from eigenshift.settings import GateSettings

ALL_TASKS = "all"
"""The questions of all tasks together, each by its task's main metric."""
RULE_OF_THREE = 3.0
"""Where none of n questions is answered worse, up to 3 / n of all such may be (at 95%)."""
CHECK_NAME = "answers to benchmark questions stay right"


def find_headline(rows: Sequence[Mapping[str, Any]], arm: str) -> Mapping[str, Any] | None:
    """An arm's row of all tasks together, None if it was not measured.

    Args:
        rows: `schemas.BENCHMARKS` rows.
        arm: Which one.
    """
    return next((row for row in rows if (row["task"], row["arm"]) == (ALL_TASKS, arm)), None)


def check_capability(
    rows: Sequence[Mapping[str, Any]], settings: GateSettings, arm: str
) -> list[GateCheck]:
    """The share of right answers must not fall by more than the bound, whatever the draw.

    The whole interval has to meet it, and there must be questions enough that none answered worse
    would mean something: few questions prove nothing, and a check that passes by knowing little
    would reward asking little.

    Args:
        rows: `schemas.BENCHMARKS` rows, none where nothing was measured.
        settings: Bounds.
        arm: The one that is judged.

    Returns:
        One check; none where the settings have no bound.
    """
    most = settings.max_capability_drop
    if most is None:
        return []
    n_needed = math.ceil(RULE_OF_THREE / most - 1e-9)
    expected = (
        f"the interval of the difference to base above {-100 * most:g} points, on at least "
        f"{n_needed:,} questions"
    )
    row = find_headline(rows, arm)
    if row is None or row["difference_low"] is None:
        return [GateCheck(CHECK_NAME, False, expected, "not measured")]
    missing, excess = n_needed - row["n"], -most - row["difference_low"]
    found = (
        f"{_show_points(row['difference'])} points [{_show_points(row['difference_low'])}, "
        f"{_show_points(row['difference_high'])}] ({row['n_better']:,} better, "
        f"{row['n_worse']:,} worse of {row['n']:,} questions)"
    )
    missed = [f"{missing:,} questions"] if missing > 0 else []
    missed += [f"{100 * excess:.1f} points at the lower end"] if excess > 0 else []
    return [GateCheck(CHECK_NAME, not missed, expected, found, " and ".join(missed) or None)]


def summarise_capability(
    rows: Sequence[Mapping[str, Any]], arm: str
) -> dict[str, dict[str, float | None]]:
    """The headline numbers of a run's record, each with its interval; none if not measured.

    Args:
        rows: `schemas.BENCHMARKS` rows.
        arm: The one that is judged.
    """
    names = {"capability_base": BASE_ARM, "capability_patched": arm}
    found = {name: find_headline(rows, arm) for name, arm in names.items()}
    return {
        name: {key: row[key] for key in ("value", "low", "high")}
        for name, row in found.items()
        if row is not None
    }


def _show_points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
