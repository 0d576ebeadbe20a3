"""Layer statistics: does a whole layer tell toxic from non-toxic better than its best unit?

Reads activation shards, samples and the neurons table; writes `layers.parquet`. Everything is
judged on held-out rows: the ridge probe, and the single unit it is compared with, which is chosen
anew on the training rows of each fold. A sample's fold is a digest of its id, so it never changes
when data is added. Reading and ranking are in `aggregation.py`.

The probe's scores depend in their last digits on the BLAS and its number of threads; the table
holds only what follows from their order and signs, so it changes only if two are that close.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from eigenshift.aggregation import (
    ALL_LANGUAGES,
    LEFT_OUT,
    VALUES_PER_SORT,
    BoolArray,
    FloatArray,
    IntArray,
    LabelledLayer,
    RankedUnits,
    ValueArray,
    open_labelled_layer,
)
from eigenshift.artifacts import Workspace
from eigenshift.duckdb_files import TableFile
from eigenshift.errors import ArtifactError
from eigenshift.schemas import LAYERS
from eigenshift.settings import SitePooling, StatisticsSettings

logger = logging.getLogger(__name__)

STEP_VERSION = 1

UNITS_PER_BLOCK = 256


@dataclass(frozen=True)
class ProbeStatistics:
    """How well a probe's held-out scores tell the classes apart."""

    probe_auroc: float | None = None
    probe_auroc_low: float | None = None
    probe_auroc_high: float | None = None
    probe_accuracy: float | None = None
    probe_f1: float | None = None


@dataclass(frozen=True)
class NeuronSummary:
    """The single units of a layer, from the neurons table."""

    mean_neuron_auroc: float | None = None
    share_above_055: float | None = None
    share_above_060: float | None = None


def compute_layer_statistics(
    activation_files: Sequence[TableFile],
    sample_files: Sequence[TableFile],
    neurons: pa.Table,
    dataset: str,
    layer: int,
    sites: Sequence[SitePooling],
    settings: StatisticsSettings,
    workspace: Workspace,
    memory_limit: str = "2GB",
) -> None:
    """Write `layers.parquet` for one dataset and layer: one row per site and pooling.

    A site's activations are held in memory as stored, plus one fold of them in float64 and one
    (unit, unit) matrix per fold, or, where a layer has more units than training rows, the training
    rows in float64.

    Args:
        activation_files: Activation shards; together one row per layer and sample.
        sample_files: Samples with labels; samples without a label are left out.
        neurons: Neuron statistics (`schemas.NEURONS`) of at least this dataset and layer.
        dataset: Name of the dataset.
        layer: 0 = first layer.
        sites: Sites and poolings, in the order of the rows.
        settings: Folds, ridge penalty, confidence.
        workspace: Where the table is written.
        memory_limit: DuckDB's limit; no number depends on it.

    Raises:
        ArtifactError: The shards disagree or lack a site, or the neurons table lacks one.
    """
    started = time.perf_counter()
    rows = []
    n_imputed = 0
    with open_labelled_layer(
        activation_files, sample_files, dataset, layer, memory_limit, workspace.folder
    ) as labelled:
        folds = assign_folds(labelled.sample_ids, settings.n_folds)
        reason = _find_obstacle(labelled.is_toxic, folds, settings.n_folds)
        for site in sites:
            probe, best_neuron_auroc = ProbeStatistics(), None
            if reason is None:
                values = _read_site(labelled, site)
                n_imputed += int(np.count_nonzero(~np.isfinite(values)))
                probe = evaluate_probe(values, labelled.is_toxic, folds, settings)
                best_neuron_auroc = judge_best_neuron(values, labelled.is_toxic, folds)
            rows.append(
                {
                    "dataset": dataset,
                    "layer": layer,
                    "site": site.site.value,
                    "pooling": site.pooling.value,
                    **asdict(probe),
                    "best_neuron_auroc": best_neuron_auroc,
                    **asdict(summarise_neurons(neurons, dataset, layer, site)),
                    "n_toxic": int(np.count_nonzero(labelled.is_toxic)),
                    "n_nontoxic": int(np.count_nonzero(~labelled.is_toxic)),
                    "n_folds": settings.n_folds,
                    "reason": reason,
                }
            )
    workspace.write_rows("layers.parquet", rows, LAYERS)
    workspace.facts["n_samples"] = labelled.n_samples
    workspace.facts["n_imputed_values"] = n_imputed
    logger.debug(
        "layer statistics: dataset=%s layer=%d samples=%d imputed_values=%d seconds=%.2f",
        dataset,
        layer,
        labelled.n_samples,
        n_imputed,
        time.perf_counter() - started,
    )


