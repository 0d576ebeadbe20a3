"""Files of a local store: listed without gaps, digested once, never read once they changed."""

from __future__ import annotations

import copy
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eigenshift.base.errors import DamagedFileError, StorageError
from eigenshift.store import local_files
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.filesystems import RetryPolicy
from eigenshift.store.local_files import digest_local_file, recall_digest
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep.retention import collect_garbage
from eigenshift.upkeep.verification import verify_store


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    policy = RetryPolicy(3, first_wait_seconds=0.0001, max_wait_seconds=0.001)
    for module in ("storage", "range_reader"):
        monkeypatch.setattr(f"eigenshift.store.{module}.RETRIES", policy)


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read whole from here on."""
    found: list[Path] = []

    def digest(path: Path) -> str:
        found.append(path)
        time.sleep(0.02)
        return digest_local_file(path)

    monkeypatch.setattr(local_files, "digest_local_file", digest)
    return found


def make(url: Path) -> StageResult:
    """An artifact of one file."""

    def work(workspace: Workspace) -> None:
        workspace.write_json("values.json", {"value": 12})

    return ArtifactStore(str(url)).produce(
        "values", step_version=1, settings={}, inputs=[], work=work
    )


def change(path: Path) -> None:
    """Another content of the same size, a moment later."""
    status = path.stat()
    path.write_text(path.read_text().replace("12", "13"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


# --- listing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """What is there is unknown: a collection that took it for nothing would remove everything."""
    store = Store(str(tmp_path))
    store.write_bytes("runs/a.json", b"one")
    store.write_bytes("artifacts/kind/f/manifest.json", b"{}")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/runs"):
            raise OSError(fault, os.strerror(fault), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert store.list_paths("artifacts") == ["artifacts/kind/f/manifest.json"]
    with pytest.raises(StorageError, match="expected to"):
        store.list_paths("runs")
    with pytest.raises(StorageError):
        collect_garbage(str(tmp_path), keep=1, delete=True, grace_hours=0)
    with pytest.raises(StorageError):
        verify_store(str(tmp_path))
    assert (tmp_path / "artifacts" / "kind" / "f" / "manifest.json").exists()


def test_links_lead_nowhere_out_of_a_store(tmp_path: Path) -> None:
    """A collection may remove a link, never what it leads to; a link to itself stops nothing."""
    url, elsewhere = tmp_path / "store", tmp_path / "thesis"
    elsewhere.mkdir()
    (elsewhere / "data.csv").write_text("years of work")
    make(url)
    (url / "artifacts" / "link").symlink_to(elsewhere)
    (url / "artifacts" / "again").symlink_to(".")
    assert collect_garbage(str(url), keep=1, delete=True, grace_hours=-1).is_done
    assert (elsewhere / "data.csv").read_text() == "years of work"


def test_the_folders_of_a_store_may_be_links(tmp_path: Path) -> None:
    """As where artifacts are to lie on another disk."""
    elsewhere = tmp_path / "large-disk"
    elsewhere.mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "artifacts").symlink_to(elsewhere)
    make(tmp_path / "store")
    assert len(Store(str(tmp_path / "store")).list_paths("artifacts")) == 2
    assert verify_store(str(tmp_path / "store")).n_artifacts == 1


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("was_cached", [False, True])
def test_a_file_that_changes_after_it_was_found_is_not_read(
    tmp_path: Path, was_cached: bool
) -> None:
    """Neither by those who know its mark nor by those who know its digest alone."""
    for _ in range(1 + was_cached):
        made = make(tmp_path)
    artifacts = ArtifactStore(str(tmp_path))
    marked = artifacts.locate(made.files[0])
    unmarked = artifacts.open(made.reference).locate("values.json")
    assert (marked.mark is None, unmarked.mark is None) == (False, True)
    change(marked.fetch())
    for file in (marked, unmarked):
        with pytest.raises(DamagedFileError, match="expected sha256") as caught:
            file.fetch()
        assert caught.value.path == made.files[0].path
    again = copy.copy(caught.value)  # by the way of a pickle
    assert (str(again), again.path) == (str(caught.value), caught.value.path)


def test_a_file_with_its_mark_is_not_read_to_be_known(
    tmp_path: Path, digested: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of its own process, which knows nothing but the reference, reads no whole files."""
    made = make(tmp_path)
    digested.clear()
    monkeypatch.setattr(local_files, "_DIGESTS", {})
    ArtifactStore(str(tmp_path)).locate(made.files[0]).fetch()
    assert digested == []


def test_a_file_that_was_touched_is_read_once_whoever_asks(
    tmp_path: Path, digested: list[Path]
) -> None:
    """Its content is right, so nothing else comes of it."""
    made = make(tmp_path)
    file = ArtifactStore(str(tmp_path)).locate(made.files[0])
    os.utime(file.fetch())
    digested.clear()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: file.fetch(), range(16)))) == 1
    assert len(digested) == 1


def test_a_digest_of_a_file_that_changes_meanwhile_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of half the old and half the new content."""
    path = tmp_path / "values.json"
    path.write_text("12")
    digest = local_files.digest_stream

    def change_meanwhile(handle: Any) -> str:
        found = digest(handle)
        change(path)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(local_files, "digest_stream", change_meanwhile)
        first = digest_local_file(path)
    assert recall_digest(path) != first


def test_a_fault_that_passes_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network disks have them, too."""
    made = make(tmp_path)
    file = ArtifactStore(str(tmp_path)).open(made.reference).locate("values.json")
    left = [2]

    def fail_twice(path: Path) -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return recall_digest(path)

    monkeypatch.setattr("eigenshift.store.storage.recall_digest", fail_twice)
    assert file.fetch().exists()
    assert left == [0]
