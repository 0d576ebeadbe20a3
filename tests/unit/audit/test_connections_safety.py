"""Hostile statements: whatever is asked, nothing is written, reached or used up."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.audit import AuditLimits, AuditSession, connect, open_audit
from eigenshift.base.errors import AuditError
from eigenshift.store.scratch import scratch_folder
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def session(small: SmallStore) -> AuditSession:
    """A session on it."""
    return open_audit(small.url)


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that did write would write into an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY runs TO 'out.csv'",
        "COPY (SELECT 1) TO '/tmp/eigenshift-test-out.csv'",
        "ATTACH 'other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA enable_profiling",
        "SET enable_external_access = true",
        "RESET threads",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW runs AS SELECT 1",
        "INSERT INTO runs VALUES (1)",
        "UPDATE runs SET status = 'promoted'",
        "DELETE FROM runs",
        "DROP VIEW samples",
        "CALL pragma_version()",
        "EXPORT DATABASE 'x'",
        "PREPARE q AS SELECT 1",
        "BEGIN TRANSACTION",
        "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "EXPLAIN DELETE FROM runs",
        "/* harmless */ EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW samples",
        "SELECT 1 /* ; */ ; -- x\n COPY runs TO 'x'",
        "WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone",
        "WITH new AS (INSERT INTO runs VALUES (1) RETURNING *) SELECT * FROM new",
        "SELECT 1; ATTACH 'x.duckdb'; SELECT 2",
        "SELECT ';'; COPY runs TO 'out.csv'",
        "COPY runs FROM 'in.csv'",
        "COPY FROM DATABASE memory TO other",
        "ATTACH ':memory:' AS other",
        "DETACH memory",
        "USE internal",
        "FORCE INSTALL httpfs",
        "INSTALL httpfs FROM community",
        "LOAD 'evil.duckdb_extension'",
        "CREATE SECRET s (TYPE s3, KEY_ID 'k', SECRET 's')",
        "CREATE OR REPLACE MACRO count(x) AS 0",
        "CREATE TEMP TABLE t AS SELECT 1",
        "ALTER VIEW runs RENAME TO gone",
        "COMMENT ON VIEW runs IS 'x'",
        "SET VARIABLE x = 1",
        "SET allowed_paths = ['/etc/passwd']",
        "SET GLOBAL memory_limit = '100GB'",
        "PRAGMA memory_limit='100GB'",
        "CHECKPOINT",
        "VACUUM",
        "ANALYZE",
        "IMPORT DATABASE 'x'",
        "EXECUTE q",
        "DEALLOCATE q",
        "COMMIT",
        "ROLLBACK",
        "MERGE INTO runs USING samples ON false WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
        "TRUNCATE runs",
        "EXPLAIN (FORMAT json) COPY runs TO 'out.csv'",
        "WITH t AS (MERGE INTO runs USING samples ON false WHEN MATCHED THEN DELETE) FROM t",
        "",
        "-- nothing",
        "SELECT",
        ")))",
        "SELECT 'unfinished",
        "SELECT 1 /* unfinished",
    ],
)
def test_anything_but_one_select_is_refused(session: AuditSession, sql: str) -> None:
    """Only one read-only statement is answered; the message says what was expected."""
    with pytest.raises(AuditError, match=r"expected|refused"):
        session.query(sql)
    assert list(Path.cwd().iterdir()) == []
    assert session.query("SELECT status FROM runs").to_pylist() == [{"status": "promoted"}]


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "read_blob('/etc/hostname')",
        "read_parquet('{folder}/outside.parquet')",
        "read_json('{folder}/*.json')",
        "'{folder}/outside.parquet'",
        "glob('/etc/*')",
        "parquet_metadata('{folder}/outside.parquet')",
        "read_parquet('s3://bucket/x.parquet')",
        "read_csv('https://example.org/x.csv')",
        "query('SELECT * FROM read_text(''/etc/passwd'')')",
        "query_table('/etc/passwd')",
        "parquet_scan('{folder}/outside.parquet')",
        "parquet_schema('{folder}/outside.parquet')",
        "parquet_file_metadata('{folder}/outside.parquet')",
        "parquet_kv_metadata('{folder}/outside.parquet')",
        "read_csv_auto('/etc/passwd')",
        "sniff_csv('/etc/passwd')",
        "read_ndjson('/etc/passwd')",
        "read_json_objects('/etc/passwd')",
        "read_text(['/etc/passwd', '/etc/hosts'])",
        "read_text('{folder}/../../../../../../../../etc/passwd')",
        "read_text('file:///etc/passwd')",
        "'https://example.org/x.parquet'",
        "'hf://datasets/x/y.parquet'",
        "read_parquet('gs://bucket/x.parquet')",
        "read_text('stored://x.parquet')",
        "read_duckdb('{folder}/x.duckdb')",
        "arrow_scan(0, 0, 0)",
        "pandas_scan(0)",
    ],
)
def test_files_outside_the_store_cannot_be_reached(
    session: AuditSession, tmp_path: Path, source: str
) -> None:
    """Neither other files nor the network, however they are spelled."""
    pq.write_table(pa.table({"secret": [1]}), tmp_path / "outside.parquet")
    with pytest.raises(AuditError, match=r"Only the store's own|refused"):
        session.query(f"SELECT * FROM {source.format(folder=tmp_path)}")


def test_variables_of_the_program_cannot_be_reached(session: AuditSession) -> None:
    """DuckDB's habit of reading Python variables as tables is off."""
    secret = pa.table({"value": [1]})
    with pytest.raises(AuditError, match="does not exist"):
        session.query("SELECT * FROM secret")
    assert secret.num_rows == 1


