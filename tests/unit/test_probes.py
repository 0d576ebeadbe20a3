"""Layer statistics against scikit-learn, a bootstrap and plain loops."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eigenshift.aggregation import compute_neuron_statistics
from eigenshift.artifacts import Workspace
from eigenshift.errors import ArtifactError
from eigenshift.probes import (
    assign_folds,
    compute_layer_statistics,
    cross_validate_ridge,
    estimate_auroc,
    evaluate_probe,
    judge_best_neuron,
    summarise_neurons,
)
from eigenshift.schemas import LAYERS
from eigenshift.settings import StatisticsSettings
from tests.support.activation_shards import MLP_MAX, RESIDUAL_MEAN, write_samples, write_shard

SETTINGS = StatisticsSettings()


def make_ids(n_samples: int) -> list[str]:
    """Ids as a run has them, already in ascending order."""
    return [f"demo-{index:05d}" for index in range(n_samples)]


def make_layer(n_samples: int, n_units: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values (unit, sample) in float16 with a weak signal and uneven scales, and labels."""
    generator = np.random.default_rng(seed)
    is_toxic = generator.random(n_samples) < 0.3
    values = generator.normal(size=(n_units, n_samples))
    values += 0.6 * generator.normal(size=(n_units, 1)) * is_toxic / np.sqrt(n_units / 10)
    values *= np.exp(generator.normal(size=(n_units, 1)))
    values += 5 * generator.normal(size=(n_units, 1))
    return values.astype(np.float16), is_toxic


def score_with_scikit_learn(values: np.ndarray, is_toxic: np.ndarray, folds: np.ndarray):
    """Held-out decision values of the reference pipeline."""
    pipeline = make_pipeline(StandardScaler(), RidgeClassifier(alpha=SETTINGS.ridge))
    return cross_val_predict(
        pipeline,
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
    found = cross_validate_ridge(values, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)
    probe = evaluate_probe(values, is_toxic, folds, SETTINGS)
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
    found = cross_validate_ridge(values, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
    np.testing.assert_allclose(found[folds == 2], expected[folds == 2], rtol=1e-8, atol=1e-9)


def test_large_means_cost_no_digits():
    """A unit whose mean is a thousand times its spread is standardised accurately."""
    values, is_toxic = make_layer(200, 10)
    shifted = values.astype(np.float32)
    shifted[0] = (shifted[0] + np.float32(4096)).astype(np.float32)
    folds = assign_folds(make_ids(200), SETTINGS.n_folds)
    expected = score_with_scikit_learn(shifted, is_toxic, folds)
    found = cross_validate_ridge(shifted, is_toxic, folds, SETTINGS.n_folds, SETTINGS.ridge)
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
        cross_validate_ridge(values, *arguments),
        cross_validate_ridge(filled, *arguments),
        rtol=1e-9,
    )


def test_held_out_labels_do_not_reach_the_probe():
    """Without a signal the probe's held-out AUROC stays near one half, with many units too."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(300, 400)).astype(np.float32)
    is_toxic = generator.random(400) < 0.5
    folds = assign_folds(make_ids(400), 5)
    assert abs(evaluate_probe(values, is_toxic, folds, SETTINGS).probe_auroc - 0.5) < 0.1


# --- the interval -----------------------------------------------------------------------------


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


# --- folds and the best unit ------------------------------------------------------------------


def test_folds_are_digests_of_the_ids():
    """A fold is sha256 of the id modulo the number of folds, and so never changes."""
    ids = make_ids(500)
    folds = assign_folds(ids, 5)
    first = int(hashlib.sha256(ids[0].encode()).hexdigest()[:16], 16) % 5
    assert folds[0] == first
    np.testing.assert_array_equal(assign_folds(ids[100:200], 5), folds[100:200])
    assert np.bincount(folds).min() > 70


def test_best_neuron_equals_a_plain_loop():
    """Choosing by training rows and judging by held-out rows gives what scikit-learn loops give."""
    values, is_toxic = make_layer(150, 25)
    values = np.round(values, 1)  # ties
    folds = assign_folds(make_ids(150), 4)
    held_out = []
    for fold in range(4):
        training = folds != fold
        aurocs = np.array([roc_auc_score(is_toxic[training], unit[training]) for unit in values])
        best = int(np.argmax(np.maximum(aurocs, 1 - aurocs)))
        auroc = roc_auc_score(is_toxic[~training], values[best, ~training])
        held_out.append(auroc if aurocs[best] >= 0.5 else 1 - auroc)
    assert judge_best_neuron(values, is_toxic, folds) == pytest.approx(np.mean(held_out), abs=1e-12)


def test_best_neuron_of_noise_is_near_one_half():
    """The best of a thousand meaningless units is not rewarded for having been chosen."""
    generator = np.random.default_rng(2)
    values = generator.normal(size=(1000, 300)).astype(np.float16)
    is_toxic = generator.random(300) < 0.3
    in_sample = max(abs(roc_auc_score(is_toxic, unit) - 0.5) for unit in values)
    honest = judge_best_neuron(values, is_toxic, assign_folds(make_ids(300), 5))
    assert in_sample > 0.1
    assert abs(honest - 0.5) < 0.08


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
    compute_neuron_statistics(shards, [samples], "demo", 0, [MLP_MAX], "500MB", workspace)
    neurons = pq.read_table(workspace.path("neurons.parquet"))
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
    assert row["best_neuron_auroc"] == judge_best_neuron(values, is_toxic, folds)
    assert row["probe_auroc_low"] < row["probe_auroc"] < row["probe_auroc_high"]
    assert (row["n_toxic"], row["n_nontoxic"]) == (is_toxic.sum(), (~is_toxic).sum())
    assert row["reason"] is None


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
