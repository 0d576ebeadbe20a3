"""A result as the bytes of a CSV, JSON or Parquet file."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv

from eigenshift.base.errors import AuditError
from eigenshift.store.parquet_files import write_parquet

FORMATS = ("csv", "json", "parquet")


def encode_table(table: pa.Table, table_format: str) -> bytes:
    """Return a result as a file's bytes.

    Args:
        table: From `AuditSession.query`.
        table_format: "csv" (with header; nested values as JSON), "json" (one array, UTF-8, newline
            at the end; NaN and infinities as null) or "parquet". Intervals are text.

    Raises:
        AuditError: There is no such format, or it has no form for a column.
    """
    if table_format not in FORMATS:
        raise AuditError(f"format: expected csv, json or parquet, found {table_format!r}.")
    try:
        return _ENCODERS[table_format](_spell_intervals(table))
    except pa.ArrowException as error:
        raise AuditError(
            f"format: expected columns that {table_format} has a form for, found none for one of "
            f"{', '.join(map(str, table.schema.types))}. Cast it in the SQL: CAST(... AS VARCHAR)."
        ) from error


def _encode_csv(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pa_csv.write_csv(_flatten(table), buffer)
    return buffer.getvalue()


def _encode_json(table: pa.Table) -> bytes:
    rows = [{name: _to_json(value) for name, value in row.items()} for row in table.to_pylist()]
    return (json.dumps(rows, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _encode_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    write_parquet(table, buffer)
    return buffer.getvalue()


_ENCODERS = {"csv": _encode_csv, "json": _encode_json, "parquet": _encode_parquet}


def _spell_intervals(table: pa.Table) -> pa.Table:
    """Intervals as text, as DuckDB writes them: no format has a form for months and days."""
    for place, field in enumerate(table.schema):
        if _holds_interval(field.type):
            with duckdb.connect() as connection:
                column = connection.from_arrow(pa.table({"value": table[place]}))
                spelled = column.project("value::VARCHAR AS value").to_arrow_table()["value"]
            table = table.set_column(place, field.name, spelled)
    return table


def _holds_interval(type_: pa.DataType) -> bool:
    if type_ == pa.month_day_nano_interval():
        return True
    return any(_holds_interval(type_.field(place).type) for place in range(type_.num_fields))


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
