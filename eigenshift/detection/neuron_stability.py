"""How stable single units are as detectors: bootstrap of the samples, for all units at once.

Reads activation shards and samples; writes `neuron_stability.parquet`. Samples are resampled within
their class, the same resample for all units, so ranks and overlaps are those of one experiment
repeated. A unit's AUROC in a resample is its first-order (influence function) approximation: the
weighted mean of the samples' placements (`ranking.compute_placements`), one product of matrices in
place of as many sorts. What is left out has the size of 1 / sqrt(n_toxic n_nontoxic); a test holds
it against exact resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from eigenshift.base.arrays import BoolArray, FloatArray, ValueArray
from eigenshift.base.schemas import NEURON_STABILITY
from eigenshift.detection.labelled_layers import (
    LabelledLayer,
    open_labelled_layer,
    parse_memory_limit,
    split_units,
)
from eigenshift.detection.ranked_units import MOST_SAMPLES, RankedUnits, split_rows
from eigenshift.detection.ranking import compute_placements, encode_keys
from eigenshift.detection.stages import ResamplingKey, StabilityInputs, StabilityKey
from eigenshift.settings import SitePooling
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.duckdb_files import TableFile
from eigenshift.store.workspace import Workspace

DECIMALS = 10
STORED_BYTES, PLACED_BYTES = 2, 8
"""Of a value as it is usually stored, and of its placement."""
THRESHOLDS = {"share_above_050": 0.50, "share_above_055": 0.55, "share_above_060": 0.60}
"""Share of units whose AUROC is above this: the experts of AurA (Suau et al., 2024) at 0.50."""


def compute_neuron_stability(
    activation_files: Sequence[TableFile],
    sample_files: Sequence[TableFile],
    dataset: str,
    layer: int,
    sites: Sequence[SitePooling],
    key: ResamplingKey,
    workspace: Workspace,
    memory_limit: str = "2GB",
) -> None:
    """Write `neuron_stability.parquet` for one dataset and layer: some rows per site and pooling.

    Holds a (resample, sample) and a (unit, resample) matrix of float64, and two blocks of units.

    Args:
        activation_files: Activation shards; together one row per layer and sample.
        sample_files: Samples with labels; samples without a label are left out.
        dataset: Name of the dataset.
        layer: 0 = first layer.
        sites: Sites and poolings, in the order of the rows.
        key: Resamples, top units, seed, confidence.
        workspace: Where the table is written; it has no rows where a class has no samples.
        memory_limit: DuckDB's limit; no number depends on it.

    Raises:
        ArtifactError: The shards disagree or lack a site.
    """
    rows: list[dict[str, Any]] = []
    with open_labelled_layer(
        activation_files, sample_files, dataset, layer, memory_limit, workspace.folder
    ) as labelled:
        is_toxic = labelled.is_toxic
        if is_toxic.any() and not is_toxic.all():
            weights = draw_weights(is_toxic, key.n_resamples, key.seed)
            for site in sites:
                aurocs = _resample_site(labelled, site, weights, parse_memory_limit(memory_limit))
                rows += [
                    {
                        "dataset": dataset,
                        "layer": layer,
                        "site": site.site.value,
                        "pooling": site.pooling.value,
                        "n_resamples": key.n_resamples,
                        **row,
                    }
                    for row in describe_stability(aurocs, key)
                ]
    workspace.write_rows(tables.NEURON_STABILITY.file, rows, NEURON_STABILITY)


def draw_weights(is_toxic: BoolArray, n_resamples: int, seed: int) -> FloatArray:
    """Return each sample's weight in its class's mean, shape (resample + 1, sample).

    Row 0 is the samples themselves; the others are multinomial draws with as many of each class.
    """
    generator = np.random.default_rng(seed)
    weights = np.empty((n_resamples + 1, len(is_toxic)))
    for is_class in (is_toxic, ~is_toxic):
        n_class = int(np.count_nonzero(is_class))
        draws = generator.multinomial(n_class, np.full(n_class, 1 / n_class), size=n_resamples)
        weights[:, is_class] = np.vstack([np.ones(n_class), draws]) / n_class
    return weights


def resample_aurocs(values: ValueArray, is_toxic: BoolArray, weights: FloatArray) -> FloatArray:
    """Return the AUROC of units in each resample, shape (unit, resample + 1).

    Args:
        values: Activations, shape (unit, sample); one that is not finite moves nothing.
        is_toxic: Labels, shape (sample,).
        weights: As `draw_weights` gives them.

    Returns:
        NaN for a unit without finite values of both classes.
    """
    placements, aurocs = _place(values, is_toxic)
    # Equal units stay equal: a product of matrices sums in an order of its own.
    resampled: FloatArray = np.round(placements @ weights.T - aurocs[:, None], DECIMALS)
    return resampled


def _place(values: ValueArray, is_toxic: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Placements of all values, a unit's AUROC where one is not finite, and the AUROCs."""
    placements, aurocs = np.empty(values.shape), np.empty(len(values))
    if values.shape[1] <= MOST_SAMPLES:
        for rows in split_rows(*values.shape):
            ranked = RankedUnits.of_values(values[rows], is_toxic)
            aurocs[rows] = ranked.compute_aurocs()
            is_finite = np.isfinite(values[rows])
            found = ranked.compute_placements()
            placements[rows] = np.where(is_finite, found, aurocs[rows, None])
        return placements, aurocs
    for unit, row in enumerate(values):
        is_finite = np.isfinite(row)
        labels = is_toxic[is_finite]
        if labels.all() or not labels.any():
            placements[unit] = aurocs[unit] = np.nan
            continue
        found = compute_placements(encode_keys(row[is_finite]), labels)
        aurocs[unit] = found[labels].mean()
        placements[unit] = aurocs[unit]
        placements[unit, is_finite] = found
    return placements, aurocs


