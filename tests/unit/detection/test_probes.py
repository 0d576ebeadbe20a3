"""Probes against scikit-learn, and their intervals against a bootstrap."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eigenshift.detection.probes import (
    assign_folds,
    cross_validate_probe,
    estimate_f1,
    judge_scores,
    transfer_probe,
)
from eigenshift.settings import StatisticsSettings
from tests.support.labelled_values import make_ids, make_layer

SETTINGS = StatisticsSettings()


class RidgeDiscriminant(LinearDiscriminantAnalysis):
    """scikit-learn's discriminant with `ridge` on the within-class sum of squares."""

    def __init__(self, ridge: float = SETTINGS.ridge) -> None:
        super().__init__(solver="lsqr")
        self.ridge = ridge

    def fit(self, X, y):
        """Give the covariance of a class its share of the penalty."""
        n_samples, ridge = len(X), self.ridge

        class RidgeCovariance:
            def fit(self, X):
                diagonal = np.eye(X.shape[1]) * ridge / n_samples
                self.covariance_ = np.cov(X.T, bias=True) + diagonal
                return self

        self.covariance_estimator = RidgeCovariance()
        return super().fit(X, y)


def score_with_scikit_learn(values: np.ndarray, is_toxic: np.ndarray, folds: np.ndarray):
    """Held-out log-odds of the reference pipeline."""
    return cross_val_predict(
        make_pipeline(StandardScaler(), RidgeDiscriminant()),
        values.T.astype(np.float64),
        is_toxic,
        cv=PredefinedSplit(folds),
        method="decision_function",
    )


