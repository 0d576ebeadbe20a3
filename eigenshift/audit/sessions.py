"""Questions to a store, and their answers as Arrow tables."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa

from eigenshift.audit.connections import Connector
from eigenshift.audit.files import describe_damage, find_file_in
from eigenshift.audit.index import StoreIndex
from eigenshift.audit.limits import AuditLimits, Deadline
from eigenshift.audit.statements import (
    check_statement,
    explain,
    find_named_columns,
    find_named_views,
)
from eigenshift.audit.views import VIEW_NAMES
from eigenshift.base import schemas
from eigenshift.base.errors import AuditError, QuestionError
from eigenshift.store.traffic import Traffic, metering

HIDDEN_TEXT = "[text hidden: name the column or use --show-text]"
HIDDEN_IN_NOTEBOOK = "[text hidden: use connect(store_url, show_text=True)]"
ROWS_PER_BATCH = 65_536

_OUR_OWN_LIMITS = (duckdb.PermissionException, duckdb.OutOfMemoryException)
"""Errors that may name a file without saying that it is damaged."""
_Key = tuple[tuple[str, ...], frozenset[str]]


def open_audit(store_url: str, limits: AuditLimits | None = None) -> AuditSession:
    """Open a store for questions in SQL.

    Args:
        store_url: Root URL of the store; one that is none is refused when it is asked.
        limits: Of each query.
    """
    return AuditSession(store_url, limits or AuditLimits())


def connect(store_url: str, *, show_text: bool = False) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with all views, for notebooks.

    It cannot reach any other file or the network either. Unlike `AuditSession.query` it sets no
    time limit and takes statements that make objects in its own memory. Files of the store are
    served read-only, so that no statement or method (COPY, `write_parquet`) can replace them.

    Args:
        store_url: Root URL of the store.
        show_text: Show text columns, which may be offensive. Here it is all or nothing.
    """
    hidden = frozenset[str]() if show_text else schemas.TEXT_COLUMNS
    connector = Connector(StoreIndex(store_url), AuditLimits(), for_any_statement=True)
    return connector.connect(VIEW_NAMES, hidden, HIDDEN_IN_NOTEBOOK)


