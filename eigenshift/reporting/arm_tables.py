"""A comparison's arms as a table for people, one unit a column.

Takes `schemas.COMPARISONS` rows; asks no store. The terminal's table is `outcomes.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eigenshift.base.arms import find_point
from eigenshift.reporting.outcomes import HOOKED_MARK, explain_twins, format_metric

COLUMNS = (
    ("toxicity rate", "toxicity_rate", "percent"),
    ("reduction", "toxicity_reduction", "percent"),
    ("perplexity change", "perplexity_change", "percent"),
    ("in-domain change", "perplexity_change_indomain", "percent"),
    ("KL to base, nats a token", "kl_to_base", "number"),
    ("TPH", "tph", "percent"),
)
"""Heading, metric and unit."""
HEADINGS = ("arm", *(heading for heading, _, _ in COLUMNS))
HOOKED_NOTE = f"{HOOKED_MARK.strip()}: measured with hooks; it cannot be folded into the weights."


def tabulate_arms(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per arm, as `HEADINGS`, operating point by operating point, the run's own first."""
    return [
        [
            row["arm"] + (HOOKED_MARK if row["is_hooked_only"] else ""),
            *(format_metric(metric, _pick(row, metric), unit) for _, metric, unit in COLUMNS),
        ]
        for row in sorted(rows, key=lambda row: find_point(row["arm"]))
    ]


def explain_arms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table does not say by itself: marks, and arms that are equal."""
    notes = [HOOKED_NOTE] if any(row["is_hooked_only"] for row in rows) else []
    return notes + explain_twins(rows)


def _pick(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return {
        "value": row[metric],
        "low": row[f"{metric}_low"],
        "high": row[f"{metric}_high"],
    }
