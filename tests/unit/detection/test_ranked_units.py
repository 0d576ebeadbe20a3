"""Many units at once against one at a time and scikit-learn: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from eigenshift.base.arrays import BoolArray, ValueArray
from eigenshift.detection import ranked_units
from eigenshift.detection.neuron_statistics import compare_units, count_units
from eigenshift.detection.ranked_units import RankedUnits, split_rows
from eigenshift.detection.ranking import compute_fold_aurocs, compute_placements, encode_keys

N_FOLDS = 4


def make_values(seed: int, dtype: str, n_units: int = 9, n_samples: int = 40) -> ValueArray:
    """Noise with ties, zeros of both signs, a constant unit, and values that are not finite."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n_units, n_samples)).astype(dtype)
    values[1] = np.round(values[1])
    values[2] = np.maximum(values[2], 0) * generator.choice([-1, 1], n_samples)
    values[3] = 0.5
    values[4, ::7] = np.nan
    values[5, 1::5] = np.inf
    values[6, :] = -np.inf
    return values


def draw_labels(seed: int, n_samples: int = 40) -> BoolArray:
    """Some of each class."""
    labels = np.random.default_rng(seed).random(n_samples) < 0.3
    labels[:2] = True, False
    return labels


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(["float16", "float32"]))
def test_ranks_equal_those_of_one_unit_at_a_time(seed: int, dtype: str) -> None:
    """AUROCs, placements and AUROCs by fold, also where values are not finite."""
    values, is_toxic = make_values(seed, dtype), draw_labels(seed)
    folds = np.random.default_rng(seed).integers(0, N_FOLDS, len(is_toxic))
    ranked = RankedUnits.of_values(values, is_toxic)
    placements, aurocs = ranked.compute_placements(), ranked.compute_aurocs()
    outside, within = ranked.compute_fold_aurocs(folds, N_FOLDS)
    for unit, row in enumerate(values):
        kept = np.isfinite(row)
        keys, labels = encode_keys(row[kept]), is_toxic[kept]
        expected = compute_fold_aurocs(keys, labels, folds[kept], N_FOLDS)
        np.testing.assert_array_equal(outside[:, unit], expected[0])
        np.testing.assert_array_equal(within[:, unit], expected[1])
        if labels.any() and not labels.all():
            alone = compute_placements(keys, labels)
            np.testing.assert_allclose(placements[unit, kept], alone, rtol=0, atol=1e-15)
            assert aurocs[unit] == pytest.approx(roc_auc_score(labels, row[kept]), abs=1e-15)
        else:
            assert np.isnan(aurocs[unit])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(["float16", "float32"]))
def test_statistics_equal_those_by_counting(seed: int, dtype: str) -> None:
    """Counts and reasons exactly, the rest to the last digits; precision as scikit-learn has it."""
    values, is_toxic = make_values(seed, dtype), draw_labels(seed)
    toxic, nontoxic = (
        [encode_keys(row[is_class & np.isfinite(row)]) for row in values]
        for is_class in (is_toxic, ~is_toxic)
    )
    n_nonfinite = [int(np.count_nonzero(~np.isfinite(row))) for row in values]
    found = compare_units(toxic, nontoxic, n_nonfinite)
    counted = count_units(toxic, nontoxic, n_nonfinite)
    for row, one, expected in zip(values, found, counted, strict=True):
        for name, value in vars(expected).items():
            got = getattr(one, name)
            if isinstance(value, float):
                assert got == pytest.approx(value, rel=1e-12, abs=1e-12), name
            else:
                assert got == value, name
        if np.isfinite(row).all():
            precision = average_precision_score(is_toxic, row.astype(np.float64))
            assert one.average_precision == pytest.approx(precision, abs=1e-12)


def test_the_order_of_samples_changes_no_bit() -> None:
    """Lists come from shards in any order."""
    values, is_toxic = make_values(3, "float16"), draw_labels(3)

    def compare(order: np.ndarray) -> list[object]:
        kept = [np.isfinite(row[order]) for row in values]
        pieces = [
            [
                encode_keys(row[order][keep & is_class[order]])
                for row, keep in zip(values, kept, strict=True)
            ]
            for is_class in (is_toxic, ~is_toxic)
        ]
        return list(map(repr, compare_units(*pieces, [0] * len(values))))

    forward = np.arange(len(is_toxic))
    assert compare(forward) == compare(np.random.default_rng(0).permutation(forward))


def test_many_samples_are_counted_unit_by_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways give the same, so where the one ends and the other begins shows nowhere."""
    values, is_toxic = make_values(5, "float16"), draw_labels(5)
    pieces = [
        [encode_keys(row[is_class & np.isfinite(row)]) for row in values]
        for is_class in (is_toxic, ~is_toxic)
    ]
    together = compare_units(*pieces, [0] * len(values))
    monkeypatch.setattr("eigenshift.detection.neuron_statistics.MOST_SAMPLES", 0)
    monkeypatch.setattr("eigenshift.detection.neuron_statistics.RankedUnits", None)
    alone = compare_units(*pieces, [0] * len(values))
    for one, other in zip(together, alone, strict=True):
        assert one.auroc == other.auroc
        assert (one.cohens_d is None) == (other.cohens_d is None)
        assert one.cohens_d is None or one.cohens_d == pytest.approx(other.cohens_d, rel=1e-12)


def test_blocks_hold_every_unit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many samples there are, at least one unit."""
    monkeypatch.setattr(ranked_units, "VALUES_PER_BLOCK", 100)
    for n_samples, size in ((0, 100), (30, 3), (1_000, 1)):
        rows = list(split_rows(7, n_samples))
        assert [place for block in rows for place in range(block.start, block.stop)] == list(
            range(7)
        )
        assert rows[0].stop == min(7, size)
