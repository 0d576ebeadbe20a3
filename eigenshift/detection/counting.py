"""Compiled loops over the values of many units: collecting them by unit, packing, counting.

numba compiles them on first use (some seconds, once on a machine) and keeps the machine code beside
this file, or below `NUMBA_CACHE_DIR`. Importing it takes a third of a second, so it is imported
where values are read or written, not with the library (docs/decisions/0080-counting-compiled.md).

Pure functions of arrays; keys are `ranking.encode_keys`. Reading and tables are in
`neuron_summaries.py` and `neuron_statistics.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from eigenshift.base.arrays import (
        BoolArray,
        ByteArray,
        FloatArray,
        IntArray,
        KeyArray,
        LevelCounts,
        ValueArray,
    )

Loop = TypeVar("Loop", bound=Callable[..., Any])
SAMPLES_PER_TILE = 32
UNITS_PER_TILE = 32
"""Values are turned from rows of samples to rows of units tile by tile, so that both stay near."""
TOXIC = 32
"""Where the toxic count begins in a level's 64 bits; the non-toxic count is below."""
BELOW = np.uint64((1 << TOXIC) - 1)
ONE_TOXIC, ONE_NONTOXIC = np.uint64(1 << TOXIC), np.uint64(1)
RUN_HEAD = 2
"""Bytes before the keys of a run: their highest byte, and how many there are less one."""
MOST_OF_RUN = 256


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
def _pack(
    keys: KeyArray, n_finite: IntArray, low_bytes: int, packed: ByteArray, stops: IntArray
) -> None:
    counts = np.zeros(256, np.int64)
    starts = np.empty(256, np.int64)
    run_bytes = RUN_HEAD + MOST_OF_RUN * low_bytes
    shift = 8 * low_bytes
    place = 0
    for unit in range(len(keys)):
        counts[:] = 0
        for sample in range(n_finite[unit]):
            counts[keys[unit, sample] >> shift] += 1
        for high in range(256):
            starts[high] = place
            for first in range(0, counts[high], MOST_OF_RUN):
                n_keys = min(MOST_OF_RUN, counts[high] - first)
                packed[place] = high
                packed[place + 1] = n_keys - 1
                place += RUN_HEAD + n_keys * low_bytes
            counts[high] = 0
        for sample in range(n_finite[unit]):
            key = keys[unit, sample]
            high = key >> shift
            n_before = counts[high]
            counts[high] = n_before + 1
            first = starts[high] + RUN_HEAD + low_bytes * (n_before % MOST_OF_RUN)
            first += run_bytes * (n_before // MOST_OF_RUN)
            for low in range(low_bytes):
                packed[first + low] = (key >> (8 * low)) & 255
        stops[unit] = place


def pack_keys(keys: KeyArray, n_finite: IntArray) -> tuple[ByteArray, IntArray]:
    """Each unit's keys as runs that share their highest byte, one unit after the other.

    A run is that byte, the number of its keys less one, and the other bytes of each key, the lowest
    first; runs ascend by their byte, keys of a run are in the order in which they come. A float16
    value takes a little more than one byte, and nothing need be sorted.

    Args:
        keys: Shape (unit, sample).
        n_finite: How many of each unit count, the first ones, shape (unit,).

    Returns:
        The bytes, and where each unit's end, shape (unit,).
    """
    low_bytes = keys.dtype.itemsize - 1
    most_runs = 256 * len(keys) + int(n_finite.sum()) // MOST_OF_RUN
    packed = np.empty(RUN_HEAD * most_runs + low_bytes * int(n_finite.sum()), np.uint8)
    stops = np.empty(len(keys), np.int64)
    _pack(keys, n_finite, low_bytes, packed, stops)
    return packed[: stops[-1] if len(stops) else 0], stops


@compile_loop
def _measure_rows(
    packed: ByteArray, low_bytes: int, starts: IntArray, stops: IntArray, n_keys: IntArray
) -> None:
    for row in range(len(starts)):
        place, found = starts[row], 0
        while place < stops[row]:
            of_run = np.int64(packed[place + 1]) + 1
            found += of_run
            place += RUN_HEAD + of_run * low_bytes
        n_keys[row] = found


@compile_loop
def _unpack(
    packed: ByteArray, low_bytes: int, starts: IntArray, stops: IntArray, keys: KeyArray
) -> None:
    n_done = 0
    for row in range(len(starts)):
        place = starts[row]
        while place < stops[row]:
            high, of_run = np.int64(packed[place]), np.int64(packed[place + 1]) + 1
            place += RUN_HEAD
            for _ in range(of_run):
                key = high
                for low in range(low_bytes - 1, -1, -1):
                    key = (key << 8) | np.int64(packed[place + low])
                keys[n_done] = key
                n_done += 1
                place += low_bytes


@dataclass(frozen=True)
class PackedKeys:
    """Rows of packed keys (`pack_keys`), anywhere among some bytes.

    Attributes:
        packed: The bytes.
        starts: Where each row begins, shape (row,).
        stops: Where it ends.
        key_bytes: Length of a key.
    """

    packed: ByteArray
    starts: IntArray
    stops: IntArray
    key_bytes: int

    def take(self, rows: IntArray) -> PackedKeys:
        """Some of the rows, in their order there."""
        return replace(self, starts=self.starts[rows], stops=self.stops[rows])

    def count(self) -> IntArray:
        """Number of keys of each row."""
        n_keys = np.empty(len(self.starts), np.int64)
        _measure_rows(self.packed, self.key_bytes - 1, self.starts, self.stops, n_keys)
        return n_keys

    def unpack(self) -> KeyArray:
        """The keys of all rows, one row after the other."""
        keys = np.empty(int(self.count().sum()), f"u{self.key_bytes}")
        _unpack(self.packed, self.key_bytes - 1, self.starts, self.stops, keys)
        return keys


@compile_loop
def _compare_levels(
    levels: FloatArray,
    taken: LevelCounts,
    n_levels: int,
    found: FloatArray,
) -> None:
    """Compare the classes of one unit, level by level in ascending order.

    Args:
        levels: Values that there are.
        taken: How often each class has them.
        n_levels: How many of both arrays count.
        found: Shape (6,): see `count_classes`.
    """
    n_toxic, n_nontoxic = 0, 0
    for level in range(n_levels):
        n_toxic += np.int64(taken[level] >> np.uint64(TOXIC))
        n_nontoxic += np.int64(taken[level] & BELOW)
    wins, below, left = 0, 0, n_toxic
    precision, sum_toxic, sum_nontoxic = 0.0, 0.0, 0.0
    for level in range(n_levels):
        here, others = np.int64(taken[level] >> np.uint64(TOXIC)), np.int64(taken[level] & BELOW)
        if here:
            wins += here * (2 * below + others)
            precision += here * (left / (left + n_nontoxic - below))
            left -= here
            sum_toxic += here * levels[level]
        below += others
        sum_nontoxic += others * levels[level]
    mean_toxic, mean_nontoxic = sum_toxic / n_toxic, sum_nontoxic / n_nontoxic
    squares_toxic, squares_nontoxic = 0.0, 0.0
    for level in range(n_levels):
        here, others = np.int64(taken[level] >> np.uint64(TOXIC)), np.int64(taken[level] & BELOW)
        if here:
            squares_toxic += here * (levels[level] - mean_toxic) ** 2
        squares_nontoxic += others * (levels[level] - mean_nontoxic) ** 2
    found[0] = wins / (2.0 * n_toxic * n_nontoxic)
    found[1] = precision / n_toxic
    found[2], found[3] = mean_toxic, squares_toxic
    found[4], found[5] = mean_nontoxic, squares_nontoxic


@compile_loop
def _count(
    toxic: npt.NDArray[np.integer[Any]],
    nontoxic: npt.NDArray[np.integer[Any]],
    values: FloatArray,
    found: FloatArray,
) -> None:
    taken = np.zeros(len(values), np.uint64)
    for code in toxic:
        taken[code] += ONE_TOXIC
    for code in nontoxic:
        taken[code] += ONE_NONTOXIC
    _compare_levels(values, taken, len(values), found)


def count_classes(
    toxic: npt.NDArray[np.integer[Any]],
    nontoxic: npt.NDArray[np.integer[Any]],
    values: FloatArray,
) -> FloatArray:
    """Compare a unit's values on toxic and on non-toxic samples, by counting them per level.

    Pairs are counted in integers and divided once; means and squares are added level by level in
    ascending order. So only which values there are matters, not their order.

    Args:
        toxic: Levels of the values on toxic samples, shape (value,).
        nontoxic: Likewise on non-toxic samples; at most 2^32 - 1.
        values: Value of each level, ascending, shape (level,).

    Returns:
        Shape (6,): AUROC; average precision (scikit-learn's `average_precision_score`); mean of the
        toxic values and sum of squared deviations from it; the same of the non-toxic ones. NaN
        where there is nothing to divide by.
    """
    found = np.full(6, np.nan)
    _count(toxic, nontoxic, values, found)
    return found


@compile_loop
def _add_halves(
    packed: ByteArray, start: int, stop: int, one: int, counts: LevelCounts, is_used: BoolArray
) -> None:
    place = start
    while place < stop:
        high, of_run = np.int64(packed[place]), np.int64(packed[place + 1]) + 1
        place += RUN_HEAD
        is_used[high] = True
        first = high << 8
        for low in packed[place : place + of_run]:
            counts[first + low] += one
        place += of_run


@compile_loop
def _count_halves(
    toxic: ByteArray,
    toxic_starts: IntArray,
    toxic_stops: IntArray,
    nontoxic: ByteArray,
    nontoxic_starts: IntArray,
    nontoxic_stops: IntArray,
    ends: IntArray,
    values: FloatArray,
    found: FloatArray,
) -> None:
    counts = np.zeros(len(values), np.uint64)
    is_used = np.zeros(256, np.bool_)
    taken = np.empty(len(values) + 1, np.uint64)
    levels = np.empty(len(values) + 1, np.float64)
    row = 0
    for unit in range(len(ends)):
        while row < ends[unit]:
            _add_halves(toxic, toxic_starts[row], toxic_stops[row], ONE_TOXIC, counts, is_used)
            _add_halves(
                nontoxic, nontoxic_starts[row], nontoxic_stops[row], ONE_NONTOXIC, counts, is_used
            )
            row += 1
        n_levels = 0
        for high in range(256):
            if not is_used[high]:
                continue
            is_used[high] = False
            for code in range(high << 8, (high + 1) << 8):
                taken[n_levels] = counts[code]
                levels[n_levels] = values[code]
                n_levels += counts[code] != 0
                counts[code] = 0
        _compare_levels(levels, taken, n_levels, found[unit])


def count_halves(
    toxic: PackedKeys, nontoxic: PackedKeys, ends: IntArray, values: FloatArray
) -> FloatArray:
    """Compare the float16 values of many units, straight from their packed keys.

    Args:
        toxic: Rows of keys on toxic samples, a unit's beside each other; keys of two bytes.
        nontoxic: As many rows, on non-toxic samples.
        ends: Behind which row each unit ends, ascending, shape (unit,).
        values: Value of each key, shape (65,536,).

    Returns:
        Shape (unit, 6): of each unit what `count_classes` gives.
    """
    found = np.full((len(ends), 6), np.nan)
    rows = toxic.starts, toxic.stops, nontoxic.packed, nontoxic.starts, nontoxic.stops
    _count_halves(toxic.packed, *rows, ends, values, found)
    return found
