"""A local folder in which a stage writes the files of one artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eigenshift.store.parquet_files import write_parquet


class Workspace:
    """A local folder in which a stage writes the files of one artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """Where a file of this artifact is to be written."""
        return self.folder / name

    def write_table(self, name: str, table: pa.Table, schema: pa.Schema) -> None:
        """Write a Parquet file; the table must fit the schema exactly."""
        write_parquet(table.cast(schema), self.path(name))

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Write dictionaries as a Parquet file."""
        self.write_table(name, pa.Table.from_pylist(list(rows), schema=schema), schema)

    def write_json(self, name: str, document: Any) -> None:
        """Write a JSON file with sorted keys."""
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        self.path(name).write_text(text + "\n", encoding="utf-8")