def assign_folds(sample_ids: Sequence[str], n_folds: int) -> IntArray:
    """Return each sample's fold, 0 to n_folds - 1: sha256 of its id, first 8 bytes, modulo.

    Not Python's `hash`, which differs between processes.
    """
    digests = (hashlib.sha256(sample_id.encode()).digest()[:8] for sample_id in sample_ids)
    return np.array([int.from_bytes(digest, "big") % n_folds for digest in digests], np.int64)


def _find_obstacle(is_toxic: BoolArray, folds: IntArray, n_folds: int) -> str | None:
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


def _read_site(labelled: LabelledLayer, site: SitePooling) -> ValueArray:
    return labelled.read_units(site.column, 0, labelled.count_units(site.column))


def evaluate_probe(
    values: ValueArray, is_toxic: BoolArray, folds: IntArray, settings: StatisticsSettings
) -> ProbeStatistics:
    """Cross-validate a ridge probe and judge its held-out scores.

    Args:
        values: Activations, shape (unit, sample).
        is_toxic: Labels, shape (sample,), both classes present in every training set.
        folds: Fold of each sample, shape (sample,).
        settings: Folds, ridge penalty, confidence.

    Returns:
        AUROC with its DeLong interval, and accuracy and F1 of the toxic class with the probe's own
        threshold, zero. The scores of all folds are judged together.
    """
    scores = cross_validate_ridge(values, is_toxic, folds, settings.n_folds, settings.ridge)
    auroc, low, high = estimate_auroc(scores, is_toxic, settings.confidence)
    predicted = scores > 0
    hits = int(np.count_nonzero(predicted & is_toxic))
    return ProbeStatistics(
        probe_auroc=auroc,
        probe_auroc_low=low,
        probe_auroc_high=high,
        probe_accuracy=float(np.mean(predicted == is_toxic)),
        probe_f1=2 * hits / (int(np.count_nonzero(predicted)) + int(np.count_nonzero(is_toxic))),
    )


