"""Trials of a search: what identifies one, which are worth confirming, which no other beats.

Reads and marks rows of `schemas.TRIALS`; runs nothing. They are measured in `tuning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eigenshift.base.arms import PATCHED_ARM

AUTOMATIC = "automatic"
"""Score of trials that damp what the settings' own rule takes within the budget."""

Row = dict[str, Any]


@dataclass(frozen=True)
class TrialPoint:
    """What identifies a trial."""

    score: str
    n_components: int
    factor: float

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TrialPoint:
        """Of a row of `schemas.TRIALS`."""
        return cls(row["score"], row["n_components"], row["factor"])

    @property
    def arm(self) -> str:
        """Name of the arm that confirms it."""
        return f"{self.score} k={self.n_components} factor={self.factor:g}"

    @property
    def overrides(self) -> list[str]:
        """Settings with which a refresh builds the same patch, but for the budget."""
        judged = f"patch.intervention={PATCHED_ARM}"
        if self.score == AUTOMATIC:
            factor = f"components.min_factor={self.factor:g}"
            return [judged, "components.n_components=null", factor]
        return [
            judged,
            f"components.score={self.score}",
            f"components.n_components={self.n_components}",
            f"components.factor={self.factor:g}",
        ]


def mark_front(rows: Sequence[Row], budget: float) -> None:
    """Mark trials within the budget, and those that no other beats in cost and benefit."""
    costs = np.array([row["perplexity_increase"] for row in rows])
    shares = np.array([row["toxic_token_share"] for row in rows])
    on_front = find_front(costs, shares)
    for place, row in enumerate(rows):
        row["is_in_budget"] = bool(costs[place] <= budget)
        row["is_on_front"] = bool(on_front[place])


def find_front(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which points no other point beats: none is as low in both and lower in one.

    Args:
        first: Shape (point,), lower is better.
        second: Same shape, lower is better.
    """
    as_low = (first[None] <= first[:, None]) & (second[None] <= second[:, None])
    lower = (first[None] < first[:, None]) | (second[None] < second[:, None])
    return np.asarray(~(as_low & lower).any(1))


def rank_promising(rows: Sequence[Row]) -> list[Row]:
    """Trials within the budget that leave fewer toxic tokens, best first.

    By the toxicity rate that is foretold, where it is to be relied on; those of which none is, by
    the toxic tokens they leave, come behind.
    """
    promising = [row for row in rows if row["is_in_budget"] and row["toxic_token_share"] < 1.0]

    def order(row: Row) -> tuple[float, float, float]:
        rate = row.get("predicted_rate") if row.get("is_prediction_reliable") else None
        return (math.inf if rate is None else rate, row["toxic_token_share"], row["kl_to_base"])

    return sorted(promising, key=order)


def choose_for_confirmation(rows: Sequence[Row], n_confirmed: int) -> list[TrialPoint]:
    """The most promising trials, each set of components and their factors once."""
    chosen: dict[frozenset[tuple[int, float]], TrialPoint] = {}
    for row in rank_promising(rows):
        chosen.setdefault(find_damped(row), TrialPoint.from_row(row))
    return list(chosen.values())[:n_confirmed]


def find_damped(row: Mapping[str, Any]) -> frozenset[tuple[int, float]]:
    """Components and their factors: trials equal in these build the same patch."""
    return frozenset(zip(row["component_indices"], row["component_factors"], strict=True))
