"""Paired bootstrap intervals over prompts and texts.

Resampling is by counts: one replicate is a vector of how often each unit (a prompt, a text) was
drawn, the same vector for every arm, so differences and ratios between arms are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eigenshift.base.arrays import FloatArray


@dataclass(frozen=True)
class Estimate:
    """A point estimate with the ends of its interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_counts(n_units: int, n_replicates: int, seed: int) -> FloatArray:
    """Counts of each unit per draw, shape (1 + replicate, unit); row 0 is the sample itself."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(n_units, np.full(n_units, 1.0 / n_units), size=n_replicates)
    return np.concatenate([np.ones((1, n_units)), drawn.astype(np.float64)])


def average(
    values: FloatArray, counts: FloatArray, weights: FloatArray | None = None
) -> FloatArray:
    """Weighted mean over units for each row of counts, ignoring NaN units; shape (1 + replicate,).

    A row in which no unit has a value gives NaN.
    """
    weights = np.ones_like(values) if weights is None else weights
    is_known = ~np.isnan(values)
    known_weights = np.where(is_known, weights, 0.0)
    total = counts @ known_weights
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((counts @ (known_weights * np.where(is_known, values, 0.0))) / total)


def summarise(draws: FloatArray, confidence: float) -> Estimate:
    """Point estimate (row 0) and percentile interval of the other rows."""
    value, replicates = float(draws[0]), draws[1:]
    replicates = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or len(replicates) == 0:
        return Estimate(None, None, None)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
