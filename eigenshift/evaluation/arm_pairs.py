"""Every arm against every other of its operating point: paired differences, corrected tests.

Many arms are many tests: the smallest of a hundred p-values is small by chance. Holm's correction
(1979) holds for any dependence between them. Pure functions of per-prompt rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from eigenshift.base.arms import find_point
from eigenshift.base.arrays import FloatArray
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.metric_table import ALL_SLICE
from eigenshift.evaluation.permutation import compute_p_value
from eigenshift.settings import EvaluationSettings


def compare_pairs(
    rates: Mapping[str, FloatArray], settings: EvaluationSettings, slice_name: str = ALL_SLICE
) -> list[dict[str, Any]]:
    """Rows of `schemas.ARM_PAIRS`.

    Args:
        rates: Arm -> toxicity rate of each prompt, shape (prompt,), aligned.
        settings: The bootstrap.
        slice_name: What the rates are of: all prompts, or a further scorer's verdict on them.
    """
    groups: dict[str, list[str]] = {}
    for arm in sorted(rates):
        groups.setdefault(find_point(arm), []).append(arm)
    rows: list[dict[str, Any]] = []
    for arms in groups.values():
        rows += _compare_group({arm: rates[arm] for arm in arms}, settings)
    for row in rows:
        row["slice"] = slice_name
    return rows


def _compare_group(
    rates: Mapping[str, FloatArray], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for arm, other in combinations(rates, 2):
        differences = rates[arm] - rates[other]
        counts = draw_counts(len(differences), settings.n_bootstrap, settings.seed)
        estimate = summarise(average(differences, counts), settings.confidence)
        rows.append(
            {
                "arm": arm,
                "other": other,
                "difference": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "p_value": compute_p_value(differences, settings.seed),
                "n": len(differences),
            }
        )
    known: dict[int, float] = {
        place: row["p_value"] for place, row in enumerate(rows) if row["p_value"] is not None
    }
    for place, value in zip(known, correct_holm(list(known.values())), strict=True):
        rows[place]["p_value_corrected"] = value
    return rows


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * (len(values) - np.arange(len(values)))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in corrected]
