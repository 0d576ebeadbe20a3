"""The gate on the whole line: noise is held, a release is what was measured against the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.exporting import export_patch
from eigenshift.ledger.releases import list_releases, read_current
from eigenshift.ledger.runs import read_run
from eigenshift.reporting.html_report import write_html_report
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.storage import Store
from tests.support.small_runs import EASY_BOUNDS, ENOUGH_EVIDENCE

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]

EASY = (*ENOUGH_EVIDENCE, *EASY_BOUNDS)


AS_SHIPPED = ("gate.n_random_draws=199", "gate.max_random_share=0.01")
"""Of the comparison with chance, which the small settings make smaller."""


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    """A copy of a finished run's store, without its releases."""
    folder = Path(shutil.copytree(finished_store, tmp_path / "store"))
    shutil.rmtree(folder / "releases", ignore_errors=True)
    return folder


def run(settings: RefreshSettings) -> Any:
    """Run a refresh in this process."""
    from flows.refresh import run_refresh

    return run_refresh(settings)


def test_on_shuffled_labels_nothing_passes_and_the_run_is_held(
    load_small: Load, store: Path, tmp_path: Path
) -> None:
    """The false-discovery bound finds no component; record, report and export say so."""
    ours = "patch.intervention=eigenshift"
    outcome = run(load_small(ours, "components.permute_labels=true", *EASY))
    assert (outcome.status, outcome.release) == ("held", None)
    (check,) = outcome.checks
    assert not check["is_passed"]
    assert "found none" in check["found"]
    assert read_run(Store(str(store)), outcome.run_id).status == "held"
    assert list_releases(Store(str(store))) == []
    write_html_report(str(store), outcome.run_id, tmp_path / "report.html")
    assert "some components tell toxic" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(SettingsError, match="expected a patch"):
        export_patch(str(store), outcome.run_id, "patch", tmp_path / "out")


@pytest.mark.parametrize("seed", [0, 1])
def test_on_shuffled_labels_the_gate_holds_a_patch_that_is_forced(
    load_small: Load, store: Path, seed: int
) -> None:
    """With a fixed number of components there is a patch; what it measured does not pass."""
    outcome = run(
        load_small(
            "patch.intervention=eigenshift",
            "components.permute_labels=true",
            "components.n_components=8",
            f"components.seed={seed}",
            *AS_SHIPPED,
        )
    )
    assert outcome.status == "held"
    failed = {check["name"] for check in outcome.checks if not check["is_passed"]}
    assert "the labels are the real ones" in failed  # never released, whatever it measured
    assert failed & {
        "toxicity is reduced",
        "random components do not do the same",
        "few random choices suppress toxic tokens as well",
    }
    assert list_releases(Store(str(store))) == []


def test_a_released_patch_reloads_as_measured_and_a_held_one_is_not_exported(
    load_small: Load, store: Path
) -> None:
    """The reload check comes last, and only where all else passes; it can be switched off."""
    checked = (*EASY, "gate.check_reload=true")
    held = run(load_small(*checked, "gate.min_toxicity_reduction=1.0"))
    assert held.status == "held"
    assert "check_reload" not in {stage.name for stage in held.stages}
    quick = run(load_small(*EASY))
    assert quick.status == "promoted"
    assert "check_reload" not in {stage.name for stage in quick.stages}
    outcome = run(load_small(*checked))
    assert outcome.checks[-1]["name"] == "the exported model reloads as measured"
    assert outcome.checks[-1]["is_passed"]


def test_damage_is_measured_against_the_base_not_the_last_patch(
    load_small: Load, store: Path
) -> None:
    """After a release, the next run's base arm is the original model, and so is its patch's."""
    first = run(load_small(*EASY))
    second = run(load_small(*EASY, "patch.n_rounds=1"))
    assert (first.status, second.status) == ("promoted", "promoted")
    for name in ("toxicity_rate_base", "perplexity_base"):
        assert first.metrics[name] == second.metrics[name]
    opened = ArtifactStore(str(store))
    history = list_releases(opened.store, "demo")
    assert [release.run_id for release in history] == [first.run_id, second.run_id]
    facts = [opened.open(release.patch).manifest.facts for release in history if release.patch]
    assert facts[0]["base_digest"] == facts[1]["base_digest"] != facts[0]["patched_digest"]
    assert len({release.model_digest for release in history}) == 1
    assert read_current(opened.store, "demo") == history[-1]


def test_the_views_tell_who_released_what_and_which_tokens_fell(
    load_small: Load, store: Path
) -> None:
    """Tokens are hidden unless the query names them."""
    outcome = run(load_small(*EASY))
    with open_audit(str(store)) as session:
        (release,) = session.query(
            "SELECT released_by, model_digest, is_current FROM releases"
        ).to_pylist()
        assert "@" in release["released_by"]
        assert release["model_digest"]
        assert release["is_current"]
        rows = session.query(
            f"SELECT * FROM token_shifts WHERE run_id = '{outcome.run_id}' "
            "AND positions = 'toxic' ORDER BY rank LIMIT 20"
        ).to_pylist()
        assert {row["token"] for row in rows} == {
            "[text hidden: name the column or use --show-text]"
        }
        fallen = [row for row in rows if row["kind"] == "insult"]
        assert len(fallen) > 10
        assert all(row["log_ratio"] < 0 for row in fallen)
