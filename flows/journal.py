"""The journal of one run: waits for a stage's tasks, logs progress, records what each did.

Writes the run record through `eigenshift.ledger.runs`: at the start, after each stage that made
something, and at the end, so that a kill loses only what the stage in progress did. Log lines carry
stage, shard, rows and seconds; never text of a sample.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pyarrow as pa
from prefect.exceptions import Pause, TerminationSignal
from threadpoolctl import threadpool_limits

from eigenshift.base.errors import DamagedFileError, EigenShiftError
from eigenshift.ledger.presence import Presence, present, wait_for_collections
from eigenshift.ledger.releases import settle_current
from eigenshift.ledger.runs import (
    ArtifactUse,
    StageSummary,
    Status,
    end_dead_runs,
    finish_run,
    start_run,
    write_run,
)
from eigenshift.reporting.outcomes import FAILED_RUN, describe_failure
from eigenshift.settings import RefreshSettings
from eigenshift.stages.running import Piece
from eigenshift.stages.stage import I, K, Place, Stage
from eigenshift.stages.tables import Table
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.filesystems import logging_faults
from eigenshift.store.manifests import ArtifactReference, FileReference, choose_file
from eigenshift.upkeep.repair import set_aside_damaged
from flows.assets import tell_made
from flows.heartbeat import telling_of_work
from flows.lineage import RunLineage
from flows.publication import RunProgress
from flows.run_labels import tag_run
from flows.stopping import on_stop, say_last
from tasks.stage import Single, submit_in_turn, submit_stage, submit_together

logger = logging.getLogger("eigenshift.run")

PEEK_SECONDS = 0.01
"""For a finished task to hand over its result; asked of the others once one has failed."""
PEEK_SECONDS_IN_ALL = 2.0


@contextmanager
def share_cores(concurrency: int) -> Iterator[None]:
    """Give each of the tasks in flight its share of the cores for linear algebra.

    Every BLAS call would take all cores, and the threads of several calls then wait for each other:
    layer probes of two tasks on a busy machine of two cores were measured to take four times as
    long.
    """
    with threadpool_limits(max(1, (os.cpu_count() or 1) // concurrency), user_api="blas"):
        yield


def show_progress() -> None:
    """Let our log lines through where nobody else has said what to show, as under a worker."""
    library = logging.getLogger("eigenshift")
    if library.level == logging.NOTSET:
        library.setLevel(logging.INFO)


def _number(first: int, count: int, n_all: int) -> str | None:
    """`2 of 3`, or `1-2 of 3`; None where there is one."""
    if n_all == 1:
        return None
    last = first + count
    return f"{last if count == 1 else f'{first + 1}-{last}'} of {n_all}"


def _label(key: object, number: str | None) -> str:
    """Which piece of a stage's work has this key: source or data set, layer, and its number."""
    source = getattr(key, "source", None)
    layer = getattr(key, "layer", None)
    words = (
        getattr(source, "name", source),
        getattr(key, "dataset", None),
        None if layer is None else f"layer {layer}",
        number,
    )
    return " ".join(word for word in words if word is not None)


def explain_end(error: BaseException) -> tuple[Status, str]:
    """Status of a run that an error ended, and the reason.

    Foreign messages may quote data, so only their type is kept.
    """
    match error:
        case Pause():
            return (
                "suspended",
                "suspended in Prefect; resumed there, it goes on in a run of its own",
            )
        case TerminationSignal():
            return "failed", "stopped by SIGTERM (cancelled in Prefect, or its worker was stopped)"
        case EigenShiftError():
            return "failed", str(error)
    return "failed", type(error).__name__


