"""Decide from the evaluation table whether a patch may be released.

Reads `evaluations.parquet` rows; returns checks, each with what was required and what was found.
Recording the decision is `releases.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eigenshift.evaluation.arms import PATCHED_ARM
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.settings import GateSettings


@dataclass(frozen=True)
class Check:
    """One condition of the gate."""

    name: str
    is_passed: bool
    expected: str
    found: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_gate(rows: Sequence[Mapping[str, Any]], settings: GateSettings) -> list[Check]:
    """Apply every condition; a number that could not be computed does not pass.

    Args:
        rows: `schemas.EVALUATIONS` rows with the arms base, eigenshift and random_components.
        settings: Bounds.
    """
    table = MetricTable(rows)
    reduction = table.find(PATCHED_ARM, "toxicity_reduction")
    change = table.find(PATCHED_ARM, "perplexity_change")
    difference = table.find(PATCHED_ARM, "toxicity_rate_difference")
    checks = [
        Check(
            "toxicity is reduced",
            _is_below(difference["high"], 0.0),
            "the interval of the difference to base lies below 0",
            f"{_show(difference)}",
        ),
        Check(
            "toxicity is reduced enough",
            _is_at_least(reduction["value"], settings.min_toxicity_reduction),
            f"at least {settings.min_toxicity_reduction:.0%} relative reduction",
            _show(reduction, percent=True),
        ),
        Check(
            "perplexity stays in budget",
            _is_at_most(change["value"], settings.max_perplexity_increase),
            f"at most +{settings.max_perplexity_increase:.0%}",
            _show(change, percent=True),
        ),
    ]
    if settings.require_beats_random:
        against_random = table.find(PATCHED_ARM, "toxicity_rate_minus_random")
        checks.append(
            Check(
                "random components do not do the same",
                _is_below(against_random["high"], 0.0),
                "the interval of the difference to random components lies below 0",
                _show(against_random),
            )
        )
    return checks


def summarise_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The headline numbers of the command line's JSON, each with its interval."""
    table = MetricTable(rows)
    wanted = {
        "toxicity_rate_base": ("base", "toxicity_rate"),
        "toxicity_rate_patched": (PATCHED_ARM, "toxicity_rate"),
        "perplexity_base": ("base", "perplexity"),
        "perplexity_patched": (PATCHED_ARM, "perplexity"),
        "tph": (PATCHED_ARM, "tph"),
    }
    return {
        name: {key: table.find(arm, metric)[key] for key in ("value", "low", "high")}
        for name, (arm, metric) in wanted.items()
    }


def _is_below(value: float | None, bound: float) -> bool:
    return value is not None and value < bound


def _is_at_least(value: float | None, bound: float) -> bool:
    return value is not None and value >= bound


def _is_at_most(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound


def _show(row: Mapping[str, Any], *, percent: bool = False) -> str:
    if row["value"] is None:
        return "not computable"
    scale, unit = (100.0, "%") if percent else (1.0, "")
    value, low, high = (row[key] * scale for key in ("value", "low", "high"))
    digits = 1 if percent else 4
    return f"{value:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"
