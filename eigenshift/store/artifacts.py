"""Artifacts: immutable results in the store, each described by a manifest written last.

The manifests *are* the cache: a stage whose complete artifact exists and passes its check does no
work (docs/decisions/0002-cache-keys.md). Stages meet only through what is written here. Holds no
numerics and no table schemas; what a manifest says is `manifests.py`.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from eigenshift.base.errors import ArtifactError, StorageError
from eigenshift.store.artifact import Artifact, locate_file, read_files
from eigenshift.store.filesystems import explain_full_disk
from eigenshift.store.local_files import digest_local_file
from eigenshift.store.manifests import (
    MANIFEST_NAME,
    ArtifactReference,
    FileRecord,
    FileReference,
    InputRecord,
    Manifest,
    compute_fingerprint,
    describe_versions,
    digest_columns,
)
from eigenshift.store.storage import Store
from eigenshift.store.stored_file import StoredFile
from eigenshift.store.traffic import Meter, Traffic, metering
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """What one task of a stage hands back: a reference and how it came about."""

    reference: ArtifactReference
    was_cached: bool
    elapsed_seconds: float
    rows: int
    """Over all its tables; of a stage's result (`stages/running.py`) those of results alone."""
    traffic: Traffic = field(default_factory=Traffic)
    n_tokens: int = 0
    """Tokens a model read or wrote for it, where the stage counts them; 0 if it was cached."""
    files: tuple[FileReference, ...] = ()
    """So that the next stages need not ask for the manifest to read them."""


@dataclass(frozen=True)
class Order:
    """What one artifact is made of.

    Attributes:
        settings: Exactly the settings the work reads: pydantic models or plain values.
        inputs: The artifacts or files the work reads.
    """

    settings: Mapping[str, Any]
    inputs: Sequence[ArtifactReference]


@dataclass(frozen=True)
class _Draft:
    """What is known of a manifest before the work."""

    reference: ArtifactReference
    step_version: int
    settings: dict[str, Any]
    inputs: list[InputRecord]


