"""Records and samples on disk: written in batches, read in batches, cut into shards.

Everything keeps the order of reading and depends on nothing else, so equal content gives equal
bytes. Memory holds one batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base.schemas import RECORDS, SAMPLES
from eigenshift.store.parquet_files import open_parquet_writer
from eigenshift.store.workspace import Workspace

MAX_BATCH_ROWS = 4_096
MAX_BATCH_CHARACTERS = 16 << 20


class RecordWriter:
    """Writes rows of `schemas.RECORDS` one by one. A context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = open_parquet_writer(path, RECORDS)
        self._rows: list[dict[str, Any]] = []
        self._n_characters = 0

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def append(self, row: dict[str, Any]) -> None:
        """Add one record."""
        self._rows.append(row)
        self._n_characters += len(row["text"]) + len(row["attributes"])
        if len(self._rows) >= MAX_BATCH_ROWS or self._n_characters >= MAX_BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=RECORDS))
        self._rows, self._n_characters = [], 0


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read records back, batch by batch."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(
            MAX_BATCH_ROWS, columns=None if columns is None else list(columns)
        )


class ShardWriter:
    """Writes samples-00000.parquet and so on; each shard of a file is full but its last."""

    def __init__(self, workspace: Workspace, rows_per_shard: int) -> None:
        self._workspace = workspace
        self._rows_per_shard = rows_per_shard
        self._pending: list[pa.RecordBatch] = []
        self._n_pending = 0
        self._n_shards = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add samples; writes every shard that is full."""
        self._pending.append(batch)
        self._n_pending += batch.num_rows
        if self._n_pending < self._rows_per_shard:
            return
        table = pa.Table.from_batches(self._pending)
        n_full = table.num_rows - table.num_rows % self._rows_per_shard
        for start in range(0, n_full, self._rows_per_shard):
            self._write_shard(table.slice(start, self._rows_per_shard))
        rest = table.slice(n_full)
        self._pending, self._n_pending = rest.to_batches(), rest.num_rows

    def end_file(self) -> None:
        """Write what is left: no shard spans two files."""
        if self._n_pending:
            self._write_shard(pa.Table.from_batches(self._pending))
        self._pending, self._n_pending = [], 0

    def _write_shard(self, table: pa.Table) -> None:
        name = f"samples-{self._n_shards:05d}.parquet"
        self._workspace.write_table(name, table.combine_chunks(), SAMPLES)
        self._n_shards += 1
