"""Garbage collection: remove the artifacts that no kept run or release reaches.

Kept are the newest finished runs of each command, runs asked for by name, everything a release
refers to, runs cut short after the newest finished one (the next run goes on from them), and
whatever these reach through the inputs in manifests. The record of a run cut short may lack its
last work, so everything made while it ran is kept with it. Run records stay, marked as collected;
releases are never touched.

Safe beside running refreshes: the collection announces itself, then looks for runs, and removes
nothing if there is one; a run that starts meanwhile waits (`presence.py`). A manifest is removed
before its files, so a kill in between leaves an artifact that is not there, never a broken one.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from eigenshift.base.errors import SettingsError
from eigenshift.ledger.holdings import require_holdings
from eigenshift.ledger.presence import list_present, present, remove_dead
from eigenshift.ledger.releases import list_releases
from eigenshift.ledger.runs import RunRecord, end_dead_runs, list_run_ids, read_run, write_run
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import MANIFEST_NAME, Manifest
from eigenshift.store.storage import Store

FINISHED = frozenset({"promoted", "held", "finished"})
SECONDS_PER_HOUR = 3600.0
CLOCK_SLACK = timedelta(minutes=10)
"""Machines that share a store may differ by this; a task may also end after its run."""

Key = tuple[str, str]
"""Kind and fingerprint of an artifact."""


@dataclass
class Collection:
    """What a garbage collection would remove, or removed.

    Attributes:
        store: Root URL.
        artifacts: Number of artifacts by kind.
        n_kept: Artifacts that stay.
        n_orphans: Files that no manifest lists, old enough to be nobody's work in progress.
        n_bytes: Bytes of all of them.
        runs: Ids of the runs whose artifacts go.
        at_work: Runs in progress; while there is one nothing is removed.
        is_done: Whether it was removed.
    """

    store: str
    artifacts: dict[str, int] = field(default_factory=dict)
    n_kept: int = 0
    n_orphans: int = 0
    n_bytes: int = 0
    runs: list[str] = field(default_factory=list)
    at_work: list[str] = field(default_factory=list)
    is_done: bool = False

    @property
    def summary(self) -> str:
        """One line for people."""
        n_artifacts = sum(self.artifacts.values())
        what = f"{n_artifacts} artifacts and {self.n_orphans} loose files ({self.n_bytes:,} bytes)"
        if self.at_work:
            return (
                f"{self.store}: nothing removed, {', '.join(self.at_work)} is at work. Start this "
                f"again when it has ended; {what} could go, {self.n_kept} artifacts stay."
            )
        if self.is_done:
            return f"{self.store}: removed {what}; {self.n_kept} artifacts stay."
        return (
            f"{self.store}: would remove {what}; {self.n_kept} artifacts stay. Nothing was "
            "removed; add --delete to do it."
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "summary": self.summary}


def collect_garbage(
    store_url: str,
    *,
    keep: int,
    keep_runs: Iterable[str] = (),
    delete: bool = False,
    grace_hours: float = 24.0,
) -> Collection:
    """Find, and remove if asked to, what no kept run or release reaches.

    Args:
        store_url: Root URL.
        keep: How many finished runs of each command to keep, newest first; at least 1.
        keep_runs: Ids of further runs to keep.
        delete: Remove it; otherwise only look.
        grace_hours: Loose files younger than this are left alone.

    Raises:
        SettingsError: The place holds no store, or a run to keep does not exist.
        ArtifactError: A run's record or a release is damaged: what it needs is unknown.
    """
    artifacts = ArtifactStore(store_url)
    require_holdings(artifacts.store)
    if not delete:
        return _plan(artifacts, keep, keep_runs, grace_hours).collection
    with present(artifacts.store, "collection"):
        at_work = list_present(artifacts.store, "run")
        if not at_work:
            end_dead_runs(artifacts.store)
            remove_dead(artifacts.store, "collection")
        plan = _plan(artifacts, keep, keep_runs, grace_hours)
        if at_work:
            plan.collection.at_work = [f"run {run.name} on {run.host}" for run in at_work]
            return plan.collection
        _remove(artifacts.store, plan)
    plan.collection.is_done = True
    return plan.collection


@dataclass
class _Plan:
    """What goes: manifests first, then files; and the runs to mark."""

    collection: Collection
    manifests: list[str]
    files: list[str]
    runs: list[RunRecord]
    grace_seconds: float


def _plan(
    artifacts: ArtifactStore, keep: int, keep_runs: Iterable[str], grace_hours: float
) -> _Plan:
    store = artifacts.store
    manifests = {(item.kind, item.fingerprint): item for item in artifacts.list_manifests()}
    runs = store.ask_all(lambda run_id: read_run(store, run_id), list_run_ids(store))
    kept_runs = _choose_runs(runs, keep, set(keep_runs))
    released = list_releases(store)
    run_ids = kept_runs | {release.run_id for release in released}
    roots = {
        (use.kind, use.fingerprint)
        for run in runs
        if run.run_id in run_ids
        for use in run.artifacts
    }
    roots |= {
        (release.patch.kind, release.patch.fingerprint)
        for release in released
        if release.patch is not None
    }
    cut_short = [run for run in runs if run.run_id in run_ids and run.status not in FINISHED]
    roots |= _find_made_during(cut_short, manifests)
    reached = _reach(roots, manifests)
    going = {key: manifest for key, manifest in manifests.items() if key not in reached}
    files, n_orphans, n_bytes = _list_files(store, manifests, reached, grace_hours)
    marked = [
        run
        for run in runs
        if run.collected_at is None
        and any((use.kind, use.fingerprint) in going for use in run.artifacts)
    ]
    collection = Collection(
        store=store.root,
        artifacts=dict(sorted(Counter(kind for kind, _ in going).items())),
        n_kept=len(manifests) - len(going),
        n_orphans=n_orphans,
        n_bytes=n_bytes,
        runs=[run.run_id for run in marked],
    )
    paths = [f"artifacts/{kind}/{digest}/{MANIFEST_NAME}" for kind, digest in sorted(going)]
    return _Plan(collection, paths, files, marked, grace_hours * SECONDS_PER_HOUR)


def _choose_runs(runs: list[RunRecord], keep: int, asked_for: set[str]) -> set[str]:
    """Ids of the runs to keep by age, by name, or because the next run goes on from them."""
    unknown = sorted(asked_for - {run.run_id for run in runs})
    if unknown:
        raise SettingsError(
            f"--keep-run: expected ids of runs in this store, found {', '.join(unknown)}. List "
            'them with: eigenshift audit "select run_id, status from runs".'
        )
    kept = set(asked_for)
    for command in {run.command for run in runs}:
        newest_first = [run for run in reversed(runs) if run.command == command]
        finished = [run.run_id for run in newest_first if run.status in FINISHED]
        kept.update(finished[:keep])
        for run in newest_first:
            if run.status in FINISHED:
                break
            kept.add(run.run_id)
    return kept


def _find_made_during(runs: list[RunRecord], manifests: Mapping[Key, Manifest]) -> set[Key]:
    """Artifacts made while one of these runs was at work, in its record or not."""
    latest = datetime.max.replace(tzinfo=timezone.utc)
    spans = [
        (
            datetime.fromisoformat(run.started_at) - CLOCK_SLACK,
            latest
            if run.finished_at is None
            else datetime.fromisoformat(run.finished_at) + CLOCK_SLACK,
        )
        for run in runs
    ]
    return {
        key
        for key, manifest in manifests.items()
        if any(start <= datetime.fromisoformat(manifest.created_at) <= end for start, end in spans)
    }


def _reach(roots: set[Key], manifests: Mapping[Key, Manifest]) -> set[Key]:
    """Everything the roots were made from, themselves included, there or not."""
    reached: set[Key] = set()
    waiting = list(roots)
    while waiting:
        key = waiting.pop()
        if key in reached:
            continue
        reached.add(key)
        if key in manifests:
            waiting += [(item.kind, item.fingerprint) for item in manifests[key].inputs]
    return reached


def _list_files(
    store: Store,
    manifests: Mapping[Key, Manifest],
    reached: set[Key],
    grace_hours: float,
) -> tuple[list[str], int, int]:
    """Files to remove, how many of them no manifest lists, and all their bytes.

    A manifest that is not sound is such a file, with what lies beside it, unless the artifact is in
    use: then everything stays for the next run, or for a person.
    """
    unclear = reached - set(manifests)
    listed = {
        f"artifacts/{kind}/{digest}/{file.stored_as}": (kind, digest) not in reached
        for (kind, digest), manifest in manifests.items()
        for file in manifest.files
    }
    not_loose = {
        f"artifacts/{kind}/{digest}/{MANIFEST_NAME}" for kind, digest in {*manifests, *reached}
    }
    oldest = time.time() - grace_hours * SECONDS_PER_HOUR
    files, n_orphans, n_bytes = [], 0, 0
    for folder in ("artifacts", "work"):
        for path, state in store.list_states(folder).items():
            if path in not_loose:
                continue
            if path not in listed:
                if tuple(path.split("/")[1:3]) in unclear:
                    continue
                if state.modified_at is None or state.modified_at > oldest:
                    continue
                n_orphans += 1
            elif not listed[path]:
                continue
            files.append(path)
            n_bytes += state.n_bytes
    return files, n_orphans, n_bytes


def _remove(store: Store, plan: _Plan) -> None:
    """Mark the runs, then remove manifests, then files."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for run in plan.runs:
        run.collected_at = now
        write_run(store, run)
    store.ask_all(store.remove, plan.manifests)
    store.ask_all(store.remove, plan.files)
    if store.is_local:
        _remove_empty_folders(store, plan.grace_seconds)


def _remove_empty_folders(store: Store, grace_seconds: float) -> None:
    """Folders are a thing of local stores only."""
    for folder in ("artifacts", "work"):
        root = store.local_path(folder)
        for path in sorted(root.glob("**/"), reverse=True):
            is_old = time.time() - path.stat().st_mtime > grace_seconds
            if path != root and not any(path.iterdir()) and (folder == "artifacts" or is_old):
                shutil.rmtree(path, ignore_errors=True)
