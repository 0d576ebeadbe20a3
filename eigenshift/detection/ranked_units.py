"""Exact rank statistics of many units at once, where there are few samples.

Counting keys (`ranking.py`, `counting.py`) costs up to 65,536 counters a unit, however few the
samples; sorting all units' rows in one call costs what the samples cost. The statistics are the
same: pairs are counted in integers and divided once. Above `MOST_SAMPLES` counting is cheaper.

Pure functions of arrays, shape (unit, sample).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from eigenshift.base.arrays import BoolArray, FloatArray, IntArray, KeyArray, ValueArray
from eigenshift.detection.ranking import decode_keys, encode_keys

CountArray = npt.NDArray[np.int32]
MOST_SAMPLES = 4_096
"""Up to here sorting rows together was measured to be faster than counting one by one."""
VALUES_PER_BLOCK = 1 << 18
"""Ranked at once: some ten arrays of so many 8-byte numbers stay near the cores."""


def split_rows(n_units: int, n_samples: int) -> Iterator[slice]:
    """Blocks of units of at most `VALUES_PER_BLOCK` values, at least one unit each."""
    size = max(1, VALUES_PER_BLOCK // max(1, n_samples))
    for first in range(0, n_units, size):
        yield slice(first, min(n_units, first + size))


class RankedUnits:
    """Units' values on toxic and non-toxic samples, in ascending order.

    Attributes:
        n_toxic: Values on toxic samples, shape (unit,).
        n_nontoxic: Values on non-toxic samples, shape (unit,).
    """

    def __init__(self, keys: KeyArray, is_toxic: BoolArray, n_finite: IntArray) -> None:
        """Sort the rows.

        Args:
            keys: `ranking.encode_keys`, shape (unit, sample); those that do not count are the
                largest there is.
            is_toxic: Labels, shape (sample,).
            n_finite: Keys of each unit that count, shape (unit,).
        """
        self._order = np.argsort(keys, axis=1, kind="stable")
        self._keys = np.take_along_axis(keys, self._order, 1)
        is_counted = np.arange(keys.shape[1]) < n_finite[:, None]
        labels = is_toxic[self._order]
        self._is_toxic, self._is_nontoxic = labels & is_counted, ~labels & is_counted
        self.n_toxic = np.count_nonzero(self._is_toxic, axis=1)
        self.n_nontoxic = np.count_nonzero(self._is_nontoxic, axis=1)
        # Equal values form a group; counts below and above are the same within one.
        is_new = self._keys[:, 1:] != self._keys[:, :-1]
        self._is_first = np.pad(is_new, ((0, 0), (1, 0)), constant_values=True)
        self._is_last = np.pad(is_new, ((0, 0), (0, 1)), constant_values=True)

    @classmethod
    def of_values(cls, values: ValueArray, is_toxic: BoolArray) -> RankedUnits:
        """Of values as stored, shape (unit, sample); those that are not finite do not count."""
        is_finite = np.isfinite(values)
        keys = encode_keys(values)
        keys[~is_finite] = np.iinfo(keys.dtype).max
        return cls(keys, is_toxic, np.count_nonzero(is_finite, axis=1))

    @cached_property
    def _nontoxic(self) -> tuple[CountArray, CountArray]:
        return self._count(self._is_nontoxic)

    def _count(self, is_chosen: BoolArray) -> tuple[CountArray, CountArray]:
        """Chosen values below, and not above, each value; shape (unit, sample) in order."""
        up_to = np.cumsum(is_chosen, axis=1, dtype=np.int32)
        below = np.where(self._is_first, up_to - is_chosen, 0)
        not_above = np.where(self._is_last, up_to, np.int32(is_chosen.shape[1]))
        np.maximum.accumulate(below, axis=1, out=below)
        backwards = not_above[:, ::-1]
        np.minimum.accumulate(backwards, axis=1, out=backwards)
        return below, not_above

    def compute_aurocs(self) -> FloatArray:
        """Share of (toxic, non-toxic) pairs in which the toxic value is higher, ties one half.

        Shape (unit,), NaN where a class is missing.
        """
        below, not_above = self._nontoxic
        wins = np.sum(below + not_above, axis=1, where=self._is_toxic)
        return _divide(wins, 2 * self.n_toxic * self.n_nontoxic)

    def compute_average_precisions(self) -> FloatArray:
        """As scikit-learn's `average_precision_score`, shape (unit,)."""
        below, _ = self._nontoxic
        toxic_below, _ = self._count(self._is_toxic)
        true_positives = self.n_toxic[:, None] - toxic_below
        positives = true_positives + self.n_nontoxic[:, None] - below
        precisions = np.zeros(positives.shape)
        np.divide(true_positives, positives, out=precisions, where=self._is_toxic)
        return _divide(precisions.sum(axis=1), self.n_toxic)

    def measure_toxic(self) -> tuple[FloatArray, FloatArray]:
        """Mean of each unit's toxic values and the sum of squared deviations, shape (unit,)."""
        return self._measure(self._is_toxic, self.n_toxic)

    def measure_nontoxic(self) -> tuple[FloatArray, FloatArray]:
        """Likewise of the non-toxic values."""
        return self._measure(self._is_nontoxic, self.n_nontoxic)

    @cached_property
    def _values(self) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return decode_keys(self._keys)

    def _measure(self, is_chosen: BoolArray, counts: IntArray) -> tuple[FloatArray, FloatArray]:
        means = _divide(np.where(is_chosen, self._values, 0.0).sum(axis=1), counts)
        deviations = np.where(is_chosen, self._values - means[:, None], 0.0)
        return means, np.square(deviations).sum(axis=1)

    def compute_placements(self) -> FloatArray:
        """As `ranking.compute_placements`, in the order of the samples, shape (unit, sample).

        Of a value that does not count, or where a class is missing, it says nothing.
        """
        below, not_above = self._nontoxic
        toxic_below, toxic_not_above = self._count(self._is_toxic)
        of_toxic = _divide(below + not_above, 2 * self.n_nontoxic[:, None])
        of_nontoxic = 1 - _divide(toxic_below + toxic_not_above, 2 * self.n_toxic[:, None])
        return self._restore(np.where(self._is_toxic, of_toxic, of_nontoxic))

    def compute_fold_aurocs(self, folds: IntArray, n_folds: int) -> tuple[FloatArray, FloatArray]:
        """As `ranking.compute_fold_aurocs`, shape (fold, unit) each.

        Args:
            folds: Fold of each sample, 0 to n_folds - 1, shape (sample,).
            n_folds: Number of folds.
        """
        of_value = folds[self._order]
        members = [of_value == fold for fold in range(n_folds)]
        # Whole numbers of at most 2 x (4,096 / 2)^2 < 2^24: exact, in any order of adding.
        toxic = np.stack([self._is_toxic & is_member for is_member in members], axis=1)
        shares = toxic.astype(np.float32)
        pairs = np.empty((n_folds, n_folds, len(of_value)))
        for fold, is_member in enumerate(members):
            below, not_above = self._count(self._is_nontoxic & is_member)
            wins = (below + not_above).astype(np.float32)
            pairs[:, fold] = np.matmul(shares, wins[:, :, None])[:, :, 0].T
        n_toxic = np.count_nonzero(toxic, axis=2).T
        n_nontoxic = np.array(
            [np.count_nonzero(self._is_nontoxic & is_member, axis=1) for is_member in members]
        )
        within = np.einsum("ffu->fu", pairs)
        without = pairs.sum(axis=(0, 1)) - pairs.sum(axis=0) - pairs.sum(axis=1) + within
        n_without = (n_toxic.sum(axis=0) - n_toxic) * (n_nontoxic.sum(axis=0) - n_nontoxic)
        return _divide(without, 2 * n_without), _divide(within, 2 * n_toxic * n_nontoxic)

    def _restore(self, values: FloatArray) -> FloatArray:
        """From ascending order back to the order of the samples."""
        restored = np.empty_like(values)
        np.put_along_axis(restored, self._order, values, 1)
        return restored


def _divide(numbers: npt.NDArray[np.number], by: npt.NDArray[np.number]) -> FloatArray:
    """Quotients in float64; NaN where there is nothing to divide by."""
    shape = np.broadcast_shapes(numbers.shape, by.shape)
    quotients = np.full(shape, np.nan)
    np.divide(numbers, by, out=quotients, where=np.broadcast_to(by > 0, shape))
    return quotients
