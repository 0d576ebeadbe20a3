"""Exact rank statistics by counting: values as small ordered integers, never sorted as floats.

A float's bits become an unsigned integer of the same order, its *key*. A float16 has only 65,536
keys, so the values of a unit are counted per key instead of being sorted; float32 keys are first
replaced by their ranks among the distinct ones. AUROCs follow from running totals of the counts, in
integers: exact fractions, rounded once, whatever the order of the samples.

Pure functions of arrays. The loops over many units are in `counting.py`; reading and tables in
`neuron_statistics.py`, `probes.py` and `neuron_stability.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    HALVES = decode_keys(np.arange(1 << 16, dtype=np.uint16))
"""Value of each float16 key, shape (65,536,)."""


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
        """Number the keys: by subtraction if they are short, else by their ranks."""
        if keys.dtype.itemsize == 2 and len(keys):
            lowest, highest = int(keys.min()), int(keys.max())
            return cls(keys - keys.dtype.type(lowest), HALVES[lowest : highest + 1])
        distinct = np.unique(keys)
        return cls(np.searchsorted(distinct, keys), decode_keys(distinct))

    @property
    def n_levels(self) -> int:
        """Number of codes, those without a value among them."""
        return len(self.values)


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