class ArtifactStore:
    """Artifacts under one root URL."""

    def __init__(self, root: str) -> None:
        self.store = Store(root)

    def open(self, reference: ArtifactReference) -> Artifact:
        """Open a complete artifact.

        Raises:
            ArtifactError: It has no readable manifest.
        """
        path = f"{reference.folder}/{MANIFEST_NAME}"
        return self._open(reference, self.store.read_bytes(path))

    def _open(self, reference: ArtifactReference, data: bytes) -> Artifact:
        place = self.store.uri(f"{reference.folder}/{MANIFEST_NAME}")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            raise ArtifactError(
                f"{place}: expected a manifest, found {len(data)} bytes that are not one. The "
                "object was damaged. Start the same command again; only this shard is redone."
            ) from error
        if manifest.seal != manifest.compute_seal():
            raise ArtifactError(
                f"{place}: expected a manifest that fits its own digest, found changes. The object "
                "was damaged or edited. Start the same command again; only this shard is redone."
            )
        if (manifest.kind, manifest.fingerprint) != (reference.kind, reference.fingerprint):
            raise ArtifactError(
                f"{place}: expected the manifest of this artifact, found that of another "
                f"({manifest.kind}/{manifest.fingerprint[:12]}). The object was damaged. Start the "
                "same command again; only this shard is redone."
            )
        return Artifact(self.store, manifest)

    def open_all(self, references: Iterable[ArtifactReference]) -> list[Artifact]:
        """Open several complete artifacts, in the same order (`open`)."""
        return self.store.ask_all(self.open, references)

    def locate(self, reference: FileReference) -> StoredFile:
        """Return where a file is; nothing is asked of storage."""
        return locate_file(self.store, reference)

    def read_table(self, reference: FileReference) -> pa.Table:
        """Read the one file a reference names."""
        return pq.read_table(self.locate(reference).fetch())

    def read_files(self, references: Iterable[FileReference]) -> pa.Table:
        """Read the files that references name, one after the other."""
        return read_files(self.store, references)

    def read_shards(self, references: Iterable[ArtifactReference], name: str) -> pa.Table:
        """Read the file of this name of several artifacts, one after the other."""
        artifacts = self.open_all(references)
        return read_files(self.store, [item.refer_to_file(name) for item in artifacts])

    def find(self, reference: ArtifactReference) -> Artifact | None:
        """Return the artifact if it is complete and undamaged, else None.

        A manifest whose files are missing or differ is reported in the log: its stage will be
        done again.
        """
        data = self.store.find_bytes(f"{reference.folder}/{MANIFEST_NAME}")
        if data is None:
            return None
        try:
            artifact = self._open(reference, data)
        except ArtifactError as error:
            logger.warning("artifact damaged, made again: %s", error)
            return None
        problems = self.check(artifact)
        for problem in problems:
            logger.warning("artifact damaged, made again: %s", problem)
        return None if problems else artifact

    def check(self, artifact: Artifact) -> list[str]:
        """Return what is wrong with an artifact's files, nothing if all is well.

        A file is known by its size and digest. Where the store marks content itself (S3: ETag), an
        unchanged mark stands for an unchanged digest and nothing is read; `verification.py` reads
        every byte.
        """

        def look(file: FileRecord) -> str | None:
            path = f"{artifact.reference.folder}/{file.stored_as}"
            problem = self.find_damage(path, file)
            return None if problem is None else f"{self.store.uri(path)}: {problem}"

        found = self.store.ask_all(look, artifact.manifest.files)
        return [problem for problem in found if problem is not None]

    def find_damage(self, path: str, file: FileRecord) -> str | None:
        """Compare an object with what the manifest says of it; None if they agree."""
        state = self.store.inspect(path)
        if state is None:
            return "expected a file (manifest), found none."
        n_bytes, has_same_mark = state.n_bytes, file.etag is not None and state.etag == file.etag
        return file.find_difference(
            n_bytes, lambda: file.sha256 if has_same_mark else self.store.digest(path, n_bytes)
        )

    def produce(
        self,
        kind: str,
        *,
        step_version: int,
        settings: Mapping[str, Any],
        inputs: Sequence[ArtifactReference],
        work: Callable[[Workspace], None],
    ) -> StageResult:
        """Return the artifact of this work, doing the work only if it is not there yet.

        Args:
            kind: Kind of artifact, e.g. "activations".
            step_version: Raised by hand when the code would give another result.
            settings: Exactly the settings the work reads: pydantic models or plain values.
            inputs: The artifacts or files the work reads.
            work: Writes the files into a workspace. Nothing is visible unless it returns.
        """

        def do_alone(workspaces: Mapping[str, Workspace]) -> Generator[Sequence[str], None, None]:
            work(workspaces[kind])
            yield (kind,)

        orders = {kind: Order(settings, inputs)}
        return self.produce_together(kind, step_version=step_version, orders=orders, work=do_alone)[
            kind
        ]

    def produce_together(
        self,
        kind: str,
        *,
        step_version: int,
        orders: Mapping[str, Order],
        work: Callable[[Mapping[str, Workspace]], Generator[Sequence[str], None, None]],
    ) -> dict[str, StageResult]:
        """Return several artifacts of one piece of work, doing it only for those not there yet.

        Each is complete by itself and published as soon as the work says that its files are
        written: what stops the work later does not undo it. Seconds of the work, and its traffic,
        are shared out, so that they add up.

        Args:
            kind: Kind of all of them.
            step_version: As in `produce`.
            orders: What each artifact is made of, by name. Equal orders are one artifact.
            work: Given the workspaces of the missing ones by name, yields the names of those
                whose files are written.

        Raises:
            ArtifactError: The work ended without writing all that was missing.
        """
        drafts = {name: _draft(kind, step_version, order) for name, order in orders.items()}
        results: dict[ArtifactReference, StageResult] = {}
        missing: dict[ArtifactReference, str] = {}
        with metering() as meter:
            for name, draft in drafts.items():
                reference = draft.reference
                if reference in results or reference in missing:
                    continue
                started = time.perf_counter()
                found = self.find(reference)
                if found is None:
                    missing[reference] = name
                    continue
                elapsed = time.perf_counter() - started
                results[reference] = StageResult(
                    reference,
                    True,
                    elapsed,
                    found.manifest.rows,
                    meter.take(),
                    files=found.mark_files(),
                )
            if missing:
                wanted = {name: drafts[name] for name in missing.values()}
                results |= self._make(wanted, work, meter)
        return {name: results[draft.reference] for name, draft in drafts.items()}

    def _make(
        self,
        drafts: Mapping[str, _Draft],
        work: Callable[[Mapping[str, Workspace]], Generator[Sequence[str], None, None]],
        meter: Meter,
    ) -> dict[ArtifactReference, StageResult]:
        """Do work and publish what it makes, piece by piece."""
        workspaces: dict[str, Workspace] = {}
        made: dict[ArtifactReference, StageResult] = {}
        try:
            for name in drafts:
                workspaces[name] = Workspace(self.store.make_workspace())
            # closed here, not whenever it is collected: it may hold a lock of this thread
            with closing(work(workspaces)) as pieces:
                while True:
                    started = time.perf_counter()
                    with explain_full_disk(
                        next(iter(workspaces.values())).folder, in_scratch=not self.store.is_local
                    ):
                        names = next(pieces, None)
                    if names is None:
                        break
                    share = (time.perf_counter() - started) / max(1, len(names))
                    for name in names:
                        result = self._publish(drafts[name], workspaces[name], share, meter)
                        made[result.reference] = result
        finally:
            for workspace in workspaces.values():
                shutil.rmtree(workspace.folder, ignore_errors=True)
        absent = [name for name, draft in drafts.items() if draft.reference not in made]
        if absent:
            raise ArtifactError(
                f"{next(iter(drafts.values())).reference.kind}: expected the work to write "
                f"{', '.join(absent)} too, found that it ended before. A defect; please report it."
            )
        return made

    def _publish(
        self, draft: _Draft, workspace: Workspace, share: float, meter: Meter
    ) -> StageResult:
        """Publish a workspace's files, the manifest last."""
        started = time.perf_counter()
        reference = draft.reference
        manifest = Manifest(
            kind=reference.kind,
            fingerprint=reference.fingerprint,
            step_version=draft.step_version,
            settings=draft.settings,
            inputs=draft.inputs,
            files=self._publish_files(workspace, reference),
            facts=workspace.facts,
            versions=describe_versions(),
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            elapsed_seconds=round(share + time.perf_counter() - started, 4),
            traffic=meter.traffic,
        )
        self.store.write_bytes(f"{reference.folder}/{MANIFEST_NAME}", manifest.encode())
        elapsed = share + time.perf_counter() - started
        n_tokens = int(manifest.facts.get("n_tokens", 0))
        files = Artifact(self.store, manifest).mark_files()
        return StageResult(reference, False, elapsed, manifest.rows, meter.take(), n_tokens, files)

    def _publish_files(
        self, workspace: Workspace, reference: ArtifactReference
    ) -> list[FileRecord]:
        attempt = uuid.uuid4().hex[:12]

        def publish(path: Path) -> FileRecord:
            record = FileRecord(
                name=path.name,
                stored_as=f"{attempt}-{path.name}",
                bytes=path.stat().st_size,
                rows=None,
                sha256=digest_local_file(path),
            )
            if path.suffix == ".parquet":
                table_metadata = pq.read_metadata(path)
                record.rows = table_metadata.num_rows
                record.columns_digest = digest_columns(table_metadata.schema.to_arrow_schema())
            stored = f"{reference.folder}/{record.stored_as}"
            self.store.publish_file(path, stored)
            record.etag = self._read_etag(stored, record)
            return record

        return self.store.ask_all(publish, sorted(workspace.folder.iterdir()))

    def _read_etag(self, path: str, record: FileRecord) -> str | None:
        """The store's mark of what it received, whose size is checked on the way."""
        if self.store.is_local:
            return None
        state = self.store.inspect(path)
        if state is None or state.n_bytes != record.bytes:
            found = "no such object" if state is None else f"{state.n_bytes} bytes"
            raise StorageError(
                f"{self.store.uri(path)}: expected the {record.bytes} bytes just written, found "
                f"{found}. The storage lost them or another program changes this store. Start the "
                "same command again."
            )
        return state.etag

    def list_manifests(self) -> list[Manifest]:
        """Every sound manifest in the store; damaged ones are `verify`'s to report."""

        def read(path: str) -> Manifest | None:
            _, kind, fingerprint, _ = path.split("/")
            try:
                return self.open(ArtifactReference(kind=kind, fingerprint=fingerprint)).manifest
            except ArtifactError as error:
                logger.warning("left out: %s", error)
                return None

        paths = [
            path
            for path in self.store.list_paths("artifacts")
            if path.endswith(f"/{MANIFEST_NAME}") and path.count("/") == 3
        ]
        return [found for found in self.store.ask_all(read, paths) if found is not None]


def _draft(kind: str, step_version: int, order: Order) -> _Draft:
    settings = {name: _to_json(value) for name, value in order.settings.items()}
    inputs = [InputRecord.of(reference) for reference in order.inputs]
    fingerprint = compute_fingerprint(kind, step_version, settings, inputs)
    reference = ArtifactReference(kind=kind, fingerprint=fingerprint)
    return _Draft(reference, step_version, settings, inputs)


def _to_json(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
