"""What a run's record says while the run is at work, when it is killed and when it fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.exceptions import Pause, TerminationSignal

from eigenshift.base.errors import AuditError, DamagedFileError, StorageError
from eigenshift.datasets.stages import READ_FILE
from eigenshift.ledger import presence
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.pipeline import STAGES
from eigenshift.reporting.outcomes import RefreshOutcome
from eigenshift.settings import RefreshSettings
from eigenshift.stages.running import Piece
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep.retention import collect_garbage
from flows import command_line, publication, run_commands
from flows import journal as journal_module
from flows.journal import RunJournal
from tests.support.killed_work import prepare, run_until
from tests.support.small_store import build_small_store, make_settings

FIRST, SECOND = (replace(READ_FILE, name=name) for name in ("first", "second"))


class Finished:
    """The future of a task that has ended, well or not."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    def result(self, timeout: float | None = None) -> Any:
        """What it made, or its error."""
        return self._find()


def make(url: str, number: int) -> StageResult:
    """A small artifact."""

    def work(workspace: Workspace) -> None:
        workspace.write_json("content.json", {"number": number})

    settings = {"number": number}
    return ArtifactStore(url).produce(
        "step", step_version=1, settings=settings, inputs=[], work=work
    )


def fail() -> StageResult:
    """A task that fails."""
    raise ValueError("made up")


