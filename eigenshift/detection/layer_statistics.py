"""Layer statistics: does a whole layer tell toxic from non-toxic better than its best unit?

Reads activation shards, samples and the neurons table; writes `layers.parquet`. Everything but the
clusters is judged on held-out rows: the probe, the single unit it is compared with, which is chosen
anew on the training rows of each fold, and the mean over units, each turned as the training rows
say. Clusters see no labels. A sample's fold is a digest of its id, so it never changes when data is
added. Fitting and intervals are in `probes.py`, what one dataset says of another in
`layer_transfers.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.cluster.vq import kmeans2

from eigenshift.base.arrays import BoolArray, FloatArray, IntArray, ValueArray
from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import LAYERS
from eigenshift.detection.labelled_layers import LabelledLayer, open_labelled_layer
from eigenshift.detection.neuron_statistics import ALL_LANGUAGES
from eigenshift.detection.probes import (
    ProbeStatistics,
    assign_folds,
    average_finite,
    cross_validate_probe,
    find_obstacle,
    judge_scores,
)
from eigenshift.detection.ranked_units import MOST_SAMPLES, RankedUnits, split_rows
from eigenshift.detection.ranking import compute_fold_aurocs, encode_keys
from eigenshift.detection.stages import LayerInputs, LayerKey, ProbeKey
from eigenshift.settings import SitePooling
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.duckdb_files import TableFile
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


N_CLUSTER_STARTS = 3


@dataclass(frozen=True)
class HeldOutUnits:
    """Single units on rows that took no part in choosing or turning them."""

    best_neuron_auroc: float | None = None
    mean_neuron_heldout_auroc: float | None = None


@dataclass(frozen=True)
class ClusterStatistics:
    """How far two clusters, found without labels, are the two classes."""

    cluster_auroc: float | None = None
    cluster_accuracy: float | None = None


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
    key: ProbeKey,
    workspace: Workspace,
    memory_limit: str = "2GB",
) -> None:
    """Write `layers.parquet` for one dataset and layer: one row per site and pooling.

    A site's activations are held in memory as stored, plus one fold of them in float64 and one
    (unit, unit) matrix per fold, or, where a layer has more units than training rows, the training
    rows in float64; for the clusters all of them in float32. `max_probe_samples` bounds that.

    Args:
        activation_files: Activation shards; together one row per layer and sample.
        sample_files: Samples with labels; samples without a label are left out.
        neurons: Neuron statistics (`schemas.NEURONS`) of at least this dataset and layer.
        dataset: Name of the dataset.
        layer: 0 = first layer.
        sites: Sites and poolings, in the order of the rows.
        key: Folds, ridge penalty, confidence, most samples.
        workspace: Where the table is written.
        memory_limit: DuckDB's limit; no number depends on it.

    Raises:
        ArtifactError: The shards disagree or lack a site, or the neurons table lacks one.
    """
    started = time.perf_counter()
    rows = []
    n_imputed = 0
    with open_labelled_layer(
        activation_files,
        sample_files,
        dataset,
        layer,
        memory_limit,
        workspace.folder,
        key.max_probe_samples,
    ) as labelled:
        folds = assign_folds(labelled.sample_ids, key.n_folds)
        is_toxic = labelled.is_toxic
        reason = find_obstacle(is_toxic, folds, key.n_folds)
        for site in sites:
            probe, units, clusters = ProbeStatistics(), HeldOutUnits(), ClusterStatistics()
            if reason is None:
                values = read_site(labelled, site)
                n_imputed += int(np.count_nonzero(~np.isfinite(values)))
                scores = cross_validate_probe(values, is_toxic, folds, key.n_folds, key.ridge)
                probe = judge_scores(scores, is_toxic, key.confidence)
                units = judge_units(values, is_toxic, folds, key.n_folds)
                clusters = judge_clusters(values, is_toxic)
            rows.append(
                {
                    "dataset": dataset,
                    "layer": layer,
                    "site": site.site.value,
                    "pooling": site.pooling.value,
                    **asdict(probe),
                    **asdict(units),
                    **asdict(clusters),
                    **asdict(summarise_neurons(neurons, dataset, layer, site)),
                    "n_toxic": int(np.count_nonzero(is_toxic)),
                    "n_nontoxic": int(np.count_nonzero(~is_toxic)),
                    "n_folds": key.n_folds,
                    "reason": reason,
                }
            )
    workspace.write_rows(tables.LAYERS.file, rows, LAYERS)
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


def read_site(labelled: LabelledLayer, site: SitePooling) -> ValueArray:
    """All units of a site, shape (unit, sample)."""
    return labelled.read_units(site.column, 0, labelled.count_units(site.column))


def judge_units(
    values: ValueArray, is_toxic: BoolArray, folds: IntArray, n_folds: int
) -> HeldOutUnits:
    """Judge the best and the mean single unit on rows that did not choose or turn them.

    In each fold, the best unit has the largest max(a, 1 - a) on the training rows (the first of
    equal ones); every unit keeps the direction in which it points there. AUROCs on the held-out
    rows are averaged over folds. Folds are not pooled, because different units have different
    scales. Values that are not finite are left out.

    Args:
        values: Activations, shape (unit, sample), float16 or float32.
        is_toxic: Labels, shape (sample,).
        folds: Fold of each sample, shape (sample,).
        n_folds: Number of folds.

    Returns:
        None where no fold has both classes among its held-out and its training rows.
    """
    training, held_out = _judge_folds(values, is_toxic, folds, n_folds)
    turned = np.where(training >= 0.5, held_out, 1 - held_out)
    turned[np.isnan(training)] = np.nan
    strength = np.where(np.isnan(turned), -1.0, np.abs(training - 0.5))
    is_judged = ~np.isnan(turned).all(axis=1)
    if not is_judged.any():
        return HeldOutUnits()
    best = turned[np.arange(n_folds), strength.argmax(axis=1)]
    return HeldOutUnits(
        float(best[is_judged].mean()), float(np.nanmean(turned[is_judged], axis=1).mean())
    )


def _judge_folds(
    values: ValueArray, is_toxic: BoolArray, folds: IntArray, n_folds: int
) -> tuple[FloatArray, FloatArray]:
    """Each unit's AUROC outside and within each fold, shape (fold, unit) each."""
    training = np.empty((n_folds, len(values)))
    held_out = np.empty_like(training)
    if values.shape[1] <= MOST_SAMPLES:
        for rows in split_rows(*values.shape):
            ranked = RankedUnits.of_values(values[rows], is_toxic)
            training[:, rows], held_out[:, rows] = ranked.compute_fold_aurocs(folds, n_folds)
        return training, held_out
    for unit, row in enumerate(values):
        is_finite = np.isfinite(row)
        training[:, unit], held_out[:, unit] = compute_fold_aurocs(
            encode_keys(row[is_finite]), is_toxic[is_finite], folds[is_finite], n_folds
        )
    return training, held_out


