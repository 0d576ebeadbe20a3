"""What is left of a finished run's patch: by the command line, from what the store holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.store.storage import Store
from eigenshift.upkeep.verification import verify_store
from flows.command_line import main

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> str:
    """A copy of the store of a finished refresh."""
    shutil.copytree(finished_store, tmp_path / "store")
    return str(tmp_path / "store")


def test_a_finished_run_s_patch_is_measured_without_generating(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the measurement is in the store; its rows are a view, and the store verifies."""
    opened = Store(store)
    (about,) = list_run_ids(opened)
    before = read_run(opened, about)
    asked = ["survive", about, "--store", store, "--format", "q4_k", "--format", "q8_0", "--json"]
    with pytest.raises(SystemExit) as leaving:
        main(asked)
    assert leaving.value.code == 0
    printed = capsys.readouterr()
    assert "not shown in the UI" not in printed.err
    found = json.loads(printed.out.splitlines()[-1])
    assert (found["about"], found["judged"]) == (about, before.judged)
    worked = {item["name"] for item in found["stages"] if item["shards_cached"] < item["shards"]}
    assert worked == {"measure_survival"}
    with open_audit(store) as session:
        rows = session.query("SELECT form, format, stored_as, edit_kept FROM survival").to_pylist()
        arms = session.query("SELECT DISTINCT arm, is_whole FROM survival").to_pylist()
    assert [(row["form"], row["format"]) for row in rows] == [
        *(("base", "none"), ("merged", "none")),
        *((form, name) for name in ("q4_k", "q8_0") for form in ("base", "merged", "lora")),
    ]
    assert {row["stored_as"] for row in rows} == {None, "Q5_0", "Q8_0"}
    assert arms == [{"arm": before.judged, "is_whole": False}]
    assert read_run(opened, about) == before
    assert verify_store(store).problems == []


def test_a_run_without_that_patch_is_refused(store: str) -> None:
    """Before any work, with the arms there are."""
    from flows.surviving import DEFAULT_FORMATS, run_survive

    with pytest.raises(SettingsError, match=r"expected a patch of arm 'none', found .*fisher"):
        run_survive(store, None, "none", DEFAULT_FORMATS, (), is_whole=False)