def run_and_die(url: str) -> None:
    """End one stage, make something in the next, and be killed."""
    journal = RunJournal("refresh", make_settings(url))
    with journal.recording():
        journal.collect(FIRST, [Finished(lambda: make(url, 1))])
        make(url, 2)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_collection_keeps_the_finished_work_of_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record lists the stages that ended, and what it made after them stays as well."""
    url = str(tmp_path / "store")
    assert not run_until(prepare(["flows.journal", __name__]), run_and_die, [url], 120)
    store = Store(url)
    (run_id,) = list_run_ids(store)
    run = read_run(store, run_id)
    assert (run.status, [use.stage for use in run.artifacts]) == ("running", ["first"])
    monkeypatch.setattr(presence, "STALE_AFTER_SECONDS", -5.0)
    assert collect_garbage(url, keep=1, delete=True, grace_hours=0).artifacts == {}
    assert read_run(store, run_id).status == "failed"
    assert len(ArtifactStore(url).list_manifests()) == 2


def test_what_finished_beside_a_failed_task_is_recorded(tmp_path: Path) -> None:
    """Shards after the first that failed count too; the error is that of the first."""
    url = str(tmp_path / "store")
    journal = RunJournal("refresh", make_settings(url))
    futures = [Finished(lambda: make(url, 1)), Finished(fail), Finished(lambda: make(url, 2))]
    with pytest.raises(ValueError, match="made up"), journal.recording():
        journal.collect(FIRST, [*futures, Finished(fail)])
    run = read_run(Store(url), journal.record.run_id)
    assert (run.status, run.error, len(run.artifacts)) == ("failed", "ValueError", 2)


def test_damage_that_only_a_reader_noticed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store still shows the mark of the sound file, so the next run would trust it again."""
    url = f"memory://{tmp_path.name}"
    first = make(url, 1)
    store = Store(url)
    (file,) = first.files
    data = bytearray(store.read_bytes(file.path))
    data[len(data) // 2] ^= 1
    store.write_bytes(file.path, bytes(data))
    monkeypatch.setattr(ArtifactStore, "find_damage", lambda *_, **__: None)
    assert make(url, 1).was_cached
    journal = RunJournal("refresh", make_settings(url))
    with pytest.raises(DamagedFileError, match="only this shard"), journal.recording():
        ArtifactStore(url).locate(file).fetch()
    assert not make(url, 1).was_cached
    assert len(store.list_paths("damaged")) == 1


def test_what_another_run_made_again_is_not_set_aside(tmp_path: Path) -> None:
    """The damage one run met is of a file that is no longer the artifact's."""
    url = f"memory://{tmp_path.name}"
    store = Store(url)
    (file,) = make(url, 1).files
    store.write_bytes(file.path, b"damaged")
    again = make(url, 1)
    assert not again.was_cached
    store.write_bytes(file.path, b"damaged")  # the former attempt's, whoever still refers to it
    journal = RunJournal("refresh", make_settings(url))
    with pytest.raises(DamagedFileError), journal.recording():
        ArtifactStore(url).locate(file).fetch()
    assert store.list_paths("damaged") == []
    assert make(url, 1).was_cached


def test_a_record_is_written_again_only_if_a_stage_made_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with nothing new writes its record at the start and at the end."""
    url, written = str(tmp_path / "store"), []
    found = make(url, 1)
    cached = make(url, 1)
    monkeypatch.setattr(journal_module, "write_run", lambda *_: written.append(1))
    journal = RunJournal("refresh", make_settings(url))
    journal.collect(FIRST, [Finished(lambda: cached)])
    assert len(written) == 0
    journal.collect(SECOND, [Finished(lambda: found)])
    assert len(written) == 1


@pytest.mark.parametrize("step", ["wait_for_collections", "end_dead_runs", "settle_current"])
def test_a_run_that_fails_while_it_starts_is_recorded_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nobody would end it later: its announcement is gone."""

    def refuse(*_: object) -> None:
        raise StorageError("made up")

    monkeypatch.setattr(journal_module, step, refuse)
    journal = RunJournal("refresh", make_settings(str(tmp_path / "store")))
    with pytest.raises(StorageError), journal.recording():
        raise AssertionError("not reached")
    assert read_run(Store(journal.root), journal.record.run_id).status == "failed"


def test_a_failed_run_ends_with_its_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last line of stdout, as of any other run; foreign messages are not repeated."""
    monkeypatch.setattr(run_commands, "create_home", lambda _: None)
    errors = {"made up": StorageError("made up"), "ValueError": ValueError("zorbfool")}
    for reason, error in errors.items():

        def run_refresh(settings: RefreshSettings, error: Exception = error) -> None:
            with RunJournal("refresh", settings).recording():
                raise error

        monkeypatch.setattr("flows.refresh.run_refresh", run_refresh)
        words = ["refresh", "--preset", "demo", "--store", str(tmp_path / "store"), "--json"]
        with pytest.raises((SystemExit, ValueError)):
            command_line.main(words)
        found = json.loads(capfd.readouterr().out.splitlines()[-1])
        (run_id, *_) = reversed(list_run_ids(Store(found["store"])))
        assert (found["run_id"], found["status"]) == (run_id, "failed")
        assert (found["error"], found["stages"], found["metrics"]) == (reason, [], {})


def test_a_progress_that_cannot_be_shown_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, by the error's type, and not tried again in this run."""

    def refuse(**_: object) -> None:
        raise ConnectionError("zorbfool")

    monkeypatch.setattr(publication, "has_server", lambda: True)
    monkeypatch.setattr(publication, "create_progress_artifact", refuse)
    url = str(tmp_path / "store")
    journal = RunJournal("refresh", make_settings(url))
    with journal.recording():
        journal.collect(FIRST, [Finished(lambda: make(url, 1))])
        journal.collect(SECOND, [Finished(lambda: make(url, 2))])
    assert read_run(Store(url), journal.record.run_id).status == "finished"
    assert caplog.text.count("not shown in the UI (ConnectionError)") == 1
    assert "zorbfool" not in caplog.text


def test_a_run_has_one_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pipeline's order, never falling, whole at the end; what it waits for is said."""
    seen: list[tuple[float, str]] = []
    created: list[str] = []

    def create(*, progress: float, key: str, description: str) -> UUID:
        created.append(key)
        seen.append((progress, description))
        return uuid4()

    monkeypatch.setattr(publication, "SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr(publication, "has_server", lambda: True)
    monkeypatch.setattr(publication, "create_progress_artifact", create)
    monkeypatch.setattr(
        publication, "update_progress_artifact", lambda _, *shown: seen.append(shown)
    )
    url = str(tmp_path / "store")
    journal = RunJournal("refresh", make_settings(url))
    with journal.recording():
        journal.collect(STAGES[3], [Finished(lambda: make(url, 1)), Finished(lambda: make(url, 2))])
        journal.collect(STAGES[0], [Finished(lambda: make(url, 3))])
    assert created == ["refresh-progress"]
    percents = [percent for percent, _ in seen]
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert percents[1] == pytest.approx(100 * 4 / len(STAGES))
    assert [words for _, words in seen] == [
        *(f"{STAGES[3].name.replace('_', ' ')}: {place} of 2" for place in (1, 2)),
        f"{STAGES[0].name.replace('_', ' ')}: 1 of 1",
        "finished, 2 stages",
    ]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Pause(), "suspended", "suspended in Prefect"),
        (TerminationSignal(signal.SIGTERM), "failed", "cancelled in Prefect"),
        (StorageError("made up"), "failed", "made up"),
        (ValueError("zorbfool"), "failed", "ValueError"),
    ],
)
def test_a_record_says_what_ended_its_run(
    tmp_path: Path, error: BaseException, status: str, reason: str
) -> None:
    """Suspended is not failed; foreign messages are not repeated."""
    journal = RunJournal("refresh", make_settings(str(tmp_path / "store")))
    with pytest.raises(type(error)), journal.recording():
        raise error
    found = read_run(Store(journal.root), journal.record.run_id)
    assert found.status == status
    assert reason in (found.error or "")
    assert "zorbfool" not in (found.error or "")


