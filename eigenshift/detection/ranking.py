"""Exact rank statistics by counting: values as small ordered integers, never sorted as floats.

A float's bits become an unsigned integer of the same order, its *key*. A float16 has only 65,536
keys, so the values of a unit are counted per key instead of being sorted; float32 keys are first
replaced by their ranks among the distinct ones. AUROC and average precision follow from running
totals of the counts, in integers: exact fractions, rounded once, whatever the order of the samples.

Pure functions of arrays. Reading and tables are in `neuron_statistics.py`, `probes.py` and
`neuron_stability.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from eigenshift.base.arrays import BoolArray, FloatArray, IntArray, KeyArray, ValueArray


def encode_keys(values: ValueArray) -> KeyArray:
    """Return unsigned integers in the order of the values; -0.0 and 0.0 become one key.

    Args:
        values: Any shape, float16 or float32. The key of a NaN says nothing: leave it out.
    """
    bits = values.dtype.itemsize * 8
    unsigned, signed = np.dtype(f"u{bits // 8}"), np.dtype(f"i{bits // 8}")
    raw = np.ascontiguousarray(values).view(unsigned)
    sign = unsigned.type(1 << (bits - 1))
    raw = np.where(raw == sign, unsigned.type(0), raw)
    keys: KeyArray = raw ^ ((raw.view(signed) >> (bits - 1)).view(unsigned) | sign)
    return keys


def decode_keys(keys: KeyArray) -> FloatArray:
    """Return the values that `encode_keys` was given, as float64, in the keys' shape."""
    bits = keys.dtype.itemsize * 8
    sign = keys.dtype.type(1 << (bits - 1))
    raw = np.where(keys & sign, keys ^ sign, ~keys)
    values: FloatArray = raw.view(f"f{bits // 8}").astype(np.float64)
    return values


with np.errstate(invalid="ignore"):
    _HALVES = decode_keys(np.arange(1 << 16, dtype=np.uint16))
"""Value of each float16 key."""


@dataclass(frozen=True)
class Levels:
    """Values of one unit as integers of the same order.

    Attributes:
        codes: One per value, 0 to `n_levels` - 1; equal values share a code.
        values: Value of each code, ascending, shape (level,), float64.
    """

    codes: npt.NDArray[np.integer[Any]]
    values: FloatArray

    @classmethod
    def of(cls, keys: KeyArray) -> Levels:
        """Number the keys, at least one: by subtraction if they are short, else by their ranks."""
        if keys.dtype.itemsize == 2:
            lowest, highest = int(keys.min()), int(keys.max())
            return cls(keys - keys.dtype.type(lowest), _HALVES[lowest : highest + 1])
        distinct = np.unique(keys)
        return cls(np.searchsorted(distinct, keys), decode_keys(distinct))

    @property
    def n_levels(self) -> int:
        """Number of codes, those without a value among them."""
        return len(self.values)


class ClassComparison:
    """The values of one unit on toxic and on non-toxic samples, both finite and not empty."""

    def __init__(self, toxic: KeyArray, nontoxic: KeyArray) -> None:
        """Count the values.

        Args:
            toxic: Keys on toxic samples, in any order.
            nontoxic: Keys on non-toxic samples, in any order.
        """
        levels = Levels.of(np.concatenate([nontoxic, toxic]))
        self.n_toxic, self.n_nontoxic = len(toxic), len(nontoxic)
        self._values = levels.values
        self._toxic = np.sort(levels.codes[len(nontoxic) :])
        self._counts = np.bincount(levels.codes[: len(nontoxic)], minlength=levels.n_levels)

    @cached_property
    def _placements(self) -> tuple[IntArray, IntArray]:
        """Non-toxic values not above, and equal to, each toxic value in ascending order."""
        not_above: IntArray = np.cumsum(self._counts)[self._toxic]
        equal: IntArray = self._counts[self._toxic]
        return not_above, equal

    def compute_auroc(self) -> float:
        """Share of (toxic, non-toxic) pairs in which the toxic value is higher, ties one half."""
        not_above, equal = self._placements
        return int(2 * not_above.sum() - equal.sum()) / (2 * self.n_toxic * self.n_nontoxic)

    def compute_average_precision(self) -> float:
        """Sum over thresholds of (rise of recall) x precision, equal values sharing a threshold.

        scikit-learn's definition (`average_precision_score`).
        """
        not_above, equal = self._placements
        toxic_below = np.arange(self.n_toxic)
        is_repeated = self._toxic[1:] == self._toxic[:-1]
        toxic_below[1:][is_repeated] = 0
        true_positives = self.n_toxic - np.maximum.accumulate(toxic_below)
        false_positives = self.n_nontoxic - not_above + equal
        return float((true_positives / (true_positives + false_positives)).mean())

    def measure_toxic(self) -> tuple[float, float]:
        """Mean of the toxic values and the sum of their squared deviations from it."""
        return _measure(self._values[self._toxic])

    def measure_nontoxic(self) -> tuple[float, float]:
        """Mean of the non-toxic values and the sum of their squared deviations from it."""
        return _measure(self._values, self._counts)


