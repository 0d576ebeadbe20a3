"""DuckDB connections that have the audit views and can reach nothing but the files behind them.

Reads the index and, when a question is asked, the Parquet files it needs. Text columns are
replaced where a view reads them, so no expression over other columns can bring them out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import duckdb
import pyarrow as pa

from eigenshift.audit.files import FileNames, TableFile
from eigenshift.audit.index import MANIFESTS, STATE_COLUMNS, StoreIndex
from eigenshift.audit.limits import AuditLimits
from eigenshift.audit.statements import quote, quote_list
from eigenshift.audit.views import (
    DERIVED_VIEWS,
    FILE_TABLES,
    USES_SQL,
    FileTable,
    list_kinds,
    list_tables,
)
from eigenshift.store.duckdb_files import StoredFileSystem

_CONFIG = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}


class Connector:
    """Makes connections to one store.

    Args:
        index: Of the store.
        limits: Of each connection.
        for_any_statement: The statements are not checked before they are run. Paths that DuckDB
            may read it may also write (COPY), so files of a local store are then served read-only,
            like remote ones, which is slower.
    """

    def __init__(
        self, index: StoreIndex, limits: AuditLimits, *, for_any_statement: bool = False
    ) -> None:
        self.index = index
        self._limits = limits
        self._serves = for_any_statement or not index.store.is_local
        self._names = FileNames(index.store, serves=self._serves)

    def connect(
        self, views: Sequence[str], hidden: frozenset[str], replacement: str
    ) -> duckdb.DuckDBPyConnection:
        """Return a connection that has these views.

        Args:
            views: Of `VIEW_NAMES`.
            hidden: Text columns whose content is replaced.
            replacement: What stands in its place.

        Raises:
            SettingsError: The place holds no store.
            ArtifactError: A file behind a view is missing.
            duckdb.Error: A file behind a view is no Parquet file.
        """
        tables = list(dict.fromkeys(chain.from_iterable(map(list_tables, views))))
        config = _CONFIG | {
            "memory_limit": self._limits.memory_limit,
            "threads": str(self._limits.threads),
        }
        connection = duckdb.connect(":memory:", config=config)
        try:
            connection.execute("CREATE SCHEMA internal")
            self._add_records(connection, views)
            files = {
                name: self._names.name_all(
                    FILE_TABLES[name].key, _list_files(connection, FILE_TABLES[name])
                )
                for name in tables
            }
            self._close(connection, dict(chain.from_iterable(f.items() for f in files.values())))
            for name, named in files.items():
                _create_table(connection, name, named, hidden, replacement)
            for view in views:
                if view in DERIVED_VIEWS:
                    self._create_view(connection, view)
        except BaseException:
            connection.close()
            raise
        return connection

    def _add_records(self, connection: duckdb.DuckDBPyConnection, views: Sequence[str]) -> None:
        """Make `internal.run_records`, `release_records`, `uses` and `manifests`."""
        index = self.index
        if views:
            index.require_holdings()
        _add(connection, "run_records", index.runs.select(_without_state(index.runs)))
        _add(connection, "release_records", index.releases.select(_without_state(index.releases)))
        wanted = [list_kinds(view) for view in views]
        kinds = index.kinds if None in wanted else tuple(chain.from_iterable(filter(None, wanted)))
        found = [index.read_manifests(kind) for kind in dict.fromkeys(kinds)]
        manifests = pa.concat_tables(
            [table.select(MANIFESTS.names) for table in found] or [MANIFESTS.empty_table()]
        )
        _add(connection, "manifests", manifests)
        if any(part is None or part for part in wanted):
            connection.execute(f"CREATE TABLE internal.uses AS {USES_SQL}")

    def _close(self, connection: duckdb.DuckDBPyConnection, files: Mapping[str, TableFile]) -> None:
        """Let the connection reach these files and nothing else, for good."""
        if files and self._serves:
            located = {name: self._names.locate(file) for name, file in files.items()}
            bound = None if self.index.store.is_local else self._limits.requests
            filesystem = StoredFileSystem(located, max_requests=bound)
            connection.register_filesystem(filesystem)
        connection.execute(f"SET allowed_paths = {quote_list(files)}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")

    def _create_view(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        base = quote(self.index.store.uri("artifacts/"))
        sql = DERIVED_VIEWS[name].sql.replace("{base_uri}", base)
        connection.execute(f"CREATE VIEW {name} AS {sql}")


def _without_state(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name not in STATE_COLUMNS]


def _add(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("given", table)
    connection.execute(f"CREATE TABLE internal.{name} AS FROM given")
    connection.unregister("given")


def _list_files(connection: duckdb.DuckDBPyConnection, table: FileTable) -> list[TableFile]:
    """Files of a table, once per owner."""
    owner, users = "m.fingerprint", ""
    if table.key == "run_id":
        owner = "u.run_id"
        users = "JOIN internal.uses u ON u.kind = m.kind AND u.fingerprint = m.fingerprint"
        users += " AND u.is_unlabelled" if table.is_unlabelled else ""
    sql = f"""
    SELECT DISTINCT {owner}, m.kind, m.fingerprint, m.stored_as, m.bytes, m.sha256,
      m.columns_digest
    FROM (SELECT kind, fingerprint, unnest(files, recursive := true) FROM
          (SELECT kind, fingerprint, files FROM internal.manifests WHERE kind = $kind)) m {users}
    WHERE starts_with(m.name, $prefix) AND ends_with(m.name, '.parquet')
    ORDER BY ALL
    """
    rows = connection.execute(sql, {"kind": table.kind, "prefix": table.prefix}).fetchall()
    return [TableFile(*row) for row in rows]


def _create_table(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    files: Mapping[str, TableFile],
    hidden: frozenset[str],
    replacement: str,
) -> None:
    """Make the view of a table: rows of all files, text hidden."""
    table = FILE_TABLES[name]
    schema = table.view_schema
    _add(connection, f"{name}_empty", schema.empty_table())
    parts = [f"FROM internal.{name}_empty", *_read_files(table, files)]
    columns = ", ".join(
        f"CASE WHEN {field.name} IS NULL THEN NULL ELSE {_replace(field, replacement)} END "
        f"AS {field.name}"
        if field.name in hidden
        else field.name
        for field in schema
    )
    rows = " UNION ALL BY NAME ".join(parts)
    place = name if table.is_view else f"internal.{name}"
    connection.execute(f"CREATE VIEW {place} AS SELECT {columns} FROM ({rows})")


def _read_files(table: FileTable, files: Mapping[str, TableFile]) -> Iterator[str]:
    """Selects over files that have the same columns: DuckDB opens one of each to know them.

    Files made before manifests said which columns they have are all opened (union_by_name).
    """
    groups: dict[str | None, list[str]] = defaultdict(list)
    for path, file in files.items():
        groups[file.columns_digest].append(path)
    columns = "*"
    if table.key == "run_id":
        columns = "* EXCLUDE (filename), split_part(filename, '/', -2) AS fingerprint"
    for digest, paths in groups.items():
        yield (
            f"SELECT {columns} FROM read_parquet({quote_list(paths)}, "
            f"hive_partitioning = true, hive_types = {{'{table.key}': VARCHAR}}, "
            f"filename = {_bool(table.key == 'run_id')}, union_by_name = {_bool(digest is None)})"
        )


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _replace(field: pa.Field, replacement: str) -> str:
    return f"[{quote(replacement)}]" if pa.types.is_list(field.type) else quote(replacement)
