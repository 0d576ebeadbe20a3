"""Neuron statistics: how well each single unit tells toxic from non-toxic samples.

Reads activation shards and samples (local Parquet files); writes `neurons.parquet`. DuckDB selects
the layer, joins the labels and streams a block of units at a time; numpy sorts each unit once and
reduces in that order. Everything below the sort depends only on which values a unit has, not on
the order of rows, shards or threads: the same inputs give the same bytes.

Why not all in SQL: `sql/neuron_statistics.sql` computes the same numbers with GROUP BY and window
sums, is kept as the readable reference (`query_neuron_statistics`), and took over four times the
CPU (tests/benchmarks/bench_neuron_statistics.py). Layer probes are in `probes.py`, which shares
the reading and ranking here.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eigenshift.artifacts import Workspace
from eigenshift.duckdb_files import TableFile, describe_file, read_schema, register_files
from eigenshift.errors import ArtifactError, SettingsError
from eigenshift.schemas import NEURONS
from eigenshift.settings import SitePooling

logger = logging.getLogger(__name__)

STEP_VERSION = 1

ALL_LANGUAGES = "all"
BLOCK_SHARE = 0.25
"""Share of the memory limit that one block of units may take; DuckDB keeps its own limit."""
ROWS_PER_BATCH = 2_048
"""DuckDB's vector size."""
COPIES_PER_THREAD = 8
VALUES_PER_SORT = 1 << 20
CODE_BITS = 6
LEFT_OUT = (1 << CODE_BITS) - 1
"""Code of a value that takes part in nothing: it is NaN or infinite."""
MAX_CODE = LEFT_OUT - 1
MEMORY_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 1 << 20, "GiB": 1 << 30}

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ValueArray = npt.NDArray[np.floating[Any]]


