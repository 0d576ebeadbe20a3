"""Bootstrap of the units against exact resampling, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from eigenshift.base.schemas import NEURON_STABILITY
from eigenshift.detection.neuron_stability import (
    compute_neuron_stability,
    describe_stability,
    draw_weights,
    measure_overlap,
    resample_aurocs,
)
from eigenshift.settings import StatisticsSettings
from eigenshift.store.workspace import Workspace
from tests.support.activation_shards import MLP_MAX, write_samples, write_shard
from tests.support.labelled_values import make_ids, make_layer


def test_weights_are_resamples_within_each_class():
    """Every row weighs both classes by 1; the first is the samples, the others repeat some."""
    is_toxic = np.arange(50) < 20
    weights = draw_weights(is_toxic, 300, seed=1)
    assert weights.shape == (301, 50)
    np.testing.assert_allclose(weights[:, is_toxic].sum(axis=1), 1)
    np.testing.assert_allclose(weights[:, ~is_toxic].sum(axis=1), 1)
    np.testing.assert_array_equal(weights[0, is_toxic], 1 / 20)
    counts = weights[1:, ~is_toxic] * 30
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert np.var(counts) == pytest.approx(29 / 30, rel=0.1)
    np.testing.assert_array_equal(weights, draw_weights(is_toxic, 300, seed=1))


def test_first_column_is_the_exact_auroc_and_the_others_nearly_the_resamples():
    """Against scikit-learn with the same rows repeated: a tenth of the bootstrap's own spread."""
    values, is_toxic = make_layer(600, 12)
    values = np.round(values, 1)  # ties
    weights = draw_weights(is_toxic, 60, seed=0)
    found = resample_aurocs(values, is_toxic, weights)
    exact = [[roc_auc_score(is_toxic, unit)] for unit in values]
    np.testing.assert_allclose(found[:, :1], exact, atol=1e-12)
    n_class = np.where(is_toxic, is_toxic.sum(), (~is_toxic).sum())
    counts = np.round(weights[1:] * n_class)
    resampled = np.array(
        [[roc_auc_score(is_toxic, unit, sample_weight=row) for row in counts] for unit in values]
    )
    errors = found[:, 1:] - resampled
    assert np.abs(errors).max() < 3 / np.sqrt(is_toxic.sum() * (~is_toxic).sum())
    assert errors.std() < 0.1 * resampled.std(axis=1).mean()


def test_values_that_are_not_finite_move_nothing():
    """A NaN counts neither for nor against; a unit without values has no AUROC."""
    values, is_toxic = make_layer(100, 3)
    values = values.astype(np.float32)
    values[0, [3, 8]], values[1] = np.nan, np.inf
    found = resample_aurocs(values, is_toxic, draw_weights(is_toxic, 30, seed=0))
    finite = np.isfinite(values[0])
    assert found[0, 0] == pytest.approx(roc_auc_score(is_toxic[finite], values[0, finite]))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_rows_describe_the_resamples():
    """Overlap, correlation and shares are those of plain loops over the resamples."""
    generator = np.random.default_rng(0)
    aurocs = np.clip(0.5 + 0.1 * generator.normal(size=(40, 1)), 0, 1)
    aurocs = np.hstack([aurocs, aurocs + 0.03 * generator.normal(size=(40, 25))])
    aurocs = np.vstack([aurocs, np.full((1, 26), np.nan)])
    settings = StatisticsSettings(top_units=7, n_resamples=25, confidence=0.9)
    rows = {row["metric"]: row for row in describe_stability(aurocs, settings)}
    finite = aurocs[:40]
    top = set(np.argsort(-finite[:, 0])[:7])
    overlaps = [len(top & set(np.argsort(-column)[:7])) / 7 for column in finite[:, 1:].T]
    correlations = [spearmanr(finite[:, 0], column).statistic for column in finite[:, 1:].T]
    assert rows["top_overlap"]["value"] == pytest.approx(np.mean(overlaps))
    assert rows["rank_correlation"]["value"] == pytest.approx(np.mean(correlations))
    assert rows["rank_correlation"]["low"] == pytest.approx(np.quantile(correlations, 0.05))
    shares = np.mean(finite > 0.55, axis=0)
    assert rows["share_above_055"]["value"] == shares[0]
    assert rows["share_above_055"]["high"] == pytest.approx(np.quantile(shares[1:], 0.95))
    assert {row["n_units"] for row in rows.values()} == {40}
    assert set(rows) == {
        "top_overlap",
        "rank_correlation",
        "share_above_050",
        "share_above_055",
        "share_above_060",
        "mean_auroc",
        "best_auroc",
    }


def test_overlap_of_equal_and_of_opposite_rankings():
    """1 for the same units, 0 for none in common."""
    aurocs = np.linspace(0.1, 0.9, 10)
    assert measure_overlap(aurocs, aurocs, 4) == 1.0
    assert measure_overlap(aurocs, -aurocs, 4) == 0.0


def run_stage(folder: Path, values: np.ndarray, is_toxic: list[bool], limit: str) -> list[dict]:
    """Write two shards, run the stage and read its rows."""
    folder.mkdir()
    ids = make_ids(values.shape[1])
    samples = write_samples(folder / "samples.parquet", ids, is_toxic)
    shards = [
        write_shard(
            folder / f"{part[0]}.parquet",
            [ids[i] for i in part],
            [{MLP_MAX.column: values.T[part]}],
        )
        for part in np.array_split(np.arange(len(ids)), 2)
    ]
    workspace = Workspace(folder)
    settings = StatisticsSettings(n_resamples=20)
    compute_neuron_stability(shards, [samples], "demo", 0, [MLP_MAX], settings, workspace, limit)
    table = pq.read_table(workspace.path("neuron_stability.parquet"))
    assert table.schema.equals(NEURON_STABILITY)
    return table.to_pylist()


def test_table_of_a_dataset_whatever_the_memory(tmp_path, monkeypatch):
    """One row per metric; blocks of one unit give the same, up to rounding."""
    values, is_toxic = make_layer(200, 30)
    rows = run_stage(tmp_path / "one", values, is_toxic.tolist(), "500MB")
    monkeypatch.setattr("eigenshift.detection.labelled_layers.BLOCK_SHARE", 1e-9)
    again = run_stage(tmp_path / "two", values, is_toxic.tolist(), "500MB")
    assert len(rows) == 7
    for row, other in zip(rows, again, strict=True):
        assert row == pytest.approx(other)


def test_one_class_gives_an_empty_table(tmp_path):
    """Without toxic samples nothing can be resampled."""
    values, _ = make_layer(40, 3)
    assert run_stage(tmp_path / "one", values, [False] * 40, "500MB") == []
