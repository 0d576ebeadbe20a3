"""The paired test: against all sign patterns, against scipy, and its level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from eigenshift.evaluation.permutation import N_FLIPS, compute_p_value


def test_few_prompts_give_the_share_of_all_sign_patterns() -> None:
    """Exact reference: every one of 2^8 patterns, ties included."""
    differences = np.array([-0.4, -0.2, -0.2, 0.1, -0.3, 0.0, -0.1, 0.2])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=8)]
    expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    assert compute_p_value(differences, seed=0) == pytest.approx(expected, abs=0.02)


def test_it_agrees_with_scipy() -> None:
    """`scipy.stats.permutation_test` with paired samples, other random numbers."""
    generator = np.random.default_rng(0)
    differences = generator.normal(-0.05, 0.3, 150)
    reference = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert compute_p_value(differences, seed=0) == pytest.approx(reference.pvalue, abs=0.01)


def test_a_clear_effect_has_the_smallest_p_value_there_is() -> None:
    """Never 0: the pattern found is one of those counted."""
    assert compute_p_value(np.full(50, -0.2), seed=0) == 1 / (1 + N_FLIPS)


def test_no_effect_is_called_significant_as_rarely_as_promised() -> None:
    """Of 300 experiments without an effect about 5% have p <= 0.05."""
    generator = np.random.default_rng(1)
    values = [compute_p_value(generator.normal(0, 1, 30), seed) for seed in range(300)]
    share = np.mean(np.array(values, dtype=float) <= 0.05)
    assert 0.02 <= share <= 0.09


def test_unscored_prompts_are_left_out() -> None:
    """NaN where an arm has no scored continuation; without any prompt there is no p-value."""
    known = np.array([-0.4, -0.2, 0.1, -0.3])
    with_gaps = np.array([-0.4, np.nan, -0.2, 0.1, np.nan, -0.3])
    assert compute_p_value(with_gaps, 0) == compute_p_value(known, 0)
    assert compute_p_value(np.array([np.nan]), 0) is None