def connect(memory_limit: str, temp_folder: Path) -> duckdb.DuckDBPyConnection:
    """Open DuckDB for work on local files.

    Args:
        memory_limit: DuckDB's own limit, e.g. "2GB"; beyond it, it spills.
        temp_folder: Existing folder for what is spilled.

    Returns:
        A connection to a new in-memory database. Rows keep their order, extensions are neither
        downloaded nor loaded, and no stock fsspec filesystem is registered: DuckDB's reading
        ahead through one is a race that can give wrong sums without an error (duckdb_files.py).
    """
    return duckdb.connect(
        ":memory:",
        config={
            "memory_limit": memory_limit,
            "temp_directory": str(temp_folder),
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )


def load_sql(name: str, **identifiers: str) -> str:
    """Return a query from `eigenshift/sql/`, with its {placeholders} filled.

    Args:
        name: File name without `.sql`.
        identifiers: Column names of our own schemas; values go in as DuckDB variables instead.
    """
    text = resources.files("eigenshift").joinpath("sql").joinpath(f"{name}.sql").read_text("utf-8")
    return text.format(**identifiers) if identifiers else text


@dataclass(frozen=True)
class ColumnShape:
    """Units and stored precision of one activations column."""

    n_units: int
    precision: str


class LabelledLayer:
    """One layer's activations of one dataset's labelled samples, read a block of units at a time.

    Attributes:
        sample_ids: Ids in ascending order; every array below has this order of samples.
        is_toxic: Labels, shape (sample,).
        languages: Language codes, shape (sample,); null where the source has none.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, shapes: Mapping[str, ColumnShape]
    ) -> None:
        samples = connection.sql("FROM labelled_samples ORDER BY position").to_arrow_table()
        self._connection = connection
        self._shapes = shapes
        self.sample_ids: list[str] = samples["sample_id"].to_pylist()
        self.languages: list[str | None] = samples["language"].to_pylist()
        self.is_toxic: BoolArray = np.array(samples["is_toxic"].to_pylist(), dtype=np.bool_)

    @property
    def n_samples(self) -> int:
        """Number of labelled samples."""
        return len(self.sample_ids)

    def count_units(self, column: str) -> int:
        """Number of units of a site and pooling."""
        return self._shape(column).n_units

    def read_units(self, column: str, first: int, stop: int) -> ValueArray:
        """Return the activations of units `first` .. `stop` - 1.

        Args:
            column: Site and pooling, e.g. "mlp_activation_max".
            first: First unit, from 0.
            stop: One past the last unit.

        Returns:
            Shape (unit, sample), float16 or float32 as stored, samples in the order of
            `sample_ids`.

        Raises:
            ArtifactError: The column is missing, or a sample has no row, two rows or a null row.
        """
        relation = self._select("activation_block", column, first, stop)
        values: ValueArray = np.empty(
            (stop - first, self.n_samples), np.dtype(self._shape(column).precision)
        )
        times_seen = np.zeros(self.n_samples, np.int64)
        for batch in _stream_batches(relation):
            positions = batch.column("position").to_numpy()
            flat = batch.column("unit_values").flatten().to_numpy(zero_copy_only=False)
            if len(flat) != len(positions) * (stop - first):
                raise ArtifactError(
                    f"activations, column {column}: expected {stop - first} values for each of "
                    f"{len(positions)} samples, found {len(flat)} values. A row is null or cut "
                    "short; the shard was damaged. Extract the activations again."
                )
            values[:, positions] = flat.reshape(len(positions), stop - first).T
            np.add.at(times_seen, positions, 1)
        self._check_rows(column, times_seen)
        return values

    def query(self, name: str, column: str, first: int, stop: int) -> pa.Table:
        """Run a query of `eigenshift/sql/` over units `first` .. `stop` - 1."""
        return self._select(name, column, first, stop).to_arrow_table()

    def _select(self, name: str, column: str, first: int, stop: int) -> duckdb.DuckDBPyRelation:
        width = self._shape(column).n_units
        if not 0 <= first < stop <= width:
            raise ValueError(f"{column}: expected units within 0 to {width}, found {first}:{stop}")
        self._connection.execute("SET VARIABLE first_unit = ?", [first + 1])
        self._connection.execute("SET VARIABLE last_unit = ?", [stop])
        return self._connection.sql(load_sql(name, column=column))

    def _shape(self, column: str) -> ColumnShape:
        if column not in self._shapes:
            raise ArtifactError(
                f"activations: expected a column {column!r}, found "
                f"{', '.join(sorted(self._shapes))}. The shards were made with other sites. Ask "
                "for these sites, or extract the activations again with the sites you want."
            )
        return self._shapes[column]

    def _check_rows(self, column: str, times_seen: IntArray) -> None:
        wrong = np.flatnonzero(times_seen != 1)
        if wrong.size:
            worst = int(wrong[0])
            raise ArtifactError(
                f"activations, column {column}: expected one row per sample and layer, found "
                f"{int(times_seen[worst])} for sample {self.sample_ids[worst]} (and "
                f"{wrong.size - 1} more samples). A shard or a samples file was probably given "
                "twice. Give each file once."
            )


def _stream_batches(relation: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    try:
        yield from relation.to_arrow_reader(ROWS_PER_BATCH)
    except (duckdb.OutOfMemoryException, OSError) as error:  # mid-stream it is Arrow's OSError
        if "Out of Memory" not in str(error):
            raise
        raise SettingsError(
            "execution.duckdb_memory_limit: expected enough for one batch of activations, found "
            f"too little ({str(error).splitlines()[0]}). The layer is wide. Raise the limit; about "
            "100 KB per unit are needed."
        ) from error


@contextmanager
def open_labelled_layer(
    activation_files: Sequence[TableFile],
    sample_files: Sequence[TableFile],
    dataset: str,
    layer: int,
    memory_limit: str,
    folder: Path,
) -> Iterator[LabelledLayer]:
    """Open one layer of one dataset; what DuckDB spills in `folder` is removed at the end.

    Raises:
        ArtifactError: The shards do not have the same columns.
    """
    shapes = _read_shapes(activation_files)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="spill-") as spill,
        closing(connect(memory_limit, Path(spill))) as connection,
    ):
        names = register_files(connection, [*activation_files, *sample_files])
        for name, value in {
            "activation_files": names[: len(activation_files)],
            "sample_files": names[len(activation_files) :],
            "dataset": dataset,
            "layer": layer,
        }.items():
            connection.execute(f"SET VARIABLE {name} = ?", [value])
        # Rows carry their position, so DuckDB need not buffer them to keep their order; and the
        # hash table of the join must hold the labels, as written, not the wide activations.
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        connection.execute("SET threads = ?", [_count_threads(connection, shapes, memory_limit)])
        connection.execute(load_sql("labelled_samples"))
        yield LabelledLayer(connection, shapes)


def _count_threads(
    connection: duckdb.DuckDBPyConnection, shapes: Mapping[str, ColumnShape], memory_limit: str
) -> int:
    """As many threads as DuckDB would take, but only so many as fit the limit side by side.

    A thread works on 2,048 rows at once whatever the limit; it was measured to hold up to six
    copies of them (scan, slice, output), as float32.
    """
    (default,) = connection.sql("SELECT current_setting('threads')").fetchall()[0]
    widest = max((shape.n_units for shape in shapes.values()), default=1)
    fitting = parse_memory_limit(memory_limit) // (COPIES_PER_THREAD * ROWS_PER_BATCH * 4 * widest)
    return max(1, min(int(default), fitting))


def _read_shapes(activation_files: Sequence[TableFile]) -> dict[str, ColumnShape]:
    if not activation_files:
        raise ArtifactError(
            "activations: expected at least one shard, found none. Extract the activations first."
        )
    found: dict[str, ColumnShape] = {}
    for file in activation_files:
        shapes = {
            field.name: ColumnShape(
                field.type.list_size,
                "float16" if pa.types.is_float16(field.type.value_type) else "float32",
            )
            for field in read_schema(file)
            if pa.types.is_fixed_size_list(field.type)
        }
        if found and shapes != found:
            raise ArtifactError(
                f"{describe_file(file)}: expected the columns and widths of "
                f"{describe_file(activation_files[0])}, found others. The shards come from two "
                "models or two settings. Give shards of one run."
            )
        found = shapes
    return found


def parse_memory_limit(memory_limit: str) -> int:
    """Return a limit such as "2GB" or "512MiB" in bytes.

    Raises:
        SettingsError: It is not a number with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s?([A-Za-z]+)", memory_limit)
    if match is None or match[2] not in MEMORY_UNITS:
        raise SettingsError(
            f"execution.duckdb_memory_limit: expected a number and one of "
            f"{', '.join(MEMORY_UNITS)}, found {memory_limit!r}. Write for example 2GB."
        )
    return int(float(match[1]) * MEMORY_UNITS[match[2]])


def split_units(n_units: int, n_samples: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of blocks of units whose float32 values fit the memory share.

    Each block reads the layer's column once more, so fewer blocks are faster; which blocks there
    are changes no result.
    """
    units = max(1, int(BLOCK_SHARE * memory_bytes / (4 * max(1, n_samples))))
    for first in range(0, n_units, units):
        yield first, min(n_units, first + units)


class RankedUnits:
    """Units sorted by value once, from which any division of the samples is ranked.

    Each value becomes an integer of the same order with the sample's code in its low bits, so one
    integer sort orders values and brings the labels along (several times faster than an argsort
    of floats). Equal values, -0.0 and 0.0 among them, form one tie group.

    Attributes:
        codes: Code of each sorted value, shape (unit, sample); `LEFT_OUT` where it is not finite.
    """

    def __init__(self, values: ValueArray, codes: npt.NDArray[np.integer[Any]]) -> None:
        """Sort the units.

        Args:
            values: Shape (unit, sample), at least one of each, float16 or float32.
            codes: One code per sample, 0 to `MAX_CODE`, shape (sample,).
        """
        packed = _pack(values, codes)
        packed.sort(axis=1)
        self.n_units, self.n_samples = values.shape
        self.codes: npt.NDArray[np.uint8] = (packed & LEFT_OUT).astype(np.uint8)
        self._keys = (packed >> CODE_BITS).astype(f"u{values.dtype.itemsize}")
        self._dtype = values.dtype
        is_end = np.ones(self._keys.shape, np.bool_)
        np.not_equal(self._keys[:, 1:], self._keys[:, :-1], out=is_end[:, :-1])
        self._ends = np.flatnonzero(is_end)
        self._starts = np.searchsorted(self._ends, np.arange(self.n_units) * self.n_samples)

    def decode_values(self) -> FloatArray:
        """Return the sorted values as float64, shape (unit, sample); 0 where they are left out."""
        bits = self._keys.dtype.itemsize * 8
        sign = self._keys.dtype.type(1 << (bits - 1))
        raw = np.where(self._keys & sign, self._keys ^ sign, ~self._keys).view(self._dtype)
        return np.where(self.codes == LEFT_OUT, 0.0, raw.astype(np.float64))

    def compute_auroc(self, is_toxic: BoolArray, is_nontoxic: BoolArray) -> FloatArray:
        """Return each unit's exact AUROC, ties counting one half, shape (unit,).

        Args:
            is_toxic: Which sorted values (see `codes`) are toxic, shape (unit, sample).
            is_nontoxic: Which are non-toxic; the others take no part.

        Returns:
            NaN for a unit without one of the classes. The counts are integers, so the result is
            the exact fraction, rounded once.
        """
        toxic, _, n_toxic = self._count(is_toxic)
        nontoxic, nontoxic_so_far, n_nontoxic = self._count(is_nontoxic)
        pairs = np.add.reduceat(toxic * (2 * nontoxic_so_far - nontoxic), self._starts)
        return _divide(pairs, 2 * n_toxic * n_nontoxic)

    def compute_average_precision(self, is_toxic: BoolArray, is_nontoxic: BoolArray) -> FloatArray:
        """Return each unit's average precision as scikit-learn defines it, shape (unit,).

        The sum over thresholds of (rise of recall) x precision, equal values sharing a threshold;
        arguments as in `compute_auroc`. NaN for a unit without toxic values.
        """
        toxic, toxic_so_far, n_toxic = self._count(is_toxic)
        nontoxic, nontoxic_so_far, n_nontoxic = self._count(is_nontoxic)
        groups = np.diff(self._starts, append=len(self._ends))
        true_positives = np.repeat(n_toxic, groups) - toxic_so_far + toxic
        false_positives = np.repeat(n_nontoxic, groups) - nontoxic_so_far + nontoxic
        terms = toxic * true_positives / np.maximum(1, true_positives + false_positives)
        return _divide(np.add.reduceat(terms, self._starts), n_toxic)

    def _count(self, chosen: BoolArray) -> tuple[IntArray, IntArray, IntArray]:
        """Chosen values per tie group, running total of them within the unit, total per unit."""
        running = np.cumsum(chosen, axis=1, dtype=np.int32)
        so_far = running.ravel()[self._ends].astype(np.int64)
        per_group = np.diff(so_far, prepend=0)
        per_group[self._starts] = so_far[self._starts]
        return per_group, so_far, running[:, -1].astype(np.int64)


def _pack(
    values: ValueArray, codes: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.unsignedinteger[Any]]:
    bits = values.dtype.itemsize * 8
    wide = np.dtype(f"u{2 * values.dtype.itemsize}").type
    raw = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    sign = raw.dtype.type(1 << (bits - 1))
    raw = np.where(raw == sign, raw.dtype.type(0), raw)  # -0.0 is 0.0
    keys = np.where(raw & sign, ~raw, raw | sign)
    all_codes = np.where(np.isfinite(values), codes.astype(wide), wide(LEFT_OUT))
    packed: npt.NDArray[np.unsignedinteger[Any]] = np.left_shift(keys, CODE_BITS, dtype=wide)
    packed |= all_codes
    return packed


def _divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> FloatArray:
    """Quotient as float64, NaN where the denominator is 0."""
    result = np.full(denominator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


@dataclass(frozen=True)
class UnitStatistics:
    """Statistics of some units over the same samples; all arrays have shape (unit,).

    NaN where a statistic does not exist; `reasons` says why.
    """

    auroc: FloatArray
    average_precision: FloatArray
    mean_toxic: FloatArray
    mean_nontoxic: FloatArray
    variance_toxic: FloatArray
    variance_nontoxic: FloatArray
    cohens_d: FloatArray
    n_toxic: IntArray
    n_nontoxic: IntArray
    n_nonfinite: IntArray

    @property
    def reasons(self) -> list[str | None]:
        """Why something is NaN for each unit, None where nothing is."""
        return [
            _explain(*row)
            for row in zip(
                self.n_toxic.tolist(),
                self.n_nontoxic.tolist(),
                np.isnan(self.cohens_d).tolist(),
                strict=True,
            )
        ]


def _explain(n_toxic: int, n_nontoxic: int, is_d_missing: bool) -> str | None:
    if n_toxic == 0 or n_nontoxic == 0:
        classes = [("toxic", n_toxic), ("nontoxic", n_nontoxic)]
        return ", ".join(f"no_{name}_values" for name, count in classes if count == 0)
    reasons = []
    if n_toxic == 1:
        reasons.append("one_toxic_value")
    if n_nontoxic == 1:
        reasons.append("one_nontoxic_value")
    if is_d_missing and n_toxic + n_nontoxic > 2:
        reasons.append("zero_variance")
    return ", ".join(reasons) or None


def compute_unit_statistics(values: ValueArray, is_toxic: BoolArray) -> UnitStatistics:
    """Compare each unit's values on toxic and non-toxic samples.

    Args:
        values: Shape (unit, sample), float16 or float32; NaN and infinite values are left out.
        is_toxic: Labels, shape (sample,).

    Returns:
        Exact AUROC and average precision; means and sample variances (n - 1) in float64, two
        passes over the sorted values; Cohen's d with the pooled standard deviation. None of them
        depends on the order of the samples.
    """
    n_units, n_samples = values.shape
    if n_samples == 0:
        missing, zero = np.full(n_units, np.nan), np.zeros(n_units, np.int64)
        return UnitStatistics(*([missing] * 7), *([zero] * 3))
    step = max(1, VALUES_PER_SORT // n_samples)
    parts = [
        _compare_classes(RankedUnits(values[first : first + step], is_toxic.astype(np.uint8)))
        for first in range(0, n_units, step)
    ]
    return UnitStatistics(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS}
    )


_FIELDS = tuple(UnitStatistics.__dataclass_fields__)


def _compare_classes(ranked: RankedUnits) -> UnitStatistics:
    is_toxic, is_nontoxic = ranked.codes == 1, ranked.codes == 0
    values = ranked.decode_values()
    n_toxic, mean_toxic, squares_toxic = _sum_squares(values, is_toxic)
    n_nontoxic, mean_nontoxic, squares_nontoxic = _sum_squares(values, is_nontoxic)
    degrees = np.where((n_toxic > 0) & (n_nontoxic > 0), n_toxic + n_nontoxic - 2, 0)
    pooled_sd = np.sqrt(_divide(squares_toxic + squares_nontoxic, degrees))
    return UnitStatistics(
        auroc=ranked.compute_auroc(is_toxic, is_nontoxic),
        average_precision=ranked.compute_average_precision(is_toxic, is_nontoxic),
        mean_toxic=mean_toxic,
        mean_nontoxic=mean_nontoxic,
        variance_toxic=_divide(squares_toxic, np.maximum(n_toxic - 1, 0)),
        variance_nontoxic=_divide(squares_nontoxic, np.maximum(n_nontoxic - 1, 0)),
        cohens_d=_divide(mean_toxic - mean_nontoxic, pooled_sd),
        n_toxic=n_toxic,
        n_nontoxic=n_nontoxic,
        n_nonfinite=np.count_nonzero(ranked.codes == LEFT_OUT, axis=1),
    )


def _sum_squares(values: FloatArray, chosen: BoolArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """Count, mean, and sum of squared deviations of the chosen values, each of shape (unit,).

    A constant unit gets exactly 0: a float32 times a count below 2^29 is exact in float64.
    """
    count = np.count_nonzero(chosen, axis=1)
    mean = _divide(np.where(chosen, values, 0.0).sum(axis=1), count)
    deviations = np.where(chosen, values - mean[:, None], 0.0)
    return count, mean, np.square(deviations).sum(axis=1)


def compute_neuron_statistics(
    activation_files: Sequence[TableFile],
    sample_files: Sequence[TableFile],
    dataset: str,
    layer: int,
    sites: Sequence[SitePooling],
    memory_limit: str,
    workspace: Workspace,
) -> None:
    """Write `neurons.parquet` for one dataset and layer: one row per language, site and unit.

    The language is 'all', and also each single one where the dataset has more than one.

    Args:
        activation_files: Activation shards; together one row per layer and sample.
        sample_files: Samples with labels; samples without a label are left out.
        dataset: Name of the dataset.
        layer: 0 = first layer.
        sites: Sites and poolings, in the order of the rows.
        memory_limit: DuckDB's limit; a quarter of it is also the size of a block of units.
        workspace: Where the table is written.

    Raises:
        ArtifactError: The shards disagree, lack a site, or hold a sample twice.
    """
    started = time.perf_counter()
    memory_bytes = parse_memory_limit(memory_limit)
    parts: dict[tuple[str, SitePooling], list[pa.Table]] = {}
    with open_labelled_layer(
        activation_files, sample_files, dataset, layer, memory_limit, workspace.folder
    ) as labelled:
        slices = _slice_by_language(labelled.languages)
        for site in sites:
            n_units = labelled.count_units(site.column)
            for first, stop in split_units(n_units, labelled.n_samples, memory_bytes):
                values = labelled.read_units(site.column, first, stop)
                for language, chosen in slices.items():
                    statistics = compute_unit_statistics(
                        values if language == ALL_LANGUAGES else values[:, chosen],
                        labelled.is_toxic[chosen],
                    )
                    parts.setdefault((language, site), []).append(
                        _tabulate(statistics, dataset, language, layer, site, first)
                    )
        table = pa.concat_tables(
            part for language in slices for site in sites for part in parts[language, site]
        )
    workspace.write_table("neurons.parquet", table, NEURONS)
    workspace.facts["n_samples"] = labelled.n_samples
    logger.debug(
        "neuron statistics: dataset=%s layer=%d samples=%d rows=%d seconds=%.2f",
        dataset,
        layer,
        labelled.n_samples,
        table.num_rows,
        time.perf_counter() - started,
    )


def _slice_by_language(languages: Sequence[str | None]) -> dict[str, IntArray]:
    """Positions of the samples of each slice: 'all' first, then each language if several."""
    named = sorted({language for language in languages if language is not None})
    slices = {ALL_LANGUAGES: np.arange(len(languages))}
    if len(named) > 1:
        codes = np.array([language or "" for language in languages])
        slices |= {language: np.flatnonzero(codes == language) for language in named}
    return slices


def _tabulate(
    statistics: UnitStatistics,
    dataset: str,
    language: str,
    layer: int,
    site: SitePooling,
    first: int,
) -> pa.Table:
    n_units = len(statistics.auroc)
    columns: dict[str, Any] = {
        "dataset": [dataset] * n_units,
        "language": [language] * n_units,
        "layer": [layer] * n_units,
        "site": [site.site.value] * n_units,
        "pooling": [site.pooling.value] * n_units,
        "neuron_index": range(first, first + n_units),
        "reason": statistics.reasons,
    }
    arrays = []
    for field in NEURONS:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        else:
            numbers = getattr(statistics, field.name)
            arrays.append(pa.array(numbers, field.type, mask=np.isnan(numbers)))
    return pa.table(arrays, schema=NEURONS)


def query_neuron_statistics(
    activation_files: Sequence[TableFile],
    sample_files: Sequence[TableFile],
    dataset: str,
    layer: int,
    site: SitePooling,
    units: range,
    memory_limit: str,
    folder: Path,
) -> pa.Table:
    """Compute the statistics of some units in plain SQL, over all languages.

    For checking a few numbers of `neurons.parquet` against `sql/neuron_statistics.sql`; the last
    digits of means and variances may depend on the number of threads.

    Args:
        activation_files: As in `compute_neuron_statistics`.
        sample_files: Likewise.
        dataset: Likewise.
        layer: Likewise.
        site: One site and pooling.
        units: Neighbouring units.
        memory_limit: Likewise.
        folder: For what is spilled.

    Returns:
        `neuron_index` and the statistics, named as in `schemas.NEURONS`.
    """
    with open_labelled_layer(
        activation_files, sample_files, dataset, layer, memory_limit, folder
    ) as labelled:
        return labelled.query("neuron_statistics", site.column, units.start, units.stop)
