"""Parquet files of a store as they are read: local ones directly, remote ones in place.

DuckDB reads one file from several threads through one handle, and a stock fsspec file keeps one
position for all of them: sums came out wrong without an error (docs/decisions/
0010-reading-parquet-in-place.md). The handles here keep a position per thread and read ranges that
need none. Only the files handed over can be opened, under names of their own; a file is immutable,
so its end, where Parquet keeps its table of contents, is read once and kept. Small files are read
whole, up to a budget: one request in place of ten.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from eigenshift.storage import RangeReader, StoredFile

PROTOCOL = "stored"
TAIL_BYTES = 16 << 10
SMALL_BYTES = 256 << 10
KEPT_BYTES = 64 << 20
LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)

TableFile = Path | StoredFile
"""A Parquet file: a path of this machine, or an object of a store."""


def register_files(connection: duckdb.DuckDBPyConnection, files: Sequence[TableFile]) -> list[str]:
    """Make files readable on a connection; call it once per connection, with all of them.

    Returns:
        For each file the name to give to `read_parquet`.
    """
    names = [name_file(file) for file in files]
    remote = {
        name: file
        for name, file in zip(names, files, strict=True)
        if isinstance(file, StoredFile) and not file.store.is_local
    }
    if remote:
        connection.register_filesystem(StoredFileSystem(remote))
    return names


def name_file(file: TableFile) -> str:
    """What a file is called in SQL: its path, or a URL made of its digest."""
    located = _locate(file)
    if isinstance(located, StoredFile):
        return f"{PROTOCOL}://{located.sha256}.parquet"
    return str(located)


def read_schema(file: TableFile) -> pa.Schema:
    """Arrow schema of a file; of a remote one only the end is read."""
    with open_parquet(file) as opened:
        return opened.schema_arrow


def open_parquet(file: TableFile) -> pq.ParquetFile:
    """Open a file for reading by row groups and columns; of a remote one only these are read."""
    located = _locate(file)
    if isinstance(located, Path):
        return pq.ParquetFile(located)
    return pq.ParquetFile(pa.PythonFile(_Handle(located.reader()), mode="r"), pre_buffer=True)


def describe_file(file: TableFile) -> str:
    """Where a file is, for errors."""
    return file.uri if isinstance(file, StoredFile) else str(file)


def _locate(file: TableFile) -> TableFile:
    """A stored file of this machine is its path."""
    if isinstance(file, StoredFile) and file.store.is_local:
        return file.fetch()
    return file


class StoredFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB asks of a filesystem, for a fixed set of immutable files.

    Args:
        files: By the names under which they can be opened; a file may have several.
        max_requests: Ranges that may be read in all; None for any number.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, files: dict[str, StoredFile], max_requests: int | None = None) -> None:
        super().__init__(skip_instance_cache=True)
        self._files = files
        self._readers: dict[str, RangeReader] = {}
        self._tails: dict[str, bytes] = {}
        is_small = [file.n_bytes <= SMALL_BYTES for file in files.values()]
        self._keeps_small = sum(is_small) * SMALL_BYTES <= KEPT_BYTES
        self._budget = RequestBudget(max_requests)

    def open(self, path: str, mode: str = "rb", **_: Any) -> _Handle:
        """Open one of the files for reading.

        Raises:
            FileNotFoundError: It is none of them.
            PermissionError: It is to be written.
        """
        if mode != "rb":
            raise PermissionError(f"{path}: these files are read only")
        file = self._find(path)
        if file.sha256 not in self._tails:
            self._budget.spend()
            is_whole = self._keeps_small and file.n_bytes <= SMALL_BYTES
            start = 0 if is_whole else max(0, file.n_bytes - TAIL_BYTES)
            self._readers[file.sha256] = reader = file.reader()
            self._tails[file.sha256] = reader.read_range(start, file.n_bytes)
        return _Handle(self._readers[file.sha256], self._tails[file.sha256], self._budget)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type of one of the files."""
        file = self._find(path)
        return {"name": path, "size": file.n_bytes, "type": "file"}

    def modified(self, path: str) -> datetime:
        """Always the same time: a name holds a digest, so its file never changes."""
        self._find(path)
        return LONG_AGO

    def exists(self, path: str, **_: Any) -> bool:
        """Whether it is one of the files."""
        return self._name(path) in self._files

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file itself; names are never patterns."""
        return [path] if self.exists(path) else []

    def _find(self, path: str) -> StoredFile:
        if not self.exists(path):
            raise FileNotFoundError(path)
        return self._files[self._name(path)]

    @staticmethod
    def _name(path: str) -> str:
        return path if path.startswith(f"{PROTOCOL}://") else f"{PROTOCOL}://{path}"


class RequestBudget:
    """A number of requests that may be made, from any thread.

    Args:
        limit: None for any number.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._spent = 0
        self._lock = threading.Lock()

    def spend(self) -> None:
        """Make one request.

        Raises:
            PermissionError: There were as many as may be.
        """
        with self._lock:
            self._spent += 1
        if self._limit is not None and self._spent > self._limit:
            raise PermissionError(
                f"expected at most {self._limit:,} requests to storage, found more are needed; "
                "name a run_id or fewer columns"
            )


class _Handle:
    """A file open for reading, with a position for each thread that uses it."""

    def __init__(
        self, reader: RangeReader, tail: bytes = b"", budget: RequestBudget | None = None
    ) -> None:
        self._reader = reader
        self._budget = budget or RequestBudget(None)
        self._tail = tail
        self._tail_start = reader.size - len(tail)
        self._positions = threading.local()
        self.size = reader.size
        self.closed = False
        self.mode = "rb"

    def read(self, n_bytes: int = -1) -> bytes:
        start = self.tell()
        stop = self.size if n_bytes < 0 else min(start + n_bytes, self.size)
        if start >= self._tail_start:
            data = self._tail[start - self._tail_start : stop - self._tail_start]
        else:
            self._budget.spend()
            data = self._reader.read_range(start, stop)
        self._positions.value = start + len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}[whence]
        self._positions.value = start + offset
        return start + offset

    def tell(self) -> int:
        return int(getattr(self._positions, "value", 0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        self.closed = True
