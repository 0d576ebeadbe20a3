"""Compare and tune on the demo model: they share the refresh's work, resume, and agree with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.arms import find_point
from eigenshift.base.errors import EvaluationError, NothingToDampError, SettingsError
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.patches.interventions.registry import INTERVENTIONS
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.storage import Store

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]
GRID = ("tune.n_components=[1,4]", "tune.factors=[0.0,0.5]", "tune.max_perplexity_increase=0.1")


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> str:
    """A copy of the store of a finished refresh, where `load_small` looks."""
    shutil.copytree(finished_store, tmp_path / "store")
    return str(tmp_path / "store")


OF_COMPONENTS = (
    *("eigenshift_paper", "eigenshift_tuned", "eigenshift_centered"),
    *("random_components", "label_permuted", "top_sigma"),
)
"""Beginnings of arms that take their factors from the table, so that they have one point."""


def find_redone(outcome: Any) -> set[str]:
    """Stages that did any work."""
    return {stage.name for stage in outcome.stages if stage.shards_cached < stage.shards}


def test_compare_judges_every_arm_and_does_it_once(load_small: Load, store: str) -> None:
    """All arms in one table, in the audit too; a second run does nothing."""
    from flows.compare import run_compare

    overrides = (*GRID, "tune.factors=[0.0]", "tune.max_perplexity_increase=0.025")
    comparison = run_compare(load_small(*overrides))
    arms = {row["arm"] for row in comparison.arms}
    at_once = {"base", "base_again", "eigenshift_paper", "eigenshift_tuned", *INTERVENTIONS}
    assert {arm for arm in arms if not find_point(arm)} == at_once
    assert {find_point(arm) for arm in arms} == {"", "kl0.02"}
    of_components = {name for name in at_once if name.startswith(OF_COMPONENTS)}
    assert {arm.removesuffix("@kl0.02") for arm in arms if find_point(arm)} == (
        at_once - of_components - {"base", "base_again", "eigenshift"}
    )
    assert "score_components" not in find_redone(comparison)  # the refresh has done it
    assert [row[0] for row in comparison.degeneration_rows] == [
        row[0].removesuffix(" *") for row in comparison.rows
    ]
    assert any("labelled texts of this run: AUROC" in note for note in comparison.notes)
    rates = {
        row["arm"]: row["value"]
        for row in comparison.evaluations
        if row["metric"] == "toxicity_rate" and row["slice"] == "all"
    }
    for row in comparison.arms:
        assert row["toxicity_rate"] == rates[row["arm"]]
        is_base = row["arm"].startswith("base")
        assert (row["build_seconds"] is None) == is_base
        assert (row["toxicity_p_value"] is None) == (row["arm"] == "base")
        assert row["unscored_share"] == 0.0
    with open_audit(store) as session:
        found = session.query(
            f"SELECT arm, toxicity_rate FROM comparisons WHERE run_id = '{comparison.run_id}'"
        )
    assert dict(zip(*(column.to_pylist() for column in found.columns), strict=True)) == rates
    assert comparison.points_figure is not None
    for figure in (comparison.figure, comparison.points_figure):
        assert Path(figure.removeprefix("file://")).read_bytes().startswith(b"\x89PNG")
    assert comparison.notes[-1] == f"Operating points: {comparison.points_figure}"
    assert find_redone(run_compare(load_small(*overrides))) == set()


@pytest.mark.slow
def test_a_model_in_half_precision_goes_through_everything(load_small: Load) -> None:
    """What is stored is wider than its weights: every intervention, the search, and a refresh."""
    from flows.compare import run_compare
    from flows.refresh import run_refresh

    overrides = ("model.dtype=bfloat16", *GRID, "tune.max_perplexity_increase=0.3")
    arms = {row["arm"] for row in run_compare(load_small(*overrides)).arms}
    assert {"base", "eigenshift_tuned", *INTERVENTIONS} <= arms
    outcome = run_refresh(load_small(*overrides))
    assert outcome.checks


def test_the_papers_arm_damps_no_more_than_is_decomposed(
    load_small: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning: a comparison is not worth losing for the part of its share that is left."""
    from flows.compare import _request_patches, logger

    warnings: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *values: warnings.append(text % values))
    facts = {"head": {"hidden": 1000}, "sites": []}
    counts = {
        n_decomposed: _request_patches(
            load_small("compare.paper_share=0.05", f"components.n_decomposed={n_decomposed}"),
            facts,
            has_selected=True,
        )["eigenshift_paper"].n_components
        for n_decomposed in ("null", 80, 20)
    }
    assert counts == {"null": 50, 80: 50, 20: 20}
    assert sum("only 20 are decomposed" in text for text in warnings) == 1


