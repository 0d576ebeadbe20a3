"""What must be known before a run's numbers are believed: whether it can decide anything.

The base is measured twice, the second time with other random numbers: what differs between the two
(A/A) is chance alone, at the size of this very run. Reads `schemas.EVALUATIONS` rows; writes
nothing. What a run of another size could tell is `power.py`'s, what is known before a run starts
`evidence.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eigenshift.base.arms import AGAIN_ARM, BASE_ARM
from eigenshift.evaluation.metric_table import MetricTable

Row = Mapping[str, Any]
DIFFERENCE = "toxicity_rate_difference"
PLAN = "`eigenshift plan` says how many prompts show which effect"


def find_caveats(rows: Sequence[Row], arm: str) -> list[str]:
    """Sentences to be read with the numbers of one judged arm; none if there is nothing to mind.

    Args:
        rows: `schemas.EVALUATIONS` rows.
        arm: The one that is judged.
    """
    found = MetricTable(rows).get(arm, DIFFERENCE)
    again = find_chance(rows)
    if found is None or again is None or not is_within_chance(found, again):
        return []
    return [f"This run is too small to decide: {describe_chance(found, again)}. {PLAN}."]


def find_caveats_of_all(rows: Sequence[Row], arms: Iterable[str]) -> list[str]:
    """The same of many arms at once, which are named.

    Args:
        rows: `schemas.EVALUATIONS` rows.
        arms: Those compared; base and A/A among them are passed over.
    """
    table, again = MetricTable(rows), find_chance(rows)
    if again is None:
        return []
    within = [
        arm
        for arm in arms
        if arm not in (BASE_ARM, AGAIN_ARM)
        and (row := table.get(arm, DIFFERENCE)) is not None
        and is_within_chance(row, again)
    ]
    if not within:
        return []
    return [
        f"This run is too small to tell these arms from the base: {', '.join(within)}. The base "
        f"alone, with other random numbers, moves by {show_points(again)}, as far or farther. "
        f"{PLAN}."
    ]


def find_chance(rows: Sequence[Row]) -> Row | None:
    """How far the base's toxicity rate is from itself with other random numbers, if measured."""
    row = MetricTable(rows).get(AGAIN_ARM, DIFFERENCE)
    return None if row is None or row["value"] is None else row


def is_within_chance(found: Row, again: Row) -> bool:
    """Whether a difference to the base is no larger than the base's own to itself.

    A difference of exactly 0 on both sides says nothing: there was nothing toxic at all.
    """
    value: float | None = found["value"]
    return value is not None and abs(again["value"]) >= abs(value) and again["value"] != 0


def describe_chance(found: Row, again: Row) -> str:
    """Both differences in words."""
    return (
        f"the base alone, with other random numbers, moves by {show_points(again)}, the patch by "
        f"{show_points(found)}"
    )


def show_points(row: Row) -> str:
    """A difference of rates in percentage points, with its interval where it has one."""
    text = f"{100 * row['value']:+.1f} points"
    if row["low"] is None:
        return text
    return f"{text} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