def cross_validate_ridge(
    values: ValueArray, is_toxic: BoolArray, folds: IntArray, n_folds: int, ridge: float
) -> FloatArray:
    """Return each sample's score from the probe fitted on the other folds, shape (sample,).

    Linear regression of labels -1 and 1 on standardised units, with penalty `ridge` on the squared
    coefficients and none on the intercept: scikit-learn's `StandardScaler` and `RidgeClassifier`.
    Mean and standard deviation come from the training folds; a unit that is constant there is
    left out. A NaN or infinite value counts as the mean of the unit's finite values over all
    samples: it takes no part in the fit beyond that, and no label enters it.

    Args:
        values: Activations, shape (unit, sample), any float dtype; computed in float64.
        is_toxic: Labels, shape (sample,).
        folds: Fold of each sample, shape (sample,).
        n_folds: Number of folds; empty ones are skipped.
        ridge: Penalty, above 0.
    """
    labels = np.where(is_toxic, 1.0, -1.0)
    centre = _average_finite(values)
    members = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    n_units, n_samples = values.shape
    is_primal = n_units <= n_samples - max(len(chosen) for chosen in members)
    moments = [
        _measure_fold(_centre(values, centre, chosen), labels[chosen])
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
            probe = _fit_from_rows(_centre(values, centre, training), labels[training], ridge)
        deviations = _centre(values, centre, held_out) - probe.mean[:, None]
        scores[held_out] = probe.intercept + probe.coefficients @ deviations
    return scores


@dataclass(frozen=True)
class _Probe:
    """score = intercept + coefficients . (value - mean)."""

    mean: FloatArray
    coefficients: FloatArray
    intercept: float


@dataclass(frozen=True)
class _FoldMoments:
    """Sums over the samples of one fold, all a ridge regression needs; they add up over folds."""

    n_samples: int
    sum_labels: float
    sums: FloatArray
    sums_with_labels: FloatArray
    products: FloatArray
    lowest: FloatArray
    highest: FloatArray


def _average_finite(values: ValueArray) -> FloatArray:
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


def _measure_fold(centred: FloatArray, labels: FloatArray) -> _FoldMoments:
    return _FoldMoments(
        n_samples=len(labels),
        sum_labels=float(labels.sum()),
        sums=centred.sum(axis=1),
        sums_with_labels=centred @ labels,
        products=centred @ centred.T,
        lowest=centred.min(axis=1, initial=np.inf),
        highest=centred.max(axis=1, initial=-np.inf),
    )


def _fit_from_moments(parts: Sequence[_FoldMoments], ridge: float) -> _Probe:
    """Fit by the (unit, unit) normal equations: for no more units than training rows.

    The other folds are added up rather than one subtracted from the total, so that an outlier in
    the held-out fold costs no digits.
    """
    n_samples = sum(part.n_samples for part in parts)
    mean = np.sum([part.sums for part in parts], axis=0) / n_samples
    intercept = sum(part.sum_labels for part in parts) / n_samples
    covariance = parts[0].products / n_samples
    for part in parts[1:]:
        covariance += part.products / n_samples
    covariance -= np.outer(mean, mean)
    lowest = np.min([part.lowest for part in parts], axis=0)
    highest = np.max([part.highest for part in parts], axis=0)
    inverse_sd = _invert_sd(np.diag(covariance), lowest == highest)
    system = covariance * n_samples
    system *= inverse_sd[:, None]
    system *= inverse_sd
    target = np.sum([part.sums_with_labels for part in parts], axis=0)
    target = inverse_sd * (target - mean * (n_samples * intercept))
    solution = _solve(system, target, ridge)
    return _Probe(mean, inverse_sd * solution, float(intercept))


def _fit_from_rows(centred: FloatArray, labels: FloatArray, ridge: float) -> _Probe:
    """Fit the same probe by the (sample, sample) kernel: for more units than training rows."""
    mean = centred.mean(axis=1)
    intercept = float(labels.mean())
    is_constant = centred.min(axis=1) == centred.max(axis=1)
    standardised = centred - mean[:, None]
    inverse_sd = _invert_sd(np.square(standardised).mean(axis=1), is_constant)
    standardised *= inverse_sd[:, None]
    system = standardised.T @ standardised
    solution = _solve(system, labels - intercept, ridge)
    return _Probe(mean, inverse_sd * (standardised @ solution), intercept)


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


def estimate_auroc(
    scores: FloatArray, is_toxic: BoolArray, confidence: float
) -> tuple[float, float, float]:
    """Return the AUROC of scores and the ends of its DeLong interval, cut to 0 .. 1.

    DeLong, DeLong and Clarke-Pearson (1988), by mid-ranks as in Sun and Xu (2014): each sample's
    placement is the share of the other class it is ranked above, ties counting one half.

    Args:
        scores: Finite scores, shape (sample,); higher means more toxic.
        is_toxic: Labels, shape (sample,); at least two of each class.
        confidence: Level, e.g. 0.95.
    """
    n_toxic, n_nontoxic = np.count_nonzero(is_toxic), np.count_nonzero(~is_toxic)
    ranks = stats.rankdata(scores)
    toxic_placements = (ranks[is_toxic] - stats.rankdata(scores[is_toxic])) / n_nontoxic
    nontoxic_placements = 1 - (ranks[~is_toxic] - stats.rankdata(scores[~is_toxic])) / n_toxic
    auroc = float(toxic_placements.mean())
    variance = toxic_placements.var(ddof=1) / n_toxic + nontoxic_placements.var(ddof=1) / n_nontoxic
    half_width = float(stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance))
    return auroc, max(0.0, auroc - half_width), min(1.0, auroc + half_width)