def judge_clusters(values: ValueArray, is_toxic: BoolArray) -> ClusterStatistics:
    """Split the samples into two clusters without their labels, then compare with the labels.

    The paper's layer measure: k-means (k = 2, k-means++, the best of a few starts) on standardised
    units. Which cluster is called toxic is chosen so as to agree best, so neither number is below
    one half: AUROC of the assignment, and accuracy. Values that are not finite count as the mean.

    Args:
        values: Activations, shape (unit, sample).
        is_toxic: Labels, both classes present, shape (sample,).
    """
    points = _standardise(values)
    starts = [
        kmeans2(points, 2, minit="++", missing="warn", rng=seed) for seed in range(N_CLUSTER_STARTS)
    ]
    spreads = [np.square(points - centroids[assigned]).sum() for centroids, assigned in starts]
    _, assigned = starts[int(np.argmin(spreads))]
    is_second = assigned == 1
    share_toxic, share_nontoxic = is_second[is_toxic].mean(), is_second[~is_toxic].mean()
    agreement = np.mean(is_second == is_toxic)
    return ClusterStatistics(
        cluster_auroc=float(0.5 + abs(share_toxic - share_nontoxic) / 2),
        cluster_accuracy=float(max(agreement, 1 - agreement)),
    )


def _standardise(values: ValueArray) -> FloatArray:
    """Samples in rows; units have mean 0 and standard deviation 1, constant ones are 0."""
    points = values.astype(np.float32)
    points -= average_finite(values).astype(np.float32)[:, None]
    points[~np.isfinite(points)] = 0.0
    spread = np.sqrt(np.mean(np.square(points), axis=1, dtype=np.float64))
    points /= np.where(spread > 0, spread, 1).astype(np.float32)[:, None]
    return np.ascontiguousarray(points.T)


def summarise_neurons(
    neurons: pa.Table, dataset: str, layer: int, site: SitePooling
) -> NeuronSummary:
    """Return mean and shares of max(a, 1 - a) over a layer's units, all languages together.

    Units without an AUROC are left out; all None if none has one.

    Raises:
        ArtifactError: The table has no row for this dataset, layer and site.
    """
    aurocs = select_aurocs(neurons, dataset, layer, site)
    aurocs = aurocs[~np.isnan(aurocs)]
    if not aurocs.size:
        return NeuronSummary()
    oriented = np.maximum(aurocs, 1 - aurocs)
    return NeuronSummary(
        mean_neuron_auroc=float(oriented.mean()),
        share_above_055=float(np.mean(oriented > 0.55)),
        share_above_060=float(np.mean(oriented > 0.60)),
    )


def select_aurocs(neurons: pa.Table, dataset: str, layer: int, site: SitePooling) -> FloatArray:
    """AUROC of a layer's units over all languages, shape (unit,); NaN where a unit has none.

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
    aurocs: FloatArray = neurons.sort_by("neuron_index")["auroc"].to_numpy()
    return aurocs


def carry_out(inputs: LayerInputs, key: LayerKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `compute_layer_statistics`."""
    artifacts = bench.artifacts
    compute_layer_statistics(
        [artifacts.locate(file) for file in inputs.shards.activations],
        [artifacts.locate(file) for file in inputs.shards.samples],
        artifacts.read_table(inputs.neurons),
        key.dataset,
        key.layer,
        key.sites,
        key.statistics,
        workspace,
        bench.execution.duckdb_memory_limit,
    )
