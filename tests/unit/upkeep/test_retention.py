"""Garbage collection keeps what is needed, waits for nobody dead, and can be cut off anywhere."""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.ledger import presence
from eigenshift.ledger.presence import list_present, present, wait_for_collections
from eigenshift.ledger.releases import promote_patch
from eigenshift.ledger.runs import (
    ArtifactUse,
    end_dead_runs,
    finish_run,
    read_run,
    start_run,
    write_run,
)
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep.retention import collect_garbage
from eigenshift.upkeep.verification import verify_store
from tests.support.small_store import make_settings


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store on each kind of filesystem."""
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def make(url: str, kind: str, number: int, *inputs: ArtifactReference) -> ArtifactReference:
    """A small artifact made from others."""

    def work(workspace: Workspace) -> None:
        workspace.write_json("content.json", {"number": number, "padding": "x" * 500})

    artifacts = ArtifactStore(url)
    return artifacts.produce(
        kind, step_version=1, settings={"number": number}, inputs=inputs, work=work
    ).reference


def record(url: str, run_id: str, *used: ArtifactReference, status: str = "finished") -> None:
    """A run that used some artifacts; ids sort by age."""
    run = start_run("refresh", make_settings(url))
    run.run_id = run_id
    run.artifacts = [
        ArtifactUse(
            stage="s",
            kind=item.kind,
            fingerprint=item.fingerprint,
            was_cached=False,
            elapsed_seconds=1.0,
        )
        for item in used
    ]
    if status != "running":
        finish_run(run, status)  # type: ignore[arg-type]
    write_run(Store(url), run)


def list_artifacts(url: str) -> set[tuple[str, str]]:
    """What is there."""
    return {(item.kind, item.fingerprint) for item in ArtifactStore(url).list_manifests()}


def keys(*references: ArtifactReference) -> set[tuple[str, str]]:
    """References as `list_artifacts` gives them."""
    return {(item.kind, item.fingerprint) for item in references}


def test_what_kept_runs_and_releases_reach_stays(url: str) -> None:
    """Inputs of inputs count; a released patch stays however old its run is."""
    base, other_base = make(url, "base", 1), make(url, "base", 2)
    old, older = make(url, "step", 1, other_base), make(url, "step", 2, base)
    released = make(url, "patch", 1, older)
    newest = make(url, "step", 3, base)
    record(url, "run-1", released, older)
    record(url, "run-2", old)
    record(url, "run-3", newest)
    promote_patch(Store(url), "m", "run-1", released, "test")
    look = collect_garbage(url, keep=1)
    assert look.artifacts == {"base": 1, "step": 1}
    assert list_artifacts(url) == keys(base, other_base, old, older, released, newest)
    done = collect_garbage(url, keep=1, delete=True)
    assert (done.is_done, done.artifacts, done.runs) == (True, look.artifacts, ["run-2"])
    assert done.n_bytes == look.n_bytes > 0
    assert list_artifacts(url) == keys(base, older, released, newest)
    assert read_run(Store(url), "run-2").collected_at is not None
    again = collect_garbage(url, keep=1, delete=True)
    assert (again.artifacts, again.n_orphans, again.runs) == ({}, 0, [])
    problems = verify_store(url).problems
    assert [line for line in problems if "run-2" in line] == []
    with open_audit(url) as session:
        assert session.query("select count(*) n from runs")["n"].to_pylist() == [3]


def test_runs_asked_for_are_kept_and_unknown_ones_are_an_error(url: str) -> None:
    """A name that is no run stops everything before anything is removed."""
    one, two = make(url, "step", 1), make(url, "step", 2)
    record(url, "run-1", one)
    record(url, "run-2", two)
    with pytest.raises(SettingsError, match="run-9"):
        collect_garbage(url, keep=1, keep_runs=["run-9"], delete=True)
    assert collect_garbage(url, keep=1, keep_runs=["run-1"], delete=True).artifacts == {}


def date(url: str, reference: ArtifactReference, hours: int) -> None:
    """Have an artifact made so many hours ago."""
    artifacts = ArtifactStore(url)
    made_at = (datetime.now(timezone.utc) - timedelta(hours=hours)).isoformat(timespec="seconds")
    manifest = artifacts.open(reference).manifest.model_copy(update={"created_at": made_at})
    artifacts.store.write_bytes(f"{reference.folder}/manifest.json", manifest.encode())


def test_a_run_cut_short_keeps_what_the_next_run_goes_on_from(url: str) -> None:
    """Newer than the newest finished run: kept; older: not."""
    early, finished, late = (make(url, "step", number) for number in range(3))
    for reference in (early, late):
        date(url, reference, hours=3)
    record(url, "run-1", early, status="failed")
    record(url, "run-2", finished)
    record(url, "run-3", late, status="failed")
    collect_garbage(url, keep=1, delete=True)
    assert list_artifacts(url) == keys(finished, late)


@pytest.mark.parametrize("status", ["failed", "running"])
def test_what_a_killed_run_made_is_kept_though_its_record_lacks_it(url: str, status: str) -> None:
    """It is written at the end of a stage; a manifest made meanwhile counts as the run's."""
    base, made, old = make(url, "base", 1), make(url, "step", 1), make(url, "step", 2)
    lasting = make(url, "step", 3, base)
    for reference in (base, old):
        date(url, reference, hours=3)
    record(url, "run-1", status=status)
    collect_garbage(url, keep=1, delete=True)
    assert list_artifacts(url) == keys(base, made, lasting)
    record(url, "run-2")
    collect_garbage(url, keep=1, delete=True)
    assert list_artifacts(url) == set()