# --- the probe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_samples", "n_units"), [(400, 20), (120, 97), (120, 96), (60, 300)], ids=str
)
def test_probe_equals_scikit_learn(n_samples, n_units):
    """Scores, AUROC, accuracy and F1 are scikit-learn's, with fewer and more units than rows."""
    values, is_toxic = make_layer(n_samples, n_units)
    values[2] = 3.5  # a constant unit
    folds = assign_folds(make_ids(n_samples), SETTINGS.n_folds)
    expected = score_with_scikit_learn(values, is_toxic, folds)
    found = cross_validate_probe(values, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    probe = judge_scores(found, is_toxic, SETTINGS.confidence)
    assert probe.probe_auroc == pytest.approx(roc_auc_score(is_toxic, expected), abs=1e-12)
    assert probe.probe_accuracy == accuracy_score(is_toxic, expected > 0)
    assert probe.probe_f1 == pytest.approx(f1_score(is_toxic, expected > 0))


@pytest.mark.parametrize("n_units", [30, 200])
def test_unit_that_is_constant_on_the_training_rows_is_left_out(n_units):
    """A unit that only moves on held-out rows has no coefficient there, in both forms."""
    values, is_toxic = make_layer(100, n_units)
    folds = assign_folds(make_ids(100), SETTINGS.n_folds)
    values[0] = np.where(folds == 2, values[0], np.float16(0.1))
    expected = score_with_scikit_learn(values, is_toxic, folds)
    found = cross_validate_probe(values, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    np.testing.assert_allclose(found[folds == 2], expected[folds == 2], rtol=1e-6, atol=1e-8)


def test_large_means_cost_no_digits():
    """A unit whose mean is a thousand times its spread is standardised accurately."""
    values, is_toxic = make_layer(200, 10)
    shifted = values.astype(np.float32)
    shifted[0] = (shifted[0] + np.float32(4096)).astype(np.float32)
    folds = assign_folds(make_ids(200), SETTINGS.n_folds)
    expected = score_with_scikit_learn(shifted, is_toxic, folds)
    found = cross_validate_probe(shifted, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("n_units", [20, 200])
def test_values_that_are_not_finite_count_as_the_units_mean(n_units):
    """A NaN or an infinity scores as the mean of the unit's finite values would."""
    values, is_toxic = make_layer(100, n_units)
    values = values.astype(np.float64)
    folds = assign_folds(make_ids(100), SETTINGS.n_folds)
    filled = values.copy()
    values[3, [5, 40]] = np.nan, np.inf
    filled[3, [5, 40]] = values[3][np.isfinite(values[3])].mean()
    arguments = (is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    np.testing.assert_allclose(
        cross_validate_probe(values, *arguments),
        cross_validate_probe(filled, *arguments),
        rtol=1e-9,
    )


def test_held_out_labels_do_not_reach_the_probe():
    """Without a signal the probe's held-out AUROC stays near one half, with many units too."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(300, 400)).astype(np.float32)
    is_toxic = generator.random(400) < 0.5
    folds = assign_folds(make_ids(400), 5)
    scores = cross_validate_probe(values, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    assert abs(roc_auc_score(is_toxic, scores) - 0.5) < 0.1


@pytest.mark.parametrize("n_units", [20, 200])
def test_transferred_probe_equals_scikit_learn(n_units):
    """Fitted on one dataset and applied to another, in both forms."""
    values, is_toxic = make_layer(120, n_units)
    other, _ = make_layer(50, n_units, seed=1)
    reference = make_pipeline(StandardScaler(), RidgeDiscriminant())
    reference.fit(values.T.astype(np.float64), is_toxic)
    np.testing.assert_allclose(
        transfer_probe(values, is_toxic, other, SETTINGS.ridge),
        reference.decision_function(other.T.astype(np.float64)),
        rtol=1e-6,
        atol=1e-8,
    )


def test_rare_class_is_called_by_log_odds_not_by_the_middle():
    """With one toxic sample in ten the zero of the scores is where both are equally likely."""
    generator = np.random.default_rng(4)
    is_toxic = np.arange(6000) % 10 == 0
    values = (generator.normal(size=(1, 6000)) + 2.0 * is_toxic).astype(np.float32)
    folds = assign_folds(make_ids(6000), 5)
    scores = cross_validate_probe(values, is_toxic, folds, 5, 1e-6)
    border = values[0][np.abs(scores).argmin()]
    assert border == pytest.approx(1 + np.log(9) / 2, abs=0.15)  # of two unit normals at 0 and 2


# --- the interval -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_hits", "n_missed", "n_false"), [(40, 20, 10), (20, 2, 0)])
def test_f1_and_its_interval_agree_with_resampled_rows(n_hits, n_missed, n_false):
    """The interval from multinomial counts is that of resampling rows."""
    is_toxic = np.array([True] * (n_hits + n_missed) + [False] * 150)
    predicted = np.array([True] * n_hits + [False] * n_missed + [True] * n_false)
    predicted = np.concatenate([predicted, np.zeros(len(is_toxic) - len(predicted), bool)])
    f1, low, high = estimate_f1(predicted, is_toxic, 0.9)
    assert f1 == pytest.approx(f1_score(is_toxic, predicted))
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(is_toxic), (1000, len(is_toxic)))
    replicates = [f1_score(is_toxic[rows], predicted[rows], zero_division=0.0) for rows in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(replicates, [0.05, 0.95])), abs=0.03)


def test_accuracy_has_an_interval_around_it():
    """Wilson's, which stays within 0 and 1 where every call is right."""
    scores = np.arange(20.0) - 9.5
    found = judge_scores(scores, scores > 0, 0.95)
    assert found.probe_accuracy == found.probe_accuracy_high == 1.0
    assert 0.8 < found.probe_accuracy_low < 0.9


# --- folds -----------------------------------------------------------------------------------


def test_folds_are_digests_of_the_ids():
    """A fold is sha256 of the id modulo the number of folds, and so never changes."""
    ids = make_ids(500)
    folds = assign_folds(ids, 5)
    first = int(hashlib.sha256(ids[0].encode()).hexdigest()[:16], 16) % 5
    assert folds[0] == first
    np.testing.assert_array_equal(assign_folds(ids[100:200], 5), folds[100:200])
    assert np.bincount(folds).min() > 70
