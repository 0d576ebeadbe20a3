"""The record of a run: settings, environment, what each stage did, the outcome.

Writes and reads `runs/<run_id>.json`. The record refers to artifacts by fingerprint; it never
repeats their content and holds no text of any sample.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eigenshift import __version__
from eigenshift.base.arms import PATCHED_ARM
from eigenshift.base.errors import ArtifactError, SettingsError
from eigenshift.base.suggestions import suggest
from eigenshift.ledger.holdings import require_holdings
from eigenshift.ledger.presence import remove_dead
from eigenshift.settings import RefreshSettings
from eigenshift.store.manifests import ArtifactReference, describe_versions
from eigenshift.store.storage import Store
from eigenshift.store.traffic import Traffic

logger = logging.getLogger(__name__)

BENCHMARK = "benchmark"
"""Command of a run that benchmarks the patch of another."""
BENCHMARKS_KIND = "benchmarks"
SURVIVE = "survive"
"""Command of a run that measures what is left of another's patch in other formats."""
Status = Literal["running", "finished", "promoted", "held", "suspended", "failed"]


class StageSummary(BaseModel):
    """What one stage did in this run."""

    name: str
    shards: int
    shards_cached: int
    elapsed_seconds: float
    """Seconds the run waited for it: less than its work where tasks run side by side."""
    traffic: Traffic = Traffic()
    rows_made: int = 0
    tokens_made: int = 0
    work_seconds: float = 0.0
    """Seconds that the tasks which made something took, added up over workers."""

    @property
    def rows_per_second(self) -> float | None:
        """Rows made in a second of work; None where nothing was made."""
        return self.rows_made / self.work_seconds if self.work_seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a model read or wrote in a second of work; None where none were counted."""
        return self.tokens_made / self.work_seconds if self.tokens_made else None


class ArtifactUse(BaseModel):
    """One artifact this run made or found."""

    stage: str
    kind: str
    fingerprint: str
    was_cached: bool
    elapsed_seconds: float
    label: str | None = None
    traffic: Traffic = Traffic()


class RunRecord(BaseModel):
    """Everything about one run but its results, which are artifacts."""

    model_config = ConfigDict(protected_namespaces=())
    run_id: str
    command: str
    status: Status = "running"
    started_at: str
    finished_at: str | None = None
    model_id: str
    model_digest: str | None = None
    code_version: str = __version__
    versions: dict[str, str] = Field(default_factory=describe_versions)
    settings: dict[str, Any]
    stages: list[StageSummary] = []
    artifacts: list[ArtifactUse] = []
    metrics: dict[str, dict[str, float | None]] = {}
    checks: list[dict[str, Any]] = []
    caveats: list[str] = []
    """What was known to limit the run before it did its work (`evaluation/evidence.py`)."""
    judged: str = PATCHED_ARM
    """Name of the arm whose patch is judged: its intervention's."""
    release: str | None = None
    error: str | None = None
    collected_at: str | None = None
    """When a garbage collection removed artifacts of this run; the record itself stays."""

    def find_artifact(self, kind: str, label: str | None = None) -> ArtifactReference:
        """The artifact of a kind this run used.

        Raises:
            ArtifactError: The run did not get that far.
        """
        for use in self.artifacts:
            if use.kind == kind and (label is None or use.label == label):
                return ArtifactReference(kind=use.kind, fingerprint=use.fingerprint)
        raise ArtifactError(
            f"run {self.run_id}: expected an artifact of kind {kind!r}, found none; the run is "
            f"{self.status}. Choose another with --run, or start the refresh again."
        )


def start_run(command: str, settings: RefreshSettings) -> RunRecord:
    """Return a new record; nothing is written yet."""
    now = datetime.now(timezone.utc)
    return RunRecord(
        run_id=f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z-{uuid.uuid4().hex[:6]}",
        command=command,
        started_at=now.isoformat(timespec="milliseconds"),
        model_id=settings.model.model_id,
        settings=settings.model_dump(mode="json"),
    )


