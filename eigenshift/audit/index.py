"""What a store holds, as three Arrow tables: manifests, runs and releases.

Reads manifests, run records and release records, each kind when it is first asked for. What was
read is kept in the user's cache folder, by size and time (or entity tag) of each object, so that
a store with tens of thousands of manifests opens quickly the next time; an object that changed is
read again, one that is gone is forgotten. Nothing is written into the store. Unreadable objects
are `verification.py`'s to report; what the tables mean to a reader is `views.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from eigenshift.audit import record_schemas
from eigenshift.base.errors import ArtifactError
from eigenshift.ledger.holdings import require_holdings
from eigenshift.ledger.releases import CURRENT_NAME, Release
from eigenshift.ledger.runs import RunRecord
from eigenshift.store.manifests import MANIFEST_NAME, Manifest
from eigenshift.store.parquet_files import write_parquet
from eigenshift.store.storage import ObjectState, Store

logger = logging.getLogger(__name__)

INDEX_VERSION = 4
"""Raised when the tables here change: older caches are then not read."""
CACHED_FROM = 200
"""Fewer objects than this are not worth a cache."""

_STATE = [
    ("path", pa.string()),
    ("n_bytes", pa.int64()),
    ("etag", pa.string()),
    ("modified_at", pa.float64()),
]
STATE_COLUMNS = tuple(name for name, _ in _STATE)
"""What is kept about each object beside its content."""
FILE = pa.struct(
    [
        ("name", pa.string()),
        ("stored_as", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("columns_digest", pa.string()),
    ]
)
SOURCE = pa.struct([("kind", pa.string()), ("fingerprint", pa.string()), ("file", pa.string())])
USE = pa.struct(
    [
        ("stage", pa.string()),
        ("kind", pa.string()),
        ("fingerprint", pa.string()),
        ("label", pa.string()),
        ("was_cached", pa.bool_()),
        ("elapsed_seconds", pa.float64()),
        ("requests", pa.int64()),
        ("retries", pa.int64()),
        ("bytes_read", pa.int64()),
        ("bytes_written", pa.int64()),
    ]
)
MANIFESTS = pa.schema(
    [
        ("kind", pa.string()),
        ("fingerprint", pa.string()),
        ("step_version", pa.int64()),
        ("created_at", record_schemas.TIME),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("inputs", pa.string()),
        ("settings", pa.string()),
        ("facts", pa.string()),
        ("versions", pa.string()),
        ("files", pa.list_(FILE)),
        ("sources", pa.list_(SOURCE)),
    ]
)
RUNS = pa.schema([*record_schemas.RUNS, pa.field("artifacts", pa.list_(USE))])
RELEASES = pa.schema([field for field in record_schemas.RELEASES if field.name != "is_current"])


class StoreIndex:
    """Manifests, runs and releases of a store as they were when each was first asked for."""

    def __init__(self, store_url: str) -> None:
        self.store = Store(store_url)
        self._manifests: dict[str, pa.Table] = {}

    def require_holdings(self) -> None:
        """Refuse a place that is no store; where runs are, nothing more is asked of it.

        Raises:
            SettingsError: Nothing of ours is there.
        """
        if not self.runs.num_rows:
            require_holdings(self.store)

    @cached_property
    def runs(self) -> pa.Table:
        """`RUNS` rows, oldest first."""
        states = {
            path: state
            for path, state in self.store.list_states("runs").items()
            if path.endswith(".json")
        }
        return self._load("runs", states, RUNS, describe_run).sort_by("run_id")

    @cached_property
    def releases(self) -> pa.Table:
        """`RELEASES` rows, oldest first."""
        states = {
            path: state
            for path, state in self.store.list_states("releases").items()
            if path.endswith(".json") and not path.endswith(f"/{CURRENT_NAME}")
        }
        return self._load("releases", states, RELEASES, describe_release).sort_by("version")

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of artifacts that runs used."""
        uses = pc.list_flatten(self.runs["artifacts"].combine_chunks())
        return tuple(sorted(pc.unique(pc.struct_field(uses, "kind")).to_pylist()))

    def read_manifests(self, kind: str) -> pa.Table:
        """`MANIFESTS` rows of the complete artifacts of one kind."""
        if kind not in self._manifests:
            states = self.store.list_named(f"artifacts/{kind}", MANIFEST_NAME)
            self._manifests[kind] = self._load(kind, states, MANIFESTS, describe_manifest)
        return self._manifests[kind]

    def _load(
        self,
        name: str,
        states: Mapping[str, ObjectState],
        schema: pa.Schema,
        describe: Callable[[bytes], dict[str, Any]],
    ) -> pa.Table:
        """One row per readable object, from the cache where it has not changed."""
        schema = pa.schema([*_STATE, *schema])
        cache = None if len(states) < CACHED_FROM else _locate_cache(self.store.root, name)
        known = _read_cache(cache, schema, states)
        missing = sorted(set(states) - set(known["path"].to_pylist()))
        rows = []
        for path, data in self._read_objects(missing):
            try:
                row = describe(data)
            except ValidationError as error:
                logger.warning("%s: not readable (%s)", path, type(error).__name__)
                continue
            state = states[path]
            rows.append(
                row
                | {"path": path, "n_bytes": state.n_bytes}
                | {"etag": state.etag, "modified_at": state.modified_at}
            )
        if not rows:
            return known
        table = pa.concat_tables([known, pa.Table.from_pylist(rows, schema=schema)])
        _write_cache(cache, table)
        return table

    def _read_objects(self, paths: list[str]) -> list[tuple[str, bytes]]:
        """Contents of the objects that are still there; many at once where each is a request."""

        def read(path: str) -> bytes | None:
            try:
                return self.store.find_bytes(path)
            except ArtifactError:
                return None

        contents = self.store.ask_all(read, paths)
        return [
            (path, data) for path, data in zip(paths, contents, strict=True) if data is not None
        ]


