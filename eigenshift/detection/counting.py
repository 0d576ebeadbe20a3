"""Compiled loops over the values of many units: collecting them by unit, packing, counting.

numba compiles them on first use (some seconds, once on a machine) and keeps the machine code beside
this file, or below `NUMBA_CACHE_DIR`. Importing it takes a third of a second, so it is imported
where values are read or written, not with the library (docs/decisions/0080-counting-compiled.md).

Pure functions of arrays; keys are `ranking.encode_keys`. Reading and tables are in
`neuron_summaries.py` and `neuron_statistics.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from eigenshift.base.arrays import FloatArray, IntArray, KeyArray, ValueArray

Loop = TypeVar("Loop", bound=Callable[..., Any])
SAMPLES_PER_TILE = 32
UNITS_PER_TILE = 32
"""Values are turned from rows of samples to rows of units tile by tile, so that both stay near."""
TOXIC = 32
"""Where the toxic count begins in a level's 64 bits; the non-toxic count is below."""


def compile_loop(loop: Loop) -> Loop:
    """Have numba compile a loop when it is first called, and keep the code if it may be written.

    numba refuses to define a cached function where no folder can be written (a container without a
    home); then it is compiled anew in each process.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Loop", numba.njit(cache=True, **options)(loop))
    except RuntimeError:  # "no locator available for file"
        return cast("Loop", numba.njit(**options)(loop))


@compile_loop
def _collect(
    raw: KeyArray, rows: IntArray, exponent: int, sign: int, keys: KeyArray, n_finite: IntArray
) -> None:
    n_samples, n_units = len(rows), raw.shape[1]
    ones = exponent | sign | ((exponent & -exponent) - 1)  # all bits of a value
    tile = np.empty((SAMPLES_PER_TILE, UNITS_PER_TILE), raw.dtype)
    for first in range(0, n_units, UNITS_PER_TILE):
        width = min(UNITS_PER_TILE, n_units - first)
        is_all_finite = True
        for start in range(0, n_samples, SAMPLES_PER_TILE):
            height = min(SAMPLES_PER_TILE, n_samples - start)
            for place in range(height):
                for unit in range(width):
                    bits = raw[rows[start + place], first + unit]
                    is_all_finite &= (bits & exponent) != exponent
                    bits = 0 if bits == sign else bits  # -0.0
                    tile[place, unit] = bits ^ (ones if bits & sign else sign)
            for unit in range(width):
                for place in range(height):
                    keys[first + unit, start + place] = tile[place, unit]
        for unit in range(first, first + width):
            n_finite[unit] = n_samples
            if not is_all_finite:
                n_kept = 0
                for sample in range(n_samples):
                    if (raw[rows[sample], unit] & exponent) != exponent:
                        keys[unit, n_kept] = keys[unit, sample]
                        n_kept += 1
                n_finite[unit] = n_kept
                keys[unit, n_kept:] = ones  # sorts behind every finite value


def collect_keys(values: ValueArray, rows: IntArray) -> tuple[KeyArray, IntArray]:
    """Keys of each unit's finite values on some samples.

    Args:
        values: float16 or float32, shape (sample, unit).
        rows: Which samples, shape (chosen,).

    Returns:
        Keys, shape (unit, chosen), those of values that are not finite replaced by the largest
        there is and put last; and how many of each unit are finite, shape (unit,).
    """
    bits = values.dtype.itemsize * 8
    raw = values.view(f"u{bits // 8}")
    mantissa = np.finfo(values.dtype).nmant
    sign = 1 << (bits - 1)
    keys = np.empty((values.shape[1], len(rows)), raw.dtype)
    n_finite = np.empty(values.shape[1], np.int64)
    _collect(raw, rows, sign - (1 << mantissa), sign, keys, n_finite)
    return keys, n_finite


@compile_loop
def _pack(keys: KeyArray, n_finite: IntArray, packed: KeyArray) -> None:
    place = 0
    for unit in range(len(keys)):
        former = 0
        for sample in range(n_finite[unit]):
            key = keys[unit, sample]
            packed[place] = key - former
            former = key
            place += 1


def pack_keys(keys: KeyArray, n_finite: IntArray) -> KeyArray:
    """Each unit's first key and the rises from one to the next, one unit after the other.

    Args:
        keys: In ascending order, shape (unit, sample).
        n_finite: How many of each unit count, the first ones, shape (unit,).
    """
    packed = np.empty(int(n_finite.sum()), keys.dtype)
    _pack(keys, n_finite, packed)
    return packed


@compile_loop
def _unpack(packed: KeyArray, stops: IntArray, keys: KeyArray) -> None:
    place = 0
    for stop in stops:
        former = 0
        while place < stop:
            former += np.int64(packed[place])
            keys[place] = former
            place += 1


def unpack_keys(packed: KeyArray, stops: IntArray) -> KeyArray:
    """The keys that `pack_keys` was given.

    Args:
        packed: Shape (key,).
        stops: Where each unit's keys end, ascending, the last one `len(packed)`, shape (unit,).
    """
    keys = np.empty_like(packed)
    _unpack(packed, stops, keys)
    return keys


@compile_loop
def _count(
    toxic: npt.NDArray[np.integer[Any]],
    toxic_stops: IntArray,
    nontoxic: npt.NDArray[np.integer[Any]],
    nontoxic_stops: IntArray,
    values: FloatArray,
    found: FloatArray,
) -> None:
    counts = np.zeros(len(values), np.uint64)  # of each level: toxic above `TOXIC`, non-toxic below
    taken = np.empty(len(values) + 1, np.uint64)
    levels = np.empty(len(values) + 1, np.float64)
    one_toxic, one_nontoxic = np.uint64(1 << TOXIC), np.uint64(1)
    for unit in range(len(found)):
        first = toxic_stops[unit - 1] if unit else 0
        of_toxic = toxic[first : toxic_stops[unit]]
        first = nontoxic_stops[unit - 1] if unit else 0
        of_nontoxic = nontoxic[first : nontoxic_stops[unit]]
        n_toxic, n_nontoxic = len(of_toxic), len(of_nontoxic)
        lowest, highest = len(values), -1
        for code in of_toxic:
            counts[code] += one_toxic
            lowest, highest = min(lowest, code), max(highest, code)
        for code in of_nontoxic:
            counts[code] += one_nontoxic
            lowest, highest = min(lowest, code), max(highest, code)
        n_levels = 0
        for code in range(lowest, highest + 1):
            count = counts[code]
            counts[code] = 0
            taken[n_levels] = count
            levels[n_levels] = values[code]
            n_levels += count != 0
        wins, below, left = 0, 0, n_toxic
        precision, sum_toxic, sum_nontoxic = 0.0, 0.0, 0.0
        for level in range(n_levels):
            of_both = taken[level]
            here = np.int64(of_both >> np.uint64(TOXIC))
            others = np.int64(of_both & np.uint64((1 << TOXIC) - 1))
            wins += here * (2 * below + others)
            precision += here * (left / max(left + n_nontoxic - below, 1))
            left -= here
            below += others
            sum_toxic += here * levels[level]
            sum_nontoxic += others * levels[level]
        mean_toxic, mean_nontoxic = sum_toxic / n_toxic, sum_nontoxic / n_nontoxic
        squares_toxic, squares_nontoxic = 0.0, 0.0
        for level in range(n_levels):
            of_both = taken[level]
            here = np.int64(of_both >> np.uint64(TOXIC))
            others = np.int64(of_both & np.uint64((1 << TOXIC) - 1))
            squares_toxic += here * (levels[level] - mean_toxic) ** 2
            squares_nontoxic += others * (levels[level] - mean_nontoxic) ** 2
        found[unit, 0] = wins / (2.0 * n_toxic * n_nontoxic)
        found[unit, 1] = precision / n_toxic
        found[unit, 2], found[unit, 3] = mean_toxic, squares_toxic
        found[unit, 4], found[unit, 5] = mean_nontoxic, squares_nontoxic


def count_classes(
    toxic: npt.NDArray[np.integer[Any]],
    toxic_stops: IntArray,
    nontoxic: npt.NDArray[np.integer[Any]],
    nontoxic_stops: IntArray,
    values: FloatArray,
) -> FloatArray:
    """Compare the values of units on toxic and on non-toxic samples, by counting them per level.

    Pairs are counted in integers and divided once; means and squares are added level by level in
    ascending order. So only which values there are matters, not their order.

    Args:
        toxic: Levels of the values on toxic samples, one unit after the other, shape (value,).
        toxic_stops: Where each unit's values end, shape (unit,).
        nontoxic: Likewise on non-toxic samples; at most 2^32 - 1 of a unit.
        nontoxic_stops: Likewise.
        values: Value of each level, ascending, shape (level,).

    Returns:
        Shape (unit, 6): AUROC; average precision (scikit-learn's `average_precision_score`); mean
        of the toxic values and sum of squared deviations from it; the same of the non-toxic ones.
        NaN where there is nothing to divide by.
    """
    found = np.full((len(toxic_stops), 6), np.nan)
    _count(toxic, toxic_stops, nontoxic, nontoxic_stops, values, found)
    return found
