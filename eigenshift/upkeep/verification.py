"""Verify a store: every checksum, schema and lineage link, and that no row was lost.

Reads everything, changes nothing. A problem is one sentence that names the object; files that no
manifest lists are left by abandoned attempts, do no harm, and are only counted (`retention.py`
removes them). What can be mended about the problems is `repair.py`'s.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from eigenshift.base.errors import ArtifactError, StorageError
from eigenshift.ledger.holdings import require_holdings
from eigenshift.ledger.releases import CURRENT_NAME, Release
from eigenshift.ledger.runs import RunRecord
from eigenshift.store.local_files import digest_local_file
from eigenshift.store.manifests import MANIFEST_NAME, FileRecord, Manifest, compute_fingerprint
from eigenshift.store.storage import Store
from eigenshift.upkeep.file_formats import find_format_problem

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass
class VerificationReport:
    """What a verification found."""

    store: str
    problems: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Manifests and run records that are wrong, or whose files are: to be set aside. Path -> sha256
    of the object then, so that one made again meanwhile is left alone."""
    n_unread: int = 0
    """Objects that storage did not give: a problem, but perhaps none of theirs."""
    unsettled_models: list[str] = field(default_factory=list)
    """Models whose release pointer does not agree with the history."""
    n_artifacts: int = 0
    n_files: int = 0
    n_bytes: int = 0
    n_runs: int = 0
    n_releases: int = 0
    n_orphans: int = 0

    @property
    def is_fine(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def summary(self) -> str:
        """One line for people."""
        counted = (
            f"{self.store}: {self.n_artifacts} artifacts ({self.n_files} files, {self.n_bytes:,} "
            f"bytes), {self.n_runs} runs, {self.n_releases} releases"
        )
        orphans = (
            f"; {self.n_orphans} files without a manifest, ignored (`eigenshift gc` removes them)"
            if self.n_orphans
            else ""
        )
        if self.is_fine:
            return f"{counted}: everything fits{orphans}."
        return f"{counted}: {len(self.problems)} problems{orphans}."

    @property
    def advice(self) -> str | None:
        """What to do about the problems, None if there are none."""
        if self.is_fine:
            return None
        if self.n_unread:
            return (
                f"{self.n_unread} objects could not be read; they may be sound, and --repair "
                "leaves them alone. Mend storage, credentials or the disk for temporary files "
                "first, then verify again. What can never be read again is best deleted by hand."
            )
        if self.damaged:
            return (
                f"{len(self.damaged)} objects are damaged, and what depends on them is named too. "
                "The same refresh finds them and makes them again; --repair sets them aside first, "
                "with a copy below damaged/. What no run needs any more goes with `eigenshift gc`."
            )
        if self.unsettled_models:
            return "The next run settles the release pointer; --repair does it now."
        return (
            "Nothing that is here is damaged, but something is missing. The same refresh makes "
            "artifacts again; run and release records are left to you."
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **asdict(self),
            "damaged": list(self.damaged),
            "is_fine": self.is_fine,
            "summary": self.summary,
        }


def verify_store(store_url: str) -> VerificationReport:
    """Check everything a store holds against its own records.

    Raises:
        SettingsError: The place holds no store.
    """
    store = Store(store_url)
    require_holdings(store)
    report = VerificationReport(store.root)
    # Records before artifacts: what a record names is there by then, also beside a running refresh.
    releases = _read_records(store, "releases", Release, "a release record", report)
    runs = _read_records(store, "runs", RunRecord, "a run record", report)
    manifests = _read_manifests(store, report)
    findings = _examine_files(store, manifests)
    for path, (manifest, digest) in manifests.items():
        unread = [item for item in findings[path] if isinstance(item, _Unread)]
        report.problems.extend(item.problem for item in unread)
        report.n_unread += len(unread)
        n_before = len(report.problems)
        _check_manifest(store, path, manifest, findings[path], report)
        if len(report.problems) > n_before:
            report.damaged[path] = digest
    by_key = {(found.kind, found.fingerprint): found for found, _ in manifests.values()}
    for path, (manifest, _) in manifests.items():
        _check_inputs(store.uri(path), manifest, by_key, report)
    run_ids = _check_runs(store, runs, by_key, report)
    _check_releases(store, releases, by_key, run_ids, report)
    return report


def _read_manifests(store: Store, report: VerificationReport) -> dict[str, tuple[Manifest, str]]:
    """Manifests and the digests of their bytes, by path; counts files that belong to none."""
    paths = store.list_paths("artifacts")
    chosen = [path for path in paths if path.endswith(f"/{MANIFEST_NAME}")]
    manifests = {
        path: (manifest, digest)
        for path, manifest, digest in _read_objects(store, chosen, Manifest, "a manifest", report)
        if manifest is not None
    }
    known = {
        f"{path.removesuffix(MANIFEST_NAME)}{file.stored_as}"
        for path, (manifest, _) in manifests.items()
        for file in manifest.files
    }
    report.n_artifacts = len(manifests)
    report.n_orphans = sum(
        path not in known and not path.endswith(f"/{MANIFEST_NAME}") for path in paths
    )
    return manifests


def _read_records(
    store: Store, folder: str, model: type[_Model], what: str, report: VerificationReport
) -> dict[str, _Model | None]:
    """Records by path; None for one that is damaged."""
    paths = [path for path in store.list_paths(folder) if path.endswith(".json")]
    found = _read_objects(store, paths, model, what, report)
    return {path: record for path, record, _ in found}


def _read_objects(
    store: Store, paths: Sequence[str], model: type[_Model], what: str, report: VerificationReport
) -> list[tuple[str, _Model | None, str]]:
    """Path, content and digest of the objects that are still there; None for a damaged one."""

    def read(path: str) -> bytes | StorageError | None:
        try:
            return store.find_bytes(path)
        except StorageError as error:  # the others are looked at all the same
            return error

    objects: list[tuple[str, _Model | None, str]] = []
    for path, data in zip(paths, store.ask_all(read, paths), strict=True):
        if data is None:  # removed since it was listed
            continue
        if isinstance(data, StorageError):
            report.problems.append(str(data))
            report.n_unread += 1
            objects.append((path, None, ""))
            continue
        digest = hashlib.sha256(data).hexdigest()
        try:
            objects.append((path, model.model_validate_json(data), digest))
        except ValidationError:
            report.problems.append(f"{store.uri(path)}: expected {what}, found damage.")
            objects.append((path, None, digest))
            if model is not Release:  # which patch was in force cannot be made again
                report.damaged[path] = digest
    return objects


def _check_manifest(
    store: Store,
    path: str,
    manifest: Manifest,
    findings: Sequence[_Finding],
    report: VerificationReport,
) -> None:
    """Place, fingerprint and files of one artifact, then the accounting of its rows."""
    place = store.uri(path)
    expected = f"artifacts/{manifest.kind}/{manifest.fingerprint}/{MANIFEST_NAME}"
    if path != expected:
        report.problems.append(f"{place}: expected to lie at {expected}, found it here.")
    if manifest.seal != manifest.compute_seal():
        report.problems.append(f"{place}: expected it to fit its own digest, found changes.")
    try:
        computed = compute_fingerprint(
            manifest.kind, manifest.step_version, manifest.settings, manifest.inputs
        )
    except ValueError:  # numbers that JSON has not
        computed = "none"
    if computed != manifest.fingerprint:
        report.problems.append(
            f"{place}: expected fingerprint {computed[:12]} (of its settings and inputs), found "
            f"{manifest.fingerprint[:12]}. The manifest was edited."
        )
    report.n_files += len(manifest.files)
    report.n_bytes += manifest.bytes
    report.problems.extend(item.problem for item in findings if isinstance(item, _Damage))
    counts = [item for item in findings if isinstance(item, _RowCounts)]
    if manifest.kind == "samples" and len(counts) == len(findings):
        report.problems.extend(f"{place}: {problem}" for problem in _find_lost_rows(counts))


@dataclass(frozen=True)
class _RowCounts:
    """Rows of a sound file by source file: as read, and as samples or rejected rows."""

    read: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Damage:
    """A file that is missing or not what its manifest says."""

    problem: str


@dataclass(frozen=True)
class _Unread:
    """A file that could not be read now."""

    problem: str


_Finding = _RowCounts | _Damage | _Unread


def _examine_files(
    store: Store, manifests: Mapping[str, tuple[Manifest, str]]
) -> dict[str, list[_Finding]]:
    """What is found of the files of each manifest, by the manifest's path and in its order."""
    files = [
        (path, manifest.kind, manifest.step_version, file)
        for path, (manifest, _) in manifests.items()
        for file in manifest.files
    ]
    findings: dict[str, list[_Finding]] = {path: [] for path in manifests}
    found = store.ask_all(lambda item: _examine_file(store, *item), files)
    for (path, *_), finding in zip(files, found, strict=True):
        findings[path].append(finding)
    return findings


def _examine_file(
    store: Store, manifest_path: str, kind: str, step_version: int, file: FileRecord
) -> _Finding:
    """Read a file once: what its rows come from, or what is wrong with it."""
    path = f"{manifest_path.removesuffix(MANIFEST_NAME)}{file.stored_as}"
    place = store.uri(path)
    try:
        with store.borrow(path) as local:
            problem = file.find_difference(
                local.stat().st_size, lambda: digest_local_file(local)
            ) or find_format_problem(kind, step_version, file, local)
            if problem is None:
                return _count_rows(file.name, local) if kind == "samples" else _RowCounts()
    except ArtifactError:
        problem = "expected a file (manifest), found none."
    except StorageError as error:
        return _Unread(str(error))
    except OSError as error:
        return _Unread(f"{place}: expected to read it, found {type(error).__name__}: {error}.")
    return _Damage(f"{place}: {problem}")


def _count_rows(name: str, local: Path) -> _RowCounts:
    counts = _RowCounts()
    if name.startswith("source_files"):
        for row in pq.read_table(local, columns=["source_uri", "rows_read"]).to_pylist():
            counts.read[row["source_uri"]] += row["rows_read"]
    elif name.endswith(".parquet"):
        uris = pq.read_table(local, columns=["source_uri"])["source_uri"]
        counts.found.update(uris.to_pylist())
    return counts


def _find_lost_rows(counts: Sequence[_RowCounts]) -> Iterator[str]:
    """Rows read = samples + rejected rows, per source file."""
    read = sum((part.read for part in counts), Counter[str]())
    found = sum((part.found for part in counts), Counter[str]())
    for uri in sorted({*read, *found}, key=str):
        if read[uri] != found[uri]:
            yield (
                f"expected {read[uri]} rows of {uri} (rows read) as samples or rejected rows, "
                f"found {found[uri]}."
            )


def _check_inputs(
    place: str,
    manifest: Manifest,
    by_key: dict[tuple[str, str], Manifest],
    report: VerificationReport,
) -> None:
    """Every input that is an artifact exists and still has the content it was read with."""
    for item in manifest.inputs:
        if item.is_outside:
            continue
        name = f"{item.kind}/{item.fingerprint[:12]}"
        source = by_key.get((item.kind, item.fingerprint))
        if source is None:
            report.problems.append(f"{place}: expected its input {name}, found no such artifact.")
        elif item.file is not None:
            digests = [file.sha256 for file in source.files if file.name == item.file]
            if digests != [item.identity]:
                report.problems.append(
                    f"{place}: expected its input {name}/{item.file} with sha256 "
                    f"{item.identity[:12]}, found {digests[0][:12] if digests else 'none'}."
                )
        elif item.identity != item.fingerprint:
            report.problems.append(f"{place}: expected the identity of {name} to be itself.")


def _check_runs(
    store: Store,
    records: Mapping[str, RunRecord | None],
    by_key: dict[tuple[str, str], Manifest],
    report: VerificationReport,
) -> set[str]:
    """What sound run records used exists; returns the runs' ids."""
    run_ids = set()
    for path, record in records.items():
        if record is None:
            continue
        run_ids.add(record.run_id)
        if record.collected_at is not None:  # its artifacts were removed on purpose
            continue
        missing = {
            f"{use.kind}/{use.fingerprint[:12]}"
            for use in record.artifacts
            if (use.kind, use.fingerprint) not in by_key
        }
        report.problems.extend(
            f"{store.uri(path)}: expected artifact {name}, found none." for name in sorted(missing)
        )
    report.n_runs = len(run_ids)
    return run_ids


def _check_releases(
    store: Store,
    releases: Mapping[str, Release | None],
    by_key: dict[tuple[str, str], Manifest],
    run_ids: set[str],
    report: VerificationReport,
) -> None:
    """Releases lead to a run and a patch; each pointer agrees with the newest release."""
    newest: dict[str, Release] = {}
    pointers: dict[str, Release | None] = {}
    for path, release in releases.items():
        folder = path.rpartition("/")[0]
        if path.endswith(f"/{CURRENT_NAME}"):
            pointers[folder] = release
            continue
        if release is None:
            continue
        report.n_releases += 1
        if folder not in newest or newest[folder].version < release.version:
            newest[folder] = release
        if release.is_sealed_wrongly:
            report.problems.append(
                f"{store.uri(path)}: expected a release record as it was written, found changes."
            )
        if release.run_id not in run_ids:
            report.problems.append(f"{store.uri(path)}: expected run {release.run_id}, found none.")
        patch = release.patch
        if patch is not None and (patch.kind, patch.fingerprint) not in by_key:
            report.problems.append(
                f"{store.uri(path)}: expected patch {patch.fingerprint[:12]}, found none."
            )
    for folder, release in newest.items():
        place = store.uri(f"{folder}/{CURRENT_NAME}")
        if folder not in pointers:
            report.problems.append(f"{place}: expected {release.version}, found no such object.")
            report.unsettled_models.append(release.model_id)
        elif pointers[folder] is None:
            report.unsettled_models.append(release.model_id)
        elif (pointer := pointers[folder]) is not None and pointer != release:
            report.problems.append(
                f"{place}: expected {release.version} (the newest release), found "
                f"{pointer.version}. The next run repairs it."
            )
            report.unsettled_models.append(release.model_id)
    for folder in sorted(set(pointers) - set(newest)):
        report.problems.append(
            f"{store.uri(folder)}/{CURRENT_NAME}: expected a release it points to, found none."
        )