def test_a_picture_that_cannot_be_drawn_changes_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The patch is in force by then; what comes after the picture is shown all the same."""
    small = build_small_store(str(tmp_path / "store"))
    rows = small.artifacts.open(small.record.find_artifact("evaluation")).read_table(
        "evaluations.parquet"
    )
    outcome = RefreshOutcome.from_record(
        small.record, small.url, rows.to_pylist(), is_new_release=True
    )
    shown: dict[str, str] = {}

    def refuse(*_: object) -> None:
        raise AuditError("made up")

    def show(*, key: str, markdown: str = "", **_: object) -> UUID:
        shown[key] = markdown
        return uuid4()

    monkeypatch.setattr(publication, "has_server", lambda: True)
    monkeypatch.setattr("eigenshift.audit.open_audit", refuse)
    for kind in ("markdown", "table"):
        monkeypatch.setattr(publication, f"create_{kind}_artifact", show)
    publication.publish_refresh(outcome, make_settings(small.url), small.record)
    assert set(shown) == {"refresh-outcome", "refresh-results", "refresh-components"}
    assert "data:image" not in shown["refresh-outcome"]
    assert outcome.run_id in shown["refresh-outcome"]
    assert "the pictures: not shown in the UI (AuditError)" in caplog.text


@pytest.mark.parametrize(
    ("n_pieces", "concurrency", "expected"),
    [(30, 2, [8, 8, 8, 6]), (5, 2, [3, 2]), (5, 8, [1] * 5), (1, 2, [1]), (0, 2, [])],
)
def test_short_pieces_share_tasks_but_leave_nobody_idle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_pieces: int,
    concurrency: int,
    expected: list[int],
) -> None:
    """All artifacts come back in the order of their pieces, each recorded with its place."""
    settings = make_settings(str(tmp_path / "store"))
    execution = settings.execution.model_copy(update={"concurrency": concurrency})
    journal = RunJournal("refresh", settings.model_copy(update={"execution": execution}))
    sizes: list[int] = []

    def submit(
        _stage: Any, pieces: Sequence[Piece[Any, Any]], _place: Any, _label: Any
    ) -> Finished:
        sizes.append(len(pieces))
        return Finished(lambda: [make(journal.root, piece.inputs) for piece in pieces])

    monkeypatch.setattr(journal_module, "submit_in_turn", submit)
    stage = replace(FIRST, pieces_per_task=8)
    with journal.recording():
        found = journal.run_each(stage, ((number, number) for number in range(n_pieces)))
    assert sizes == expected
    assert found == [make(journal.root, number).reference for number in range(n_pieces)]
    assert len(journal.record.artifacts) == n_pieces
