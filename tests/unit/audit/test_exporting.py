"""Exported views: files other tools open, whole or not at all, without text unless asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from eigenshift.audit import VIEW_NAMES, VIEW_SCHEMAS, export_views, exporting, open_audit
from eigenshift.base.errors import ArtifactError, AuditError, SettingsError
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store with two runs."""
    store = build_small_store(str(tmp_path_factory.mktemp("store")))
    store.add_run()
    return store


@pytest.fixture(scope="module")
def folder(small: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    folder = tmp_path_factory.mktemp("export") / "layer=3" / "it's here"
    assert set(export_views(small.url, folder)) == set(VIEW_NAMES)
    return folder


@pytest.mark.parametrize("view", VIEW_NAMES)
def test_parquet_and_database_hold_what_the_view_holds(
    small: SmallStore, folder: Path, view: str
) -> None:
    """Same rows and types in all three; pandas opens the file as it is."""
    with open_audit(small.url) as session:
        (expected,) = session.query(f"SELECT count(*) AS n FROM {view}").to_pylist()
    assert pq.read_schema(folder / f"{view}.parquet").equals(VIEW_SCHEMAS[view])
    assert len(pd.read_parquet(folder / f"{view}.parquet")) == expected["n"]
    with duckdb.connect(str(folder / "audit.duckdb"), read_only=True) as database:
        stored = f"FROM {view}"
        file = str(folder / f"{view}.parquet").replace("'", "''")
        assert database.sql(f"SELECT count(*) {stored}").fetchall() == [(expected["n"],)]
        table = f"read_parquet('{file}', hive_partitioning = false)"
        assert not database.sql(f"{stored} EXCEPT FROM {table}").fetchall()


def test_numbers_are_those_of_the_audit(small: SmallStore, folder: Path) -> None:
    """Every evaluation, to the last digit."""
    sql = "SELECT arm, metric, slice, value, low, high FROM evaluations ORDER BY ALL"
    with open_audit(small.url) as session, duckdb.connect(str(folder / "audit.duckdb")) as database:
        expected = [tuple(row.values()) for row in session.query(sql).to_pylist()]
        assert database.sql(sql).fetchall() == expected


def test_columns_carry_their_meaning(folder: Path) -> None:
    """As comments, in a table, and inside the Parquet files."""
    with duckdb.connect(str(folder / "audit.duckdb"), read_only=True) as database:
        comment = database.sql(
            "SELECT comment FROM duckdb_columns() WHERE table_name = 'components' "
            "AND column_name = 'factor'"
        ).fetchall()
        assert comment == [("Its sigma is multiplied by this; 1 if not selected (0 to 1)",)]
        found = database.sql("SELECT count(*) FROM dictionary").fetchall()
        assert found == [(sum(len(schema) for schema in VIEW_SCHEMAS.values()),)]
    field = pq.read_schema(folder / "components.parquet").field("sigma")
    assert field.metadata[b"meaning"] == b"Singular value of the head"


def test_text_is_exported_only_if_asked(small: SmallStore, folder: Path, tmp_path: Path) -> None:
    """Neither in Parquet nor in the database."""
    for path in folder.iterdir():
        assert b"kettle" not in path.read_bytes()
    (hidden,) = set(pd.read_parquet(folder / "samples.parquet")["text"])
    assert hidden.startswith("[text hidden")
    export_views(small.url, tmp_path / "shown", show_text=True)
    assert "kettle" in pd.read_parquet(tmp_path / "shown" / "samples.parquet")["text"][0]


def test_one_run_can_be_exported_alone(small: SmallStore, tmp_path: Path) -> None:
    """Views without a run stay whole."""
    rows = export_views(small.url, tmp_path / "one", run_id=small.run_id)
    assert set(pd.read_parquet(tmp_path / "one" / "artifacts.parquet")["run_id"]) == {small.run_id}
    assert (rows["runs"], rows["samples"]) == (1, 30)


def test_folder_with_something_in_it_is_refused(small: SmallStore, tmp_path: Path) -> None:
    """Nothing of the user's is overwritten; an empty folder is taken."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(SettingsError, match="new or empty folder"):
        export_views(small.url, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert export_views(small.url, tmp_path / "empty")["runs"] == 2


def test_export_that_fails_half_way_leaves_nothing(
    small: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a part of it nor the folder it was made in."""
    copy = small.copy_to(tmp_path / "store")
    copy.find_file("layers-0", "layers.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"layers\.parquet"):
        export_views(copy.url, tmp_path / "out")

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_write_database", fail)
    with pytest.raises(SettingsError, match="No space left"):
        export_views(small.url, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_damaged_file_is_named(small: SmallStore, tmp_path: Path) -> None:
    """Whether its end or a page is damaged; nothing is left behind."""
    for damage in (
        lambda data: b"PAR1 not any more",
        lambda data: bytes(len(data) - 99) + data[-99:],
    ):
        copy = small.copy_to(tmp_path / "store")
        file = copy.find_file("neurons-0", "neurons.parquet")
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(AuditError, match="eigenshift verify"):
            export_views(copy.url, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["store"]
        shutil.rmtree(tmp_path / "store")
