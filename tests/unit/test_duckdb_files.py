"""Parquet in place on a store: a known aggregate, hundreds of times, from many threads."""

from __future__ import annotations

import hashlib
import io
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from eigenshift.duckdb_files import read_schema, register_files
from eigenshift.errors import ArtifactError
from eigenshift.storage import Store, StoredFile
from eigenshift.traffic import metering

N_FILES, N_ROWS, ROWS_PER_GROUP = 4, 12_000, 1_500
QUERY = """
SELECT count(*), sum(number), sum(len(numbers)), sum(list_sum(numbers)), count(DISTINCT number)
FROM read_parquet({}) WHERE number % 3 <> 0
"""


def write_files(url: str) -> tuple[list[StoredFile], tuple[int, ...]]:
    """Files of known content, larger than what is read ahead, and the exact answer."""
    store, files = Store(url), []
    noise = np.random.default_rng(0)
    totals = [0, 0, 0, 0, 0]
    for place in range(N_FILES):
        numbers = np.arange(place * N_ROWS, (place + 1) * N_ROWS)
        lists = noise.integers(-(2**31), 2**31, size=(N_ROWS, 6))
        buffer = io.BytesIO()
        table = pa.table({"number": numbers, "numbers": list(lists)})
        pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP)
        data = buffer.getvalue()
        assert len(data) > 300_000
        store.write_bytes(f"file-{place}.parquet", data)
        sha256 = hashlib.sha256(data).hexdigest()
        files.append(StoredFile(store, f"file-{place}.parquet", len(data), sha256))
        chosen = numbers % 3 != 0
        found = [
            int(chosen.sum()),
            int(numbers[chosen].sum()),
            6 * int(chosen.sum()),
            int(lists[chosen].sum()),
            int(chosen.sum()),
        ]
        totals = [total + part for total, part in zip(totals, found, strict=True)]
    return files, tuple(totals)


def ask_repeatedly(files: list[StoredFile], n_times: int, n_threads: int) -> set[tuple[Any, ...]]:
    """All answers of one connection."""
    connection = duckdb.connect(config={"threads": str(n_threads)})
    names = register_files(connection, files)
    query = QUERY.format(names)
    answers = {tuple(map(int, connection.sql(query).fetchall()[0])) for _ in range(n_times)}
    connection.close()
    return answers


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads take a random moment, so that threads interleave in every way."""
    read, stream = MemoryFileSystem.cat_file, random.Random(1)

    def cat_file(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        time.sleep(stream.random() * 0.0004)
        found: bytes = read(self, path, start=start, end=end)
        return found

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)


@pytest.mark.usefixtures("slow_reads")
def test_a_known_aggregate_is_right_every_time() -> None:
    """Four connections at once, four threads each, a hundred queries each: one answer."""
    files, expected = write_files(f"memory://{uuid.uuid4().hex}")
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: ask_repeatedly(files, 100, 4), range(4))
        assert set.union(*answers) == {expected}


@pytest.mark.s3
def test_a_known_aggregate_is_right_every_time_on_s3(s3_store_url: str) -> None:
    """The same on a real S3 server."""
    files, expected = write_files(s3_store_url)
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda _: ask_repeatedly(files, 25, 4), range(2))
        assert set.union(*answers) == {expected}


def test_only_the_columns_and_row_groups_asked_for_are_read() -> None:
    """One number of one row group costs a small part of the file."""
    files, _ = write_files(f"memory://{uuid.uuid4().hex}")
    with metering() as meter:
        connection = duckdb.connect()
        (name,) = register_files(connection, files[:1])
        found = connection.sql(f"SELECT number FROM read_parquet('{name}') WHERE number = 7")
        assert found.fetchall() == [(7,)]
    assert meter.traffic.bytes_read < files[0].n_bytes / 4
    assert meter.traffic.requests <= 4


def test_a_small_file_costs_one_request() -> None:
    """However many columns and row groups a question needs."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"number": range(900), "other": range(900)}), buffer, row_group_size=90)
    store.write_bytes("small.parquet", buffer.getvalue())
    file = StoredFile(store, "small.parquet", len(buffer.getvalue()), store.digest("small.parquet"))
    with metering() as meter:
        connection = duckdb.connect()
        (name,) = register_files(connection, [file])
        found = connection.sql(f"SELECT sum(number + other) FROM read_parquet('{name}')").fetchall()
    assert found == [(899 * 900,)]
    assert (meter.traffic.requests, meter.traffic.bytes_read) == (1, file.n_bytes)


def test_only_the_files_handed_over_can_be_opened() -> None:
    """Another name, or writing, is refused."""
    files, _ = write_files(f"memory://{uuid.uuid4().hex}")
    connection = duckdb.connect()
    (name,) = register_files(connection, files[:1])
    other = f"stored://{files[1].sha256}.parquet"
    for sql in (f"SELECT * FROM read_parquet('{other}')", f"COPY (SELECT 1) TO '{name}'"):
        with pytest.raises(duckdb.Error):
            connection.execute(sql).fetchall()
    assert connection.sql(f"SELECT count(*) FROM read_parquet('{name}')").fetchall() == [(N_ROWS,)]


def test_a_file_that_was_replaced_by_a_shorter_one_is_an_error() -> None:
    """Never a wrong sum."""
    files, _ = write_files(f"memory://{uuid.uuid4().hex}")
    file = files[0]
    file.store.write_bytes(file.path, b"x" * 100)
    with pytest.raises((ArtifactError, duckdb.Error)):
        ask_repeatedly([file], 1, 2)


def test_the_schema_of_a_remote_file_is_read_from_its_end() -> None:
    """Nothing but the table of contents is fetched."""
    files, _ = write_files(f"memory://{uuid.uuid4().hex}")
    with metering() as meter:
        assert read_schema(files[0]).names == ["number", "numbers"]
    assert meter.traffic.bytes_read < files[0].n_bytes / 4