def test_endless_query_is_stopped(small: SmallStore) -> None:
    """A huge cross join ends at the time limit with a clear message."""
    session = open_audit(small.url, AuditLimits(seconds=0.5))
    sql = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = 3"
    with pytest.raises(AuditError, match=r"within 0\.5 s"):
        session.query(sql)


def test_huge_result_is_stopped(small: SmallStore) -> None:
    """A result is bounded in memory, not only in time."""
    session = open_audit(small.url, AuditLimits(result_bytes=10_000_000))
    with pytest.raises(AuditError, match="at most 10,000,000 bytes"):
        session.query("SELECT * FROM range(100000000)")


def test_memory_is_limited(small: SmallStore) -> None:
    """A query beyond the memory limit fails with a message, and writes nothing to disk."""
    session = open_audit(small.url, AuditLimits(memory_limit="50MB"))
    with pytest.raises(AuditError, match="Filter or aggregate"):
        session.query("SELECT list(range::VARCHAR ORDER BY hash(range)) FROM range(20000000)")


def test_neighbours_of_artifact_files_cannot_be_read(session: AuditSession) -> None:
    """The files behind the views, and nothing beside them in the same folder."""
    assert session.query("SELECT count(*) AS n FROM neurons").to_pylist() == [{"n": 8}]
    folder = next(scratch_folder().glob("audit-*/run_id=*/neurons/*"))
    assert (folder / "manifest.json").is_file()
    for name in ("manifest.json", "*", "*.json", "../*/*.parquet"):
        with pytest.raises(AuditError, match=r"Only the store's own"):
            session.query(f"SELECT * FROM read_text('{folder}/{name}'), neurons")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT getenv('HOME')",
        "SELECT write_blob('out', 'x')",
        "SELECT * FROM write_csv('out')",
        "SELECT shell('id')",
        "SELECT load_extension('x')",
        "SELECT * FROM duckdb_secrets(), read_text('/etc/passwd')",
        "SELECT (SELECT content FROM read_text('/etc/passwd'))",
        "SELECT * FROM runs WHERE run_id IN (SELECT content FROM read_text('/etc/passwd'))",
        "WITH t AS MATERIALIZED (FROM read_text('/etc/passwd')) SELECT 1 FROM t",
        "SELECT 1 UNION ALL SELECT content FROM read_text('/etc/passwd')",
        "FROM (SUMMARIZE '/etc/passwd')",
        "DESCRIBE '/etc/passwd'",
        "SUMMARIZE read_csv('/etc/passwd')",
        "SELECT nextval('s')",
    ],
)
def test_functions_reach_nothing_either(session: AuditSession, sql: str) -> None:
    """No environment, no shell, no files, wherever in the statement the call stands."""
    with pytest.raises(AuditError, match=r"refused|expected|failed"):
        session.query(sql)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT count(*) FROM generations a, generations b, generations c, generations d, "
        "generations e WHERE a.run_id || b.run_id || c.run_id || d.run_id || e.run_id = 'x'",
        "SELECT sum(hash(a.range, b.range)) FROM range(1000000) a, range(1000000) b",
    ],
)
def test_work_without_end_is_stopped(small: SmallStore, sql: str) -> None:
    """Recursion, joins of views and functions over billions of rows end at the time limit."""
    with open_audit(small.url, AuditLimits(seconds=0.5)) as hurried:
        with pytest.raises(AuditError, match=r"within 0\.5 s"):
            hurried.query(sql)
        assert hurried.query("SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 1}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 100000000)",
        "SELECT list(range) FROM range(400000000)",
        "SELECT string_agg(range::VARCHAR, ',') FROM range(200000000)",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT " + " + ".join(["1"] * 20000),
    ],
)
def test_huge_values_and_deep_nesting_end_in_an_answer_or_a_message(
    small: SmallStore, sql: str
) -> None:
    """Never a crash."""
    limits = AuditLimits(seconds=5, memory_limit="100MB", result_bytes=10_000_000)
    with open_audit(small.url, limits) as careful:
        try:
            assert careful.query(sql).num_rows == 1
        except AuditError as error:
            assert "audit query" in str(error)  # noqa: PT017


