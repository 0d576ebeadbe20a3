"""Every number of a store, open to SQL: read-only views in DuckDB over its artifacts.

Reads manifests, run records and releases; the Parquet files behind a view are read where
they lie, remote ones by ranges (`duckdb_files.py`). Writes nothing. What has no manifest is
invisible here; what is damaged is `verification.py`'s to find.

Each query gets a connection of its own, made only of the views it names: nothing outside the
artifact files can be opened, nothing can be changed, and time, memory and result size are bounded.
Text columns are replaced where a view reads them, unless the query names them, so no expression
over other columns can bring them out.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from eigenshift import schemas
from eigenshift.artifacts import ArtifactStore, FileRecord, InputRecord, Manifest
from eigenshift.duckdb_files import name_file, register_files
from eigenshift.errors import ArtifactError, AuditError
from eigenshift.evaluation.arms import AGAIN_ARM, BASE_ARM
from eigenshift.releases import CURRENT_NAME, Release
from eigenshift.runs import ArtifactUse, RunRecord
from eigenshift.storage import StoredFile, scratch_folder

logger = logging.getLogger(__name__)

HIDDEN_TEXT = "[text hidden: name the column or use --show-text]"
HIDDEN_IN_NOTEBOOK = "[text hidden: use connect(store_url, show_text=True)]"
ROWS_PER_BATCH = 65_536
INTERRUPT_EVERY_SECONDS = 0.2
UNNAMED_ARM = "unnamed"
"""Arm of continuations made with a patch that the run's record does not list."""

TIME = pa.timestamp("us")
"""Times in the views are UTC."""

