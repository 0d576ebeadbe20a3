"""Probes and units carried from one dataset to another, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from eigenshift.base.schemas import LAYER_TRANSFERS
from eigenshift.detection.layer_transfers import (
    DatasetFiles,
    UnitTransfer,
    compute_layer_transfers,
    transfer_units,
)
from eigenshift.detection.probes import transfer_probe
from eigenshift.settings import StatisticsSettings
from eigenshift.store.workspace import Workspace
from tests.support.activation_shards import MLP_MAX, compute_neurons, write_samples, write_shard
from tests.support.labelled_values import make_ids, make_layer


def write_dataset(
    folder: Path, dataset: str, values: np.ndarray, is_toxic: np.ndarray
) -> DatasetFiles:
    """One shard, its samples and its neurons table."""
    folder = folder / dataset
    folder.mkdir()
    ids = make_ids(values.shape[1])
    samples = write_samples(folder / "samples.parquet", ids, is_toxic.tolist(), dataset=dataset)
    shard = write_shard(folder / "shard.parquet", ids, [{MLP_MAX.column: values.T}])
    neurons = compute_neurons([shard], samples, Workspace(folder), dataset)
    return DatasetFiles(dataset, [shard], [samples], neurons)


def test_each_ordered_pair_has_a_row(tmp_path):
    """The probe and the units are chosen on one dataset and judged on all rows of the other."""
    one, one_toxic = make_layer(150, 12, seed=0)
    two, two_toxic = make_layer(90, 12, seed=1)
    datasets = [
        write_dataset(tmp_path, "one", one, one_toxic),
        write_dataset(tmp_path, "two", two, two_toxic),
    ]
    settings = StatisticsSettings(top_units=4)
    compute_layer_transfers(datasets, 0, [MLP_MAX], settings, Workspace(tmp_path), "500MB")
    table = pq.read_table(tmp_path / "layer_transfers.parquet")
    assert table.schema.equals(LAYER_TRANSFERS)
    rows = {(row["training_dataset"], row["dataset"]): row for row in table.to_pylist()}
    assert set(rows) == {("one", "two"), ("two", "one")}
    row = rows["one", "two"]
    scores = transfer_probe(one, one_toxic, two, settings.ridge)
    assert row["probe_auroc"] == pytest.approx(roc_auc_score(two_toxic, scores))
    assert row["probe_auroc_low"] < row["probe_auroc"] < row["probe_auroc_high"]
    aurocs = np.array([roc_auc_score(one_toxic, unit) for unit in one])
    judged = np.array([roc_auc_score(two_toxic, unit) for unit in two])
    turned = np.where(aurocs >= 0.5, judged, 1 - judged)
    assert row["best_neuron_auroc"] == pytest.approx(turned[np.abs(aurocs - 0.5).argmax()])
    assert row["mean_neuron_auroc"] == pytest.approx(turned.mean())
    assert row["rank_correlation"] == pytest.approx(spearmanr(aurocs, judged).statistic)
    overlap = len(set(np.argsort(-aurocs)[:4]) & set(np.argsort(-judged)[:4])) / 4
    assert row["top_overlap"] == rows["two", "one"]["top_overlap"] == overlap
    assert (row["n_toxic"], row["n_nontoxic"]) == (two_toxic.sum(), (~two_toxic).sum())
    assert row["reason"] is None


def test_a_dataset_of_one_class_gives_a_row_with_a_reason(tmp_path):
    """Neither a probe nor units can be carried to or from it; the row says why."""
    one, one_toxic = make_layer(60, 4, seed=0)
    two, two_toxic = make_layer(60, 4, seed=1)
    datasets = [
        write_dataset(tmp_path, "one", one, one_toxic),
        write_dataset(tmp_path, "two", two, two_toxic & False),
    ]
    settings = StatisticsSettings()
    compute_layer_transfers(datasets, 0, [MLP_MAX], settings, Workspace(tmp_path), "500MB")
    rows = pq.read_table(tmp_path / "layer_transfers.parquet").to_pylist()
    reasons = {row["dataset"]: row["reason"] for row in rows}
    assert reasons == {
        "two": "too_few_toxic_judged_samples",
        "one": "too_few_toxic_training_samples",
    }
    assert all(row["probe_auroc"] is row["best_neuron_auroc"] is None for row in rows)


def test_units_without_an_auroc_are_left_out():
    """What neither dataset knows is compared with nothing."""
    nothing = np.full(3, np.nan)
    assert transfer_units(nothing, np.array([0.6, 0.5, 0.4]), 2) == UnitTransfer()
    found = transfer_units(np.array([0.9, np.nan, 0.2]), np.array([0.4, 0.9, 0.3]), 50)
    assert found.top_k == 2
    assert found.best_neuron_auroc == 0.4
    assert found.mean_neuron_auroc == pytest.approx((0.4 + 0.7) / 2)
