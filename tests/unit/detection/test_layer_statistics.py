"""Layer statistics against scikit-learn and plain loops."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import LAYERS
from eigenshift.detection.layer_statistics import (
    HeldOutUnits,
    compute_layer_statistics,
    judge_clusters,
    judge_units,
    summarise_neurons,
)
from eigenshift.detection.probes import assign_folds, cross_validate_probe
from eigenshift.settings import StatisticsSettings
from eigenshift.store.workspace import Workspace
from tests.support.activation_shards import (
    MLP_MAX,
    RESIDUAL_MEAN,
    compute_neurons,
    write_samples,
    write_shard,
)
from tests.support.labelled_values import make_ids, make_layer

# --- single units -----------------------------------------------------------------------------


def test_best_neuron_equals_a_plain_loop():
    """Choosing by training rows and judging by held-out rows gives what scikit-learn loops give."""
    values, is_toxic = make_layer(150, 25)
    values = np.round(values, 1)  # ties
    folds = assign_folds(make_ids(150), 4)
    held_out, means = [], []
    for fold in range(4):
        training = folds != fold
        aurocs = np.array([roc_auc_score(is_toxic[training], unit[training]) for unit in values])
        best = int(np.argmax(np.maximum(aurocs, 1 - aurocs)))
        auroc = roc_auc_score(is_toxic[~training], values[best, ~training])
        held_out.append(auroc if aurocs[best] >= 0.5 else 1 - auroc)
        judged = np.array([roc_auc_score(is_toxic[~training], unit[~training]) for unit in values])
        means.append(np.where(aurocs >= 0.5, judged, 1 - judged).mean())
    found = judge_units(values, is_toxic, folds, 4)
    assert found.best_neuron_auroc == pytest.approx(np.mean(held_out), abs=1e-12)
    assert found.mean_neuron_heldout_auroc == pytest.approx(np.mean(means), abs=1e-12)


def test_units_without_finite_values_are_not_judged():
    """Values that are not finite are left out; a unit of nothing else is never the best."""
    values, is_toxic = make_layer(150, 6)
    values = values.astype(np.float32)
    folds = assign_folds(make_ids(150), 4)
    expected = judge_units(values[1:], is_toxic, folds, 4)
    values[0] = np.nan
    assert judge_units(values, is_toxic, folds, 4) == expected
    assert judge_units(values[:1], is_toxic, folds, 4) == HeldOutUnits()


def test_best_neuron_of_noise_is_near_one_half():
    """The best of a thousand meaningless units is not rewarded for having been chosen."""
    generator = np.random.default_rng(2)
    values = generator.normal(size=(1000, 300)).astype(np.float16)
    is_toxic = generator.random(300) < 0.3
    in_sample = max(abs(roc_auc_score(is_toxic, unit) - 0.5) for unit in values)
    honest = judge_units(values, is_toxic, assign_folds(make_ids(300), 5), 5)
    assert in_sample > 0.1
    assert abs(honest.best_neuron_auroc - 0.5) < 0.08
    assert abs(honest.mean_neuron_heldout_auroc - 0.5) < 0.02


# --- clusters ---------------------------------------------------------------------------------


def test_clusters_that_are_the_classes_are_found_whatever_they_are_called():
    """Two far classes: both measures are 1, with the labels or with their opposite."""
    generator = np.random.default_rng(3)
    is_toxic = np.arange(120) % 4 == 0
    values = generator.normal(size=(6, 120)) * 10.0 ** np.arange(-3, 3)[:, None]
    values += 8 * 10.0 ** np.arange(-3, 3)[:, None] * is_toxic
    for labels in (is_toxic, ~is_toxic):
        found = judge_clusters(values.astype(np.float32), labels)
        assert (found.cluster_auroc, found.cluster_accuracy) == (1.0, 1.0)


def test_clusters_agree_with_scikit_learn():
    """The best of a few starts is the split scikit-learn finds."""
    values, is_toxic = make_layer(300, 8, seed=6)
    values[:4] += (3 * (np.arange(300) % 3 == 0)).astype(np.float16) * 5
    points = StandardScaler().fit_transform(values.T.astype(np.float64))
    assigned = KMeans(2, n_init=10, random_state=0).fit_predict(points)
    found = judge_clusters(values, is_toxic)
    agreement = np.mean(assigned == is_toxic)
    assert found.cluster_accuracy == pytest.approx(max(agreement, 1 - agreement))
    auroc = roc_auc_score(is_toxic, assigned)
    assert found.cluster_auroc == pytest.approx(max(auroc, 1 - auroc))


def test_clusters_ignore_values_that_are_not_finite_and_constant_units():
    """They count as the unit's mean; nothing becomes NaN."""
    values, is_toxic = make_layer(100, 5)
    values = values.astype(np.float32)
    values[0], values[1, 3], values[2, 4] = 2.5, np.nan, np.inf
    found = judge_clusters(values, is_toxic)
    assert 0.5 <= found.cluster_auroc <= 1
    assert 0.5 <= found.cluster_accuracy <= 1


