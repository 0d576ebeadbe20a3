"""Write the audit views as plain Parquet files and one DuckDB database, for other tools.

Reads through a closed audit connection; writes `<view>.parquet` for every view and `audit.duckdb`
with the same tables, whose comments say what each column means, and a table `dictionary`. Needs no
EigenShift to be read: DuckDB, pandas, Spark and BI tools open both. The folder is there whole or
not at all.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa

from eigenshift.audit.connections import Connector
from eigenshift.audit.dictionary import list_entries
from eigenshift.audit.files import describe_damage
from eigenshift.audit.index import StoreIndex
from eigenshift.audit.limits import AuditLimits
from eigenshift.audit.statements import quote
from eigenshift.audit.views import VIEW_NAMES, VIEW_SCHEMAS
from eigenshift.base import schemas
from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import choose_run
from eigenshift.store.parquet_files import open_parquet_writer

DATABASE_NAME = "audit.duckdb"
HIDDEN_IN_EXPORT = "[text hidden: export with --show-text]"
STORAGE_VERSION = "v1.2.0"
"""Oldest DuckDB that opens the database."""
ROWS_PER_BATCH = 65_536


def export_views(
    store_url: str, folder: Path, *, run_id: str | None = None, show_text: bool = False
) -> dict[str, int]:
    """Write every view.

    Args:
        store_url: Root URL of the store.
        folder: New or empty folder.
        run_id: Only rows of this run, in views that have a run; by default all.
        show_text: Write text columns, which may be offensive.

    Returns:
        Number of rows of each view.

    Raises:
        SettingsError: The place holds no store, there is no such run, or the folder holds something
            already or cannot be written.
        ArtifactError: A file behind a view is missing.
        AuditError: A file behind a view is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(
            f"{folder}: expected a new or empty folder, found something there. Choose another "
            "--export, or remove it."
        )
    index = StoreIndex(store_url)
    if run_id is not None:
        choose_run(index.store, run_id)
    partial = folder.absolute().with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    hidden = frozenset[str]() if show_text else schemas.TEXT_COLUMNS
    connector = Connector(index, AuditLimits())
    try:
        partial.mkdir(parents=True)
        with connector.connect(VIEW_NAMES, hidden, HIDDEN_IN_EXPORT) as connection:
            rows = {view: _write_view(connection, view, run_id, partial) for view in VIEW_NAMES}
        _write_database(partial)
        with suppress(FileNotFoundError):
            folder.rmdir()
        partial.replace(folder)
    except OSError as error:
        raise SettingsError(
            f"{folder}: expected to write files, found: {error.strerror or error}. Choose another "
            "--export."
        ) from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise describe_damage(index.store.root, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def _write_view(
    connection: duckdb.DuckDBPyConnection, view: str, run_id: str | None, folder: Path
) -> int:
    """Stream one view into its file; returns its rows."""
    schema = VIEW_SCHEMAS[view]
    which = ""
    if run_id is not None and "run_id" in schema.names:
        which = f"WHERE run_id = {quote(run_id)}"
    n_rows = 0
    reader = connection.sql(f"SELECT * FROM {view} {which}").to_arrow_reader(ROWS_PER_BATCH)
    with open_parquet_writer(folder / f"{view}.parquet", schema) as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            n_rows += batch.num_rows
    return n_rows


def _write_database(folder: Path) -> None:
    """The same tables in one file, with comments."""
    entries = list_entries()
    with duckdb.connect() as connection:
        path = quote(str(folder / DATABASE_NAME))
        connection.execute(f"ATTACH {path} AS audit (STORAGE_VERSION '{STORAGE_VERSION}')")
        connection.execute("USE audit")
        for view in VIEW_NAMES:
            file = quote(str(folder / f"{view}.parquet"))
            rows = f"read_parquet({file}, hive_partitioning = false)"
            connection.execute(f"CREATE TABLE {view} AS FROM {rows}")
        connection.execute(
            'CREATE TABLE dictionary ("view" VARCHAR, "column" VARCHAR, type VARCHAR, '
            "unit VARCHAR, meaning VARCHAR)"
        )
        for entry in entries:
            connection.execute(
                "INSERT INTO dictionary VALUES (?, ?, ?, ?, ?)",
                [entry.view, entry.column, entry.type, entry.unit, entry.meaning],
            )
            comment = quote(f"{entry.meaning} ({entry.unit})")
            connection.execute(f'COMMENT ON COLUMN {entry.view}."{entry.column}" IS {comment}')
        connection.execute("USE memory")
        connection.execute("DETACH audit")
