"""Verification finds each kind of damage, names it, and changes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import RunRecord, write_run
from eigenshift.store.filesystems import RetryPolicy
from eigenshift.store.manifests import MANIFEST_NAME, Manifest
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.storage import Store
from eigenshift.store.traffic import metering
from eigenshift.upkeep import verification
from eigenshift.upkeep.repair import repair_store
from eigenshift.upkeep.retention import collect_garbage
from eigenshift.upkeep.verification import verify_store
from tests.support.faulty_filesystem import faults
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store without damage."""
    return build_small_store(str(tmp_path_factory.mktemp("sound")))


@pytest.fixture
def small(sound: SmallStore, tmp_path: Path) -> SmallStore:
    """A copy a test may damage."""
    return sound.copy_to(tmp_path / "store")


def edit_manifest(small: SmallStore, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest in place."""
    path = Path(small.url) / small.references[name].folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    edit(document)
    try:
        path.write_bytes(Manifest.model_validate(document).encode())
    except ValidationError:
        path.write_text(json.dumps(document))


def replace_table(small: SmallStore, name: str, file: str, table: pa.Table) -> None:
    """Replace a table and make the manifest agree in bytes, rows and digest."""
    path = small.find_file(name, file)
    pq.write_table(table, path)

    def edit(document: dict[str, Any]) -> None:
        for record in document["files"]:
            if record["name"] == file:
                record["bytes"] = path.stat().st_size
                record["rows"] = table.num_rows
                record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    edit_manifest(small, name, edit)


def list_content(url: str) -> dict[str, bytes]:
    """All files of a store."""
    return {str(path): path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def test_sound_store_has_no_problems(small: SmallStore) -> None:
    """Everything the store's own code writes fits, and verification leaves it as it is."""
    before = list_content(small.url)
    verdict = verify_store(small.url)
    assert verdict.problems == []
    assert "everything fits" in verdict.summary
    assert (verdict.n_runs, verdict.n_releases, verdict.n_orphans) == (1, 1, 0)
    assert list_content(small.url) == before


def test_a_place_that_is_no_store_is_not_called_sound(tmp_path: Path) -> None:
    """Nothing to check is no store; no folder appears."""
    with pytest.raises(SettingsError, match="expected a store of EigenShift"):
        verify_store(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_remote_store_is_verified() -> None:
    """A store that is not local is read through its digests."""
    small = build_small_store("memory://verify-remote")
    assert verify_store(small.url).problems == []


def test_verdict_is_json(small: SmallStore) -> None:
    """The verdict goes out as one JSON object."""
    assert json.loads(json.dumps(verify_store(small.url).as_dict()))["is_fine"] is True


def test_flipped_byte_is_found(small: SmallStore) -> None:
    """One changed byte is a wrong digest."""
    path = small.find_file("layers-0", "layers.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    (problem,) = verify_store(small.url).problems
    assert "layers.parquet" in problem
    assert "sha256" in problem


def test_shortened_file_is_found(small: SmallStore) -> None:
    """A file cut short has the wrong size."""
    path = small.find_file("patch-eigenshift", "patch.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    (problem,) = verify_store(small.url).problems
    assert "bytes (manifest)" in problem


def test_missing_file_is_found(small: SmallStore) -> None:
    """A manifest without its file is a problem."""
    small.find_file("model", "model.json").unlink()
    (problem,) = verify_store(small.url).problems
    assert "found none" in problem


def test_edited_settings_are_found(small: SmallStore) -> None:
    """Settings and fingerprint must agree."""
    edit_manifest(small, "layers-1", lambda document: document["settings"].update(layer=0))
    assert "expected fingerprint" in verify_store(small.url).problems[0]


def test_unreadable_manifest_is_found(small: SmallStore) -> None:
    """Damage of a manifest is reported, and what depends on it."""
    (Path(small.url) / small.references["decomposition"].folder / MANIFEST_NAME).write_text("{")
    problems = verify_store(small.url).problems
    assert any("expected a manifest" in problem for problem in problems)
    assert any("expected its input decomposition" in problem for problem in problems)


def test_missing_artifact_is_found_from_all_sides(small: SmallStore) -> None:
    """Readers, runs and releases that refer to a vanished patch each say so."""
    folder = Path(small.url) / small.references["patch-eigenshift"].folder
    (folder / MANIFEST_NAME).unlink()
    verdict = verify_store(small.url)
    text = "\n".join(verdict.problems)
    assert "expected its input patch" in text
    assert "/runs/" in text
    assert "expected patch" in text
    assert verdict.n_orphans == 2


def test_wrong_schema_is_found(small: SmallStore) -> None:
    """A table of another version is named with the columns that differ."""
    table = small.artifacts.open(small.references["layers-0"]).read_table("layers.parquet")
    replace_table(small, "layers-0", "layers.parquet", table.drop_columns(["probe_f1"]))
    (problem,) = verify_store(small.url).problems
    assert "probe_f1 double" in problem


def test_wrong_activations_schema_is_found(small: SmallStore) -> None:
    """Activations have no fixed columns, but lists of floats after their keys."""
    artifact = small.artifacts.open(small.references["activations"])
    table = artifact.read_table("activations.parquet")
    wrong = table.set_column(3, "mlp_activation_max", pa.array(["x"] * table.num_rows))
    replace_table(small, "activations", "activations.parquet", wrong)
    (problem,) = verify_store(small.url).problems
    assert "expected columns none, found mlp_activation_max string instead" in problem


def test_lost_row_is_found(small: SmallStore) -> None:
    """Rows read must be samples or rejected rows."""
    artifact = small.artifacts.open(small.references["comments"])
    table = artifact.read_table("rejected_rows.parquet")
    replace_table(small, "comments", "rejected_rows.parquet", table.slice(1))
    (problem,) = verify_store(small.url).problems
    assert "expected 12 rows" in problem
    assert "found 11" in problem


def test_changed_input_file_is_found(small: SmallStore) -> None:
    """A reader that recorded a file's digest notices that the file is another one now."""
    artifact = small.artifacts.open(small.references["prompt_choice"])
    table = artifact.read_table("selection-00000.parquet")
    replace_table(small, "prompt_choice", "selection-00000.parquet", table.slice(1))
    problems = verify_store(small.url).problems
    assert all("selection-00000.parquet with sha256" in problem for problem in problems)
    assert len(problems) == 1


def test_damaged_run_record_is_found(small: SmallStore) -> None:
    """A run record that does not open is a problem, and so is the release that names it."""
    (Path(small.url) / "runs" / f"{small.run_id}.json").write_text("[]")
    problems = verify_store(small.url).problems
    assert any("a run record" in problem for problem in problems)
    assert any("expected run" in problem for problem in problems)


@pytest.mark.parametrize("change", ["delete", "damage", "older"])
def test_wrong_pointer_is_found(small: SmallStore, change: str) -> None:
    """`current.json` must agree with the newest release."""
    pointer = next(Path(small.url).glob("releases/*/current.json"))
    if change == "delete":
        pointer.unlink()
    elif change == "damage":
        pointer.write_text("")
    else:
        document = json.loads(pointer.read_text())
        pointer.write_text(json.dumps(document | {"version": "2020"}))
    (problem,) = verify_store(small.url).problems
    assert "current.json" in problem


def test_abandoned_files_are_counted_only(small: SmallStore) -> None:
    """What an interrupted attempt left behind is no problem."""
    folder = Path(small.url) / small.references["model"].folder
    (folder / "abc-model.json").write_text("half")
    verdict = verify_store(small.url)
    assert verdict.is_fine
    assert "1 files without a manifest" in verdict.summary


def test_what_cannot_be_read_is_listed_with_the_rest(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad sector does not hide the damage behind it."""
    bad = small.find_file("layers-0", "layers.parquet")
    damaged = small.find_file("patch-eigenshift", "patch.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    digest = verification.digest_local_file

    def read(path: Path) -> str:
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return digest(path)

    monkeypatch.setattr(verification, "digest_local_file", read)
    problems = verify_store(small.url).problems
    assert sorted(bad.name in line or damaged.name in line for line in problems) == [True, True]


@pytest.mark.parametrize("fault", [TimeoutError("timed out"), PermissionError("expired")])
def test_storage_that_does_not_answer_damages_nothing(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """What could not be read is listed, and left alone by a repair; what was read is judged."""
    policy = RetryPolicy(2, first_wait_seconds=0.0001, max_wait_seconds=0.001)
    for module in ("storage", "range_reader"):
        monkeypatch.setattr(f"eigenshift.store.{module}.RETRIES", policy)
    small = build_small_store(f"faulty://{uuid.uuid4().hex}")
    store = small.artifacts.store
    paths = store.list_paths("artifacts")
    with faults(lambda _, path: ("before", fault) if path.endswith(".parquet") else None):
        verdict = verify_store(small.url)
    n_tables = sum(path.endswith(".parquet") for path in paths)
    assert (verdict.n_unread, len(verdict.problems), verdict.damaged) == (n_tables, n_tables, {})
    assert "could not be read" in (verdict.advice or "")
    (record,) = store.list_paths("runs")
    with faults(lambda _, path: ("before", fault) if path.endswith(record) else None):
        verdict = verify_store(small.url)
    assert (verdict.n_unread, verdict.damaged) == (1, {})
    assert repair_store(small.url, verdict) == []
    assert store.list_paths("artifacts") == paths
    assert verify_store(small.url).is_fine


def test_numbers_that_json_has_not_are_damage(small: SmallStore) -> None:
    """They end neither a verification nor a collection."""
    path = Path(small.url) / small.references["layers-0"].folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"settings": {', '"settings": {"x": NaN, ', 1))
    assert any(MANIFEST_NAME in line for line in verify_store(small.url).problems)
    edited = re.sub(r'"created_at": "..', '"created_at": "x0', path.read_text())
    path.write_text(edited)
    assert collect_garbage(small.url, keep=1, delete=True).is_done


def test_a_remote_store_is_read_once_and_leaves_no_copies(tmp_path: Path) -> None:
    """Its files pass through scratch space, a few at a time."""
    small = build_small_store(f"memory://{tmp_path.name}")
    before = set(scratch_folder().iterdir())
    with metering() as meter:
        verdict = verify_store(small.url)
    assert verdict.is_fine
    assert set(scratch_folder().iterdir()) == before
    n_records = sum(len(data) for data in small_records(small))
    assert meter.traffic.bytes_read == verdict.n_bytes + n_records


def small_records(small: SmallStore) -> list[bytes]:
    """Manifests, run and release records."""
    store = small.artifacts.store
    return [
        store.read_bytes(path)
        for folder in ("artifacts", "runs", "releases")
        for path in store.list_paths(folder)
        if path.endswith(f"/{MANIFEST_NAME}") or not path.startswith("artifacts")
    ]


def test_an_artifact_made_during_the_verification_is_not_missed(
    small: SmallStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a running refresh: a record that arrives later is not held against what was listed."""
    list_paths = Store.list_paths

    def list_late(self: Store, prefix: str) -> list[str]:
        found = list_paths(self, prefix)
        if prefix == "artifacts":  # a run ends at this moment
            (path,) = list_paths(self, "runs")
            record = RunRecord.model_validate_json(self.read_bytes(path))
            use = record.artifacts[0].model_copy(update={"fingerprint": "f" * 40})
            later = record.model_copy(update={"run_id": "later", "artifacts": [use]})
            write_run(self, later)
        return found

    monkeypatch.setattr(Store, "list_paths", list_late)
    assert verify_store(small.url).problems == []
