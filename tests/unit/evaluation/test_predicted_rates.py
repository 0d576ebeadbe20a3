"""Foretold rates of made-up texts whose true rates are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eigenshift.evaluation.bootstrap import draw_counts
from eigenshift.evaluation.predicted_rates import (
    MAX_TOXIC,
    MIN_EFFECTIVE,
    PredictedRate,
    choose_texts,
    predict_rate,
)

N_PROMPTS, N_TEXTS = 120, 20
KINDS = 4
"""Texts are one of so many kinds; of these the first is toxic."""


def draw(seed: int, strength: float) -> tuple[Any, ...]:
    """Kinds of texts drawn by a base, prompt by prompt, and both models' distributions."""
    generator = np.random.default_rng(seed)
    base = generator.dirichlet([2.0, 4.0, 4.0, 4.0], N_PROMPTS)
    moved = base * np.array([np.exp(-strength), 1.0, 1.3, 0.8]) ** generator.uniform(0.5, 1.5)
    moved /= moved.sum(1, keepdims=True)
    kinds = np.array([generator.choice(KINDS, N_TEXTS, p=row) for row in base])
    return base, moved, kinds


def foretell(seed: int, strength: float, **changes: Any) -> tuple[PredictedRate, float]:
    """The foretold rate, and the true one of these prompts."""
    base, moved, kinds = draw(seed, strength)
    ratios = np.log(moved / base)[np.arange(N_PROMPTS)[:, None], kinds].ravel()
    is_toxic = kinds.ravel() == 0
    prompts = np.repeat(np.arange(N_PROMPTS), N_TEXTS)
    sample = choose_texts(is_toxic, prompts, N_PROMPTS, seed=seed)
    replicates = changes.pop("replicates", draw_counts(N_PROMPTS, 300, 0))
    found = predict_rate(ratios[sample.places], is_toxic[sample.places], sample, replicates, 0.95)
    asked = replicates[0] > 0
    return found, float(moved[asked, 0].mean())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_rates_are_right_on_average_and_intervals_hold_them(strength: float) -> None:
    """Over many draws: no bias that shows, and at least 90% of 95% intervals."""
    pairs = [foretell(seed, strength) for seed in range(60)]
    errors = np.array([found.value - true for found, true in pairs])
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(len(errors)) + 1e-3
    inside = [found.low <= true <= found.high for found, true in pairs]  # type: ignore[operator]
    assert np.mean(inside) >= 0.9
    assert all(found.is_reliable for found, _ in pairs)


def test_an_edit_that_changes_nothing_has_the_base_s_rate() -> None:
    """Exactly, whatever was drawn."""
    *_, kinds = draw(0, 0.0)
    is_toxic = kinds.ravel() == 0
    prompts = np.repeat(np.arange(N_PROMPTS), N_TEXTS)
    sample = choose_texts(is_toxic, prompts, N_PROMPTS, seed=0)
    replicates = draw_counts(N_PROMPTS, 50, 0)
    found = predict_rate(
        np.zeros(len(sample.places)), is_toxic[sample.places], sample, replicates, 0.95
    )
    assert found.n_effective == pytest.approx(min(is_toxic.sum(), MAX_TOXIC))
    assert found.value == pytest.approx(is_toxic.mean())
    assert found.covered == pytest.approx(1.0)


@pytest.mark.parametrize(("share", "n_toxic", "n_others"), [(15, 200, 150), (2, 300, 150)])
def test_what_is_weighed_stands_for_all(share: int, n_toxic: int, n_others: int) -> None:
    """Every toxic text where there are not too many; counts add up to the texts there are."""
    is_toxic = np.arange(3_000) % share == 0
    sample = choose_texts(is_toxic, np.arange(3_000) // 10, 300, seed=1)
    weighed = is_toxic[sample.places]
    assert (int(weighed.sum()), int((~weighed).sum())) == (n_toxic, n_others)
    assert sample.counts[weighed].sum() == pytest.approx(is_toxic.sum())
    assert sample.counts.sum() == pytest.approx(3_000)
    assert (sample.n_by_prompt == 10).all()
    assert len(set(sample.places)) == len(sample.places)


def test_a_slice_counts_its_own_prompts_only() -> None:
    """Half of the prompts, drawn anew among themselves."""
    chosen = np.arange(N_PROMPTS) < N_PROMPTS // 2
    replicates = np.zeros((301, N_PROMPTS))
    replicates[:, chosen] = draw_counts(int(chosen.sum()), 300, 0)
    found, true = foretell(7, 1.0, replicates=replicates)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= true <= found.high


def test_where_few_texts_count_or_little_is_covered_it_says_so() -> None:
    """A model that says three of the base's toxic texts, and one that says mostly other things."""
    *_, kinds = draw(0, 0.0)
    is_toxic = kinds.ravel() == 0
    prompts = np.repeat(np.arange(N_PROMPTS), N_TEXTS)
    sample = choose_texts(is_toxic, prompts, N_PROMPTS, seed=0)
    replicates = draw_counts(N_PROMPTS, 50, 0)
    ratios = np.where(is_toxic[sample.places], -np.inf, 0.0)
    ratios[:3] = 0.0
    few = predict_rate(ratios, is_toxic[sample.places], sample, replicates, 0.95)
    assert few.n_effective == pytest.approx(3)
    assert few.n_effective < MIN_EFFECTIVE
    assert not few.is_reliable
    elsewhere = predict_rate(
        np.full(len(sample.places), np.log(0.4)),
        is_toxic[sample.places],
        sample,
        replicates,
        0.95,
    )
    assert elsewhere.covered == pytest.approx(0.4)
    assert elsewhere.value == pytest.approx(is_toxic.mean())
    assert not elsewhere.is_reliable
    nothing = np.full(len(sample.places), -np.inf)
    missing = predict_rate(nothing, is_toxic[sample.places], sample, replicates, 0.95)
    assert (missing.value, missing.covered, missing.is_reliable) == (None, 0.0, False)