class AuditSession:
    """Questions to one store as it was when the session was opened. A context manager."""

    def __init__(self, store_url: str, limits: AuditLimits) -> None:
        self._index = StoreIndex(store_url)
        self._connector = Connector(self._index, limits)
        self._limits = limits
        self._kept: tuple[_Key, duckdb.DuckDBPyConnection] | None = None
        self.traffic = Traffic()
        """What all queries so far asked of storage."""

    def __enter__(self) -> AuditSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection kept from the last query."""
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None

    @property
    def is_remote(self) -> bool:
        """Whether questions are requests to an object store."""
        return not self._index.store.is_local

    def require_holdings(self) -> None:
        """Refuse a place that is no store now, not at the first question that names a view.

        Raises:
            SettingsError: Nothing of ours is there.
        """
        with metering() as meter:
            self._index.require_holdings()
        self.traffic = self.traffic + meter.traffic

    def query(self, sql: str, show_text: bool = False, *, hide_named: bool = False) -> pa.Table:
        """Answer one SELECT (or DESCRIBE, SUMMARIZE, SHOW, EXPLAIN).

        Args:
            sql: Over the views (`VIEW_NAMES`).
            show_text: Show text columns even where the SQL does not name them.
            hide_named: Hide text columns even where the SQL names them: it is not the reader's.

        Raises:
            SettingsError: The place holds no store.
            AuditError: It is not one read-only statement, DuckDB refuses it, or it exceeds a limit.
            ArtifactError: A file behind a view is missing.
        """
        check_statement(sql)
        named = frozenset[str]() if hide_named else find_named_columns(sql)
        hidden = frozenset[str]() if show_text else schemas.TEXT_COLUMNS - named
        deadline = Deadline(self._limits.seconds)
        with metering() as meter:
            try:
                connection = self._connect(find_named_views(sql), hidden)
                with deadline.interrupting(connection):
                    table = self._run(connection, sql, hidden, deadline)
            except BaseException as error:  # also Ctrl-C: its transaction is not over
                self.close()
                given = type(error) is RuntimeError and "Query interrupted" in str(error)
                if given or (deadline.is_stopped and not isinstance(error, KeyboardInterrupt)):
                    raise KeyboardInterrupt from error  # what DuckDB was given
                raise
            finally:
                self.traffic = self.traffic + meter.traffic
        return _hide_columns(_name_uniquely(table), hidden)

    def _connect(self, views: tuple[str, ...], hidden: frozenset[str]) -> duckdb.DuckDBPyConnection:
        """A connection for these views; the last one again if it is the same."""
        key = (views, hidden)
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        self.close()
        try:
            connection = self._connector.connect(views, hidden, HIDDEN_TEXT)
        except duckdb.Error as error:
            raise describe_damage(self._index.store.root, error) from error
        self._kept = (key, connection)
        return connection

    def _run(
        self,
        connection: duckdb.DuckDBPyConnection,
        sql: str,
        hidden: frozenset[str],
        deadline: Deadline,
    ) -> pa.Table:
        """Bind, then read the result batch by batch within the limits."""
        try:
            connection.execute("BEGIN TRANSACTION READ ONLY")
            relation = connection.sql(sql)
        except duckdb.Error as error:
            if deadline.is_over:
                raise deadline.describe() from error
            raise self._describe_damage(error) or QuestionError(
                f"audit query refused: {explain(error)}"
            ) from error
        batches, size = [], 0
        try:
            reader = relation.to_arrow_reader(ROWS_PER_BATCH)
            for batch in reader:
                batches.append(batch)
                size += batch.nbytes
                if size > self._limits.result_bytes:
                    raise QuestionError(
                        "audit query: expected a result of at most "
                        f"{self._limits.result_bytes:,} bytes, found more. Aggregate, filter, or "
                        "add a LIMIT."
                    )
            table = pa.Table.from_batches(batches, schema=reader.schema)
            connection.execute("ROLLBACK")
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if deadline.is_over:
                raise deadline.describe() from error
            described = self._describe_failure(error, hidden)
            raise described from (None if hidden != schemas.TEXT_COLUMNS else error)
        return table

    def _describe_failure(self, error: BaseException, hidden: frozenset[str]) -> AuditError:
        """What to say: a failed cast, or a call of error(), quotes what was in the row."""
        damage = self._describe_damage(error)
        if damage is not None:
            return damage
        if hidden != schemas.TEXT_COLUMNS and not isinstance(error, duckdb.OutOfMemoryException):
            return QuestionError(
                f"audit query failed: {type(error).__name__} while reading rows. The message is "
                "withheld: it may quote text. Use TRY(...) or try_cast, or leave text columns out."
            )
        return QuestionError(f"audit query failed: {explain(error)}")

    def _describe_damage(self, error: BaseException) -> AuditError | None:
        """The error to raise where a file of the store could not be read."""
        damaged = find_file_in(str(error))
        if damaged is None or isinstance(error, _OUR_OWN_LIMITS):
            return None
        return AuditError(
            f"{self._index.store.root}: expected to read {damaged} as Parquet, found "
            f"{type(error).__name__}. `eigenshift verify` names what is damaged."
        )


def _hide_columns(table: pa.Table, hidden: frozenset[str]) -> pa.Table:
    """Hide text columns once more, for files of the store that a query reads by path."""
    for place, name in enumerate(table.column_names):
        if name in hidden:
            type_ = table.schema.field(place).type
            shown: Any = [HIDDEN_TEXT] if pa.types.is_list(type_) else HIDDEN_TEXT
            values = [None if value is None else shown for value in table[place].to_pylist()]
            column_type = pa.list_(pa.string()) if isinstance(shown, list) else pa.string()
            table = table.set_column(place, name, pa.array(values, column_type))
    return table


def _name_uniquely(table: pa.Table) -> pa.Table:
    names: list[str] = []
    for name in table.column_names:
        number, unique = 1, name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return table.rename_columns(names)
