"""Compiled loops against numpy, scikit-learn and float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from eigenshift.base.arrays import ByteArray, ValueArray
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


def unpack_plainly(packed: ByteArray, key_bytes: int) -> list[int]:
    """As the docs describe a row, byte by byte."""
    keys, rest = [], bytes(packed)
    while rest:
        (high, n_keys), rest = (rest[0], rest[1] + 1), rest[2:]
        for _ in range(n_keys):
            low, rest = rest[: key_bytes - 1], rest[key_bytes - 1 :]
            keys.append(int.from_bytes(bytes([high]) + low[::-1], "big"))
    return keys


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(DTYPES), n_samples=st.integers(0, 600))
def test_packed_keys_come_back(seed: int, dtype: str, n_samples: int) -> None:
    """By the loop and as the docs say: empty units, and runs longer than one may be."""
    values = make_values(seed, dtype, (n_samples, 11))
    values[:, 5] = 0.25  # one run, more than 256 of it
    keys, n_finite = counting.collect_keys(values, np.arange(n_samples))
    n_finite[3] = 0
    packed, stops = counting.pack_keys(keys, n_finite)
    starts = np.concatenate([[0], stops[:-1]])
    rows = counting.PackedKeys(packed, starts, stops, keys.dtype.itemsize)
    np.testing.assert_array_equal(rows.count(), n_finite)
    found = np.split(rows.unpack(), np.cumsum(n_finite)[:-1])
    for unit, of_unit in enumerate(found):
        expected = np.sort(keys[unit, : n_finite[unit]])
        np.testing.assert_array_equal(np.sort(of_unit), expected)
        plainly = unpack_plainly(packed[starts[unit] : stops[unit]], keys.dtype.itemsize)
        assert of_unit.tolist() == plainly
    chosen = np.array([7, 3, 5])
    np.testing.assert_array_equal(
        rows.take(chosen).unpack(), np.concatenate([found[unit] for unit in chosen])
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(DTYPES))
def test_classes_are_compared_as_scikit_learn_does(seed: int, dtype: str) -> None:
    """AUROC and average precision with ties; means and squares in float64."""
    generator = np.random.default_rng(seed)
    values = np.round(generator.normal(size=60), 1).astype(dtype)
    is_toxic = generator.random(60) < 0.4
    is_toxic[:2] = True, False
    found = Levels.of(encode_keys(values))
    row = counting.count_classes(found.codes[is_toxic], found.codes[~is_toxic], found.values)
    exact = values.astype(np.float64)
    assert row[0] == pytest.approx(roc_auc_score(is_toxic, exact), abs=1e-15)
    assert row[1] == pytest.approx(average_precision_score(is_toxic, exact), abs=1e-14)
    for place, chosen in ((2, exact[is_toxic]), (4, exact[~is_toxic])):
        squares = np.square(chosen - chosen.mean()).sum()
        assert row[place] == pytest.approx(chosen.mean(), rel=1e-13, abs=1e-15)
        assert row[place + 1] == pytest.approx(squares, rel=1e-12, abs=1e-15)


def pack_rows(rows: Sequence[Sequence[float]]) -> counting.PackedKeys:
    """Rows of float16 values, packed."""
    width = max(map(len, rows))
    keys = np.zeros((len(rows), width), np.uint16)
    for place, row in enumerate(rows):
        keys[place, : len(row)] = encode_keys(np.array(row, np.float16))
    packed, stops = counting.pack_keys(keys, np.array(list(map(len, rows))))
    return counting.PackedKeys(packed, np.concatenate([[0], stops[:-1]]), stops, 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_packed_halves_are_counted_as_unpacked_ones(seed: int) -> None:
    """To the last bit, whatever the shards a unit's values lie in; a unit may have no rows."""
    generator = np.random.default_rng(seed)
    n_rows = generator.integers(0, 4, 5)
    n_rows[1], n_rows[0] = 0, max(n_rows[0], 1)
    classes = [
        [
            (np.round(generator.normal(size=generator.integers(1, 400)), 2) * 10.0**scale)
            .astype(np.float16)
            .tolist()
            for scale in generator.integers(-3, 3, n_rows.sum())
        ]
        for _ in range(2)
    ]
    ends = np.cumsum(n_rows)
    found = counting.count_halves(*map(pack_rows, classes), ends, HALVES)
    for unit, (start, stop) in enumerate(pairwise([0, *ends])):
        if start == stop:
            assert np.isnan(found[unit, 0])
            continue
        keys = [
            encode_keys(np.concatenate(rows[start:stop]).astype(np.float16)) for rows in classes
        ]
        levels = Levels.of(np.concatenate(keys))
        codes = np.split(levels.codes, [len(keys[0])])
        expected = counting.count_classes(*codes, levels.values)
        assert found[unit].tobytes() == expected.tobytes()


def test_units_do_not_touch_each_other() -> None:
    """Counters are empty again for the next unit, one of whose classes is missing here."""
    alone = counting.count_halves(pack_rows([[3, 3]]), pack_rows([[1, 5]]), np.array([1]), HALVES)
    toxic, nontoxic = pack_rows([[1, 2], [3, 3]]), pack_rows([[], [1, 5]])
    both = counting.count_halves(toxic, nontoxic, np.array([1, 2]), HALVES)
    np.testing.assert_array_equal(both[1], alone[0])
    assert np.isnan(both[0, [0, 4, 5]]).all()
    np.testing.assert_array_equal(both[0, 1:4], [1.0, 1.5, 0.5])


def test_a_constant_has_no_variance() -> None:
    """Exactly 0, so Cohen's d is left out and not infinite."""
    rows = pack_rows([[0.1] * 30]), pack_rows([[0.1] * 69])
    found = counting.count_halves(*rows, np.array([1]), HALVES)
    np.testing.assert_array_equal(found[0, [0, 3, 5]], [0.5, 0.0, 0.0])


def test_without_a_folder_to_write_the_loops_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """There numba refuses to define a cached function; a container without a home is one."""

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot cache function: no locator available for file")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)

    def add(one: int, other: int) -> int:
        return one + other

    assert counting.compile_loop(add)(2, 3) == 5
