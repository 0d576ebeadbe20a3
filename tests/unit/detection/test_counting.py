"""Compiled loops against numpy, scikit-learn and float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from eigenshift.base.arrays import ValueArray
from eigenshift.detection import counting
from eigenshift.detection.ranking import HALVES, Levels, encode_keys

DTYPES = ["float16", "float32"]


def make_values(seed: int, dtype: str, shape: tuple[int, int]) -> ValueArray:
    """Of every size, with zeros of both signs and values that are not finite."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=shape) * 10.0 ** generator.integers(-6, 4, shape)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0])
    is_special = generator.random(shape) < 0.2
    values[is_special] = generator.choice(special, int(is_special.sum()))
    values[:, shape[1] // 2 :] = np.nan_to_num(values[:, shape[1] // 2 :], posinf=1, neginf=-1)
    return values.astype(dtype)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(DTYPES),
    n_samples=st.integers(1, 70),
    n_units=st.integers(1, 70),
)
def test_keys_are_collected_by_unit(seed: int, dtype: str, n_samples: int, n_units: int) -> None:
    """Of the chosen rows, those that are not finite last; any number of tiles."""
    values = make_values(seed, dtype, (n_samples, n_units))
    rows = np.flatnonzero(np.random.default_rng(seed).random(n_samples) < 0.7)
    keys, n_finite = counting.collect_keys(values, rows)
    assert keys.shape == (n_units, len(rows))
    for unit in range(n_units):
        chosen = values[rows, unit]
        expected = encode_keys(chosen[np.isfinite(chosen)])
        np.testing.assert_array_equal(keys[unit, : n_finite[unit]], expected)
        assert (keys[unit, n_finite[unit] :] == np.iinfo(keys.dtype).max).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(DTYPES))
def test_packed_keys_come_back(seed: int, dtype: str) -> None:
    """By the loop, and by adding them up in their own type as the docs say; empty units too."""
    keys, n_finite = counting.collect_keys(make_values(seed, dtype, (23, 11)), np.arange(23))
    n_finite[3] = 0
    keys.sort(axis=1)
    packed = counting.pack_keys(keys, n_finite)
    stops = np.cumsum(n_finite)
    unpacked = counting.unpack_keys(packed, stops)
    for unit, stop in enumerate(stops):
        own = slice(stop - n_finite[unit], stop)
        np.testing.assert_array_equal(unpacked[own], keys[unit, : n_finite[unit]])
        np.testing.assert_array_equal(np.cumsum(packed[own], dtype=keys.dtype), unpacked[own])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(DTYPES))
def test_classes_are_compared_as_scikit_learn_does(seed: int, dtype: str) -> None:
    """AUROC and average precision with ties; means and squares in float64."""
    generator = np.random.default_rng(seed)
    values = np.round(generator.normal(size=60), 1).astype(dtype)
    is_toxic = generator.random(60) < 0.4
    is_toxic[:2] = True, False
    if dtype == "float16":
        codes, levels = encode_keys(values), HALVES
    else:
        found = Levels.of(encode_keys(values))
        codes, levels = found.codes, found.values
    n_toxic = int(is_toxic.sum())
    ends = np.array([n_toxic]), np.array([60 - n_toxic])
    (row,) = counting.count_classes(codes[is_toxic], ends[0], codes[~is_toxic], ends[1], levels)
    exact = values.astype(np.float64)
    assert row[0] == pytest.approx(roc_auc_score(is_toxic, exact), abs=1e-15)
    assert row[1] == pytest.approx(average_precision_score(is_toxic, exact), abs=1e-14)
    for place, chosen in ((2, exact[is_toxic]), (4, exact[~is_toxic])):
        squares = np.square(chosen - chosen.mean()).sum()
        assert row[place] == pytest.approx(chosen.mean(), rel=1e-13, abs=1e-15)
        assert row[place + 1] == pytest.approx(squares, rel=1e-12, abs=1e-15)


def test_units_do_not_touch_each_other() -> None:
    """Counters are empty again for the next unit, one of whose classes is missing here."""
    keys = encode_keys(np.array([1, 2, 3, 3, 1, 5], np.float16))
    alone = counting.count_classes(keys[2:4], np.array([2]), keys[4:], np.array([2]), HALVES)
    both = counting.count_classes(keys[:4], np.array([2, 4]), keys[4:], np.array([0, 2]), HALVES)
    np.testing.assert_array_equal(both[1], alone[0])
    assert np.isnan(both[0, [0, 4, 5]]).all()
    np.testing.assert_array_equal(both[0, 1:4], [1.0, 1.5, 0.5])


def test_a_constant_has_no_variance() -> None:
    """Exactly 0, so Cohen's d is left out and not infinite."""
    keys = encode_keys(np.full(99, 0.1, np.float16))
    row = counting.count_classes(keys[:30], np.array([30]), keys[30:], np.array([69]), HALVES)
    np.testing.assert_array_equal(row[0, [0, 3, 5]], [0.5, 0.0, 0.0])


def test_without_a_folder_to_write_the_loops_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """There numba refuses to define a cached function; a container without a home is one."""

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot cache function: no locator available for file")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)

    def add(one: int, other: int) -> int:
        return one + other

    assert counting.compile_loop(add)(2, 3) == 5