def _resample_site(
    labelled: LabelledLayer, site: SitePooling, weights: FloatArray, memory_bytes: int
) -> FloatArray:
    """Blocks as stored, in as few passes over the files as fit; each in blocks of float64."""
    n_units, n_samples = labelled.count_units(site.column), labelled.n_samples
    parts = []
    for first, stop in split_units(n_units, STORED_BYTES * n_samples, memory_bytes):
        values = labelled.read_units(site.column, first, stop)
        parts += [
            resample_aurocs(values[start:end], labelled.is_toxic, weights)
            for start, end in split_units(len(values), PLACED_BYTES * n_samples, memory_bytes)
        ]
    return np.concatenate(parts)


def describe_stability(aurocs: FloatArray, key: ResamplingKey) -> list[dict[str, Any]]:
    """Compare the resamples with the samples themselves.

    Args:
        aurocs: Shape (unit, resample + 1), the first column being the samples themselves.
        key: Top units and confidence.

    Returns:
        A row per metric: overlap of the `top_units` by AUROC, Spearman's rank correlation, shares
        of units above thresholds, mean and best AUROC. Without units that have an AUROC, none.
    """
    aurocs = aurocs[~np.isnan(aurocs[:, 0])]
    if not len(aurocs):
        return []
    top_k = min(key.top_units, len(aurocs))
    overlaps = [measure_overlap(aurocs[:, 0], column, top_k) for column in aurocs[:, 1:].T]
    ranks = stats.rankdata(aurocs, axis=0)
    measured: dict[str, tuple[float, FloatArray]] = {
        "top_overlap": (float(np.mean(overlaps)), np.array(overlaps)),
        "mean_auroc": (float(aurocs[:, 0].mean()), aurocs[:, 1:].mean(axis=0)),
        "best_auroc": (float(aurocs[:, 0].max()), aurocs[:, 1:].max(axis=0)),
    }
    correlations = correlate_ranks(ranks[:, :1], ranks[:, 1:])
    if not np.isnan(correlations).any():
        measured["rank_correlation"] = float(correlations.mean()), correlations
    for name, threshold in THRESHOLDS.items():
        shares = np.mean(aurocs > threshold, axis=0)
        measured[name] = float(shares[0]), shares[1:]
    tail = (1 - key.confidence) / 2
    return [
        {
            "metric": name,
            "value": value,
            "low": float(np.quantile(draws, tail)),
            "high": float(np.quantile(draws, 1 - tail)),
            "top_k": top_k,
            "n_units": len(aurocs),
        }
        for name, (value, draws) in measured.items()
    ]


def measure_overlap(aurocs: FloatArray, other_aurocs: FloatArray, top_k: int) -> float:
    """Share of the `top_k` units by AUROC that two rankings have in common."""
    chosen, other = (
        set(np.argsort(-column, kind="stable")[:top_k]) for column in (aurocs, other_aurocs)
    )
    return len(chosen & other) / top_k


def correlate_ranks(ranks: FloatArray, other_ranks: FloatArray) -> FloatArray:
    """Pearson correlation of columns of ranks, (unit, 1) against (unit, n) -> (n,): Spearman's.

    NaN where all ranks of a column are equal.
    """
    one, other = ranks - ranks.mean(axis=0), other_ranks - other_ranks.mean(axis=0)
    norms = np.sqrt(np.square(one).sum(axis=0) * np.square(other).sum(axis=0))
    with np.errstate(invalid="ignore"):
        return np.asarray((one * other).sum(axis=0) / norms)


def carry_out(
    inputs: StabilityInputs, key: StabilityKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `compute_neuron_stability`."""
    locate = bench.artifacts.locate
    compute_neuron_stability(
        [locate(file) for file in inputs.shards.activations],
        [locate(file) for file in inputs.shards.samples],
        key.dataset,
        key.layer,
        key.sites,
        key.statistics,
        workspace,
        bench.execution.duckdb_memory_limit,
    )