def test_nothing_is_removed_while_a_refresh_runs(url: str) -> None:
    """It may be using anything; the collection says who is at work."""
    unused = make(url, "step", 1)
    with present(Store(url), "run", "run-7"):
        found = collect_garbage(url, keep=1, delete=True)
        assert not found.is_done
        assert "run-7" in found.at_work[0]
        assert list_artifacts(url) == keys(unused)
    assert collect_garbage(url, keep=1, delete=True).is_done
    assert list_artifacts(url) == set()


def test_a_run_that_starts_during_a_collection_waits(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on as soon as the collection has ended."""
    monkeypatch.setattr(presence, "LOOK_EVERY_SECONDS", 0.01)
    store, order = Store(url), []

    def start_a_run() -> None:
        with present(store, "run", "run-1"):
            wait_for_collections(store)
            order.append("run")

    with present(store, "collection"):
        thread = threading.Thread(target=start_a_run)
        thread.start()
        time.sleep(0.2)
        order.append("collection")
    thread.join()
    assert order == ["collection", "run"]


def test_the_dead_block_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announcements that are no longer renewed stop counting, and the run is recorded as failed."""
    store = Store(url)
    record(url, "run-1", make(url, "step", 1), status="running")
    for kind, name in (("run", "run-1"), ("collection", "c")):
        with present(store, kind, name) as announced:  # type: ignore[arg-type]
            data = store.read_bytes(announced.path)
        store.write_bytes(announced.path, data)  # as a kill would have left it
    assert collect_garbage(url, keep=1, delete=True).at_work
    monkeypatch.setattr(presence, "STALE_AFTER_SECONDS", -5.0)  # some stores count in seconds
    wait_for_collections(store)
    assert list_present(store, "run") == []
    end_dead_runs(store)
    assert read_run(store, "run-1").status == "failed"
    assert "killed" in (read_run(store, "run-1").error or "")


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
def test_clocks_that_differ_make_nobody_dead_or_immortal(
    url: str, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """A machine a day behind is at work all the same; one a day ahead is not for ever."""
    store = Store(url)
    clock = time.time
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(time, "time", lambda: clock() + skew)
        announcing = present(store, "run", "run-1")
        data = store.read_bytes(announcing.__enter__().path)
    assert [found.name for found in list_present(store, "run")] == ["run-1"]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(time, "time", lambda: clock() + skew)
        with present(store, "collection", "c"):
            assert [found.name for found in list_present(store, "run")] == ["run-1"]
            assert len(list_present(store, "collection")) == 1
    announcing.__exit__(None, None, None)
    store.write_bytes("present/run-run-1.json", data)  # as a kill would have left it
    monkeypatch.setattr(presence, "STALE_AFTER_SECONDS", -5.0)
    assert list_present(store, "run") == []


def test_announcements_are_renewed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody at work for long still counts."""
    monkeypatch.setattr(presence, "RENEW_EVERY_SECONDS", 0.02)
    store = Store(url)
    with present(store, "run", "run-1") as announced:
        deadline = time.monotonic() + 10
        while list_present(store, "run")[0].renewed_at <= announced.began_at:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert store.list_paths("present") == [presence.CLOCK]


def test_a_collection_cut_off_anywhere_leaves_no_broken_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at its n-th deletion: what is still listed is whole, and the next one finishes."""
    remove = Store.remove
    for moment in range(8):
        url = str(tmp_path / f"store-{moment}")
        kept = make(url, "step", 9)
        for number in range(3):
            make(url, "step", number)
        record(url, "run-1", kept)
        left = [moment]

        def cut_off(self: Store, path: str, left: list[int] = left) -> None:
            if path.startswith("artifacts/"):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            remove(self, path)

        with monkeypatch.context() as patched:
            patched.setattr(Store, "remove", cut_off)
            if moment < 6:
                with pytest.raises(KeyboardInterrupt):
                    collect_garbage(url, keep=1, delete=True, grace_hours=0)
            else:
                collect_garbage(url, keep=1, delete=True, grace_hours=0)
        assert verify_store(url).problems == []
        collect_garbage(url, keep=1, delete=True, grace_hours=0)
        verdict = verify_store(url)
        assert (verdict.problems, verdict.n_orphans, verdict.n_artifacts) == ([], 0, 1)


def test_a_damaged_manifest_goes_unless_it_is_in_use(tmp_path: Path) -> None:
    """What no kept run reaches does not stay damaged for ever; the rest is for the next run."""
    url = str(tmp_path / "store")
    used, unused = make(url, "step", 1), make(url, "step", 2)
    record(url, "run-1", used)
    store = Store(url)
    for reference in (used, unused):
        store.write_bytes(f"{reference.folder}/manifest.json", b"{")
    collect_garbage(url, keep=1, delete=True)
    assert store.exists(f"{unused.folder}/manifest.json")  # too young
    collect_garbage(url, keep=1, delete=True, grace_hours=0)
    assert store.exists(f"{used.folder}/manifest.json")
    assert store.list_paths(unused.folder) == []


def test_loose_files_go_when_they_are_old_enough(tmp_path: Path) -> None:
    """Leftovers of abandoned attempts; a young one may be somebody's work in progress."""
    url = str(tmp_path / "store")
    kept = make(url, "step", 1)
    record(url, "run-1", kept)
    young, old = (
        tmp_path / "store" / "artifacts" / "step" / ("f" * 40) / f"{name}-content.json"
        for name in ("young", "old")
    )
    for path in (young, old):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    two_days_ago = time.time() - 48 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    assert collect_garbage(url, keep=1).n_orphans == 1
    collect_garbage(url, keep=1, delete=True)
    assert young.exists()
    assert not old.exists()
    collect_garbage(url, keep=1, delete=True, grace_hours=0)
    assert not young.parent.exists()
    assert list_artifacts(url) == keys(kept)


def test_what_lies_beside_a_damaged_manifest_in_use_stays(url: str) -> None:
    """The next run can make an artifact again, but not the patch of an old release."""
    released = make(url, "patch", 1)
    record(url, "run-1", released)
    promote_patch(Store(url), "model", "run-1", released, "test")
    unused = make(url, "step", 2)
    store = Store(url)
    for reference in (released, unused):
        path = f"{reference.folder}/manifest.json"
        edited = store.read_bytes(path).replace(b'"elapsed_seconds": ', b'"elapsed_seconds": 1')
        store.write_bytes(path, edited)
    before = store.list_paths(released.folder)
    assert len(before) == 2
    assert collect_garbage(url, keep=1, delete=True, grace_hours=-1).is_done
    assert store.list_paths(released.folder) == before
    assert store.list_paths(unused.folder) == []