def test_tune_goes_on_where_it_was_cut_off_and_a_refresh_builds_what_it_found(
    load_small: Load, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before the last stage; then a refresh with the settings it prints."""
    from eigenshift.evaluation import tuning as library
    from flows.refresh import run_refresh
    from flows.tune import run_tune

    def fail(*_: Any, **__: Any) -> None:
        raise EvaluationError("made up")

    with monkeypatch.context() as patched:
        patched.setattr(library, "confirm_trials", fail)
        with pytest.raises(EvaluationError, match="made up"):
            run_tune(load_small(*GRID))
    tuning = run_tune(load_small(*GRID))
    assert find_redone(tuning) == {"confirm_trials"}
    assert len(tuning.trials) == 4 * 2 * 2 + 2
    confirmed = [row for row in tuning.trials if row["stage"] == "confirmed"]
    assert 1 <= len(confirmed) <= 4
    assert all(row["predicted_rate"] is not None for row in confirmed)
    with open_audit(store) as session:
        found = session.query(
            "SELECT count(*) AS n, count(*) FILTER (is_best) AS n_best FROM trials "
            f"WHERE run_id = '{tuning.run_id}'"
        ).to_pylist()
    assert found == [{"n": len(tuning.trials), "n_best": 1}]
    best = tuning.best
    assert best is not None
    assert best["perplexity_increase"] <= 0.1
    outcome = run_refresh(load_small(*tuning.overrides))
    assert choose_components(store, outcome.run_id) == sorted(best["component_indices"])


def test_a_factor_without_an_automatic_choice_is_left_out(
    load_small: Load, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The search goes on with the other factors; where there is none, its budget is named."""
    from eigenshift.components import table as library
    from flows.tune import run_tune

    refused = {0.5}
    choose = library.choose_within_budget

    def choose_unless_refused(*args: Any, **options: Any) -> Any:
        if options["min_factor"] in refused and options["max_perplexity_increase"] == 0.15:
            raise NothingToDampError("made up")
        return choose(*args, **options)

    monkeypatch.setattr(library, "choose_within_budget", choose_unless_refused)
    settings = load_small(*GRID, "tune.max_perplexity_increase=0.15", "tune.n_confirmed=1")
    tuning = run_tune(settings)
    assert {row["factor"] for row in tuning.trials if row["score"] == "automatic"} == {0.0}
    assert {row["factor"] for row in tuning.trials} == {0.0, 0.5}
    assert "factor=0.5 tune.max_perplexity_increase=0.15" in caplog.text
    refused |= {0.25}
    with pytest.raises(NothingToDampError, match=r"at most 15.0%.*tune.max_perplexity_increase"):
        run_tune(load_small(*GRID, "tune.max_perplexity_increase=0.15", "tune.factors=[0.5,0.25]"))


def choose_components(store: str, run_id: str) -> list[int]:
    """Indices of the components a run damped."""
    sql = (
        f"SELECT component_index FROM components WHERE run_id = '{run_id}' AND is_selected "
        "AND basis = 'singular'"
    )
    with open_audit(store) as session:
        found: list[int] = sorted(session.query(sql)["component_index"].to_pylist())
    return found


def test_trials_and_their_plots_are_in_the_store(
    load_small: Load, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every path that is printed leads to a file; the picture of the trials is shown in the UI."""
    from flows import publication
    from flows.tune import run_tune

    tuning = run_tune(load_small(*GRID, "tune.factors=[0.5]", "tune.n_confirmed=1"))
    path = Path(tuning.figure.removeprefix("file://"))
    assert path.read_bytes().startswith(b"\x89PNG")
    kinds = {manifest.kind for manifest in ArtifactStore(store).list_manifests()}
    assert {"screening", "trials"} <= kinds
    assert any("--set components." in part for part in [tuning.advice])
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(publication, "has_server", lambda: True)
    monkeypatch.setattr(publication, "create_table_artifact", lambda **_: None)
    monkeypatch.setattr(publication, "create_markdown_artifact", lambda **made: shown.append(made))
    publication.publish_tuning(tuning)
    (picture,) = shown
    assert picture["markdown"].startswith("![Trials: toxic tokens against fluency](data:image/png")


@pytest.mark.parametrize(
    ("command", "override", "expected"),
    [
        (
            "tune",
            "tune.n_components=[4,4000]",
            r"^tune\.n_components: .* found 4000.*head",
        ),
        (
            "refresh",
            "components.n_components=4000",
            r"^components\.n_components: .* found 4000",
        ),
        ("compare", "components.n_decomposed=3", r"expected at most 3 .* found 4\. .*n_decomposed"),
    ],
)
def test_more_components_than_there_are_stop_a_run_before_its_work(
    load_small: Load, store: str, command: str, override: str, expected: str
) -> None:
    """Nothing is generated or extracted to find out; a refresh does not read the search's grid."""
    import flows.compare
    import flows.refresh
    import flows.tune

    runs = {
        "tune": flows.tune.run_tune,
        "compare": flows.compare.run_compare,
        "refresh": flows.refresh.run_refresh,
    }
    with pytest.raises(SettingsError, match=expected):
        runs[command](load_small(*GRID, override))
    objects = Store(store)
    runs_there = [read_run(objects, run_id) for run_id in list_run_ids(objects)]
    newest = max(runs_there, key=lambda run: run.started_at)
    assert [stage.name for stage in newest.stages] == ["identify_model"]
