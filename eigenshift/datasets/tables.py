"""Arrow tables -> records, for Parquet files and Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.records import Reason, Record, Rejection, check_columns
from eigenshift.store.source_files import open_file

BATCH_ROWS = 1_000


def read_parquet(uri: str, required: list[str]) -> Iterator[Record | Rejection]:
    """Read a Parquet file, record by record.

    Raises:
        DatasetError: It is no readable Parquet file, or lacks a required column.
    """
    number = 0
    with open_file(uri) as handle:
        try:
            file = pq.ParquetFile(handle)
            check_columns(uri, file.schema_arrow.names, required)
            for batch in file.iter_batches(BATCH_ROWS):
                yield from list_records(batch, number + 1)
                number += batch.num_rows
        except pa.ArrowException as error:
            raise DatasetError(
                f"{uri}: expected a Parquet file, found one that cannot be read after row "
                f"{number} ({type(error).__name__}). It is damaged or cut short. Fetch it again."
            ) from error


def list_records(batch: pa.RecordBatch | pa.Table, first_row: int) -> Iterator[Record | Rejection]:
    """Turn the rows of a batch into records; a row with broken UTF-8 is rejected alone."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_list_row(batch, index) for index in range(batch.num_rows)]
    for number, row in enumerate(rows, start=first_row):
        if row is None:
            yield Rejection(number, Reason.bad_encoding, "expected UTF-8, found other bytes")
        else:
            yield Record(number, row)


def _list_row(batch: pa.RecordBatch | pa.Table, index: int) -> dict[str, Any] | None:
    try:
        return dict(batch.slice(index, 1).to_pylist()[0])
    except UnicodeDecodeError:
        return None