def compute_placements(keys: KeyArray, is_toxic: BoolArray) -> FloatArray:
    """Return the share of the other class that each value is on the right side of, shape (sample,).

    Of a toxic value: the share of non-toxic values below it; of a non-toxic one: the share of toxic
    values above it; equal values count one half. The mean over either class is the AUROC, and the
    placements are its influence function (DeLong, DeLong and Clarke-Pearson, 1988).

    Args:
        keys: Keys of finite values, shape (sample,).
        is_toxic: Labels, both classes present, shape (sample,).
    """
    levels = Levels.of(keys)
    placements = np.empty(len(keys))
    for is_class, is_other in ((is_toxic, ~is_toxic), (~is_toxic, is_toxic)):
        counts = np.bincount(levels.codes[is_other], minlength=levels.n_levels)
        share_below = (2 * np.cumsum(counts) - counts) / (2 * counts.sum())
        placements[is_class] = share_below[levels.codes[is_class]]
    placements[~is_toxic] = 1 - placements[~is_toxic]
    return placements


def compute_fold_aurocs(
    keys: KeyArray, is_toxic: BoolArray, folds: IntArray, n_folds: int
) -> tuple[FloatArray, FloatArray]:
    """Return a unit's AUROC outside each fold and within it, shape (fold,) each.

    Pairs of a toxic and a non-toxic value are counted by the folds of the two, so that both follow
    from one (fold, fold) table of integers.

    Args:
        keys: Keys of finite values, shape (sample,).
        is_toxic: Labels, shape (sample,).
        folds: Fold of each sample, 0 to n_folds - 1, shape (sample,).
        n_folds: Number of folds.

    Returns:
        NaN where a class is missing.
    """
    if not len(keys):
        return np.full(n_folds, np.nan), np.full(n_folds, np.nan)
    levels = Levels.of(keys)
    places = folds[~is_toxic] * levels.n_levels + levels.codes[~is_toxic]
    counts = np.bincount(places, minlength=n_folds * levels.n_levels).reshape(n_folds, -1)
    wins = 2 * np.cumsum(counts, axis=1) - counts  # a tie is half a win
    codes = [levels.codes[is_toxic & (folds == fold)] for fold in range(n_folds)]
    pairs = np.array([wins[:, of_fold].sum(axis=1) for of_fold in codes])
    n_toxic, n_nontoxic = np.array([len(of_fold) for of_fold in codes]), counts.sum(axis=1)
    without = pairs.sum() - pairs.sum(axis=0) - pairs.sum(axis=1) + np.diag(pairs)
    n_without = (n_toxic.sum() - n_toxic) * (n_nontoxic.sum() - n_nontoxic)
    with np.errstate(invalid="ignore"):
        return without / (2 * n_without), np.diag(pairs) / (2 * n_toxic * n_nontoxic)


def measure_values(keys: KeyArray) -> tuple[float, float]:
    """Mean of some finite values, at least one, and the sum of squared deviations from it."""
    return _measure(decode_keys(np.sort(keys)))


def _measure(values: FloatArray, counts: IntArray | None = None) -> tuple[float, float]:
    """Two passes in float64, over each value once or as often as it is counted.

    A constant has deviations of exactly 0: a float32 times a count below 2^29 is exact in float64.
    """
    if counts is None:
        mean = values.mean()
        return float(mean), float(np.square(values - mean).sum())
    weights = counts.astype(np.float64)
    mean = np.einsum("i,i->", weights, values) / weights.sum()
    squares = np.square(values - mean)
    return float(mean), float(np.einsum("i,i->", weights, squares))
