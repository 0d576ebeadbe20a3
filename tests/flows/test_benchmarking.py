"""Benchmark questions on the whole line: asked once, judged by the gate, told of every arm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.evaluation.capability import CHECK_NAME
from eigenshift.ledger.releases import list_releases
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.settings import RefreshSettings
from eigenshift.store.storage import Store
from eigenshift.upkeep.verification import verify_store
from flows.command_line import main
from tests.support.benchmark_tasks import ENDINGS, EVERYDAY
from tests.support.small_runs import EASY_BOUNDS, ENOUGH_EVIDENCE

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]
EASY = (*ENOUGH_EVIDENCE, *EASY_BOUNDS)
ASKED = f"benchmark.tasks=[{ENDINGS},{EVERYDAY}]"


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> str:
    """A copy of the store of a finished refresh, where `load_small` looks."""
    shutil.copytree(finished_store, tmp_path / "store")
    return str(tmp_path / "store")


def run(settings: RefreshSettings) -> Any:
    """Run a refresh in this process."""
    from flows.refresh import run_refresh

    return run_refresh(settings)


def find_check(outcome: Any) -> Any:
    """The gate's check of capability."""
    return next((check for check in outcome.checks if check["name"] == CHECK_NAME), None)


def list_made(outcome: Any) -> set[str]:
    """Stages that did any work."""
    return {stage.name for stage in outcome.stages if stage.shards_cached < stage.shards}


def test_a_refresh_asks_once_and_its_gate_decides(
    load_small: Load, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a bound it is told; with one it is a check: kept, or missed and nothing released."""
    told = run(load_small(*EASY, ASKED))
    assert "not shown in the UI" not in caplog.text
    assert told.status == "promoted"
    assert find_check(told) is None
    assert told.headline[-1][0] == "questions right"
    assert set(told.metrics) >= {"capability_base", "capability_patched"}
    bounded = (*EASY, ASKED, "gate.max_capability_drop=0.2")
    kept = run(load_small(*bounded))
    assert kept.status == "promoted"
    assert find_check(kept)["is_passed"]
    assert list_made(kept) == set()
    held = run(load_small(*bounded, "benchmark.limit=5"))
    assert held.status == "held"
    assert find_check(held)["missed_by"].startswith("5 questions")
    assert {"answer_questions", "compare_answers"} == list_made(held)
    assert len(list_releases(Store(store))) == 1
    with open_audit(store) as session:
        rows = session.query(
            "SELECT arm, task, n FROM benchmarks ORDER BY run_id, arm, task"
        ).to_pylist()
        n_answers = session.query(
            f"SELECT count(*) AS n FROM benchmark_answers WHERE run_id = '{held.run_id}'"
        ).to_pylist()[0]["n"]
    assert {row["task"] for row in rows} == {"all", "endings", "everyday"}
    assert {row["arm"] for row in rows} == {"base", "eigenshift_fisher"}
    assert n_answers == 2 * (5 + 2 * 5)  # everyday has a second metric
    assert verify_store(store).problems == []


def test_a_task_that_is_not_there_stops_a_refresh_before_its_work(
    load_small: Load, tmp_path: Path
) -> None:
    """Not after an hour."""
    with pytest.raises(SettingsError, match="No such file"):
        run(load_small(f"benchmark.tasks=[{tmp_path}/none]"))
    (run_id,) = list_run_ids(Store(str(tmp_path / "store")))
    assert read_run(Store(str(tmp_path / "store")), run_id).stages == []


def test_the_patch_of_a_finished_run_is_benchmarked_by_a_run_of_its_own(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line; the run it is about stays as it was."""
    opened = Store(store)
    (about,) = list_run_ids(opened)
    before = read_run(opened, about)
    with pytest.raises(SystemExit) as leaving:
        main(
            [
                *("benchmark", about, "--store", store),
                *("--tasks", str(ENDINGS), "--limit", "20", "--json"),
            ]
        )
    assert leaving.value.code == 0
    printed = capsys.readouterr()
    assert "not shown in the UI" not in printed.err
    found = json.loads(printed.out.splitlines()[-1])
    assert (found["about"], found["judged"]) == (about, before.judged)
    assert {row["arm"] for row in found["benchmarks"]} == {"base", before.judged}
    assert {row["n"] for row in found["benchmarks"]} == {20}
    record = read_run(opened, found["run_id"])
    assert (record.command, record.status) == ("benchmark", "finished")
    assert record.settings["benchmark"]["limit"] == 20
    assert read_run(opened, about) == before
    assert {stage.name for stage in record.stages} == {
        "identify_model",
        "answer_questions",
        "compare_answers",
    }
    with pytest.raises(SystemExit) as leaving:
        main(["benchmark", about, "--store", store, "--tasks", str(ENDINGS), "--arm", "none"])
    assert leaving.value.code == 2
    assert "expected a patch of arm 'none'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main(["benchmark", found["run_id"], "--store", store, "--tasks", str(ENDINGS)])
    assert leaving.value.code == 2
    assert "expected a refresh or compare" in capsys.readouterr().err


def test_compare_has_every_arm_answer(load_small: Load, store: str) -> None:
    """Two columns in its table, beside toxicity and its other costs; the A/A arm is the base."""
    from flows.compare import run_compare

    comparison = run_compare(
        load_small(
            *("compare.interventions=[leace]", "compare.divergence=null"),
            *("tune.n_components=[1]", "tune.factors=[0.0]", "tune.scores=[auroc]"),
            *(f"benchmark.tasks=[{ENDINGS}]", "benchmark.limit=20"),
        )
    )
    arms = {row["arm"] for row in comparison.arms}
    assert {row["arm"] for row in comparison.benchmarks} == arms - {"base_again"}
    place = comparison.columns.index("questions right")
    assert comparison.columns[place + 1] == "change"
    cells = {row[0].removesuffix(" *"): row[place : place + 2] for row in comparison.rows}
    assert cells["base_again"] == ["-", "-"]
    assert cells["base"][1] == "-"
    assert all("%" in cell for cell in cells["leace"])
    assert any("questions right" in note for note in comparison.notes)
    assert all(len(row) == len(comparison.columns) for row in comparison.rows)
