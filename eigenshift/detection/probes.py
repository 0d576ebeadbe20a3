"""Linear probes of a layer: regularised linear discriminant analysis, and how well it does.

Pure functions of arrays: fit, cross-validate, apply to another dataset, and judge held-out scores
with intervals. Tables are made in `layer_statistics.py` and `layer_transfers.py`.

Scores depend in their last digits on the BLAS and its number of threads; the tables hold only what
follows from their order and signs, so they change only if two are that close.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eigenshift.base.arrays import BoolArray, FloatArray, IntArray, ValueArray
from eigenshift.base.auroc import estimate_auroc

UNITS_PER_BLOCK = 256
N_F1_RESAMPLES = 2_000


@dataclass(frozen=True)
class ProbeStatistics:
    """How well a probe's scores tell the classes of rows apart that it was not fitted on."""

    probe_auroc: float | None = None
    probe_auroc_low: float | None = None
    probe_auroc_high: float | None = None
    probe_accuracy: float | None = None
    probe_accuracy_low: float | None = None
    probe_accuracy_high: float | None = None
    probe_f1: float | None = None
    probe_f1_low: float | None = None
    probe_f1_high: float | None = None


def assign_folds(sample_ids: Sequence[str], n_folds: int) -> IntArray:
    """Return each sample's fold, 0 to n_folds - 1: sha256 of its id, first 8 bytes, modulo.

    Not Python's `hash`, which differs between processes.
    """
    digests = (hashlib.sha256(sample_id.encode()).digest()[:8] for sample_id in sample_ids)
    return np.array([int.from_bytes(digest, "big") % n_folds for digest in digests], np.int64)


def find_obstacle(is_toxic: BoolArray, folds: IntArray, n_folds: int) -> str | None:
    """Why no probe can be fitted and judged on these samples, None if one can."""
    for name, chosen in (("toxic", is_toxic), ("nontoxic", ~is_toxic)):
        n_chosen = np.count_nonzero(chosen)
        if n_chosen == 0:
            return f"no_{name}_samples"
        if n_chosen < n_folds:
            return f"fewer_{name}_samples_than_folds"
        if len(np.unique(folds[chosen])) == 1:
            return f"all_{name}_samples_in_one_fold"
    return None


# --- fitting ----------------------------------------------------------------------------------


def cross_validate_probe(
    values: ValueArray, is_toxic: BoolArray, folds: IntArray, n_folds: int, ridge: float
) -> FloatArray:
    """Return each sample's log-odds from the probe fitted on the other folds, shape (sample,).

    Linear discriminant analysis on standardised units, with `ridge` added to the diagonal of the
    pooled within-class sum of squares: scikit-learn's `LinearDiscriminantAnalysis` with that
    covariance, priors being the class shares. Its direction is that of ridge regression on labels
    -1 and 1, which is how it is found. Mean and standard deviation come from the training folds; a
    unit that is constant there is left out. A NaN or infinite value counts as the mean of the
    unit's finite values over all samples: it takes no part in the fit beyond that, and no label
    enters it.

    Args:
        values: Activations, shape (unit, sample), any float dtype; computed in float64.
        is_toxic: Labels, shape (sample,), both classes in every training set.
        folds: Fold of each sample, shape (sample,).
        n_folds: Number of folds; empty ones are skipped.
        ridge: Penalty, above 0.
    """
    centre = average_finite(values)
    members = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    n_units, n_samples = values.shape
    is_primal = n_units <= n_samples - max(len(chosen) for chosen in members)
    moments = [
        _measure_rows(_centre(values, centre, chosen), is_toxic[chosen])
        for chosen in (members if is_primal else [])
    ]
    scores = np.empty(n_samples)
    for fold, held_out in enumerate(members):
        if not held_out.size:
            continue
        if is_primal:
            probe = _fit_from_moments(moments[:fold] + moments[fold + 1 :], ridge)
        else:
            training = np.flatnonzero(folds != fold)
            probe = _fit_from_rows(_centre(values, centre, training), is_toxic[training], ridge)
        scores[held_out] = probe.score(_centre(values, centre, held_out))
    return scores


def transfer_probe(
    values: ValueArray, is_toxic: BoolArray, other_values: ValueArray, ridge: float
) -> FloatArray:
    """Return the log-odds that a probe fitted on one dataset gives another's samples.

    Args:
        values: Activations it is fitted on, shape (unit, sample).
        is_toxic: Their labels, both classes present, shape (sample,).
        other_values: Activations it is applied to, shape (unit, other sample). A value that is not
            finite counts as the mean of the unit's values it was fitted on.
        ridge: As in `cross_validate_probe`.

    Returns:
        Shape (other sample,).
    """
    centre = average_finite(values)
    centred = _centre(values, centre, np.arange(values.shape[1]))
    if values.shape[0] <= values.shape[1]:
        probe = _fit_from_moments([_measure_rows(centred, is_toxic)], ridge)
    else:
        probe = _fit_from_rows(centred, is_toxic, ridge)
    return probe.score(_centre(other_values, centre, np.arange(other_values.shape[1])))