def test_settings_of_a_notebook_connection_are_locked(small: SmallStore) -> None:
    """`connect` is closed for good: what closes it cannot be opened again."""
    import duckdb

    connection = connect(small.url)
    for sql in (
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET allowed_directories = ['/']",
        "INSTALL httpfs",
        "ATTACH 'x.duckdb'",
        "COPY runs TO 'out.csv'",
        "EXPORT DATABASE 'x'",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(sql)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{path}' (FORMAT parquet, USE_TMP_FILE false)",
        "COPY (SELECT 1) TO '{path}' (FORMAT csv, USE_TMP_FILE false)",
        "COPY (SELECT 1) TO '{path}'",
        "COPY (SELECT 1 AS a, 2 AS b) TO '{path}' (FORMAT parquet, PARTITION_BY a, OVERWRITE)",
    ],
)
def test_a_notebook_connection_cannot_replace_the_files_behind_its_views(
    tmp_path: Path, statement: str
) -> None:
    """Neither by a statement nor by a relation's methods, though the files' names are shown."""
    import duckdb

    store = build_small_store(str(tmp_path / "store"))
    files = {path: path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()}
    connection = connect(store.url)
    names = connection.sql(
        "SELECT DISTINCT unnest(regexp_extract_all(sql, '''([^'']+[.]parquet)''', 1)) "
        "FROM duckdb_views()"
    ).fetchall()
    assert len(names) > 10
    for (path,) in names:
        with pytest.raises(duckdb.Error):
            connection.execute(statement.format(path=path))
        for write in ("write_parquet", "to_parquet", "write_csv", "to_csv"):
            with pytest.raises(duckdb.Error):
                getattr(connection.sql("SELECT 1"), write)(path)
    assert files == {
        path: path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()
    }
    assert connection.sql("SELECT count(*) FROM samples").fetchall() == [(30,)]
