"""Would other prompts have ranked the same components first? A bootstrap over prompts.

Prompts are drawn with replacement, those with a toxic position and those without apart. A drawing
is a vector of counts per prompt, so all replicates together are products of the matrix of counts
with sums by prompt: no replicate is gathered. Pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eigenshift.base.arrays import BoolArray, FloatArray
from eigenshift.components.scores import (
    Activations,
    compute_auroc,
    compute_placements,
    count_by_prompt,
    divide,
    pool_deviations,
    score_as_released,
    sum_by_prompt,
)
from eigenshift.settings import ComponentScore

REPLICATES_PER_BLOCK = 256


@dataclass(frozen=True)
class SelectionStability:
    """How steady the top of the ranking is.

    Attributes:
        inclusion_frequency: Share of the replicates whose top has the component, (component,).
        mean_jaccard: Mean over pairs of replicates of shared / all components of their tops.
        n_top: Components in a top.
        n_resamples: Replicates.
    """

    inclusion_frequency: FloatArray
    mean_jaccard: float
    n_top: int
    n_resamples: int


def measure_stability(
    activations: Activations,
    v: FloatArray,
    toxic_direction: FloatArray,
    score: ComponentScore,
    *,
    n_top: int,
    must_raise: bool,
    n_resamples: int,
    seed: int,
) -> SelectionStability:
    """Rank the components anew on resampled prompts.

    Args:
        activations: At toxic and matched positions.
        v: Right singular vectors, shape (hidden, component).
        toxic_direction: As in `scores.score_components`; held as it is.
        score: What ranks.
        n_top: How many components of a ranking are compared.
        must_raise: Only components that raise the toxic tokens' logits count.
        n_resamples: Number of replicates.
        seed: Of the drawings.
    """
    has_toxic = count_by_prompt(activations, is_toxic=True) > 0
    counts = draw_stratified_counts(has_toxic, n_resamples, seed)
    sums = _ClassSums.of(activations, is_toxic=True, score=score)
    other_sums = _ClassSums.of(activations, is_toxic=False, score=score)
    raising, auroc = toxic_direction @ v, compute_auroc(activations.toxic, activations.nontoxic)
    included = np.zeros((n_resamples, v.shape[1]), dtype=np.float32)
    for first in range(0, n_resamples, REPLICATES_PER_BLOCK):
        rows = slice(first, first + REPLICATES_PER_BLOCK)
        toxic, nontoxic = sums.draw(counts[rows]), other_sums.draw(counts[rows])
        difference = toxic.mean - nontoxic.mean
        key = _score_replicates(score, toxic, nontoxic, v, raising, auroc)
        if must_raise:
            key[raising * difference <= 0] = -np.inf
        top = np.argpartition(-key, n_top - 1, axis=1)[:, :n_top]
        is_real = np.isfinite(np.take_along_axis(key, top, axis=1))
        np.put_along_axis(included[rows], top, is_real.astype(np.float32), axis=1)
    return SelectionStability(
        included.mean(0, dtype=np.float64), compute_mean_jaccard(included), n_top, n_resamples
    )


def draw_stratified_counts(is_first: BoolArray, n_replicates: int, seed: int) -> FloatArray:
    """How often each unit is drawn, shape (replicate, unit); each stratum keeps its size."""
    generator = np.random.default_rng(seed)
    counts = np.zeros((n_replicates, len(is_first)))
    for stratum in (np.flatnonzero(is_first), np.flatnonzero(~is_first)):
        if len(stratum):
            shares = np.full(len(stratum), 1 / len(stratum))
            counts[:, stratum] = generator.multinomial(len(stratum), shares, size=n_replicates)
    return counts


def compute_mean_jaccard(included: np.ndarray[Any, Any]) -> float:
    """Mean over pairs of rows of the Jaccard index; rows of 0 and 1, shape (set, item)."""
    shared = included @ included.T
    sizes = np.diag(shared)
    union = sizes[:, None] + sizes[None, :] - shared
    pairs = np.triu_indices(len(included), 1)
    return float((shared[pairs] / np.maximum(union[pairs], 1)).mean())


@dataclass(frozen=True)
class _Drawn:
    """One class in some replicates: counts (replicate, 1), the rest (replicate, component).

    `placement` is how much higher than on all positions the values are placed among those of the
    other class, where that is asked for.
    """

    n: FloatArray
    mean: FloatArray
    variance: FloatArray
    placement: FloatArray


@dataclass(frozen=True)
class _ClassSums:
    """Sums by prompt over the positions of one class; values are centred for precision."""

    centre: FloatArray
    n: FloatArray
    total: FloatArray
    squares: FloatArray
    placements: FloatArray

    @classmethod
    def of(cls, activations: Activations, *, is_toxic: bool, score: ComponentScore) -> _ClassSums:
        """Add up one class."""
        own, other = activations.toxic, activations.nontoxic
        own, other = (own, other) if is_toxic else (other, own)
        centre = own.mean(0)
        total = sum_by_prompt(activations, own - centre, is_toxic=is_toxic)
        placements = np.zeros_like(total)
        if score is ComponentScore.auroc:
            shares = compute_placements(own, other)
            placements = sum_by_prompt(activations, shares - shares.mean(0), is_toxic=is_toxic)
        return cls(
            centre,
            count_by_prompt(activations, is_toxic=is_toxic),
            total,
            sum_by_prompt(activations, np.square(own - centre), is_toxic=is_toxic),
            placements,
        )

    def draw(self, counts: FloatArray) -> _Drawn:
        """Means and variances in each replicate."""
        n = np.maximum((counts @ self.n)[:, None], 1.0)
        mean = counts @ self.total / n
        squares = counts @ self.squares - n * mean**2
        variance = squares / np.maximum(n - 1, 1)
        return _Drawn(n, mean + self.centre, variance, counts @ self.placements / n)


def _score_replicates(
    score: ComponentScore,
    toxic: _Drawn,
    nontoxic: _Drawn,
    v: FloatArray,
    raising: FloatArray,
    auroc: FloatArray,
) -> FloatArray:
    """What ranks the components in each replicate, shape (replicate, component)."""
    difference = toxic.mean - nontoxic.mean
    if score is ComponentScore.effect_size:
        pooled = pool_deviations(toxic.variance, nontoxic.variance, toxic.n, nontoxic.n)
        return divide(np.abs(difference), pooled)
    if score is ComponentScore.auroc:  # to first order: by each position's placement
        drawn = auroc + toxic.placement - nontoxic.placement
        return np.asarray(np.maximum(drawn, 1 - drawn))
    if score is ComponentScore.logit_gain:
        return np.asarray(raising * difference)
    if score is ComponentScore.release:
        return score_as_released(difference, v)
    return np.asarray(np.abs(difference))