@dataclass(frozen=True)
class _Probe:
    """score = intercept + coefficients . value, of centred values."""

    coefficients: FloatArray
    intercept: float

    def score(self, centred: FloatArray) -> FloatArray:
        """Log-odds of centred samples, shape (unit, sample) -> (sample,)."""
        scores: FloatArray = self.intercept + self.coefficients @ centred
        return scores


@dataclass(frozen=True)
class _Moments:
    """Sums over some samples, all a probe needs; they add up over folds."""

    n_toxic: int
    n_nontoxic: int
    sums_toxic: FloatArray
    sums_nontoxic: FloatArray
    products: FloatArray
    lowest: FloatArray
    highest: FloatArray


def average_finite(values: ValueArray) -> FloatArray:
    """Mean of each unit's finite values in float64, shape (unit,); 0 for a unit without any."""
    means = np.zeros(values.shape[0])
    for first in range(0, len(means), UNITS_PER_BLOCK):
        block = values[first : first + UNITS_PER_BLOCK].astype(np.float64)
        is_finite = np.isfinite(block)
        count = np.maximum(1, np.count_nonzero(is_finite, axis=1))
        means[first : first + UNITS_PER_BLOCK] = np.where(is_finite, block, 0).sum(axis=1) / count
    return means


def _centre(values: ValueArray, centre: FloatArray, chosen: IntArray) -> FloatArray:
    """Chosen samples less `centre`, (unit, sample) in float64; 0 where a value is not finite.

    Centring first keeps the sums of products accurate for units whose mean dwarfs their spread.
    """
    centred = values[:, chosen].astype(np.float64)
    centred -= centre[:, None]
    centred[~np.isfinite(centred)] = 0.0
    return centred


def _measure_rows(centred: FloatArray, is_toxic: BoolArray) -> _Moments:
    return _Moments(
        n_toxic=int(np.count_nonzero(is_toxic)),
        n_nontoxic=int(np.count_nonzero(~is_toxic)),
        sums_toxic=centred @ is_toxic.astype(np.float64),
        sums_nontoxic=centred @ (~is_toxic).astype(np.float64),
        products=centred @ centred.T,
        lowest=centred.min(axis=1, initial=np.inf),
        highest=centred.max(axis=1, initial=-np.inf),
    )


def _fit_from_moments(parts: Sequence[_Moments], ridge: float) -> _Probe:
    """Fit by the (unit, unit) normal equations: for no more units than training rows.

    The other folds are added up rather than one subtracted from the total, so that an outlier in
    the held-out fold costs no digits.
    """
    n_toxic, n_nontoxic = (
        sum(part.n_toxic for part in parts),
        sum(part.n_nontoxic for part in parts),
    )
    n_samples = n_toxic + n_nontoxic
    mean_toxic = np.sum([part.sums_toxic for part in parts], axis=0) / n_toxic
    mean_nontoxic = np.sum([part.sums_nontoxic for part in parts], axis=0) / n_nontoxic
    mean = (n_toxic * mean_toxic + n_nontoxic * mean_nontoxic) / n_samples
    covariance = parts[0].products / n_samples
    for part in parts[1:]:
        covariance += part.products / n_samples
    covariance -= np.outer(mean, mean)
    lowest = np.min([part.lowest for part in parts], axis=0)
    highest = np.max([part.highest for part in parts], axis=0)
    inverse_sd = _invert_sd(np.diag(covariance), lowest == highest)
    system = covariance
    system *= n_samples
    system *= inverse_sd[:, None]
    system *= inverse_sd
    difference = inverse_sd * (mean_toxic - mean_nontoxic)
    target = 2 * n_toxic * n_nontoxic / n_samples * difference
    regression = _solve(system, target, ridge)
    return _scale_to_log_odds(
        regression, inverse_sd, mean_toxic, mean_nontoxic, n_toxic, n_nontoxic
    )


def _fit_from_rows(centred: FloatArray, is_toxic: BoolArray, ridge: float) -> _Probe:
    """Fit the same probe by the (sample, sample) kernel: for more units than training rows."""
    mean_toxic, mean_nontoxic = (
        centred[:, is_toxic].mean(axis=1),
        centred[:, ~is_toxic].mean(axis=1),
    )
    is_constant = centred.min(axis=1) == centred.max(axis=1)
    standardised = centred - centred.mean(axis=1, keepdims=True)
    inverse_sd = _invert_sd(np.square(standardised).mean(axis=1), is_constant)
    standardised *= inverse_sd[:, None]
    labels = np.where(is_toxic, 1.0, -1.0)
    solution = _solve(standardised.T @ standardised, labels - labels.mean(), ridge)
    n_toxic = int(np.count_nonzero(is_toxic))
    return _scale_to_log_odds(
        standardised @ solution,
        inverse_sd,
        mean_toxic,
        mean_nontoxic,
        n_toxic,
        len(is_toxic) - n_toxic,
    )