RUNS = pa.schema(
    [
        ("run_id", pa.string()),
        ("command", pa.string()),
        ("started_at", TIME),
        ("finished_at", TIME),
        ("status", pa.string()),
        ("model_id", pa.string()),
        ("model_digest", pa.string()),
        ("settings", pa.string()),
        ("code_version", pa.string()),
        ("versions", pa.string()),
        ("stages", pa.string()),
        ("metrics", pa.string()),
        ("checks", pa.string()),
        ("release", pa.string()),
        ("error", pa.string()),
        ("collected_at", TIME),
    ]
)
ARTIFACTS = pa.schema(
    [
        ("run_id", pa.string()),
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("label", pa.string()),
        ("fingerprint", pa.string()),
        ("uri", pa.string()),
        ("n_files", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("was_cached", pa.bool_()),
        ("elapsed_seconds", pa.float64()),
        ("requests", pa.int64()),
        ("retries", pa.int64()),
        ("bytes_read", pa.int64()),
        ("bytes_written", pa.int64()),
        ("created_at", TIME),
        ("step_version", pa.int64()),
        ("inputs", pa.string()),
        ("settings", pa.string()),
        ("facts", pa.string()),
        ("versions", pa.string()),
    ]
)
PATCHES = pa.schema(
    [
        ("run_id", pa.string()),
        ("arm", pa.string()),
        ("intervention", pa.string()),
        ("n_components", pa.int64()),
        ("factor", pa.float64()),
        ("model_digest", pa.string()),
        ("base_digest", pa.string()),
        ("patched_digest", pa.string()),
        ("fingerprint", pa.string()),
        ("uri", pa.string()),
    ]
)
RELEASES = pa.schema(
    [
        ("model_id", pa.string()),
        ("version", pa.string()),
        ("run_id", pa.string()),
        ("action", pa.string()),
        ("released_at", TIME),
        ("reason", pa.string()),
        ("patch_fingerprint", pa.string()),
        ("is_current", pa.bool_()),
    ]
)

_PER_ARTIFACT = (
    "SELECT p.* EXCLUDE (filename), f.fingerprint FROM {0} p JOIN {0}_files f USING (filename)"
)
_PER_RUN = (
    "SELECT f.run_id, p.* EXCLUDE (filename), f.fingerprint "
    "FROM {0} p JOIN {0}_files f USING (filename)"
)
_GENERATIONS = """
WITH judged AS (
  SELECT f.run_id, f.continuations, p.* EXCLUDE (filename)
  FROM {1} p JOIN {1}_files f USING (filename)
)
SELECT f.run_id, f.arm, f.part, c.prompt_id, c.sample_index, c.language, c.prompt, c.continuation,
  len(c.token_ids) AS n_tokens, j.scorer, j.toxicity_probability,
  coalesce(j.status, 'unscored') AS status,
  CASE WHEN j.status IS NULL THEN 'the run ended before scoring' ELSE j.reason END AS reason,
  f.fingerprint
FROM {0} c JOIN {0}_files f USING (filename)
LEFT JOIN judged j ON j.run_id = f.run_id AND j.continuations = f.fingerprint
  AND j.prompt_id = c.prompt_id AND j.sample_index = c.sample_index
"""

_Rows = list[dict[str, Any]]
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class AuditLimits:
    """What one query may use.

    Attributes:
        seconds: After this the query is stopped.
        memory_limit: DuckDB's memory; it does not spill to disk.
        threads: DuckDB's threads.
        result_bytes: Largest result, as Arrow.
    """

    seconds: float = 60.0
    memory_limit: str = "2GB"
    threads: int = max(1, min(4, os.cpu_count() or 1))
    result_bytes: int = 1 << 30


@dataclass(frozen=True)
class _FileTable:
    """Parquet files of one kind, read as one table.

    Attributes:
        kind: Of the artifacts that hold them.
        prefix: Of the files' names.
        schema: What the table has even where there are no files.
        key: Names of the columns that say whose rows these are, beside `filename`.
        list_rows: Gives those columns, one row per file and user of it.
    """

    kind: str
    prefix: str
    schema: pa.Schema
    key: tuple[str, ...]
    list_rows: Callable[
        [_Catalogue, _FileTable], Iterator[tuple[Manifest, FileRecord, dict[str, Any]]]
    ]


@dataclass(frozen=True)
class _View:
    """A view: SQL over file tables, `{0}`, `{1}` standing for their names."""

    sql: str
    tables: tuple[str, ...]


def open_audit(store_url: str, limits: AuditLimits | None = None) -> AuditSession:
    """Open a store for questions in SQL.

    Args:
        store_url: Root URL of the store; one that is not there yet has empty views.
        limits: Of each query.
    """
    return AuditSession(store_url, limits or AuditLimits())


def connect(store_url: str, *, show_text: bool = False) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with all views, for notebooks.

    It cannot reach any other file or the network either. Unlike `AuditSession.query` it sets no
    time limit and takes statements that make objects in its own memory.

    Args:
        store_url: Root URL of the store.
        show_text: Show text columns, which may be offensive. Here it is all or nothing.
    """
    hidden = frozenset[str]() if show_text else schemas.TEXT_COLUMNS
    return _Catalogue(store_url).connect(VIEW_NAMES, hidden, HIDDEN_IN_NOTEBOOK, AuditLimits())


class AuditSession:
    """Questions to one store as it was when the session was opened. A context manager."""

    def __init__(self, store_url: str, limits: AuditLimits) -> None:
        self._catalogue = _Catalogue(store_url)
        self._limits = limits

    def __enter__(self) -> AuditSession:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open between queries."""

    def query(self, sql: str, show_text: bool = False) -> pa.Table:
        """Answer one SELECT (or DESCRIBE, SUMMARIZE, SHOW, EXPLAIN).

        Args:
            sql: Over the views (`VIEW_NAMES`).
            show_text: Show text columns even where the SQL does not name them.

        Raises:
            AuditError: It is not one read-only statement, DuckDB refuses it, or it exceeds a limit.
            ArtifactError: A file behind a view is missing.
        """
        check_statement(sql)
        named = find_named_columns(sql)
        hidden = frozenset[str]() if show_text else schemas.TEXT_COLUMNS - named
        deadline = _Deadline(self._limits.seconds)
        try:
            connection = self._catalogue.connect(
                find_named_views(sql), hidden, HIDDEN_TEXT, self._limits
            )
        except duckdb.Error as error:
            raise AuditError(
                f"{self._catalogue.root}: expected artifact files that open as Parquet, found: "
                f"{_first_line(error)}. `eigenshift verify` names the damaged ones."
            ) from error
        try:
            with deadline.interrupting(connection):
                table = self._run(connection, sql, hidden, deadline)
        finally:
            connection.close()
        return _hide_columns(_name_uniquely(table), hidden)

    def _run(
        self,
        connection: duckdb.DuckDBPyConnection,
        sql: str,
        hidden: frozenset[str],
        deadline: _Deadline,
    ) -> pa.Table:
        """Bind, then read the result batch by batch within the limits."""
        try:
            connection.execute("BEGIN TRANSACTION READ ONLY")
            relation = connection.sql(sql)
        except duckdb.Error as error:
            if deadline.is_over:
                raise deadline.describe() from error
            raise AuditError(f"audit query refused: {_explain(error)}") from error
        batches, size = [], 0
        try:
            reader = relation.to_arrow_reader(ROWS_PER_BATCH)
            for batch in reader:
                batches.append(batch)
                size += batch.nbytes
                if size > self._limits.result_bytes:
                    break
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if deadline.is_over:
                raise deadline.describe() from error
            if hidden != schemas.TEXT_COLUMNS and not isinstance(
                error, duckdb.OutOfMemoryException
            ):
                # The message of a failed cast or a call of error() quotes what was in the row.
                raise AuditError(
                    f"audit query failed: {type(error).__name__} while reading rows. The message "
                    "is withheld: it may quote text. Use try_cast, or leave text columns out."
                ) from None
            raise AuditError(f"audit query failed: {_explain(error)}") from error
        if size > self._limits.result_bytes:
            raise AuditError(
                f"audit query: expected a result of at most {self._limits.result_bytes:,} bytes, "
                "found more. Aggregate, filter, or add a LIMIT."
            )
        return pa.Table.from_batches(batches, schema=reader.schema)


def check_statement(sql: str) -> None:
    """Refuse everything but one read-only statement, as DuckDB's own parser sees it.

    Raises:
        AuditError: What was found instead.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise AuditError(f"audit query refused: {_explain(error)}") from error
    if len(statements) != 1:
        raise AuditError(
            f"audit query: expected one statement, found {len(statements)}. Ask one question at a "
            "time."
        )
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        explained = re.sub(r"(?is)^\s*explain\s+(analyze\s+)?", "", sql, count=1)
        if explained == sql:
            raise AuditError(
                "audit query: expected EXPLAIN directly before a SELECT, found another form."
            )
        check_statement(explained)
    elif kind != duckdb.StatementType.SELECT:
        raise AuditError(
            f"audit query: expected a SELECT, found {kind.name}. The store is read-only here: only "
            "SELECT, DESCRIBE, SUMMARIZE, SHOW and EXPLAIN are answered. Export results with "
            "--format."
        )
    words = [word.lower() for word, _ in _split_words(sql)]
    for before, word in itertools.pairwise(words):
        if before == "(" and word in ("insert", "update", "delete", "merge"):
            raise AuditError(
                f"audit query: expected a SELECT that only reads, found {word.upper()} inside it. "
                "The store is read-only here."
            )


def find_named_columns(sql: str) -> frozenset[str]:
    """Text columns the SQL itself names.

    Strings, comments, types (`::text`) and new names (`AS text`) do not count.
    """
    named, before = set(), ""
    for word, is_name in _split_words(sql):
        name = word[1:-1].replace('""', '"') if word.startswith('"') else word
        if is_name and before not in ("as", "::"):
            named.add(name.lower())
        before = word.lower()
    return schemas.TEXT_COLUMNS & named


def find_named_views(sql: str) -> tuple[str, ...]:
    """Views whose names occur in the SQL; all for statements about the catalogue itself."""
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    if words & {"show", "describe", "information_schema"} or any(
        word.startswith(("duckdb_", "pragma_")) for word in words
    ):
        return VIEW_NAMES
    return tuple(name for name in VIEW_NAMES if name in words)


def encode_table(table: pa.Table, table_format: str) -> bytes:
    """Return a result as a file's bytes.

    Args:
        table: From `AuditSession.query`.
        table_format: "csv" (with header; nested values as JSON), "json" (one array, UTF-8, newline
            at the end; NaN and infinities as null) or "parquet".

    Raises:
        AuditError: There is no such format.
    """
    if table_format == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()
    if table_format == "json":
        rows = [{name: _to_json(value) for name, value in row.items()} for row in table.to_pylist()]
        return (json.dumps(rows, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if table_format == "csv":
        buffer = io.BytesIO()
        pa_csv.write_csv(_flatten(table), buffer)
        return buffer.getvalue()
    raise AuditError(f"format: expected csv, json or parquet, found {table_format!r}.")


class _Catalogue:
    """What a store holds: manifests, runs and releases, read once."""

    def __init__(self, store_url: str) -> None:
        self._artifacts = ArtifactStore(store_url)
        self._remote: dict[str, StoredFile] = {}
        self.root = self._artifacts.store.root

    @cached_property
    def manifests(self) -> dict[tuple[str, str], Manifest]:
        """Complete artifacts by kind and fingerprint."""
        found = self._artifacts.list_manifests()
        return {(manifest.kind, manifest.fingerprint): manifest for manifest in found}

    @cached_property
    def runs(self) -> list[RunRecord]:
        """Run records, oldest first."""
        return self._read_records("runs", RunRecord)

    @cached_property
    def releases(self) -> list[Release]:
        """Releases, oldest first."""
        return sorted(self._read_records("releases", Release), key=lambda release: release.version)

    def _read_records(self, prefix: str, model: type[_Model]) -> list[_Model]:
        """All readable records; unreadable ones are `verify`'s to report."""
        store, records = self._artifacts.store, []
        for path in store.list_paths(prefix):
            if path.endswith(".json") and not path.endswith(f"/{CURRENT_NAME}"):
                try:
                    records.append(model.model_validate_json(store.read_bytes(path)))
                except (ValidationError, ArtifactError) as error:
                    logger.warning("%s: not a record (%s)", path, type(error).__name__)
        return records

    def list_uses(
        self, kind: str | None = None
    ) -> Iterator[tuple[RunRecord, ArtifactUse, Manifest]]:
        """Artifacts each run used, each once per run, those with a manifest only."""
        for record in self.runs:
            merged: dict[tuple[str, str], ArtifactUse] = {}
            for use in record.artifacts:
                key = (use.kind, use.fingerprint)
                if kind in (None, use.kind) and key in self.manifests:
                    merged[key] = _merge_uses(merged[key], use) if key in merged else use
            for key, use in merged.items():
                yield record, use, self.manifests[key]

    def find_arms(self, record: RunRecord, manifest: Manifest) -> list[str]:
        """Names, in a run, of the arms that have these continuations."""
        patches = {item.fingerprint for item in manifest.inputs if item.kind == "patch"}
        if not patches:
            return [AGAIN_ARM if manifest.settings.get("stream") == "again" else BASE_ARM]
        labels = {
            use.label
            for use in record.artifacts
            if use.kind == "patch" and use.fingerprint in patches and use.label is not None
        }
        return sorted(labels) or [UNNAMED_ARM]

    def connect(
        self,
        views: Sequence[str],
        hidden: frozenset[str],
        replacement: str,
        limits: AuditLimits,
    ) -> duckdb.DuckDBPyConnection:
        """Return a connection that has these views and can reach only the files behind them."""
        if not self.runs and not self.manifests:
            logger.warning("%s: no runs and no artifacts here; check --store", self.root)
        names = list(dict.fromkeys(name for view in views for name in _list_tables(view)))
        files = {name: self._locate_files(_FILE_TABLES[name]) for name in names}
        connection = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",
                "memory_limit": limits.memory_limit,
                "threads": str(limits.threads),
                "temp_directory": "",
            },
        )
        try:
            paths = sorted(
                {path for rows in files.values() for path in rows["filename"].to_pylist()}
            )
            register_files(connection, list(self._remote.values()))
            connection.execute(f"SET allowed_paths = {_quote_list(paths)}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            connection.execute("CREATE SCHEMA internal")
            for name, rows in files.items():
                _create_table(connection, name, rows, hidden, replacement)
            for view in views:
                self._create_view(connection, view)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create_view(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        if name in _RECORD_VIEWS:
            schema, list_rows = _RECORD_VIEWS[name]
            connection.register(name, pa.Table.from_pylist(list_rows(self), schema=schema))
            return
        view = _FILE_VIEWS[name]
        sql = view.sql.format(*(f"internal.{table}" for table in view.tables))
        connection.execute(f"CREATE VIEW {name} AS {sql}")

    def _locate_files(self, table: _FileTable) -> pa.Table:
        """Local path of each file with the columns that say whose it is."""
        rows = [
            {"filename": self._name(manifest, file), **key}
            for manifest, file, key in table.list_rows(self, table)
        ]
        schema = pa.schema([(name, pa.string()) for name in ("filename", *table.key)])
        return pa.Table.from_pylist(rows, schema=schema)

    def _name(self, manifest: Manifest, file: FileRecord) -> str:
        """What a file is called in SQL; it must be there."""
        path = f"artifacts/{manifest.kind}/{manifest.fingerprint}/{file.stored_as}"
        store = self._artifacts.store
        if store.is_local:
            return _avoid_magic(store.fetch(path, file.sha256))
        stored = StoredFile(store, path, file.bytes, file.sha256)
        self._remote[name_file(stored)] = stored
        return name_file(stored)

    def describe_uri(self, manifest: Manifest) -> str:
        """URL of an artifact's folder."""
        return self._artifacts.store.uri(f"artifacts/{manifest.kind}/{manifest.fingerprint}")


def _merge_uses(first: ArtifactUse, second: ArtifactUse) -> ArtifactUse:
    """A stage may meet one artifact several times in a run, e.g. one shard for two arms."""
    labels = dict.fromkeys(label for label in (first.label, second.label) if label)
    return first.model_copy(
        update={
            "was_cached": first.was_cached and second.was_cached,
            "elapsed_seconds": round(first.elapsed_seconds + second.elapsed_seconds, 3),
            "traffic": first.traffic + second.traffic,
            "label": ", ".join(labels) or None,
        }
    )


def _list_by_artifact(
    catalogue: _Catalogue, table: _FileTable
) -> Iterator[tuple[Manifest, FileRecord, dict[str, Any]]]:
    """Each file once, whoever used it."""
    for manifest in catalogue.manifests.values():
        if manifest.kind == table.kind:
            for file in _list_files(manifest, table.prefix):
                yield manifest, file, {"fingerprint": manifest.fingerprint}


def _list_by_run(
    catalogue: _Catalogue, table: _FileTable
) -> Iterator[tuple[Manifest, FileRecord, dict[str, Any]]]:
    """Each file once per run that used it."""
    for record, _, manifest in catalogue.list_uses(table.kind):
        for file in _list_files(manifest, table.prefix):
            yield manifest, file, {"run_id": record.run_id, "fingerprint": manifest.fingerprint}


def _list_continuations(
    catalogue: _Catalogue, table: _FileTable
) -> Iterator[tuple[Manifest, FileRecord, dict[str, Any]]]:
    """Each file once per run and arm."""
    for record, _, manifest in catalogue.list_uses(table.kind):
        prompts = [item.file for item in manifest.inputs if item.kind == "prompts" and item.file]
        part = prompts[0].rpartition("-")[0] if prompts else None
        for arm in catalogue.find_arms(record, manifest):
            for file in _list_files(manifest, table.prefix):
                key = {"run_id": record.run_id, "fingerprint": manifest.fingerprint}
                yield manifest, file, {**key, "arm": arm, "part": part}


def _list_scores(
    catalogue: _Catalogue, table: _FileTable
) -> Iterator[tuple[Manifest, FileRecord, dict[str, Any]]]:
    """Each file once per run, with the continuations it judges."""
    for record, _, manifest in catalogue.list_uses(table.kind):
        for item in manifest.inputs:
            if item.kind == "continuations":
                for file in _list_files(manifest, table.prefix):
                    key = {"run_id": record.run_id, "continuations": item.fingerprint}
                    yield manifest, file, key


def _list_files(manifest: Manifest, prefix: str) -> list[FileRecord]:
    return [
        file
        for file in manifest.files
        if file.name.startswith(prefix) and file.name.endswith(".parquet")
    ]


_RUN_KEY = ("run_id", "fingerprint")
_FILE_TABLES = {
    "samples": _FileTable(
        "samples", "samples-", schemas.SAMPLES, ("fingerprint",), _list_by_artifact
    ),
    "rejected_rows": _FileTable(
        "samples", "rejected_rows", schemas.REJECTED_ROWS, ("fingerprint",), _list_by_artifact
    ),
    "source_files": _FileTable(
        "samples", "source_files", schemas.SOURCE_FILES, ("fingerprint",), _list_by_artifact
    ),
    "neurons": _FileTable("neurons", "neurons", schemas.NEURONS, _RUN_KEY, _list_by_run),
    "neuron_stability": _FileTable(
        "neuron_stability", "neuron_stability", schemas.NEURON_STABILITY, _RUN_KEY, _list_by_run
    ),
    "layers": _FileTable("layers", "layers", schemas.LAYERS, _RUN_KEY, _list_by_run),
    "layer_transfers": _FileTable(
        "layer_transfers", "layer_transfers", schemas.LAYER_TRANSFERS, _RUN_KEY, _list_by_run
    ),
    "components": _FileTable(
        "components", "components", schemas.COMPONENTS, _RUN_KEY, _list_by_run
    ),
    "evaluations": _FileTable(
        "evaluation", "evaluations", schemas.EVALUATIONS, _RUN_KEY, _list_by_run
    ),
    "continuations": _FileTable(
        "continuations",
        "continuations",
        schemas.CONTINUATIONS,
        (*_RUN_KEY, "arm", "part"),
        _list_continuations,
    ),
    "scores": _FileTable(
        "scores", "scores", schemas.SCORES, ("run_id", "continuations"), _list_scores
    ),
}
_FILE_VIEWS = {
    "samples": _View(_PER_ARTIFACT, ("samples",)),
    "rejected_rows": _View(_PER_ARTIFACT, ("rejected_rows",)),
    "source_files": _View(_PER_ARTIFACT, ("source_files",)),
    "neurons": _View(_PER_RUN, ("neurons",)),
    "neuron_stability": _View(_PER_RUN, ("neuron_stability",)),
    "layers": _View(_PER_RUN, ("layers",)),
    "layer_transfers": _View(_PER_RUN, ("layer_transfers",)),
    "components": _View(_PER_RUN, ("components",)),
    "evaluations": _View(_PER_RUN, ("evaluations",)),
    "generations": _View(_GENERATIONS, ("continuations", "scores")),
}


def _list_runs(catalogue: _Catalogue) -> _Rows:
    return [
        record.model_dump(mode="json", include=set(RUNS.names))
        | {
            "started_at": _parse_time(record.started_at),
            "finished_at": _parse_time(record.finished_at),
            "collected_at": _parse_time(record.collected_at),
            "settings": _dump(record.settings),
            "versions": _dump(record.versions),
            "stages": _dump([stage.model_dump() for stage in record.stages]),
            "metrics": _dump(record.metrics),
            "checks": _dump(record.checks),
        }
        for record in catalogue.runs
    ]


def _list_artifacts(catalogue: _Catalogue) -> _Rows:
    return [
        use.model_dump(exclude={"traffic"})
        | use.traffic.model_dump()
        | {
            "run_id": record.run_id,
            "uri": catalogue.describe_uri(manifest),
            "n_files": len(manifest.files),
            "rows": manifest.rows,
            "bytes": manifest.bytes,
            "sha256": digest_files(manifest),
            "created_at": _parse_time(manifest.created_at),
            "step_version": manifest.step_version,
            "inputs": _dump([_describe_input(item) for item in manifest.inputs]),
            "settings": _dump(manifest.settings),
            "facts": _dump(manifest.facts),
            "versions": _dump(manifest.versions),
        }
        for record, use, manifest in catalogue.list_uses()
    ]


def _list_patches(catalogue: _Catalogue) -> _Rows:
    rows = []
    for record, use, manifest in catalogue.list_uses("patch"):
        for arm in (use.label or UNNAMED_ARM).split(", "):
            facts = {name: manifest.facts.get(name) for name in PATCHES.names}
            rows.append(
                facts
                | {
                    "run_id": record.run_id,
                    "arm": arm,
                    "fingerprint": manifest.fingerprint,
                    "uri": catalogue.describe_uri(manifest),
                }
            )
    return rows


def _list_releases(catalogue: _Catalogue) -> _Rows:
    newest = {release.model_id: release.version for release in catalogue.releases}
    return [
        release.model_dump(include=set(RELEASES.names))
        | {
            "released_at": _parse_time(release.released_at),
            "patch_fingerprint": None if release.patch is None else release.patch.fingerprint,
            "is_current": newest[release.model_id] == release.version,
        }
        for release in catalogue.releases
    ]


_RECORD_VIEWS: dict[str, tuple[pa.Schema, Callable[[_Catalogue], _Rows]]] = {
    "runs": (RUNS, _list_runs),
    "artifacts": (ARTIFACTS, _list_artifacts),
    "patches": (PATCHES, _list_patches),
    "releases": (RELEASES, _list_releases),
}

VIEW_NAMES: tuple[str, ...] = (*_RECORD_VIEWS, *_FILE_VIEWS)
"""Every view of the contract (design.md section 6), and `source_files`."""


def digest_files(manifest: Manifest) -> str:
    """sha256 over names and digests of an artifact's files."""
    lines = sorted(f"{file.name}\0{file.sha256}\n" for file in manifest.files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Deadline:
    """Interrupts a connection once its time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def describe(self) -> AuditError:
        return AuditError(
            f"audit query: expected an answer within {self._seconds:g} s, found none; it was "
            "stopped. Filter or aggregate earlier, and check the conditions of its joins."
        )

    @contextmanager
    def interrupting(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Watch over what runs inside."""
        done = threading.Event()

        def watch() -> None:
            if done.wait(self._seconds):
                return
            self._over.set()
            while not done.is_set():  # one interrupt may come between two steps and be lost
                connection.interrupt()
                done.wait(INTERRUPT_EVERY_SECONDS)

        watcher = threading.Thread(target=watch, name="audit-deadline", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _list_tables(view: str) -> tuple[str, ...]:
    return _FILE_VIEWS[view].tables if view in _FILE_VIEWS else ()


def _create_table(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    files: pa.Table,
    hidden: frozenset[str],
    replacement: str,
) -> None:
    """Make `internal.<name>` (rows of all files, text hidden) and `internal.<name>_files`."""
    schema = _FILE_TABLES[name].schema
    connection.register("given", files)
    connection.execute(f"CREATE TABLE internal.{name}_files AS FROM given")
    connection.unregister("given")
    empty = schema.append(pa.field("filename", pa.string())).empty_table()
    connection.register("given", empty)
    connection.execute(f"CREATE TABLE internal.{name}_empty AS FROM given")
    connection.unregister("given")
    rows = f"FROM internal.{name}_empty"
    paths = sorted(set(files["filename"].to_pylist()))
    if paths:
        rows += (
            f" UNION ALL BY NAME FROM read_parquet({_quote_list(paths)}, filename = true, "
            "union_by_name = true)"
        )
    hiding = ", ".join(
        f"CASE WHEN {field.name} IS NULL THEN NULL ELSE {_replace(field, replacement)} END "
        f"AS {field.name}"
        for field in schema
        if field.name in hidden
    )
    select = f"SELECT * REPLACE ({hiding})" if hiding else "SELECT *"
    connection.execute(f"CREATE VIEW internal.{name} AS {select} FROM ({rows})")


def _replace(field: pa.Field, replacement: str) -> str:
    return f"[{_quote(replacement)}]" if pa.types.is_list(field.type) else _quote(replacement)


def _hide_columns(table: pa.Table, hidden: frozenset[str]) -> pa.Table:
    """Hide text columns once more, for files of the store that a query reads by path."""
    for place, name in enumerate(table.column_names):
        if name in hidden:
            type_ = table.schema.field(place).type
            shown = [HIDDEN_TEXT] if pa.types.is_list(type_) else HIDDEN_TEXT
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


def _split_words(sql: str) -> list[tuple[str, bool]]:
    """Tokens of the SQL and whether each can be a name; comments and string constants left out."""
    data = sql.encode()
    tokens = duckdb.tokenize(sql)
    ends = [offset for offset, _ in tokens[1:]] + [len(data)]
    words = []
    for (start, kind), end in zip(tokens, ends, strict=True):
        word = data[start:end].decode(errors="replace").strip()
        if kind in (duckdb.token_type.identifier, duckdb.token_type.keyword):
            words.append((word, True))
        elif kind == duckdb.token_type.operator:
            words.append((word, False))
    return words


def _avoid_magic(path: Path) -> str:
    """A path DuckDB does not take for a glob."""
    if not re.search(r"[*?\[]", str(path)):
        return str(path)
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    link = scratch_folder() / f"audit-{digest}.parquet"
    if not link.exists():
        link.symlink_to(path.resolve())
    return str(link)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quote_list(texts: Iterable[str]) -> str:
    return "[" + ", ".join(_quote(text) for text in texts) + "]::VARCHAR[]"


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _describe_input(item: InputRecord) -> dict[str, Any]:
    return item.model_dump(exclude_none=True)


def _parse_time(text: str | None) -> datetime | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _explain(error: BaseException) -> str:
    """DuckDB's message, with what to do where it is one of our own limits."""
    message = str(error).strip()
    if isinstance(error, duckdb.PermissionException):
        return f"{message}. Only the store's own artifacts can be read here."
    if isinstance(error, duckdb.CatalogException) and "Table with name" in message:
        return f"{message}\nViews: {', '.join(VIEW_NAMES)}."
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"{message}\nFilter or aggregate earlier."
    return message


def _to_json(value: Any) -> Any:
    """A value JSON has a form for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _flatten(table: pa.Table) -> pa.Table:
    """Columns CSV has no form for, as JSON text."""
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or isinstance(field.type, pa.BaseExtensionType):
            values = [
                None if value is None else json.dumps(_to_json(value), ensure_ascii=False)
                for value in table[place].to_pylist()
            ]
            table = table.set_column(place, field.name, pa.array(values, pa.string()))
    return table
