"""Parquet in place on a store: a known aggregate, hundreds of times, from many threads."""

from __future__ import annotations

import hashlib
import io
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from eigenshift.base.errors import ArtifactError, DamagedFileError
from eigenshift.store import duckdb_files
from eigenshift.store.duckdb_files import TAIL_BYTES, read_schemas, register_files
from eigenshift.store.storage import Store
from eigenshift.store.stored_file import StoredFile
from eigenshift.store.traffic import Traffic, metering

N_FILES, N_ROWS, ROWS_PER_GROUP = 4, 12_000, 1_500
QUERY = """
SELECT count(*), sum(number), sum(len(numbers)), sum(list_sum(numbers)), count(DISTINCT number)
FROM read_parquet({}) WHERE number % 3 <> 0
"""


def write_files(url: str) -> tuple[list[StoredFile], tuple[int, ...]]:
    """Files of known content, larger than what is read ahead, and the exact answer."""
    store, files = Store(url), []
    noise = np.random.default_rng()  # copies are kept by digest: other tests have other files
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
    read, get, stream = MemoryFileSystem.cat_file, MemoryFileSystem.get_file, random.Random(1)

    def cat_file(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        time.sleep(stream.random() * 0.0004)
        found: bytes = read(self, path, start=start, end=end)
        return found

    def get_file(self: MemoryFileSystem, *arguments: Any, **keywords: Any) -> None:
        time.sleep(0.05)
        get(self, *arguments, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is small enough to be copied whole."""
    monkeypatch.setattr(duckdb_files, "COPIED_BYTES", 0)


@pytest.mark.usefixtures("slow_reads", "in_place")
def test_a_known_aggregate_is_right_every_time() -> None:
    """Four connections at once, four threads each, a hundred queries each: one answer."""
    files, expected = write_files(f"memory://{uuid.uuid4().hex}")
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: ask_repeatedly(files, 100, 4), range(4))
        assert set.union(*answers) == {expected}


@pytest.mark.s3
@pytest.mark.usefixtures("in_place")
def test_a_known_aggregate_is_right_every_time_on_s3(s3_store_url: str) -> None:
    """The same on a real S3 server."""
    files, expected = write_files(s3_store_url)
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda _: ask_repeatedly(files, 25, 4), range(2))
        assert set.union(*answers) == {expected}


@pytest.mark.usefixtures("in_place")
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


@pytest.mark.usefixtures("in_place")
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


@pytest.mark.usefixtures("in_place")
def test_the_ends_of_large_files_are_read_once() -> None:
    """Schemas take nothing else, and the questions that follow do not ask for the ends again."""
    files, expected = write_files(f"memory://{uuid.uuid4().hex}")
    with metering() as meter:
        assert [schema.names for schema in read_schemas(files)] == N_FILES * [["number", "numbers"]]
    assert meter.traffic.requests == N_FILES
    assert meter.traffic.bytes_read == N_FILES * TAIL_BYTES
    with metering() as meter:
        read_schemas(files)
    assert meter.traffic.requests == 0
    assert ask_repeatedly(files, 1, 2) == {expected}


@pytest.mark.usefixtures("slow_reads")
def test_a_small_file_is_fetched_once_by_a_process() -> None:
    """Whatever is asked of it, by however many tasks at once."""
    files, expected = write_files(f"memory://{uuid.uuid4().hex}")

    def ask(_: int) -> tuple[set[tuple[Any, ...]], Traffic]:
        with metering() as meter:
            read_schemas(files)
            return ask_repeatedly(files, 2, 2), meter.traffic

    with ThreadPoolExecutor(4) as pool:
        answers, traffic = zip(*pool.map(ask, range(4)), strict=True)
    assert set.union(*answers) == {expected}
    total = sum(traffic, Traffic())
    assert (total.requests, total.bytes_read) == (N_FILES, sum(file.n_bytes for file in files))


def test_more_small_files_than_there_is_room_for_are_read_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Schemas and answers are the same; what is copied stays within the bound of the process."""
    files, expected = write_files(f"memory://{uuid.uuid4().hex}")
    n_bytes = sum(file.n_bytes for file in files)
    monkeypatch.setattr(duckdb_files, "COPIED_BYTES_IN_ALL", n_bytes - 1)
    monkeypatch.setattr(duckdb_files, "_COPIES", type(duckdb_files._COPIES)())
    for _ in range(2):
        assert len(read_schemas(files)) == N_FILES
        assert ask_repeatedly(files, 1, 2) == {expected}
    assert sum(file.find_near() is not None for file in files) == N_FILES - 1


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("is_moved", [True, False])
def test_a_large_file_with_another_entity_tag_is_compared_by_content(is_moved: bool) -> None:
    """A store that was moved has other tags for the same bytes; a replaced file has other bytes."""
    files, expected = write_files(f"memory://{uuid.uuid4().hex}")
    marked = [replace(file, mark="of before") for file in files]
    if is_moved:
        assert ask_repeatedly(marked, 1, 2) == {expected}
        return
    data = bytearray(files[2].store.read_bytes(files[2].path))
    data[len(data) // 2] ^= 1
    files[2].store.write_bytes(files[2].path, bytes(data))
    with pytest.raises(DamagedFileError, match="expected sha256"):
        ask_repeatedly(marked, 1, 2)


def test_a_small_file_whose_content_changed_is_an_error() -> None:
    """Its size is still right; its digest is not, and no copy is kept."""
    files, _ = write_files(f"memory://{uuid.uuid4().hex}")
    file = files[0]
    data = bytearray(file.store.read_bytes(file.path))
    data[len(data) // 2] ^= 1
    file.store.write_bytes(file.path, bytes(data))
    with pytest.raises(ArtifactError, match="expected sha256"):
        ask_repeatedly(files, 1, 2)
    assert file.find_near() is None
