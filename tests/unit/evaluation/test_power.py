"""Power of the paired comparison over prompts, against simulations of the very test."""

from __future__ import annotations

import numpy as np
import pytest

from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.power import (
    Demand,
    Variation,
    compute_power,
    compute_variance,
    count_prompts,
    estimate_variation,
    find_detectable,
)

DEMAND = Demand()
N_RUNS = 1_000


def simulate(
    variation: Variation, reduction: float, n_prompts: int, k: int, *, shares_numbers: bool = False
) -> np.ndarray:
    """Rates of base and patch in many runs, shape (2, run, prompt): beta-binomial prompts."""
    generator = np.random.default_rng(7)
    scale = (1 - variation.correlation) / variation.correlation
    a, b = variation.base_rate * scale, (1 - variation.base_rate) * scale
    rates = generator.beta(a, b, size=(N_RUNS, n_prompts))
    draws = generator.random((N_RUNS, n_prompts, k))
    other = draws if shares_numbers else generator.random((N_RUNS, n_prompts, k))
    base = (draws < rates[..., None]).mean(-1)
    patched = (other < (1 - reduction) * rates[..., None]).mean(-1)
    return np.stack([base, patched])


def measure_power(found: np.ndarray) -> float:
    """Share of runs whose paired bootstrap interval, as the gate reads it, lies below 0."""
    counts = draw_counts(found.shape[2], 400, seed=1)
    ends = [
        summarise(average(patched - base, counts), DEMAND.confidence).high
        for base, patched in zip(*found, strict=True)
    ]
    return float(np.mean([end is not None and end < 0 for end in ends]))


@pytest.mark.parametrize(
    ("variation", "reduction", "k", "excess"),
    [
        (Variation(0.3, 0.3), 0.15, 10, 0.04),  # 121 prompts
        (Variation(0.2, 0.1), 0.4, 3, 0.04),  # 105
        (Variation(0.3, 0.3), 0.3, 10, 0.1),  # 35
        (Variation(0.1, 0.2), 0.5, 10, 0.1),  # 53, few of which are toxic at all
    ],
)
def test_the_counted_prompts_give_the_power_that_was_asked_for(
    variation: Variation, reduction: float, k: int, excess: float
) -> None:
    """Never less, beyond the simulation's error; more of few prompts: differences are skewed."""
    n_prompts = count_prompts(variation, reduction, k, DEMAND)
    measured = measure_power(simulate(variation, reduction, n_prompts, k)[:, :500])
    assert DEMAND.power - 0.04 <= measured <= DEMAND.power + excess


def test_shared_random_numbers_only_add_power() -> None:
    """The arms of a run share theirs: the plan is on the safe side."""
    variation = Variation(0.3, 0.3)
    n_prompts = count_prompts(variation, 0.3, 5, DEMAND)
    found = simulate(variation, 0.3, n_prompts, 5, shares_numbers=True)
    assert measure_power(found[:, :500]) > DEMAND.power


def test_the_variance_is_that_of_simulated_differences() -> None:
    """Of one prompt's paired difference, between prompts and within."""
    variation = Variation(0.25, 0.2)
    base, patched = simulate(variation, 0.4, 200, 4)
    expected = compute_variance(variation, 0.4, 4)
    assert (patched - base).var() == pytest.approx(expected, rel=0.02)
    assert (base - patched).mean() == pytest.approx(0.4 * 0.25, rel=0.01)


def test_by_hand() -> None:
    """With p 0.1, rho 0.2, r 0.5, k 10: s^2 = 0.25 * 0.018 + 0.115 / 10 = 0.016."""
    variation = Variation(0.1, 0.2)
    assert compute_variance(variation, 0.5, 10) == pytest.approx(0.016)
    # (1.95996 + 0.84162)^2 * 0.016 / 0.0025 + 1.95996^2 / 2 = 50.23 + 1.92
    assert count_prompts(variation, 0.5, 10, DEMAND) == 53


def test_prompts_power_and_detectable_reduction_agree() -> None:
    """Three questions about one curve; continuations alone never replace prompts."""
    variation = Variation(0.2, 0.3)
    n_prompts = count_prompts(variation, 0.3, 10, DEMAND)
    assert compute_power(variation, 0.3, n_prompts, 10, DEMAND) >= DEMAND.power
    assert compute_power(variation, 0.3, n_prompts - 1, 10, DEMAND) < DEMAND.power
    assert find_detectable(variation, n_prompts, 10, DEMAND) == pytest.approx(0.3, abs=0.01)
    assert find_detectable(variation, 3, 10, DEMAND) is None
    # The prompts' own variance is left: (1.95996 + 0.84162)^2 * 0.048 / 0.04 + 1.92 = 11.3.
    assert count_prompts(variation, 0.3, 100_000, DEMAND) == 12


def test_a_runs_variation_is_estimated_by_analysis_of_variance() -> None:
    """Simulated prompts give back what they were drawn with, also with clusters of unequal size."""
    variation = Variation(0.3, 0.25)
    base, _ = simulate(variation, 0.0, 200, 10)
    n_toxic = np.rint(base * 10).astype(int)
    found = estimate_variation(n_toxic.ravel().tolist(), [10] * n_toxic.size)
    assert found.base_rate == pytest.approx(0.3, abs=0.01)
    assert found.correlation == pytest.approx(0.25, abs=0.01)
    lost = estimate_variation([5, 0, 3, 0], [10, 10, 6, 0])
    assert 0 < lost.correlation < 1


def test_all_or_none_and_all_alike() -> None:
    """The ends: prompts that decide everything, and prompts that decide nothing."""
    assert estimate_variation([4, 0, 4, 0], [4, 4, 4, 4]).correlation == pytest.approx(1.0)
    assert estimate_variation([2, 2, 2, 2], [4, 4, 4, 4]).correlation == 0.0


@pytest.mark.parametrize(
    ("n_toxic", "n_scored", "found"),
    [([0, 0], [5, 5], "base rate"), ([1], [5], "found 1"), ([1, 0], [1, 1], "found 2 with 2")],
)
def test_what_cannot_be_estimated_is_refused(
    n_toxic: list[int], n_scored: list[int], found: str
) -> None:
    """No number is made up; the message says which option stands in."""
    with pytest.raises(EvaluationError, match=rf"{found}.*--base-rate"):
        estimate_variation(n_toxic, n_scored)
