"""How every Parquet file is written: compressed, and without statistics of floats and of bytes.

The least and greatest value that a file states of a column leave NaN out, and DuckDB 2.0 takes
them for all of it: it skips rows that hold NaN (`WHERE isnan(x)`), or rows beside them (it holds
NaN for greater than any number), and answers `max(x)` from them, without an error. What is not
stated is read. Of bytes nobody asks, and they would stand whole in the file's foot. Other columns
keep theirs; they are how one layer of a large file is found.
Reading is `duckdb_files.py`'s and pyarrow's.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

FLOATS = ("FLOAT", "DOUBLE")
"""Physical types in Parquet; half precision is a logical one."""
HALF = "FLOAT16"


def write_parquet(table: pa.Table, where: Path | BinaryIO) -> None:
    """Write a table as one Parquet file.

    Raises:
        pa.ArrowException: Parquet has no form for one of its columns.
    """
    pq.write_table(
        table, where, compression="zstd", write_statistics=list_stated_columns(table.schema)
    )


def open_parquet_writer(
    where: Path, schema: pa.Schema, *, compression: str | dict[str, str] = "zstd", **layout: Any
) -> pq.ParquetWriter:
    """Return a writer to which tables and batches of one file are given in turn.

    Args:
        where: The file.
        schema: Of each of them.
        compression: Of all columns, or by column.
        layout: Encodings, as `pq.ParquetWriter` takes them.
    """
    return pq.ParquetWriter(
        where,
        schema,
        compression=compression,
        write_statistics=list_stated_columns(schema),
        **layout,
    )


def list_stated_columns(schema: pa.Schema) -> list[str]:
    """Paths of the columns whose least and greatest value are stated: all but floats and bytes.

    Args:
        schema: May be nested; a path leads to what lies innermost, as Parquet spells it.
    """
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.ParquetFile(empty).schema
    columns = [leaves.column(place) for place in range(len(leaves))]
    silent = {column.path for column in columns if _is_silent(column)}
    return [column.path for column in columns if column.path not in silent]


def _is_silent(column: Any) -> bool:
    kind = column.logical_type.type
    is_bytes = column.physical_type == "BYTE_ARRAY" and kind == "NONE"
    return is_bytes or column.physical_type in FLOATS or kind == HALF
