"""One layer's activations of one dataset's labelled samples, read by DuckDB in blocks of units.

Reads activation shards and samples (Parquet of the store, in place); writes nothing but what DuckDB
spills. Samples are in the order of their ids, so nothing that is computed from them depends on the
order of rows, shards or threads; which of too many are kept depends on their ids alone. What is
computed is in `probes.py` and `neuron_stability.py`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from eigenshift.base.arrays import BoolArray, IntArray, ValueArray
from eigenshift.base.errors import ArtifactError, SettingsError
from eigenshift.store.duckdb_files import TableFile, describe_file, read_schemas, register_files

BLOCK_SHARE = 0.25
"""Share of the memory limit that one block of units may take; DuckDB keeps its own limit."""
ROWS_PER_BATCH = 2_048
"""DuckDB's vector size."""
COPIES_PER_THREAD = 8
MEMORY_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 1 << 20, "GiB": 1 << 30}


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
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": memory_limit,
            "temp_directory": str(temp_folder),
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    # It goes to stdout under `python -c`. In a notebook without ipywidgets it is off, and DuckDB
    # refuses every setting of it, this one too.
    ((is_on,),) = connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()
    if is_on:
        connection.execute("SET enable_progress_bar = false")
    return connection


def load_sql(name: str, **identifiers: str) -> str:
    """Return a query from `detection/sql/`, with its {placeholders} filled.

    Args:
        name: File name without `.sql`.
        identifiers: Column names of our own schemas; values go in as DuckDB variables instead.
    """
    text = (
        resources.files("eigenshift.detection")
        .joinpath("sql")
        .joinpath(f"{name}.sql")
        .read_text("utf-8")
    )
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
        for batch in stream_batches(relation):
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
        """Run a query of `detection/sql/` over units `first` .. `stop` - 1."""
        return self._select(name, column, first, stop).to_arrow_table()

    def _select(self, name: str, column: str, first: int, stop: int) -> duckdb.DuckDBPyRelation:
        width = self._shape(column).n_units
        if not 0 <= first < stop <= width:
            raise ValueError(f"{column}: expected units within 0 to {width}, found {first}:{stop}")
        set_variables(self._connection, first_unit=first + 1, last_unit=stop)
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


def set_variables(connection: duckdb.DuckDBPyConnection, **variables: Any) -> None:
    """Set DuckDB variables, which the queries of `detection/sql/` read with `getvariable`."""
    for name, value in variables.items():
        connection.execute(f"SET VARIABLE {name} = ?", [value])


def stream_batches(relation: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    """Yield a query's result in batches of DuckDB's vector size.

    Raises:
        SettingsError: The memory limit is too small for one batch.
    """
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
    max_samples: int | None = None,
) -> Iterator[LabelledLayer]:
    """Open one layer of one dataset; what DuckDB spills in `folder` is removed at the end.

    With `max_samples`, at most that many labelled samples, chosen by a digest of their ids.

    Raises:
        ArtifactError: The shards do not have the same columns.
    """
    shapes = _read_shapes(activation_files)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="spill-") as spill,
        closing(connect(memory_limit, Path(spill))) as connection,
    ):
        names = register_files(connection, [*activation_files, *sample_files])
        set_variables(
            connection,
            activation_files=names[: len(activation_files)],
            sample_files=names[len(activation_files) :],
            dataset=dataset,
            layer=layer,
            max_samples=max_samples,
        )
        # Rows carry their position, so DuckDB need not buffer them to keep their order; and the
        # hash table of the join must hold the labels, as written, not the wide activations.
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        widest = max((shape.n_units for shape in shapes.values()), default=1)
        limit_threads(connection, 4 * widest, memory_limit)
        connection.execute(load_sql("labelled_samples"))
        yield LabelledLayer(connection, shapes)


def limit_threads(
    connection: duckdb.DuckDBPyConnection, bytes_per_row: int, memory_limit: str
) -> None:
    """Use as many threads as DuckDB would, but only so many as fit the limit side by side.

    A thread works on 2,048 rows at once whatever the limit; it was measured to hold up to six
    copies of them (scan, slice, output).
    """
    (default,) = connection.sql("SELECT current_setting('threads')").fetchall()[0]
    fitting = parse_memory_limit(memory_limit) // (
        COPIES_PER_THREAD * ROWS_PER_BATCH * max(1, bytes_per_row)
    )
    connection.execute("SET threads = ?", [max(1, min(int(default), fitting))])


def _read_shapes(activation_files: Sequence[TableFile]) -> dict[str, ColumnShape]:
    if not activation_files:
        raise ArtifactError(
            "activations: expected at least one shard, found none. Extract the activations first."
        )
    found: dict[str, ColumnShape] = {}
    for file, schema in zip(activation_files, read_schemas(activation_files), strict=True):
        shapes = {
            field.name: ColumnShape(
                field.type.list_size,
                "float16" if pa.types.is_float16(field.type.value_type) else "float32",
            )
            for field in schema
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


def split_units(n_units: int, bytes_per_unit: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of blocks of units that fit a quarter of the memory.

    Each block reads its files once more, so fewer blocks are faster; which blocks there are changes
    no result.
    """
    units = max(1, int(BLOCK_SHARE * memory_bytes / max(1, bytes_per_unit)))
    for first in range(0, n_units, units):
        yield first, min(n_units, first + units)
