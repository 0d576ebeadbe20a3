"""Rows of a comparison, made up."""

from __future__ import annotations

from typing import Any

from eigenshift.base import schemas


def make_arm(arm: str, reduction: float = 0.4, **given: Any) -> dict[str, Any]:
    """A row of a comparison, every number of it 0.1 but the reduction."""
    row: dict[str, Any] = dict.fromkeys(schemas.COMPARISONS.names, 0.1)
    ends = {"toxicity_reduction_low": reduction - 0.1, "toxicity_reduction_high": reduction + 0.1}
    return (
        row | {"arm": arm, "toxicity_reduction": reduction, "is_hooked_only": False} | ends | given
    )
