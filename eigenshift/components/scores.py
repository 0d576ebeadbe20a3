"""How toxic-aligned each component of the head is: scores and the evidence for them.

Signs of singular vectors are arbitrary, so every score but `release` is sign-invariant. Positions
of one prompt are not independent of each other: p-values take prompts, not positions, as what was
sampled (docs/decisions/0031-prompts-are-what-is-sampled.md). Pure functions of arrays and of
`schemas.HEAD_STATES` tables; which components are damped is `table.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
import scipy.stats
import torch
from torch import Tensor

from eigenshift.base.arrays import FloatArray, IntArray
from eigenshift.base.errors import ComponentError
from eigenshift.settings import ComponentScore

COMPONENTS_PER_BLOCK = 512


@dataclass(frozen=True)
class Activations:
    """Component activations a_i = v_i . h at toxic and at matched non-toxic positions.

    Attributes:
        toxic: Where a toxic word is about to be generated, shape (position, component).
        nontoxic: Where a harmless one is, shape (position, component).
        toxic_prompts: Number of the prompt of each toxic position, shape (position,).
        nontoxic_prompts: Likewise of the others, same numbers.
    """

    toxic: FloatArray
    nontoxic: FloatArray
    toxic_prompts: IntArray
    nontoxic_prompts: IntArray

    @property
    def n_prompts(self) -> int:
        """Prompts with a position of either kind."""
        return int(max(self.toxic_prompts.max(), self.nontoxic_prompts.max())) + 1


@dataclass(frozen=True)
class ComponentScores:
    """One value per component in each array, shape (component,)."""

    sign: FloatArray
    """+1 or -1: multiplies v so that delta is not negative."""
    delta: FloatArray
    effect_size: FloatArray
    auroc: FloatArray
    logit_gain: FloatArray
    release_score: FloatArray
    p_value: FloatArray
    q_value: FloatArray

    def ranking_key(self, score: ComponentScore) -> FloatArray:
        """The values a score ranks by, larger = more toxic."""
        return {
            ComponentScore.effect_size: self.effect_size,
            ComponentScore.abs_delta: self.delta,
            ComponentScore.auroc: self.auroc,
            ComponentScore.logit_gain: self.logit_gain,
            ComponentScore.release: self.release_score,
        }[score]


def project_states(states: pa.Table, v: FloatArray) -> Activations:
    """Project head states onto components.

    Args:
        states: `schemas.HEAD_STATES` rows.
        v: Right singular vectors, shape (hidden, component).

    Raises:
        ComponentError: Fewer than two states of a kind.
    """
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    if min(is_toxic.sum(), (~is_toxic).sum()) < 2:
        raise ComponentError(
            f"head states: expected at least 2 of each kind, found {is_toxic.sum()} toxic and "
            f"{(~is_toxic).sum()} non-toxic. Raise prompts.n_selection."
        )
    _, prompts = np.unique(states["prompt_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    activations = read_states(states) @ v
    return Activations(
        activations[is_toxic], activations[~is_toxic], prompts[is_toxic], prompts[~is_toxic]
    )


def read_states(states: pa.Table) -> FloatArray:
    """The states of `schemas.HEAD_STATES` rows, shape (position, hidden), float64."""
    values = states["state"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(states), -1), dtype=np.float64)


def score_components(
    activations: Activations, v: FloatArray, toxic_direction: FloatArray
) -> ComponentScores:
    """Score every component.

    Args:
        activations: At toxic and matched positions.
        v: Right singular vectors, shape (hidden, component).
        toxic_direction: Mean head row of the toxic tokens generated minus the mean over the
            vocabulary, shape (hidden,): a^T W with a = 1_T / |T| - 1 / vocab.

    Returns:
        Scores in the order of the components. `logit_gain` sums over components to the difference
        of the toxic tokens' mean logit gap between toxic and non-toxic states.
    """
    toxic, nontoxic = activations.toxic, activations.nontoxic
    difference = toxic.mean(0) - nontoxic.mean(0)
    # No difference, no orientation: the largest entry of v is made positive.
    largest = v[np.abs(v).argmax(0), np.arange(v.shape[1])]
    sign = np.where(difference == 0, np.sign(largest), np.sign(difference))
    pooled = pool_deviations(
        toxic.var(0, ddof=1), nontoxic.var(0, ddof=1), len(toxic), len(nontoxic)
    )
    auroc = compute_auroc(toxic, nontoxic)
    p_value = compute_p_values(activations)
    return ComponentScores(
        sign=sign,
        delta=np.abs(difference),
        effect_size=divide(np.abs(difference), pooled),
        auroc=np.maximum(auroc, 1 - auroc),
        logit_gain=(toxic_direction @ v) * difference,
        release_score=score_as_released(difference, v),
        p_value=p_value,
        q_value=np.asarray(scipy.stats.false_discovery_control(p_value)),
    )


def pool_deviations(
    toxic_variance: FloatArray, nontoxic_variance: FloatArray, n_toxic: Any, n_nontoxic: Any
) -> FloatArray:
    """Pooled standard deviation of two sample variances; the counts may be arrays."""
    pooled = (n_toxic - 1) * toxic_variance + (n_nontoxic - 1) * nontoxic_variance
    return np.asarray(np.sqrt(np.maximum(pooled, 0) / (n_toxic + n_nontoxic - 2)))


def divide(value: FloatArray, spread: FloatArray) -> FloatArray:
    """Value / spread, 0 where nothing varies."""
    return np.divide(value, spread, out=np.zeros_like(value), where=spread > 0)


def score_as_released(difference: FloatArray, v: FloatArray) -> FloatArray:
    """The published code's score, its two errors included, for comparison only.

    It projects with V instead of V^T and ranks the signed difference, which the arbitrary signs
    of the vectors decide (how-it-works.md section 2). Zero where V is not square.

    Args:
        difference: Of the mean activations, shape (..., component).
        v: Shape (hidden, component).
    """
    if v.shape[0] != v.shape[1]:
        return np.zeros_like(difference)
    return np.asarray(difference @ v.T @ v.T)


def compute_p_values(activations: Activations) -> FloatArray:
    """Two-sided p-values of the difference of means, shape (component,).

    The variance is that of sums over prompts of what each position adds to the difference
    (cluster-robust, Liang and Zeger 1986, times G / (G - 1)). Degrees of freedom are
    Satterthwaite's for independent positions of equal variance, so that few prompts with many
    positions do not count as many. A component that does not vary has p = 1.
    """
    n_toxic, n_nontoxic = len(activations.toxic), len(activations.nontoxic)
    toxic_mean, nontoxic_mean = activations.toxic.mean(0), activations.nontoxic.mean(0)
    difference = toxic_mean - nontoxic_mean
    influence = sum_by_prompt(activations, activations.toxic - toxic_mean, is_toxic=True) / n_toxic
    influence -= (
        sum_by_prompt(activations, activations.nontoxic - nontoxic_mean, is_toxic=False)
        / n_nontoxic
    )
    weights = count_by_prompt(activations, is_toxic=True) / n_toxic**2
    weights += count_by_prompt(activations, is_toxic=False) / n_nontoxic**2
    n_prompts = activations.n_prompts
    variance = np.square(influence).sum(0) * n_prompts / max(1, n_prompts - 1)
    freedom = max(1.0, float(weights.sum() ** 2 / np.square(weights).sum()) - 2.0)
    statistic = divide(np.abs(difference), np.sqrt(variance))
    return np.asarray(np.minimum(1.0, 2 * scipy.stats.t.sf(statistic, freedom)))


def sum_by_prompt(activations: Activations, values: FloatArray, *, is_toxic: bool) -> FloatArray:
    """Sums over the positions of each prompt, shape (prompt, component)."""
    codes = activations.toxic_prompts if is_toxic else activations.nontoxic_prompts
    places = (np.ones(len(codes)), (codes, np.arange(len(codes))))
    indicator = scipy.sparse.csr_array(places, shape=(activations.n_prompts, len(codes)))
    return np.asarray(indicator @ values)


def count_by_prompt(activations: Activations, *, is_toxic: bool) -> FloatArray:
    """Positions of each prompt, shape (prompt,)."""
    codes = activations.toxic_prompts if is_toxic else activations.nontoxic_prompts
    return np.bincount(codes, minlength=activations.n_prompts).astype(np.float64)


def compute_auroc(toxic: FloatArray, nontoxic: FloatArray) -> FloatArray:
    """AUROC per column, ties one half; arguments of shape (position, component)."""
    return np.asarray(compute_placements(toxic, nontoxic).mean(0))


def compute_placements(values: FloatArray, others: FloatArray) -> FloatArray:
    """Share of the others that are below each value, ties one half, column by column.

    Args:
        values: Shape (position, component).
        others: Shape (other position, component).

    Returns:
        Shape (position, component). Means over toxic values among non-toxic ones are AUROCs.
    """
    shares = np.empty(values.shape)
    for columns in _iterate_columns(values.shape[1]):
        ordered, given = (np.ascontiguousarray(array[:, columns].T) for array in (others, values))
        ordered.sort(axis=1)
        shares[:, columns] = _count_below(torch.from_numpy(ordered), torch.from_numpy(given)).T
    return shares / (2 * len(others))


def _count_below(ordered: Tensor, values: Tensor) -> FloatArray:
    """Twice the number of entries below each value, ties once; row by row."""
    below = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)
    return np.asarray(below.numpy(), dtype=np.float64)


def _iterate_columns(n_columns: int) -> Iterator[slice]:
    for first in range(0, n_columns, COMPONENTS_PER_BLOCK):
        yield slice(first, first + COMPONENTS_PER_BLOCK)
