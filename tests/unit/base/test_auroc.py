"""The area under the ROC curve against scikit-learn, and its interval against a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eigenshift.base.auroc import estimate_auroc


def test_interval_agrees_with_a_bootstrap():
    """DeLong's standard error is the bootstrap's, within its noise."""
    generator = np.random.default_rng(5)
    is_toxic = np.arange(400) < 120
    scores = np.round(generator.normal(size=400) + 0.9 * is_toxic, 1)
    auroc, low, high = estimate_auroc(scores, is_toxic, 0.95)
    assert auroc == pytest.approx(roc_auc_score(is_toxic, scores), abs=1e-12)
    toxic, nontoxic = scores[is_toxic], scores[~is_toxic]
    comparisons = (toxic[:, None] > nontoxic) + 0.5 * (toxic[:, None] == nontoxic)
    replicates = [
        comparisons[generator.integers(0, 120, 120)][:, generator.integers(0, 280, 280)].mean()
        for _ in range(1500)
    ]
    assert (high - low) / (2 * 1.959964) == pytest.approx(np.std(replicates), rel=0.08)


def test_interval_holds_the_truth_as_often_as_it_says():
    """Over repeated samples a 90% interval holds the true AUROC about 90% of the time."""
    generator = np.random.default_rng(8)
    is_toxic = np.arange(150) < 60
    truth = 0.7602499389  # of two normals one standard deviation apart: Phi(1 / sqrt 2)
    hits = 0
    for _ in range(400):
        _, low, high = estimate_auroc(generator.normal(size=150) + is_toxic, is_toxic, 0.9)
        hits += low <= truth <= high
    assert 0.86 <= hits / 400 <= 0.94


def test_interval_stays_within_zero_and_one():
    """Perfect separation gives 1 with an interval that does not pass 1."""
    scores = np.arange(10.0)
    assert estimate_auroc(scores, scores > 4, 0.95) == (1.0, 1.0, 1.0)
    low, high = estimate_auroc(np.array([0.0, 1, 2, 1.5, 4, 5]), np.arange(6) > 2, 0.99)[1:]
    assert 0 <= low < high <= 1
