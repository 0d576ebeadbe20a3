"""Arrow tables -> records, for Parquet and Arrow files and Hugging Face datasets."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.records import (
    Reason,
    Record,
    Rejection,
    check_columns,
    check_repeats,
    name_columns,
)
from eigenshift.store.unpacking import is_searchable

BATCH_ROWS = 1_000
PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
MAGIC = (PARQUET, ARROW_FILE, ARROW_STREAM)
"""First bytes of the files read here; the hub's library writes Arrow streams."""

ClassNames = Mapping[str, Sequence[str]]
"""Names of classes that a column holds as numbers, by column."""


def is_table(head: bytes) -> bool:
    """Whether a file that begins like this is one of tables."""
    return head.startswith(MAGIC)


def read_table(
    handle: Any, uri: str, required: Collection[str], class_names: dict[str, Sequence[str]]
) -> Iterator[Record | Rejection]:
    """Read a Parquet or Arrow file, record by record.

    Args:
        handle: The file; if it cannot be searched it is read into memory.
        uri: For errors.
        required: Columns it must have.
        class_names: Receives the names of classes, where the file has some.

    Raises:
        DatasetError: It cannot be read, lacks a required column or has one twice.
    """
    number = 0
    try:
        schema, batches = _open_table(handle)
        check_repeats(uri, schema.names, required)
        check_columns(uri, schema.names, required)
        class_names.update(find_class_names(schema.metadata))
        for batch in batches:
            yield from list_records(batch, number + 1)
            number += batch.num_rows
    except pa.ArrowException as error:
        raise DatasetError(
            f"{uri}: expected a Parquet file (or an Arrow one), found one that cannot be read "
            f"after row {number} ({type(error).__name__}). It is damaged or cut short. Fetch it "
            "again."
        ) from error


def _open_table(handle: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    head = handle.peek(len(ARROW_FILE))
    if head.startswith(ARROW_STREAM):
        stream = pa.ipc.open_stream(handle)
        return stream.schema, iter(stream)
    # An unpacked stream would be unpacked again on each way back.
    is_plain = isinstance(handle, io.BufferedReader) and is_searchable(handle)
    seekable = handle if is_plain else io.BytesIO(handle.read())
    if head.startswith(ARROW_FILE):
        file = pa.ipc.open_file(seekable)
        return file.schema, map(file.get_batch, range(file.num_record_batches))
    parquet = pq.ParquetFile(seekable)
    return parquet.schema_arrow, parquet.iter_batches(BATCH_ROWS)


def find_class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of numbered classes, from what the hub's library writes into a schema."""
    try:
        document = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = document["info"]["features"]
        return {
            name: list(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def list_records(batch: pa.RecordBatch | pa.Table, first_row: int) -> Iterator[Record | Rejection]:
    """Turn the rows of a batch into records; a row with broken UTF-8 is rejected alone.

    Columns of one name get names of their own, as those of a CSV do.
    """
    names = batch.schema.names
    if len(set(names)) < len(names):
        batch = batch.rename_columns(name_columns(names))
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