class RunJournal:
    """Keeps a run's record up to date in the store.

    Args:
        command: refresh, compare, tune, detect, benchmark or survive.
        settings: The run's settings.
    """

    def __init__(self, command: str, settings: RefreshSettings) -> None:
        show_progress()
        self.settings = settings
        self.artifacts = ArtifactStore(settings.store)
        self.record = start_run(command, settings)
        self._files: dict[ArtifactReference, tuple[FileReference, ...]] = {}
        self._progress = RunProgress(command)
        self._lineage = RunLineage(self.root)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Write the record at the start and, whatever happens, at the end."""
        store = self.artifacts.store
        store.check_writable()
        with (
            present(store, "run", self.record.run_id) as presence,
            on_stop(partial(self._stop, presence)),
            share_cores(self.settings.execution.concurrency),
        ):
            write_run(store, self.record)
            tag_run(self.record)
            self._lineage.tell(self.record)
            try:
                wait_for_collections(store)
                end_dead_runs(store)
                settle_current(store, self.record.model_id)
                logger.info(
                    "run %s: %s, store %s", self.record.run_id, self.record.command, self.root
                )
                yield
            except BaseException as error:
                finish_run(self.record, *explain_end(error))
                if isinstance(error, DamagedFileError):
                    with logging_faults("the damaged artifact could not be set aside"):
                        done = set_aside_damaged(store, error)
                        logger.warning("%s", done or "the damaged artifact was made again already")
                with logging_faults("the run's record could not be written"):
                    write_run(store, self.record)
                setattr(error, FAILED_RUN, describe_failure(self.record, self.root))
                self._tell_end()
                raise
            if self.record.finished_at is None:
                finish_run(self.record, "finished")
            write_run(store, self.record)
            self._tell_end()

    def _tell_end(self) -> None:
        """On Prefect's screens; the record is written by then."""
        self._progress.finish(self.record.status)
        tag_run(self.record)
        self._lineage.tell(self.record)

    def _stop(self, presence: Presence, signal_name: str) -> None:
        """Record that a signal ended the run, and take back its announcement."""
        store = self.artifacts.store
        finish_run(self.record, "failed", error=f"stopped by {signal_name}")
        say_last(json.dumps(describe_failure(self.record, self.root)))
        write_run(store, self.record)
        store.remove(presence.path)
        self._lineage.tell(self.record, is_stopped=True)

    @property
    def root(self) -> str:
        """The store's root URL."""
        root: str = self.artifacts.store.root
        return root

    @property
    def place(self) -> Place:
        """Where stages work and how fast."""
        settings = self.settings
        return Place(settings.store, settings.model, settings.execution)

    def submit(
        self, stage: Stage[I, K], inputs: I, key: K | None = None, label: str | None = None
    ) -> Single:
        """Submit one piece of a stage's work, to be collected.

        Args:
            stage: What to do.
            inputs: What it reads.
            key: The settings it reads; None where all of them are the run's.
            label: Which of the stage's pieces it is, where there are several.
        """
        key = stage.key.of(self.settings) if key is None else key
        return submit_stage(stage, inputs, key, self.place, label)

    def run_each(
        self, stage: Stage[I, K], pieces: Iterable[tuple[I, K]]
    ) -> list[ArtifactReference]:
        """Do all pieces of a stage's work, each by a key of its own, and wait for them."""
        if stage.pieces_per_task > 1:
            return self.run_in_turn(stage, [Piece(*piece) for piece in pieces])
        return self._run_numbered(stage, list(pieces))

    def run_in_turn(
        self, stage: Stage[I, K], pieces: Sequence[Piece[I, K]]
    ) -> list[ArtifactReference]:
        """Several short pieces a task, but no fewer tasks than are worked on at once."""
        share = -(-len(pieces) // self.settings.execution.concurrency)
        size = max(1, min(stage.pieces_per_task, share))
        firsts = range(0, len(pieces), size)
        futures = [
            submit_in_turn(
                stage,
                pieces[first : first + size],
                self.place,
                _number(first, min(size, len(pieces) - first), len(pieces)),
            )
            for first in firsts
        ]
        started = time.perf_counter()
        results: list[StageResult] = []

        def enter(_place: int, found: list[StageResult]) -> None:
            for result in found:
                results.append(result)
                self._record(stage.name, result, None, f"{len(results)}/{len(pieces)}")

        self._take(stage.name, futures, enter)
        self._summarise(stage.name, results, time.perf_counter() - started)
        return [result.reference for result in results]

    def run(
        self, stage: Stage[I, K], pieces: Iterable[I], key: K | None = None
    ) -> list[ArtifactReference]:
        """Do all pieces of a stage's work by one key (`submit`), and wait for them."""
        return self._run_numbered(stage, [(inputs, key) for inputs in pieces])

    def _run_numbered(
        self, stage: Stage[I, K], pieces: Sequence[tuple[I, K | None]]
    ) -> list[ArtifactReference]:
        futures = [
            self.submit(stage, inputs, key, _label(key, _number(place, 1, len(pieces))))
            for place, (inputs, key) in enumerate(pieces)
        ]
        return self.collect(stage, futures)

    def run_one(self, stage: Stage[I, K], inputs: I, key: K | None = None) -> ArtifactReference:
        """Do a stage's work that is of one piece, and wait for it."""
        (reference,) = self.run(stage, [inputs], key)
        return reference

    def collect(
        self, stage: Stage[I, K], futures: Mapping[str, Single] | Sequence[Single]
    ) -> list[ArtifactReference]:
        """Wait for a stage's tasks and record them.

        Args:
            stage: Whose they are.
            futures: The tasks' futures, in shard order, or by label (e.g. the arm).

        Returns:
            The artifacts' references, in the same order.
        """
        started = time.perf_counter()
        labels = list(futures) if isinstance(futures, Mapping) else [None] * len(futures)
        waiting = list(futures.values()) if isinstance(futures, Mapping) else list(futures)
        results: list[StageResult] = []

        def enter(place: int, result: StageResult) -> None:
            results.append(result)
            self._record(stage.name, result, labels[place], f"{place + 1}/{len(waiting)}")

        self._take(stage.name, waiting, enter)
        self._summarise(stage.name, results, time.perf_counter() - started)
        return [result.reference for result in results]

    def enter_found(self, stage: str, reference: ArtifactReference, label: str) -> None:
        """Enter an artifact of another run that this one is about."""
        self.record.artifacts.append(
            ArtifactUse(
                stage=stage,
                kind=reference.kind,
                fingerprint=reference.fingerprint,
                was_cached=True,
                elapsed_seconds=0.0,
                label=label,
            )
        )

    def list_files(self, reference: ArtifactReference) -> tuple[FileReference, ...]:
        """References to all files of a collected artifact; storage is not asked."""
        return self._files[reference]

    def refer_to_file(self, reference: ArtifactReference, table: Table) -> FileReference:
        """Reference to the file of a table of a collected artifact."""
        return choose_file(self._files[reference], table.file)

    def refer_to_files(
        self, reference: ArtifactReference, table: Table
    ) -> tuple[FileReference, ...]:
        """References to the shards of a table of a collected artifact."""
        return tuple(file for file in self._files[reference] if table.matches(file.file))

    def read(self, reference: ArtifactReference, table: Table) -> pa.Table:
        """A table of a collected artifact."""
        return self.artifacts.open(reference).read_table(table.file)

    def read_facts(self, reference: ArtifactReference) -> dict[str, Any]:
        """What a stage noted about an artifact."""
        return self.artifacts.open(reference).manifest.facts

    def run_together(
        self, stage: Stage[I, K], work: Iterable[Mapping[str, Piece[I, K]]]
    ) -> list[dict[str, ArtifactReference]]:
        """Do work that makes several artifacts in one pass, wait for it and record it.

        Args:
            stage: What to do.
            work: For each pass what its artifacts are made from, by name.

        Returns:
            The artifacts' references by name, in the order of the passes.
        """
        passes = list(work)
        futures = [
            submit_together(stage, pieces, self.place, _number(place, 1, len(passes)))
            for place, pieces in enumerate(passes)
        ]
        started = time.perf_counter()
        results: list[StageResult] = []
        made: list[dict[str, ArtifactReference]] = []

        def enter(place: int, found: dict[str, StageResult]) -> None:
            made.append({name: result.reference for name, result in found.items()})
            different = {result.reference: (name, result) for name, result in found.items()}
            for name, result in different.values():
                results.append(result)
                self._record(stage.name, result, None, f"{place + 1}/{len(futures)} {name}")

        self._take(stage.name, futures, enter)
        self._summarise(stage.name, results, time.perf_counter() - started)
        return made

    def _take(self, stage: str, futures: Sequence[Any], enter: Callable[[int, Any], None]) -> None:
        """Enter what the tasks hand back, in order; if one fails, the finished ones after it."""
        self._progress.begin(stage, len(futures))
        with telling_of_work(stage, len(futures)) as advance:
            for place, future in enumerate(futures):
                try:
                    found = future.result()
                except BaseException:
                    deadline = time.monotonic() + PEEK_SECONDS_IN_ALL
                    for later, other in enumerate(futures[place + 1 :], start=place + 1):
                        if time.monotonic() > deadline:
                            break
                        with suppress(Exception):  # unfinished or failed; the first error counts
                            enter(later, other.result(timeout=PEEK_SECONDS))
                    raise
                enter(place, found)
                advance(_count_made(found))
                self._progress.advance(stage)

    def _record(self, stage: str, result: StageResult, label: str | None, place: str) -> None:
        """Enter one artifact in the run's record."""
        self._files[result.reference] = result.files
        self.record.artifacts.append(
            ArtifactUse(
                stage=stage,
                kind=result.reference.kind,
                fingerprint=result.reference.fingerprint,
                was_cached=result.was_cached,
                elapsed_seconds=round(result.elapsed_seconds, 3),
                label=label,
                traffic=result.traffic,
            )
        )
        of_what = f" ({label})" if label else ""
        if result.was_cached:
            logger.debug("%-28s %s  cached%s", stage, place, of_what)
            return
        rows = f"rows={result.rows} " if result.rows else ""  # some stages make none
        logger.info(
            "%-28s %s  %sseconds=%.1f%s", stage, place, rows, result.elapsed_seconds, of_what
        )

    def _summarise(self, stage: str, results: Sequence[StageResult], waited: float) -> None:
        """Add to the stage's summary; a stage may be collected several times (once per arm)."""
        n_cached = sum(result.was_cached for result in results)
        if results and n_cached == len(results):
            logger.info("%-28s %d cached, nothing to do", stage, n_cached)
        summary = next((found for found in self.record.stages if found.name == stage), None)
        if summary is None:
            summary = StageSummary(name=stage, shards=0, shards_cached=0, elapsed_seconds=0.0)
            self.record.stages.append(summary)
        summary.shards += len(results)
        summary.shards_cached += n_cached
        summary.elapsed_seconds = round(summary.elapsed_seconds + waited, 3)
        made = [result for result in results if not result.was_cached]
        summary.rows_made += sum(result.rows for result in made)
        summary.tokens_made += sum(result.n_tokens for result in made)
        summary.work_seconds += sum(result.elapsed_seconds for result in made)
        summary.traffic = sum((result.traffic for result in results), summary.traffic)
        if made:
            tell_made(self.record, self.root, stage, made)
            with logging_faults("the run's record could not be written yet"):
                write_run(self.artifacts.store, self.record)


def _count_made(found: Any) -> int | None:
    """Rows made by one task, None if it made nothing new.

    A task hands over one result, several, or several by name.
    """
    if isinstance(found, StageResult):
        return None if found.was_cached else found.rows
    results = found.values() if isinstance(found, Mapping) else found
    made = [n_rows for n_rows in map(_count_made, results) if n_rows is not None]
    return sum(made) if made else None