def describe_manifest(data: bytes) -> dict[str, Any]:
    """A manifest as a `MANIFESTS` row."""
    manifest = Manifest.model_validate_json(data)
    return {
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "step_version": manifest.step_version,
        "created_at": _parse_time(manifest.created_at),
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "sha256": digest_files(manifest),
        "inputs": _dump([item.model_dump(exclude_none=True) for item in manifest.inputs]),
        "settings": _dump(manifest.settings),
        "facts": _dump(manifest.facts),
        "versions": _dump(manifest.versions),
        "files": [{name: getattr(file, name) for name in _names(FILE)} for file in manifest.files],
        "sources": [
            {name: getattr(item, name) for name in _names(SOURCE)} for item in manifest.inputs
        ],
    }


def digest_files(manifest: Manifest) -> str:
    """sha256 over names and digests of an artifact's files."""
    lines = sorted(f"{file.name}\0{file.sha256}\n" for file in manifest.files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe_run(data: bytes) -> dict[str, Any]:
    """A run's record as a `RUNS` row."""
    record = RunRecord.model_validate_json(data)
    return {
        **{name: getattr(record, name) for name in record_schemas.RUNS.names},
        "started_at": _parse_time(record.started_at),
        "finished_at": _parse_time(record.finished_at),
        "collected_at": _parse_time(record.collected_at),
        "settings": _dump(record.settings),
        "versions": _dump(record.versions),
        "stages": _dump([stage.model_dump() for stage in record.stages]),
        "metrics": _dump(record.metrics),
        "checks": _dump(record.checks),
        "caveats": _dump(record.caveats),
        "artifacts": [
            use.model_dump(exclude={"traffic"}) | use.traffic.model_dump()
            for use in record.artifacts
        ],
    }


def describe_release(data: bytes) -> dict[str, Any]:
    """A release as a `RELEASES` row."""
    release = Release.model_validate_json(data)
    return {
        **release.model_dump(exclude={"patch", "seal"}),
        "released_at": _parse_time(release.released_at),
        "patch_fingerprint": None if release.patch is None else release.patch.fingerprint,
    }


def _names(struct: pa.StructType) -> list[str]:
    return [field.name for field in struct]


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _parse_time(text: str | None) -> datetime | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment


def _locate_cache(root: str, name: str) -> Path | None:
    """Where rows of a store are kept; None for stores that end with the process."""
    if root.startswith("memory:"):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(root.encode()).hexdigest()[:32]
    return home / "eigenshift" / "audit" / digest / f"{name}-{INDEX_VERSION}.parquet"


def _read_cache(
    cache: Path | None, schema: pa.Schema, states: Mapping[str, ObjectState]
) -> pa.Table:
    """Rows of the objects that have not changed since."""
    empty = schema.empty_table()
    if cache is None:
        return empty
    try:
        table = pq.read_table(cache)
    except (OSError, pa.ArrowException):  # not there, or cut short: everything is read again
        return empty
    if not table.schema.equals(schema):
        return empty
    is_same = [
        _is_known(states.get(path), ObjectState(*seen))
        for path, *seen in zip(*(table[name].to_pylist() for name in STATE_COLUMNS), strict=True)
    ]
    return table.filter(pa.array(is_same, pa.bool_()))


def _is_known(now: ObjectState | None, seen: ObjectState) -> bool:
    """Whether an object is the one that was read; where storage gives no mark, nobody can say."""
    return now == seen and (seen.etag is not None or seen.modified_at is not None)


def _write_cache(cache: Path | None, table: pa.Table) -> None:
    """Replace a cache in one step; a folder that cannot be written only costs time."""
    if cache is None:
        return
    partial = cache.with_name(f".{cache.name}.{uuid.uuid4().hex}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_parquet(table, partial)
        partial.replace(cache)
    except OSError as error:
        logger.debug("%s: the index is not kept (%s)", cache, error.strerror)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
