"""Two refreshes at once on one store: nothing is mixed, lost or waited for without need."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eigenshift.ledger.presence import CLOCK
from eigenshift.ledger.releases import CURRENT_NAME, list_releases, slugify_model
from eigenshift.ledger.runs import RunRecord, list_run_ids, read_run
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.upkeep.retention import collect_garbage
from eigenshift.upkeep.verification import verify_store
from tests.support.killed_work import start
from tests.support.refresh_process import find_api_url, prepare_refreshes, run_refresh_at

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]
SECONDS_TO_FINISH = 240
CANCELLED = 5


def start_all(context: Any, settings: Sequence[RefreshSettings]) -> list[Any]:
    """Start refreshes together, each in a process of its own."""
    url = find_api_url()
    return [start(context, run_refresh_at, [url, item]) for item in settings]


def finish(processes: Sequence[Any]) -> list[int]:
    """Wait for all and return their exit codes."""
    for process in processes:
        process.join(SECONDS_TO_FINISH)
    return [process.exitcode for process in processes]


def read_runs(store_url: str) -> list[RunRecord]:
    """All run records, by start."""
    store = ArtifactStore(store_url).store
    return sorted(
        (read_run(store, run_id) for run_id in list_run_ids(store)),
        key=lambda record: record.started_at,
    )


@pytest.fixture(scope="module")
def context() -> Any:
    """Where refreshes run."""
    return prepare_refreshes()


def check_store(store_url: str) -> None:
    """Every digest, link and pointer of the store is right, and nobody is announced any more."""
    assert verify_store(store_url).problems == []
    store = ArtifactStore(store_url).store
    assert store.list_paths("present") == [CLOCK]
    releases = list_releases(store)
    if releases:
        pointer = store.read_bytes(
            f"releases/{slugify_model(releases[-1].model_id)}/{CURRENT_NAME}"
        )
        assert releases[-1].version.encode() in pointer


def test_two_of_the_same_settings_end_with_the_same_numbers(load_small: Load, context: Any) -> None:
    """They may do the same work twice; what they leave behind is one set of artifacts."""
    settings = load_small("execution.overlap=allow")
    assert finish(start_all(context, [settings, settings])) == [0, 0]
    first, second = read_runs(settings.store)
    assert first.metrics == second.metrics
    assert {use.fingerprint for use in first.artifacts} == {
        use.fingerprint for use in second.artifacts
    }
    check_store(settings.store)


def test_two_of_different_settings_do_not_mix(
    load_small: Load, context: Any, tmp_path: Path
) -> None:
    """Each gives the numbers it gives when it runs alone."""
    one, other = (
        load_small("execution.overlap=allow", f"patch.n_rounds={count}") for count in (1, 3)
    )
    assert finish(start_all(context, [one, other])) == [0, 0]
    together = {run.settings["patch"]["n_rounds"]: run for run in read_runs(one.store)}
    check_store(one.store)
    alone = other.model_copy(update={"store": str(tmp_path / "alone")})
    assert finish(start_all(context, [alone])) == [0]
    (run,) = read_runs(alone.store)
    assert together[3].metrics == run.metrics
    assert together[1].metrics != run.metrics


def test_the_queue_policy_runs_one_after_the_other(
    load_small: Load, finished_store: Path, context: Any
) -> None:
    """The second starts its work when the first has ended."""
    settings = load_small()
    shutil.copytree(finished_store, settings.store)
    known = {run.run_id for run in read_runs(settings.store)}
    settings = load_small("evaluation.n_bootstrap=20000")
    assert finish(start_all(context, [settings, settings])) == [0, 0]
    first, second = (run for run in read_runs(settings.store) if run.run_id not in known)
    assert first.finished_at is not None
    assert second.started_at >= first.finished_at
    check_store(settings.store)


def test_the_cancel_policy_ends_the_second_at_once(load_small: Load, context: Any) -> None:
    """It does nothing: no run record, and the state in Prefect is Cancelled."""
    settings = load_small("execution.overlap=cancel", "generation.n_samples=30")
    (first,) = start_all(context, [settings])
    while not list_run_ids(ArtifactStore(settings.store).store):
        time.sleep(0.05)
        assert first.is_alive()
    (second,) = start_all(context, [settings])
    assert finish([second]) == [CANCELLED]
    assert first.is_alive()
    assert finish([first]) == [0]
    (run,) = read_runs(settings.store)
    assert run.status in ("promoted", "held")


def test_a_collection_beside_a_refresh_takes_nothing_from_it(
    load_small: Load, finished_store: Path, context: Any
) -> None:
    """Garbage collection again and again while a refresh works on what no run has reached yet."""
    settings = load_small("generation.seed=1")
    shutil.copytree(finished_store, settings.store)
    (refreshing,) = start_all(context, [settings])
    refusals = 0
    while refreshing.is_alive():
        found = collect_garbage(settings.store, keep=1, delete=True, grace_hours=0)
        refusals += bool(found.at_work)
        time.sleep(0.05)
    assert refreshing.exitcode == 0
    assert refusals > 10
    check_store(settings.store)


@pytest.mark.s3
def test_two_at_once_on_s3(load_small: Load, context: Any, s3_store_url: str) -> None:
    """Different settings, started together on a real S3 server: both end, nothing is mixed."""
    settings = [
        load_small(
            "execution.overlap=allow", f"store={s3_store_url}", f"components.n_components={count}"
        )
        for count in (2, 5)
    ]
    assert finish(start_all(context, settings)) == [0, 0]
    check_store(s3_store_url)
