"""Samples on their way to the store: a spool on disk, and shards of equal size.

Whether a text is kept depends on texts read later, so samples are first written to a spool beside
the shards, then copied without the rejected ones. Both keep the order of reading and depend on
nothing else, so equal content gives equal bytes. Memory holds one batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from eigenshift.artifacts import Workspace
from eigenshift.schemas import SAMPLES

MAX_BATCH_ROWS = 4_096
MAX_BATCH_CHARACTERS = 16 << 20
SPOOL = pa.schema(
    [*SAMPLES, pa.field("file_index", pa.int32()), pa.field("text_digest", pa.uint64())]
)


class SampleSpool:
    """Rows of `SPOOL`, appended one by one and read back in batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = pa.ipc.new_stream(
            str(path), SPOOL, options=pa.ipc.IpcWriteOptions(compression="lz4")
        )
        self._rows: list[dict[str, Any]] = []
        self._n_characters = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add one sample."""
        self._rows.append(row)
        self._n_characters += len(row["text"]) + len(row["attributes"])
        if len(self._rows) >= MAX_BATCH_ROWS or self._n_characters >= MAX_BATCH_CHARACTERS:
            self._flush()

    def read_batches(self) -> Iterator[pa.RecordBatch]:
        """Finish writing and read everything back."""
        self._flush()
        self._writer.close()
        with pa.memory_map(str(self._path)) as handle, pa.ipc.open_stream(handle) as reader:
            yield from reader

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=SPOOL))
        self._rows, self._n_characters = [], 0


class ShardWriter:
    """Writes samples-00000.parquet and so on, each full but the last."""

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

    def close(self) -> None:
        """Write what is left."""
        if self._n_pending:
            self._write_shard(pa.Table.from_batches(self._pending))
        self._pending, self._n_pending = [], 0

    def _write_shard(self, table: pa.Table) -> None:
        name = f"samples-{self._n_shards:05d}.parquet"
        self._workspace.write_table(name, table.combine_chunks(), SAMPLES)
        self._n_shards += 1
