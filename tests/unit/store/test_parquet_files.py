"""Parquet as other tools read it: a NaN is found where it is, by all of them."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from eigenshift.audit import encode_table
from eigenshift.store.parquet_files import list_stated_columns, open_parquet_writer, write_parquet
from eigenshift.store.workspace import Workspace

NAN = math.nan
TABLE = pa.table(
    {
        "row": pa.array([0, 1, 2], pa.int16()),
        "x": pa.array([NAN, 0.1, 0.9]),
        "single": pa.array([NAN, 0.1, 0.9], pa.float32()),
        "half": pa.array(np.array([NAN, 0.1, 0.9], np.float16)),
        "items": pa.array([[NAN, 0.1], [0.1], [0.9]]),
        "part": pa.array([{"x": NAN}, {"x": 0.1}, {"x": 0.9}]),
        "void": pa.array([NAN, None, NAN]),
    }
)
"""Every place a float can be in; not a number in row 0, and nowhere else but in `void`."""
VALUES = {"x": "x", "single": "single", "half": "half", "items": "items[1]", "part": "part.x"}
"""Column -> the value in SQL."""


def write_streamed(table: pa.Table, path: Path) -> None:
    """As long tables are written, row by row."""
    with open_parquet_writer(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=1):
            writer.write_batch(batch)


WRITERS = {
    "whole": lambda table, path: write_parquet(table, path),
    "streamed": write_streamed,
    "answer": lambda table, path: path.write_bytes(encode_table(table, "parquet")),
    "artifact": lambda table, path: Workspace(path.parent).write_table(
        path.name, table, table.schema
    ),
}


@pytest.fixture(params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The table as each writer writes it."""
    path = tmp_path / "table.parquet"
    WRITERS[request.param](TABLE, path)
    return path


@pytest.mark.parametrize("column", VALUES)
def test_duckdb_finds_what_a_filter_asks_for(path: Path, column: str) -> None:
    """NaN by name, NaN as the greatest number, and the greatest beside any other column."""
    value = VALUES[column]

    def find(condition: str) -> list[int]:
        sql = f"SELECT row FROM read_parquet('{path}') WHERE {condition} ORDER BY row"
        return [row for (row,) in duckdb.sql(sql).fetchall()]

    assert find(f"isnan({value})") == [0]
    assert find(f"{value} > 0.5") == [0, 2]
    assert find(f"{value} > 100") == [0]
    assert find(f"{value} < 0.5") == [1]
    for beside in ("", ", max(row)", ", count(*)"):
        sql = f"SELECT max({value}){beside} FROM read_parquet('{path}')"
        (found, *_) = duckdb.sql(sql).fetchall()[0]
        assert math.isnan(found)
    assert duckdb.sql(f"FROM read_parquet('{path}') WHERE isnan(void)").fetchall() != []


def test_pyarrow_and_pandas_find_the_same(path: Path) -> None:
    """Whole tables, filters that may skip row groups, and pandas' own filters."""
    assert pq.read_table(path)["x"].is_null(nan_is_null=True).to_pylist() == [True, False, False]
    table = ds.dataset(path)
    for column in ("x", "single"):
        found = table.to_table(filter=pc.is_nan(ds.field(column)))
        assert found["row"].to_pylist() == [0]
        assert table.to_table(filter=ds.field(column) > 0.5)["row"].to_pylist() == [2]
    frame = pd.read_parquet(path, columns=["row", "x", "void"])
    assert frame["x"].isna().tolist() == [True, False, False]
    assert frame["x"].max() == 0.9
    assert pd.read_parquet(path, columns=["row"], filters=[("x", ">", 0.5)])["row"].tolist() == [2]


def test_statistics_of_floats_would_lose_rows(tmp_path: Path) -> None:
    """Why all of this: where DuckDB no longer skips them, `parquet_files.py` can go."""
    path = tmp_path / "table.parquet"
    pq.write_table(TABLE, path)
    assert duckdb.sql(f"FROM read_parquet('{path}') WHERE isnan(x)").fetchall() == []


def test_only_columns_of_floats_are_without_statistics() -> None:
    """One layer of a large file is still found by its number."""
    schema = TABLE.schema.append(pa.field("pairs", pa.map_(pa.string(), pa.float64())))
    schema = schema.append(pa.field("share", pa.decimal128(5, 4)))
    assert list_stated_columns(schema) == ["row", "pairs.key_value.key", "share"]
    assert list_stated_columns(pa.schema({"x": pa.float64()})) == []


def test_a_name_with_a_dot_is_not_taken_for_a_part() -> None:
    """Where a path could be either of two columns, neither is stated."""
    both = pa.schema({"part.x": pa.int64(), "part": pa.struct({"x": pa.float64()})})
    assert list_stated_columns(both) == []