# --- the table --------------------------------------------------------------------------------


def run_stage(folder: Path, values: np.ndarray, is_toxic: list[bool | None], **settings) -> dict:
    """Write shards, compute both tables of layer 0 and return the one row of `layers.parquet`."""
    ids = make_ids(values.shape[1])
    samples = write_samples(folder / "samples.parquet", ids, is_toxic)
    shards = [
        write_shard(folder / f"{part[0]}.parquet", [ids[i] for i in part], [{column: rows}])
        for part in np.array_split(np.arange(len(ids)), 2)
        for column, rows in {MLP_MAX.column: values.T[part]}.items()
    ]
    (folder / "out").mkdir()
    workspace = Workspace(folder / "out")
    neurons = compute_neurons(shards, samples, workspace)
    compute_layer_statistics(
        shards,
        [samples],
        neurons,
        "demo",
        0,
        [MLP_MAX],
        StatisticsSettings(**settings),
        workspace,
        "500MB",
    )
    table = pq.read_table(workspace.path("layers.parquet"))
    assert table.schema.equals(LAYERS)
    assert table.num_rows == 1
    return table.to_pylist()[0] | {"aurocs": neurons["auroc"].to_numpy(zero_copy_only=False)}


def test_row_puts_probe_and_units_side_by_side(tmp_path):
    """The row holds the probe, the best unit and the summary of all units of the layer."""
    values, is_toxic = make_layer(200, 15)
    row = run_stage(tmp_path, values, is_toxic.tolist())
    folds = assign_folds(make_ids(200), 5)
    oriented = np.maximum(row["aurocs"], 1 - row["aurocs"])
    assert row["mean_neuron_auroc"] == pytest.approx(oriented.mean())
    assert row["share_above_055"] == pytest.approx(np.mean(oriented > 0.55))
    assert row["share_above_060"] == pytest.approx(np.mean(oriented > 0.60))
    expected = judge_units(values, is_toxic, folds, 5)
    assert row["best_neuron_auroc"] == expected.best_neuron_auroc
    assert row["mean_neuron_heldout_auroc"] == expected.mean_neuron_heldout_auroc
    assert row["probe_auroc_low"] < row["probe_auroc"] < row["probe_auroc_high"]
    assert (row["n_toxic"], row["n_nontoxic"]) == (is_toxic.sum(), (~is_toxic).sum())
    for name in ("probe_accuracy", "probe_f1"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert row["reason"] is None


def test_too_many_samples_are_thinned_by_their_ids(tmp_path):
    """The row is that of the samples with the smallest md5 of their ids, and of no others."""
    values, is_toxic = make_layer(300, 15)
    row = run_stage(tmp_path, values, is_toxic.tolist(), max_probe_samples=120)
    ids = make_ids(300)
    digests = [hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in ids]
    kept = np.sort(np.argsort(digests)[:120])
    kept = kept[np.argsort([ids[index] for index in kept])]
    values, is_toxic = values[:, kept], is_toxic[kept]
    folds = assign_folds([ids[index] for index in kept], 5)
    assert (row["n_toxic"], row["n_nontoxic"]) == (is_toxic.sum(), (~is_toxic).sum())
    assert row["best_neuron_auroc"] == judge_units(values, is_toxic, folds, 5).best_neuron_auroc
    scores = cross_validate_probe(values, is_toxic, folds, 5, 1.0)
    assert row["probe_auroc"] == pytest.approx(roc_auc_score(is_toxic, scores))


@pytest.mark.parametrize(
    ("n_toxic", "reason"),
    [
        (0, "no_toxic_samples"),
        (3, "fewer_toxic_samples_than_folds"),
        (60, "no_nontoxic_samples"),
    ],
)
def test_too_few_of_a_class_gives_nulls_with_a_reason(tmp_path, n_toxic, reason):
    """Without enough of both classes there is no probe, and the row says why."""
    values, _ = make_layer(60, 5)
    row = run_stage(tmp_path, values, [index < n_toxic for index in range(60)])
    assert row["reason"] == reason
    assert row["probe_auroc"] is row["best_neuron_auroc"] is row["probe_f1"] is None
    assert row["n_toxic"] == n_toxic


def test_neurons_of_another_layer_are_refused(tmp_path):
    """A neurons table without the layer is an error, not a row of nulls."""
    values, is_toxic = make_layer(60, 5)
    run_stage(tmp_path, values, is_toxic.tolist())
    neurons = pq.read_table(tmp_path / "out" / "neurons.parquet")
    with pytest.raises(ArtifactError, match="residual_mean in layer 0 of demo"):
        summarise_neurons(neurons, "demo", 0, RESIDUAL_MEAN)
