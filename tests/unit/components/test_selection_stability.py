"""Stability of the ranking: products with counts equal resampling prompt by prompt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eigenshift.components import selection_stability
from eigenshift.components.scores import Activations, score_components
from eigenshift.components.selection_stability import (
    SelectionStability,
    compute_mean_jaccard,
    draw_stratified_counts,
    measure_stability,
)
from eigenshift.components.table import rank_components
from eigenshift.settings import ComponentScore
from tests.support.planted_components import HIDDEN, N_PLANTED, Planted, plant, project

N_RESAMPLES = 40


def measure(planted: Planted, by: ComponentScore, **options: bool) -> SelectionStability:
    """Stability of the top ten of a planted case."""
    v = planted.decomposition.v
    given = {"must_raise": False, **options}
    return measure_stability(
        project(planted, v),
        v,
        planted.direction,
        by,
        n_top=N_PLANTED,
        n_resamples=N_RESAMPLES,
        seed=3,
        **given,
    )


def resample(activations: Activations, counts: np.ndarray) -> Activations:
    """The positions of the prompts drawn, as often as they were drawn."""
    toxic = np.repeat(
        np.arange(len(activations.toxic)), counts[activations.toxic_prompts].astype(int)
    )
    nontoxic = np.repeat(
        np.arange(len(activations.nontoxic)), counts[activations.nontoxic_prompts].astype(int)
    )
    return Activations(
        activations.toxic[toxic],
        activations.nontoxic[nontoxic],
        activations.toxic_prompts[toxic],
        activations.nontoxic_prompts[nontoxic],
    )


@pytest.mark.parametrize("by", ComponentScore)
def test_products_with_counts_equal_resampling_the_positions(
    by: ComponentScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tops of all replicates as in a loop that gathers the positions and scores them anew."""
    monkeypatch.setattr(selection_stability, "REPLICATES_PER_BLOCK", 16)
    planted = plant(2)
    v = planted.decomposition.v
    activations = project(planted, v)
    has_toxic = np.isin(np.arange(activations.n_prompts), activations.toxic_prompts)
    expected = np.zeros(HIDDEN)
    tops = []
    for counts in draw_stratified_counts(has_toxic, N_RESAMPLES, 3):
        scores = score_components(resample(activations, counts), v, planted.direction)
        top = rank_components(scores, by)[:N_PLANTED]
        expected[top] += 1 / N_RESAMPLES
        tops.append(set(top))
    found = measure(planted, by)
    # AUROCs are resampled to first order: a component at the edge may come out the other way.
    tolerance = 0.1 if by is ComponentScore.auroc else 1e-9
    np.testing.assert_allclose(found.inclusion_frequency, expected, atol=tolerance)
    jaccards = [len(a & b) / len(a | b) for a, b in itertools.combinations(tops, 2)]
    assert found.mean_jaccard == pytest.approx(np.mean(jaccards), abs=max(1e-6, tolerance / 2))


def test_clear_signals_are_always_included_and_noise_is_not() -> None:
    """Planted components stay on top in every replicate."""
    planted = plant(0)
    found = measure(planted, ComponentScore.effect_size)
    planted_share = found.inclusion_frequency[sorted(planted.components)]
    assert (planted_share == 1.0).all()
    assert found.mean_jaccard == 1.0


def test_components_that_lower_toxic_tokens_are_left_out_where_asked() -> None:
    """The automatic choice never takes them, so its stability does not count them."""
    planted = plant(0)
    v = planted.decomposition.v
    gain = score_components(project(planted, v), v, planted.direction).logit_gain
    found = measure(planted, ComponentScore.effect_size, must_raise=True)
    lowering = [index for index in planted.components if gain[index] < 0]
    assert lowering
    assert (found.inclusion_frequency[lowering] == 0.0).all()


def test_strata_keep_their_sizes() -> None:
    """Every replicate has as many prompts with toxic positions as the sample."""
    is_first = np.arange(30) < 7
    counts = draw_stratified_counts(is_first, 50, 0)
    assert (counts[:, is_first].sum(1) == 7).all()
    assert (counts[:, ~is_first].sum(1) == 23).all()


def test_jaccard_of_sets_of_different_sizes() -> None:
    """By hand: {0, 1} and {1}, {0, 1} and {2}, {1} and {2}."""
    rows = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    assert compute_mean_jaccard(rows) == pytest.approx((0.5 + 0 + 0) / 3)