def _scale_to_log_odds(
    regression: FloatArray,
    inverse_sd: FloatArray,
    mean_toxic: FloatArray,
    mean_nontoxic: FloatArray,
    n_toxic: int,
    n_nontoxic: int,
) -> _Probe:
    """The discriminant from the regression of labels -1 and 1 on standardised units.

    With S the within-class sum of squares and d the difference of means, the regression is
    b = (S + c d d' + ridge)^-1 2 c d, c = n_toxic n_nontoxic / n; by Sherman and Morrison the
    discriminant n (S + ridge)^-1 d is n b / (c (2 - b'd)).
    """
    n_samples = n_toxic + n_nontoxic
    fit = regression @ (inverse_sd * (mean_toxic - mean_nontoxic))  # 0 to 2; 2 is a perfect fit
    scale = n_samples**2 / (n_toxic * n_nontoxic * max(2 - fit, np.finfo(np.float64).eps))
    coefficients = scale * inverse_sd * regression
    middle = (mean_toxic + mean_nontoxic) / 2
    return _Probe(coefficients, float(np.log(n_toxic / n_nontoxic) - coefficients @ middle))


def _solve(system: FloatArray, target: FloatArray, ridge: float) -> FloatArray:
    """Solve (system + ridge I) x = target; `system` gets the ridge on its diagonal.

    By numpy, which also forms the products: scipy brings a BLAS of its own, and the threads of the
    two were measured to wait for each other (1.3 s in place of 0.02 s on 1,000 units).
    """
    system[np.diag_indices_from(system)] += ridge
    solution: FloatArray = np.linalg.solve(system, target).astype(np.float64, copy=False)
    return solution


def _invert_sd(variance: FloatArray, is_constant: BoolArray) -> FloatArray:
    """1 / standard deviation; 0 leaves a constant unit out of the probe."""
    inverse = np.zeros(len(variance))
    np.divide(1.0, np.sqrt(np.maximum(variance, 0)), out=inverse, where=variance > 0)
    return np.where(is_constant, 0.0, inverse)


# --- judging ----------------------------------------------------------------------------------


def judge_scores(scores: FloatArray, is_toxic: BoolArray, confidence: float) -> ProbeStatistics:
    """Judge scores of samples that took no part in the fit; those above 0 are called toxic.

    Args:
        scores: Log-odds, shape (sample,).
        is_toxic: Labels, shape (sample,); at least two of each class.
        confidence: Level of the intervals, e.g. 0.95.

    Returns:
        AUROC with its DeLong interval, accuracy with Wilson's, F1 of the toxic class with a
        bootstrap one.
    """
    auroc, auroc_low, auroc_high = estimate_auroc(scores, is_toxic, confidence)
    predicted = scores > 0
    n_right = int(np.count_nonzero(predicted == is_toxic))
    accuracy = stats.binomtest(n_right, len(scores)).proportion_ci(confidence, method="wilson")
    f1, f1_low, f1_high = estimate_f1(predicted, is_toxic, confidence)
    return ProbeStatistics(
        probe_auroc=auroc,
        probe_auroc_low=auroc_low,
        probe_auroc_high=auroc_high,
        probe_accuracy=n_right / len(scores),
        probe_accuracy_low=float(accuracy.low),
        probe_accuracy_high=float(accuracy.high),
        probe_f1=f1,
        probe_f1_low=f1_low,
        probe_f1_high=f1_high,
    )


def estimate_f1(
    predicted: BoolArray, is_toxic: BoolArray, confidence: float
) -> tuple[float, float, float]:
    """Return the F1 of the toxic class and the ends of its percentile bootstrap interval.

    Resampling rows is drawing the four counts of the confusion matrix from a multinomial.

    Args:
        predicted: Called toxic, shape (sample,).
        is_toxic: Labels, shape (sample,).
        confidence: Level, e.g. 0.95.
    """
    counts = np.bincount(2 * predicted.astype(np.int64) + is_toxic, minlength=4)
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(predicted), counts / len(predicted), size=N_F1_RESAMPLES)
    _, missed, false, hit = np.vstack([counts, draws]).T
    f1 = 2 * hit / np.maximum(1, 2 * hit + missed + false)
    low, high = np.quantile(f1[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(f1[0]), float(low), float(high)
