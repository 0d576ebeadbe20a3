"""Parquet files of a store as they are read: local and small ones directly, others in place.

A small remote file is copied whole, once per process: a layer of it would take several requests,
and the next layer and the next stage as many again. A large one is read by ranges. DuckDB reads
one file from several threads through one handle, and a stock fsspec file keeps one position for
all of them: sums came out wrong without an error (docs/decisions/0010-reading-parquet-in-place.md).
The handles here keep a position per thread and read ranges that need none. Only the files handed
over can be opened, under names of their own; a file is immutable, so its end, where Parquet keeps
its table of contents, is read once and kept.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from eigenshift.store.concurrency import ask_concurrently
from eigenshift.store.range_reader import RangeReader
from eigenshift.store.stored_file import StoredFile

PROTOCOL = "stored"
COPIED_BYTES = 4 << 20
"""Of a file that is copied whole; what an object store sends in the time of one or two requests."""
COPIED_BYTES_IN_ALL = 512 << 20
"""Of all that a process copies so; beyond, files are read in place."""
TAIL_BYTES = 64 << 10
"""What pyarrow asks for first."""
KEPT_TAILS = 1024
HELD_BYTES = 256 << 10
"""Of a file that is held in memory where none is copied."""
HELD_BYTES_IN_ALL = 64 << 20
LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)

TableFile = Path | StoredFile
"""A Parquet file: a path of this machine, or an object of a store."""


def register_files(connection: duckdb.DuckDBPyConnection, files: Sequence[TableFile]) -> list[str]:
    """Make files readable on a connection; call it once per connection, with all of them.

    Returns:
        For each file the name to give to `read_parquet`.
    """
    located = _bring_near(files)
    remote = {_name(file): file for file in located if isinstance(file, StoredFile)}
    if remote:
        connection.register_filesystem(StoredFileSystem(remote))
    return list(map(_name, located))


def read_schemas(files: Sequence[TableFile]) -> list[pa.Schema]:
    """Arrow schemas of files; of a large remote one only the end is read."""
    schemas = []
    for file in _bring_near(files):
        with _open(file) as opened:
            schemas.append(opened.schema_arrow)
    return schemas


def open_parquet(file: TableFile) -> pq.ParquetFile:
    """Open a file for reading by row groups and columns; of a large remote one only these."""
    (located,) = _bring_near([file])
    return _open(located)


def _open(located: TableFile) -> pq.ParquetFile:
    if isinstance(located, Path):
        return pq.ParquetFile(located)
    handle = _Handle(located.reader(), _TAILS.read(located))
    return pq.ParquetFile(pa.PythonFile(handle, mode="r"), pre_buffer=True)


def describe_file(file: TableFile) -> str:
    """Where a file is, for errors."""
    return file.uri if isinstance(file, StoredFile) else str(file)


def _bring_near(files: Sequence[TableFile]) -> list[TableFile]:
    """Copy the small ones among remote files, and read the ends of the others, all at once.

    Returns:
        The path of each file that is on this machine now, else the file itself.
    """

    def bring(file: StoredFile) -> None:
        if _COPIES.may_copy(file):
            file.fetch()
        else:
            _TAILS.read(file)

    far = [file for file in map(_locate, files) if isinstance(file, StoredFile)]
    ask_concurrently(bring, far)
    return list(map(_locate, files))


def _locate(file: TableFile) -> TableFile:
    """The path of a stored file that is on this machine, else the file itself."""
    return (file.find_near() or file) if isinstance(file, StoredFile) else file


class _Copies:
    """How much this process has copied so that it is read at once."""

    def __init__(self) -> None:
        self._digests: set[str] = set()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def may_copy(self, file: StoredFile) -> bool:
        """Whether a file is small and there is room for it; counts it then."""
        if file.n_bytes > COPIED_BYTES:
            return False
        with self._lock:
            if file.sha256 in self._digests:
                return True
            if self._n_bytes + file.n_bytes > COPIED_BYTES_IN_ALL:
                return False
            self._digests.add(file.sha256)
            self._n_bytes += file.n_bytes
        return True


_COPIES = _Copies()


def _name(located: TableFile) -> str:
    """What a file is called in SQL: its path, or a URL made of its digest."""
    if isinstance(located, StoredFile):
        return f"{PROTOCOL}://{located.sha256}.parquet"
    return str(located)


class _Tails:
    """The ends of the remote files that were opened last, by digest; shared by all threads."""

    def __init__(self, max_files: int) -> None:
        self._max_files = max_files
        self._tails: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, file: StoredFile) -> bytes | None:
        """The end of a file, None if it was not read or is forgotten."""
        with self._lock:
            if file.sha256 in self._tails:
                self._tails.move_to_end(file.sha256)
            return self._tails.get(file.sha256)

    def read(self, file: StoredFile) -> bytes:
        """The end of a file, asked for if need be."""
        tail = self.find(file)
        if tail is None:
            file.check_mark()
            tail = file.reader().read_range(max(0, file.n_bytes - TAIL_BYTES), file.n_bytes)
            with self._lock:
                self._tails[file.sha256] = tail
                while len(self._tails) > self._max_files:
                    self._tails.popitem(last=False)
        return tail


_TAILS = _Tails(KEPT_TAILS)


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
        self._held: dict[str, bytes] = {}
        is_small = [file.n_bytes <= HELD_BYTES for file in files.values()]
        self._holds_small = sum(is_small) * HELD_BYTES <= HELD_BYTES_IN_ALL
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
        reader = self._readers.setdefault(file.sha256, file.reader())
        return _Handle(reader, self._read_end(file, reader), self._budget)

    def _read_end(self, file: StoredFile, reader: RangeReader) -> bytes:
        """What is held of a file: all of a small one, else its end."""
        if not (self._holds_small and file.n_bytes <= HELD_BYTES):
            if _TAILS.find(file) is None:
                self._budget.spend()
            return _TAILS.read(file)
        if file.sha256 not in self._held:
            self._budget.spend()
            self._held[file.sha256] = reader.read_range(0, file.n_bytes)
        return self._held[file.sha256]

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
