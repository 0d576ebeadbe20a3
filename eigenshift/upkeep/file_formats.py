"""Whether a file opens as what its name says and has the schema its stage declares.

Reads one local file; where it came from, and what to do about it, is `verification.py`'s.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from eigenshift.pipeline import BY_KIND, find_table
from eigenshift.store.manifests import FileRecord


def find_format_problem(kind: str, step_version: int, file: FileRecord, local: Path) -> str | None:
    """Whether a file opens as what its name says and has the schema of its kind.

    Args:
        kind: Of its artifact.
        step_version: Of the step that made it; the schema of another version is not known here, and
            readers fill what it lacks with nulls.
        file: Its entry in the manifest.
        local: Where it lies.
    """
    try:
        if file.name.endswith(".parquet"):
            return _find_table_problem(kind, step_version, file, local)
        if file.name.endswith(".safetensors"):
            with safe_open(str(local), framework="np"):
                return None
        if file.name.endswith(".json"):
            json.loads(local.read_text(encoding="utf-8"))
    except (pa.ArrowException, SafetensorError, ValueError, OSError) as error:
        return f"expected a file that opens as its name says, found {type(error).__name__}."
    return None


def _find_table_problem(kind: str, step_version: int, file: FileRecord, local: Path) -> str | None:
    opened = pq.ParquetFile(local)
    rows, schema = opened.metadata.num_rows, opened.schema_arrow
    if rows != file.rows:
        return f"expected {file.rows} rows (manifest), found {rows}."
    table = find_table(kind, file.name)
    stage = BY_KIND.get(kind)
    if table is None or stage is None or step_version != stage.version:
        return None
    return _compare_schemas(schema, table.expect(schema))


def _compare_schemas(found: pa.Schema, expected: pa.Schema) -> str | None:
    given = [(column.name, _describe_type(column.type)) for column in found]
    wanted = [(column.name, _describe_type(column.type)) for column in expected]
    if given == wanted:
        return None
    missing = sorted(set(wanted) - set(given))
    extra = sorted(set(given) - set(wanted))
    if not missing and not extra:
        return "expected its columns in the schema's order, found another order."
    return (
        f"expected columns {_show_columns(missing)}, found {_show_columns(extra)} instead. The "
        "file was made by another version."
    )


def _describe_type(type_: pa.DataType) -> str:
    """A type's name without the name of list items, which Parquet does not keep."""
    return f"list<{type_.value_type}>" if pa.types.is_list(type_) else str(type_)


def _show_columns(columns: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {type_}" for name, type_ in columns) or "none"
