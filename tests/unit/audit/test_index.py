"""The index of a store: what is read, what is remembered, and what a question opens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eigenshift.audit import VIEW_SCHEMAS, AuditLimits, index, open_audit
from eigenshift.audit.dictionary import list_entries
from eigenshift.audit.index import StoreIndex
from eigenshift.base.errors import AuditError
from eigenshift.store.manifests import MANIFEST_NAME, FileRecord, Manifest
from eigenshift.store.traffic import Traffic, metering
from tests.support.large_store import N_LAYERS, build_large_store, name_run
from tests.support.small_store import SmallStore, build_small_store

N_RUNS, N_ROWS = 6, 6 * N_LAYERS * 50
TOP_UNITS = "SELECT layer, auroc FROM neurons WHERE run_id = '{}' ORDER BY auroc DESC LIMIT 3"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test, used however small the store is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def remote() -> str:
    """A remote store with several runs."""
    url = "memory://audit-index"
    build_large_store(url, N_RUNS, N_ROWS)
    return url


def read(url: str) -> tuple[int, Traffic]:
    """Number of neurons manifests, and what it took to know them."""
    with metering() as meter:
        found = StoreIndex(url).read_manifests("neurons").num_rows
    return found, meter.traffic


def test_second_session_reads_no_manifest_again(small: SmallStore, cache: Path) -> None:
    """One listing, and no bytes of manifests that have not changed."""
    first = read(small.url)
    second = read(small.url)
    assert first[0] == second[0] == 2
    assert first[1].bytes_read > 0
    assert (second[1].requests, second[1].bytes_read) == (1, 0)


def test_changed_and_removed_manifests_are_noticed(
    small: SmallStore, cache: Path, tmp_path: Path
) -> None:
    """What was remembered of an object counts only as long as the object is the same."""
    copy = small.copy_to(tmp_path / "store")
    folder = Path(copy.url) / "artifacts" / "neurons"
    first, second = sorted(folder.glob(f"*/{MANIFEST_NAME}"))
    assert read(copy.url)[0] == 2
    document = json.loads(first.read_text())
    document["facts"] = {"note": "made again"}
    first.write_text(json.dumps(document))
    second.unlink()
    assert StoreIndex(copy.url).read_manifests("neurons")["facts"].to_pylist() == [
        '{"note": "made again"}'
    ]


def test_damaged_or_forbidden_cache_costs_time_only(small: SmallStore, cache: Path) -> None:
    """A cache cut short is made again; where none can be kept, everything is read."""
    read(small.url)
    (kept,) = cache.glob("eigenshift/audit/*/neurons-*.parquet")
    kept.write_bytes(kept.read_bytes()[:100])
    assert read(small.url)[0] == 2
    assert pq.read_table(kept).num_rows == 2
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file where the folder should be")
    assert read(small.url)[0] == 2


def test_question_about_one_run_opens_its_files_only(tmp_path: Path) -> None:
    """DuckDB skips the files of other runs by their names, also where a join names the run."""
    build_large_store(str(tmp_path), N_RUNS, N_ROWS)
    with open_audit(str(tmp_path)) as session:
        for sql in (
            TOP_UNITS.format(name_run(3)),
            "SELECT max(auroc) FROM neurons JOIN (SELECT run_id FROM releases WHERE is_current) "
            "USING (run_id)",
        ):
            plan = str(session.query(f"EXPLAIN ANALYZE {sql}").to_pylist())
            assert re.findall(r"Total Files Read: (\d+)", plan) == [str(N_LAYERS)]


def test_requests_to_a_remote_store_are_counted_and_few(remote: str) -> None:
    """Of a remote store only the ends and the columns of one run's files are read."""
    with open_audit(remote) as session:
        assert session.query("SELECT count(*) AS n FROM runs").to_pylist() == [{"n": N_RUNS}]
        before = session.traffic
        assert session.is_remote
        assert session.query(TOP_UNITS.format(name_run(2))).num_rows == 3
        manifests = N_RUNS * N_LAYERS
        files = session.traffic.requests - before.requests - manifests
        assert 0 < files <= 4 * N_LAYERS
        again = session.traffic
        assert session.query(TOP_UNITS.format(name_run(2))).num_rows == 3
        assert session.traffic.requests - again.requests <= 3 * N_LAYERS


def test_remote_answers_are_those_of_a_local_store(remote: str, tmp_path: Path) -> None:
    """The same store in a folder gives the same units."""
    build_large_store(str(tmp_path), N_RUNS, N_ROWS)
    sql = "SELECT run_id, layer, sum(auroc) FROM neurons GROUP BY ALL ORDER BY ALL"
    with open_audit(remote) as there, open_audit(str(tmp_path)) as here:
        assert there.query(sql) == here.query(sql)


def test_requests_have_a_limit(remote: str) -> None:
    """A question that would read too much of a remote store is stopped with the remedy."""
    with (
        open_audit(remote, AuditLimits(requests=5)) as session,
        pytest.raises(AuditError, match="at most 5 requests"),
    ):
        session.query("SELECT sum(auroc), sum(mean_toxic) FROM neurons")


def test_older_files_without_new_columns_read_as_null(small: SmallStore, tmp_path: Path) -> None:
    """A file written before a column existed is still read, with and without digests of columns."""
    copy = small.copy_to(tmp_path / "store")
    path = copy.find_file("layers-0", "layers.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["cluster_auroc"]), path)
    sql = "SELECT layer, cluster_auroc FROM layers ORDER BY layer"
    for digest in ("of these columns", None):
        manifest = path.with_name(MANIFEST_NAME)
        document = json.loads(manifest.read_text())
        document["files"][0]["columns_digest"] = digest
        manifest.write_text(json.dumps(document))
        with open_audit(copy.url) as session:
            assert [tuple(row.values()) for row in session.query(sql).to_pylist()] == [
                (0, None),
                (1, 0.625),
            ]


def test_manifests_made_before_digests_of_columns_keep_their_seal() -> None:
    """A field that is not known is not written, so that what was sealed stays as it was."""
    file = FileRecord(name="a", stored_as="b", bytes=1, rows=None, sha256="c")
    assert "columns_digest" not in file.model_dump_json()
    manifest = Manifest(
        kind="k",
        fingerprint="f",
        step_version=1,
        settings={},
        inputs=[],
        files=[file],
        facts={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
        elapsed_seconds=1.0,
    )
    read_again = Manifest.model_validate_json(manifest.encode())
    assert read_again.seal == read_again.compute_seal()


def test_dictionary_says_what_the_views_have(small: SmallStore) -> None:
    """Columns and types of every view are those DuckDB shows, each with a unit and a meaning."""
    entries = list_entries()
    assert all(entry.unit and entry.meaning for entry in entries)
    with open_audit(small.url) as session:
        for view in VIEW_SCHEMAS:
            shown = session.query(f"DESCRIBE {view}").to_pylist()
            assert [(row["column_name"], row["column_type"]) for row in shown] == [
                (entry.column, entry.type) for entry in entries if entry.view == view
            ]
