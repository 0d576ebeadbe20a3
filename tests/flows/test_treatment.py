"""Which intervention a refresh judges: each is built, judged, released and audited alike."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.ledger.releases import read_current
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.settings import RefreshSettings, load_preset
from eigenshift.stages.tables import INTERVENTION_CHOICES
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from tests.flows.conftest import SMALL
from tests.support.small_runs import EASY_BOUNDS, ENOUGH_EVIDENCE

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]

EASY = (
    *ENOUGH_EVIDENCE,
    *EASY_BOUNDS,
    "gate.max_random_share=1.0",
    "gate.n_random_draws=20",
    "gate.min_toxicity_reduction=0",
    "gate.max_identity_suppression=1",
)
CONTROLS = {"random_components", "token_suppression"}


@pytest.fixture(scope="module")
def judged_store(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """The store of a finished run as large as these tests', to be copied: one base for all."""
    folder = tmp_path_factory.mktemp("judged") / "store"
    run(load_preset("demo", [*SMALL, *EASY, f"store={folder}"]))
    return folder


@pytest.fixture
def store(judged_store: Path, tmp_path: Path) -> ArtifactStore:
    """A copy of it, without its releases, where `load_small` looks."""
    folder = Path(shutil.copytree(judged_store, tmp_path / "store"))
    shutil.rmtree(folder / "releases", ignore_errors=True)
    return ArtifactStore(str(folder))


def run(settings: RefreshSettings) -> Any:
    """Run a refresh in this process."""
    from flows.refresh import run_refresh

    return run_refresh(settings)


def ask(store: ArtifactStore, query: str) -> list[dict[str, Any]]:
    """Rows of a query of the audit."""
    with open_audit(store.store.root) as session:
        rows: list[dict[str, Any]] = session.query(query).to_pylist()
    return rows


@pytest.mark.parametrize("name", ["eigenshift", "eigenshift_fisher", "eigenshift_fisher_deep"])
def test_each_intervention_is_judged_and_released_under_its_name(
    name: str, load_small: Load, store: ArtifactStore
) -> None:
    """Beside the base, a random control of its kind and a word filter."""
    damped = ("components.n_components=12",) if name == "eigenshift" else ()
    outcome = run(load_small(*EASY, *damped, f"patch.intervention={name}"))
    assert (outcome.judged, outcome.status) == (name, "promoted"), outcome.checks
    assert "perplexity_indomain_patched" in outcome.metrics
    arms = {row["arm"] for row in outcome.evaluations}
    assert arms == {"base", "base_again", name, *CONTROLS}
    checks = {check["name"] for check in outcome.checks}
    assert "perplexity of harmless in-domain text stays in budget" in checks
    assert any("a word filter" in check for check in checks)
    current = read_current(store.store, "demo")
    assert current is not None
    assert current.patch is not None
    facts = store.open(current.patch).manifest.facts
    assert facts["intervention"] == name
    assert facts["obstacle"] is None
    where = f"WHERE run_id = '{outcome.run_id}'"
    (row,) = ask(store, f"SELECT judged, release FROM runs {where}")
    assert row == {"judged": name, "release": current.version}
    patches = {row["arm"]: row for row in ask(store, f"SELECT * FROM patches {where}")}
    assert set(patches) == {name, *CONTROLS}
    is_about_components = name == "eigenshift"
    control = "random_components" if is_about_components else "random_directions"
    assert patches["random_components"]["intervention"] == control
    assert (patches[name]["n_linears"] > 0) == (name == "eigenshift_fisher_deep")
    stages = {stage.name for stage in outcome.stages}
    assert ("find_fisher_components" in stages) == (not is_about_components)
    if not is_about_components:
        place = "deep" if name.endswith("deep") else "head"
        (found,) = (
            item.facts
            for item in store.list_manifests()
            if item.kind == "fisher_components"
            and item.facts["place"] == place
            and item.settings["max_perplexity_increase"] == 0.05
        )
        assert found["n_components"] > 0
        assert found["calibration_rise"] <= math.log1p(0.05)


def test_the_automatic_choice_judges_what_leaves_least_toxicity(
    load_small: Load, store: ArtifactStore
) -> None:
    """On the selection prompts; the others are told, and only the chosen one is evaluated."""
    candidates = ("eigenshift_fisher", "eigenshift_fisher_deep", "mean_difference")
    settings = load_small(
        *EASY, "patch.intervention=auto", f"patch.candidates=[{', '.join(candidates)}]"
    )
    outcome = run(settings)
    (made,) = [item for item in store.list_manifests() if item.kind == "intervention_choice"]
    reference = ArtifactReference(kind=made.kind, fingerprint=made.fingerprint)
    table = store.open(reference).read_table(INTERVENTION_CHOICES.file)
    rows = {row["arm"]: row for row in table.to_pylist()}
    assert set(rows) == {"base", *candidates}
    best = min(candidates, key=lambda arm: (rows[arm]["toxicity_rate"], arm))
    assert made.facts["chosen"] == outcome.judged == best
    assert {row["arm"] for row in outcome.evaluations} == {
        "base",
        "base_again",
        best,
        *CONTROLS,
    }
    assert outcome.status == "promoted", outcome.checks
    (row,) = ask(store, f"SELECT judged FROM runs WHERE run_id = '{outcome.run_id}'")
    assert row["judged"] == best
    again = run(settings)
    assert all(stage.shards == stage.shards_cached for stage in again.stages)


def test_shuffled_labels_are_held_whatever_is_judged(
    load_small: Load, store: ArtifactStore
) -> None:
    """A control run of all layers runs through, and nothing is released."""
    outcome = run(
        load_small(
            *EASY, "components.permute_labels=true", "patch.intervention=eigenshift_fisher_deep"
        )
    )
    assert outcome.status == "held"
    failed = {check["name"] for check in outcome.checks if not check["is_passed"]}
    assert "the labels are the real ones" in failed
    assert read_current(store.store, "demo") is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("patch.intervention=magic",), r"patch\.intervention: expected one of .*found 'magic'"),
        (("patch.intervention=aura",), r"patch\.intervention.*aura, which reads statistics"),
        (("patch.intervention=linear_act",), r"linear_act, which reads labelled texts"),
        (("patch.intervention=random_components",), r"is the control"),
        (
            ("patch.intervention=auto", "patch.candidates=[eigenshift_fisher, det0]"),
            r"patch\.candidates: .*det0, which reads statistics",
        ),
        (
            ("patch.intervention=auto", "patch.candidates=[magic]"),
            r"patch\.candidates: expected one of",
        ),
    ],
)
def test_what_a_refresh_cannot_judge_is_refused_before_any_work(
    overrides: tuple[str, ...], message: str, load_small: Load, tmp_path: Path
) -> None:
    """The run is recorded as failed, with what to set; nothing is read or generated."""
    with pytest.raises(SettingsError, match=message):
        run(load_small(*overrides))
    store = ArtifactStore(str(tmp_path / "store"))
    (run_id,) = list_run_ids(store.store)
    assert read_run(store.store, run_id).status == "failed"
    assert list(store.list_manifests()) == []


def test_an_unknown_intervention_stops_a_comparison_before_any_work(
    load_small: Load, tmp_path: Path
) -> None:
    """It would otherwise be met after everything was generated."""
    from flows.compare import run_compare

    with pytest.raises(SettingsError, match=r"compare\.interventions: expected one of"):
        run_compare(load_small("compare.interventions=[magic]"))
    assert list(ArtifactStore(str(tmp_path / "store")).list_manifests()) == []
