"""What one dataset says about another: probes, best units and rankings carried over.

Reads the activation shards, samples and neurons tables of two datasets or more; writes
`layer_transfers.parquet`: for each ordered pair, a probe fitted on all rows of the one and judged
on all rows of the other, and single units chosen and turned on the one and judged on the other.
Within one dataset see `layer_statistics.py` and `neuron_stability.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from eigenshift.base.arrays import FloatArray
from eigenshift.base.schemas import LAYER_TRANSFERS
from eigenshift.detection.labelled_layers import LabelledLayer, open_labelled_layer
from eigenshift.detection.layer_statistics import read_site, select_aurocs
from eigenshift.detection.neuron_stability import correlate_ranks, measure_overlap
from eigenshift.detection.probes import ProbeStatistics, judge_scores, transfer_probe
from eigenshift.detection.stages import TransferInputs, TransferKey, TransferProbeKey
from eigenshift.settings import SitePooling
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.duckdb_files import TableFile
from eigenshift.store.workspace import Workspace


@dataclass(frozen=True)
class DatasetFiles:
    """One dataset's activations, samples and neuron statistics of a layer."""

    dataset: str
    activation_files: Sequence[TableFile]
    sample_files: Sequence[TableFile]
    neurons: pa.Table


@dataclass(frozen=True)
class UnitTransfer:
    """Single units carried from one dataset to another."""

    best_neuron_auroc: float | None = None
    mean_neuron_auroc: float | None = None
    top_k: int | None = None
    top_overlap: float | None = None
    rank_correlation: float | None = None


def compute_layer_transfers(
    datasets: Sequence[DatasetFiles],
    layer: int,
    sites: Sequence[SitePooling],
    key: TransferProbeKey,
    workspace: Workspace,
    memory_limit: str = "2GB",
) -> None:
    """Write `layer_transfers.parquet` for one layer: a row per site and ordered pair of datasets.

    Holds the site's activations of two datasets, and those of one in float64.

    Args:
        datasets: Two or more, each with its files.
        layer: 0 = first layer.
        sites: Sites and poolings, in the order of the rows.
        key: Ridge penalty, confidence, top units, most samples.
        workspace: Where the table is written.
        memory_limit: DuckDB's limit; no number depends on it.

    Raises:
        ArtifactError: The shards disagree or lack a site.
    """
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        layers = {
            files.dataset: stack.enter_context(
                open_labelled_layer(
                    files.activation_files,
                    files.sample_files,
                    files.dataset,
                    layer,
                    memory_limit,
                    workspace.folder,
                    key.max_probe_samples,
                )
            )
            for files in datasets
        }
        for site in sites:
            for training, judged in permutations(datasets, 2):
                source, target = layers[training.dataset], layers[judged.dataset]
                reason = _find_obstacle(source, target)
                probe = ProbeStatistics()
                if reason is None:
                    scores = transfer_probe(
                        read_site(source, site),
                        source.is_toxic,
                        read_site(target, site),
                        key.ridge,
                    )
                    probe = judge_scores(scores, target.is_toxic, key.confidence)
                units = transfer_units(
                    select_aurocs(training.neurons, training.dataset, layer, site),
                    select_aurocs(judged.neurons, judged.dataset, layer, site),
                    key.top_units,
                )
                rows.append(
                    {
                        "dataset": judged.dataset,
                        "training_dataset": training.dataset,
                        "layer": layer,
                        "site": site.site.value,
                        "pooling": site.pooling.value,
                        **asdict(probe),
                        **asdict(units),
                        "n_toxic": int(np.count_nonzero(target.is_toxic)),
                        "n_nontoxic": int(np.count_nonzero(~target.is_toxic)),
                        "reason": reason,
                    }
                )
    workspace.write_rows(tables.LAYER_TRANSFERS.file, rows, LAYER_TRANSFERS)


def _find_obstacle(source: LabelledLayer, target: LabelledLayer) -> str | None:
    """Why no probe can be fitted on the one and judged on the other, None if one can."""
    for place, layer, n_least in (("training", source, 1), ("judged", target, 2)):
        for name, chosen in (("toxic", layer.is_toxic), ("nontoxic", ~layer.is_toxic)):
            if np.count_nonzero(chosen) < n_least:
                return f"too_few_{name}_{place}_samples"
    return None


def transfer_units(aurocs: FloatArray, other_aurocs: FloatArray, top_units: int) -> UnitTransfer:
    """Judge units chosen and turned on one dataset by their AUROCs on another.

    Args:
        aurocs: On the dataset that chooses and turns, shape (unit,); NaN where there is none.
        other_aurocs: On the dataset that judges, shape (unit,).
        top_units: Units to compare; fewer where there are not as many.
    """
    is_known = ~np.isnan(aurocs) & ~np.isnan(other_aurocs)
    aurocs, other_aurocs = aurocs[is_known], other_aurocs[is_known]
    if not len(aurocs):
        return UnitTransfer()
    turned = np.where(aurocs >= 0.5, other_aurocs, 1 - other_aurocs)
    top_k = min(top_units, len(aurocs))
    ranks = stats.rankdata(aurocs)[:, None], stats.rankdata(other_aurocs)[:, None]
    (correlation,) = correlate_ranks(*ranks).tolist()
    return UnitTransfer(
        best_neuron_auroc=float(turned[np.abs(aurocs - 0.5).argmax()]),
        mean_neuron_auroc=float(turned.mean()),
        top_k=top_k,
        top_overlap=measure_overlap(aurocs, other_aurocs, top_k),
        rank_correlation=None if np.isnan(correlation) else correlation,
    )


def carry_out(inputs: TransferInputs, key: TransferKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `compute_layer_transfers`."""
    artifacts = bench.artifacts
    datasets = [
        DatasetFiles(
            dataset,
            [artifacts.locate(file) for file in shards.activations],
            [artifacts.locate(file) for file in shards.samples],
            artifacts.read_table(neurons),
        )
        for dataset, shards, neurons in zip(
            key.datasets, inputs.shards, inputs.neurons, strict=True
        )
    ]
    limit = bench.execution.duckdb_memory_limit
    compute_layer_transfers(datasets, key.layer, key.sites, key.statistics, workspace, limit)
