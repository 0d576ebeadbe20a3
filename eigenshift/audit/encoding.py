"""A result as the bytes of a CSV, JSON or Parquet file."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from eigenshift.errors import AuditError

FORMATS = ("csv", "json", "parquet")


def encode_table(table: pa.Table, table_format: str) -> bytes:
    """Return a result as a file's bytes.

    Args:
        table: From `AuditSession.query`.
        table_format: "csv" (with header; nested values as JSON), "json" (one array, UTF-8, newline
            at the end; NaN and infinities as null) or "parquet".

    Raises:
        AuditError: There is no such format.
    """
    if table_format == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()
    if table_format == "json":
        rows = [{name: _to_json(value) for name, value in row.items()} for row in table.to_pylist()]
        return (json.dumps(rows, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if table_format == "csv":
        buffer = io.BytesIO()
        pa_csv.write_csv(_flatten(table), buffer)
        return buffer.getvalue()
    raise AuditError(f"format: expected csv, json or parquet, found {table_format!r}.")


def _to_json(value: Any) -> Any:
    """A value JSON has a form for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _flatten(table: pa.Table) -> pa.Table:
    """Columns CSV has no form for, as JSON text."""
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or isinstance(field.type, pa.BaseExtensionType):
            values = [
                None if value is None else json.dumps(_to_json(value), ensure_ascii=False)
                for value in table[place].to_pylist()
            ]
            table = table.set_column(place, field.name, pa.array(values, pa.string()))
    return table