def finish_run(record: RunRecord, status: Status, error: str | None = None) -> None:
    """Set outcome and end time in place."""
    record.status = status
    record.error = error
    record.finished_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def end_dead_runs(store: Store) -> None:
    """Record the end of runs whose process was killed; what they finished stays in the store."""
    for presence in remove_dead(store, "run"):
        data = store.find_bytes(f"runs/{presence.name}.json")
        try:
            record = None if data is None else RunRecord.model_validate_json(data)
        except ValidationError:
            continue  # `verify` reports it
        if record is not None and record.status == "running":
            logger.warning("run %s was killed; its finished work is used", record.run_id)
            finish_run(record, "failed", error="the process ended without a word (killed?)")
            write_run(store, record)


def write_run(store: Store, record: RunRecord) -> None:
    """Put the record, replacing an earlier state of the same run."""
    data = record.model_dump_json(indent=2).encode()
    store.write_bytes(f"runs/{record.run_id}.json", data)


def read_run(store: Store, run_id: str) -> RunRecord:
    """Read one record.

    Raises:
        SettingsError: There is no such run, or the place holds no store.
        ArtifactError: Its record is damaged.
    """
    path = f"runs/{run_id}.json"
    if not store.exists(path):
        require_holdings(store)
        there = list_run_ids(store)
        known = ", ".join(there[-3:]) or "none"
        raise SettingsError(
            f"{store.root}: expected run {run_id!r}, found no such run (latest: {known})."
            f"{suggest(run_id, there)} Choose one with --run; see `eigenshift runs`."
        )
    data = store.read_bytes(path)
    try:
        return RunRecord.model_validate_json(data)
    except ValidationError as error:
        raise ArtifactError(
            f"{store.uri(path)}: expected a run record, found {len(data)} bytes that are not one. "
            "The object was damaged, edited or written by another version. Restore it from a "
            "backup of the store, or set it aside with `eigenshift verify --repair`; `eigenshift "
            "gc` then no longer keeps what only this run used."
        ) from error


def find_benchmarked(store: Store, record: RunRecord, arm: str) -> RunRecord | None:
    """The run that benchmarked an arm's patch: the run itself, or the newest `benchmark` of it.

    Args:
        store: Of the run.
        record: Of a run with patches.
        arm: Which of them.

    Returns:
        The record of the run that holds the results, None if there is none.
    """
    if any(use.kind == BENCHMARKS_KIND for use in record.artifacts):
        return record
    patches = {
        use.fingerprint for use in record.artifacts if (use.kind, use.label) == ("patch", arm)
    }
    for run_id in reversed(list_run_ids(store)):
        if run_id <= record.run_id:
            break
        try:
            later = read_run(store, run_id)
        except ArtifactError as error:
            logger.warning("passed over: %s", error)
            continue
        kinds = {use.kind for use in later.artifacts}
        found = {use.fingerprint for use in later.artifacts if use.kind == "patch"}
        is_whole = BENCHMARKS_KIND in kinds and later.collected_at is None
        if later.command == BENCHMARK and is_whole and found & patches:
            return later
    return None


def list_run_ids(store: Store) -> list[str]:
    """Ids of all runs, oldest first."""
    paths = store.list_paths("runs")
    return [path[len("runs/") : -len(".json")] for path in paths if path.endswith(".json")]


def choose_run(
    store: Store, run_id: str | None, commands: Sequence[str] = ("refresh",)
) -> RunRecord:
    """The run asked for, or the latest one of these commands that ended with a result.

    A damaged record is passed over with a warning, unless it is that of the run asked for.

    Raises:
        SettingsError: There is none.
        ArtifactError: The record of the run asked for is damaged.
    """
    if run_id is not None:
        return read_run(store, run_id)
    for candidate in reversed(list_run_ids(store)):
        try:
            record = read_run(store, candidate)
        except ArtifactError as error:
            logger.warning("passed over: %s", error)
            continue
        if record.command in commands and record.status in ("promoted", "held", "finished"):
            return record
    raise SettingsError(
        f"{store.root}: expected a finished {' or '.join(commands)} run, found none. Run "
        f"`eigenshift {commands[0]}` on this store first, or check --store."
    )