def judge_best_neuron(values: ValueArray, is_toxic: BoolArray, folds: IntArray) -> float | None:
    """Return the held-out AUROC of the best unit, chosen without looking at the held-out rows.

    In each fold, the unit with the largest max(a, 1 - a) on the training rows (the first of equal
    ones) is chosen, and the direction in which it points there is kept; its AUROC on the held-out
    rows is averaged over folds. Folds are not pooled, because different units have different
    scales. Values that are not finite are left out.

    Args:
        values: Activations, shape (unit, sample), float16 or float32.
        is_toxic: Labels, shape (sample,).
        folds: Fold of each sample, shape (sample,), at most 20 folds.

    Returns:
        None if no fold has both classes among its held-out and its training rows.
    """
    codes = 2 * folds + is_toxic
    fold_numbers = np.unique(folds)
    step = max(1, VALUES_PER_SORT // values.shape[1])
    training = np.concatenate(
        [
            _rank_each_fold(RankedUnits(values[first : first + step], codes), fold_numbers)
            for first in range(0, values.shape[0], step)
        ],
        axis=1,
    )
    held_out_aurocs = []
    for fold, aurocs in zip(fold_numbers, training, strict=True):
        if np.isnan(aurocs).all():
            continue
        best = int(np.nanargmax(np.abs(aurocs - 0.5)))
        ranked = RankedUnits(values[best : best + 1], codes)
        is_held_out = ranked.codes // 2 == fold
        auroc = _rank_chosen(ranked, is_held_out)[0]
        held_out_aurocs.append(auroc if aurocs[best] >= 0.5 else 1 - auroc)
    judged = np.array(held_out_aurocs)[~np.isnan(held_out_aurocs)]
    return float(judged.mean()) if judged.size else None


def _rank_each_fold(ranked: RankedUnits, fold_numbers: IntArray) -> FloatArray:
    """AUROC of each unit without each of the folds, shape (fold, unit)."""
    return np.array([_rank_chosen(ranked, ranked.codes // 2 != fold) for fold in fold_numbers])


def _rank_chosen(ranked: RankedUnits, chosen: BoolArray) -> FloatArray:
    """AUROC of each unit over the chosen sorted values, shape (unit,)."""
    is_label = chosen & (ranked.codes != LEFT_OUT)
    is_toxic = ranked.codes % 2 == 1
    return ranked.compute_auroc(is_label & is_toxic, is_label & ~is_toxic)


def summarise_neurons(
    neurons: pa.Table, dataset: str, layer: int, site: SitePooling
) -> NeuronSummary:
    """Return mean and shares of max(a, 1 - a) over a layer's units, all languages together.

    Units without an AUROC are left out; all None if none has one.

    Raises:
        ArtifactError: The table has no row for this dataset, layer and site.
    """
    wanted = {
        "dataset": dataset,
        "language": ALL_LANGUAGES,
        "layer": layer,
        "site": site.site.value,
        "pooling": site.pooling.value,
    }
    for name, value in wanted.items():
        neurons = neurons.filter(pc.equal(neurons[name], value))
    if neurons.num_rows == 0:
        raise ArtifactError(
            f"neuron statistics: expected units of {site.column} in layer {layer} of {dataset}, "
            "found none. The table belongs to another layer or dataset. Give the neuron statistics "
            "made from the same activations."
        )
    aurocs = neurons["auroc"].drop_null().to_numpy()
    if not aurocs.size:
        return NeuronSummary()
    oriented = np.maximum(aurocs, 1 - aurocs)
    return NeuronSummary(
        mean_neuron_auroc=float(oriented.mean()),
        share_above_055=float(np.mean(oriented > 0.55)),
        share_above_060=float(np.mean(oriented > 0.60)),
    )
