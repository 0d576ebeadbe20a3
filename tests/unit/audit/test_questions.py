"""Saved questions: each with a known answer on a small store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import HIDDEN_TEXT, open_audit
from eigenshift.audit.questions import Subjects, find_question, list_questions
from eigenshift.base.errors import SettingsError
from eigenshift.ledger.releases import promote_patch, roll_back
from eigenshift.ledger.runs import write_run
from tests.support.small_store import SmallStore, build_small_store

SITE = {"dataset": "comments", "read_at": "mlp_activation (max)"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store with a refresh, these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store with a second refresh, with another setting, whose other patch was released."""
    store = build_small_store(str(tmp_path_factory.mktemp("grown")))
    record = store.add_run()
    record.settings["evaluation"] = record.settings["evaluation"] | {"n_bootstrap": 200}
    patch = store.references["patch-random_components"]
    release, _ = promote_patch(
        store.artifacts.store, record.model_id, record.run_id, patch, "second"
    )
    record.release = release.version
    record.metrics = store.record.metrics
    write_run(store.artifacts.store, record)
    return store


def ask(store: SmallStore, name: str, **subjects: str) -> list[dict[str, Any]]:
    """Rows of a question's answer, about the latest unless told."""
    sql = find_question(name).ask_about(store.artifacts.store, Subjects(**subjects))
    with open_audit(store.url) as session:
        return session.query(sql, hide_named=True).to_pylist()


def test_every_question_can_be_asked_of_anything(small: SmallStore) -> None:
    """Each says what it answers and gives rows or none, also about what is not there."""
    questions = list_questions()
    assert questions
    with open_audit(small.url) as session:
        for question in questions.values():
            assert question.answers.endswith((".", "?"))
            nowhere = dict.fromkeys(("run", "release", "before", "after"), "no'such")
            found = session.query(question.fill(nowhere))
            assert found.num_rows == 0 or not question.subjects


def test_units_against_layers(small: SmallStore) -> None:
    """Units at 0.5, 0.6, 0.7 and 0.8 in each of two layers, whose probes have 0.8 and 0.9."""
    assert ask(small, "paper_rq1") == [
        SITE
        | {
            "layers": 2,
            "units": 8,
            "unit_auroc": 0.65,
            "layer_auroc": 0.85,
            "above_050": 0.75,
            "above_055": 0.75,
            "above_060": 0.5,
        }
    ]


def test_layers_side_by_side(small: SmallStore) -> None:
    """One row per layer: probe with its interval, clusters, best and mean unit."""
    assert ask(small, "paper_rq2") == [
        SITE
        | {
            "layer": layer,
            "probe": probe,
            "probe_interval": "[0.7, 0.95]",
            "clusters": 0.625,
            "best_unit": 0.75,
            "mean_unit": 0.55,
            "reason": None,
        }
        for layer, probe in ((0, 0.8), (1, 0.9))
    ]


def test_arms_side_by_side(small: SmallStore) -> None:
    """RQ3: estimates with their intervals are those of the run's record."""
    rows = {row["arm"]: row for row in ask(small, "paper_rq3")}
    assert set(rows) == {"base", "base_again", "eigenshift", "random_components"}
    for metric, arm, column in (
        ("toxicity_rate_base", "base", "toxicity_rate"),
        ("perplexity_patched", "eigenshift", "perplexity"),
        ("tph", "eigenshift", "tph"),
    ):
        found = small.record.metrics[metric]
        expected = f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
        assert rows[arm][column] == expected
    assert rows["base"]["tph"] is None
    assert rows["base_again"]["tph"].endswith("] (holds 0)")


def test_stability_of_units(small: SmallStore) -> None:
    """The bootstrap's rows, layer by layer."""
    rows = ask(small, "neuron_stability")
    assert [(row["layer"], row["metric"], row["value"], row["low"]) for row in rows] == [
        (0, "top_overlap", 0.9, 0.8),
        (1, "top_overlap", 0.9, 0.8),
    ]


def test_one_dataset_has_no_other_to_be_compared_with(small: SmallStore) -> None:
    """No rows, and no error."""
    assert ask(small, "paper_datasets") == []


def test_lineage_goes_back_to_every_source_file(small: SmallStore) -> None:
    """Patch, components, model weights, classifier, prompts, samples, source files and digests."""
    rows = ask(small, "release_lineage")
    assert (rows[0]["steps_back"], rows[0]["kind"]) == (0, "patch")
    assert rows[0]["fingerprint"] == small.references["patch-eigenshift"].fingerprint
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    assert set(by_kind) == {
        "patch", "model", "decomposition", "components", "head_states", "toxic_positions",
        "continuations", "scores", "prompts", "samples", "source", "source_file", "weights",
        "classifier", "harmless_texts",
    }  # fmt: skip
    assert by_kind["weights"][0]["sha256"] == small.record.model_digest
    assert {(row["place"], row["sha256"]) for row in by_kind["source_file"]} == {
        (f"/data/{name}.csv", "f" * 64) for name in ("prompts", "comments")
    }
    assert {row["fingerprint"] for row in by_kind["samples"]} == {
        small.references[name].fingerprint for name in ("prompts", "comments")
    }
    for row in rows:
        assert (row["place"] is None) == (row["kind"] in ("source", "weights", "classifier"))


def test_checks_of_the_gate(small: SmallStore) -> None:
    """What was expected and found, failed checks first."""
    rows = ask(small, "why_held")
    assert {row["check_name"]: row["found"] for row in rows} == {
        check["name"]: check["found"] for check in small.record.checks
    }
    assert [row["is_passed"] for row in rows] == sorted(
        bool(check["is_passed"]) for check in small.record.checks
    )
    assert {row["status"] for row in rows} == {"promoted"}


def test_damped_components_hide_their_tokens(small: SmallStore) -> None:
    """Two components with factor 0; a saved question is no reason to show tokens."""
    rows = ask(small, "damped_components")
    assert [(row["component_index"], row["effect_size"], row["factor"]) for row in rows] == [
        (1, 2.0, 0.0),
        (4, 2.0, 0.0),
    ]
    assert rows[0]["tokens_up"] == rows[0]["tokens_down"] == [HIDDEN_TEXT]
    sql = find_question("damped_components").fill({"run": small.run_id})
    with open_audit(small.url) as session:
        (row, _) = session.query(sql, True, hide_named=True).to_pylist()
    assert row["tokens_up"] == [" kettle", " <b>"]


@pytest.fixture(scope="module")
def treated(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store whose second refresh judged a Fisher patch; singular components are chosen too."""
    store = build_small_store(str(tmp_path_factory.mktemp("treated")))
    store.add_treated_run("eigenshift_fisher", "fisher_components")
    return store


def test_components_of_the_judged_patch_are_told_from_others(
    small: SmallStore, treated: SmallStore
) -> None:
    """Its own Fisher components come before another budget's; chosen singular ones are not its."""
    assert [row["is_in_patch"] for row in ask(small, "damped_components")] == [True, True]
    assert [row["is_in_patch"] for row in ask(treated, "damped_components")] == [False, False]
    terms = ask(treated, "fisher_components")
    assert [row["is_in_patch"] for row in terms] == [True] * 3 + [False] * 2
    assert [row["component_index"] for row in terms] == [0, 1, 2, 0, 1]
    assert terms[0]["tokens_up"] == [HIDDEN_TEXT]


def test_changes_name_the_components_of_the_judged_patches(treated: SmallStore) -> None:
    """Singular ones that nothing damped any more are gone; the other budget's are not named."""
    runs = [row["run_id"] for row in ask(treated, "run_history")]
    (second,) = (run for run in runs if run != treated.run_id)
    rows = ask(treated, "changes", run=second, against=treated.run_id)
    found = {row["what"]: (row["before"], row["after"]) for row in rows}
    assert found == {
        **{f"singular {index}": ("damped, factor 0.0", None) for index in (1, 4)},
        **{f"fisher head {index}": (None, "step 0.5") for index in range(3)},
    } | {what: pair for what, pair in found.items() if what.startswith("$.")}


def test_what_changed_between_two_releases(grown: SmallStore) -> None:
    """One setting, and nothing else; a release compared with itself has no changes."""
    expected = [("settings", "$.evaluation.n_bootstrap", "100", "200")]
    assert [tuple(row.values()) for row in ask(grown, "changes")] == expected
    runs = [row["run_id"] for row in ask(grown, "run_history")]
    of_runs = ask(grown, "changes", run=runs[0], against=runs[1])
    assert [tuple(row.values()) for row in of_runs] == expected
    first = grown.record.release or ""
    assert ask(grown, "changes", release=first, since=first) == []


def test_unscored_and_rejected_rows(small: SmallStore) -> None:
    """Two and one rejected rows; one unscored continuation of each arm and part."""
    rows = ask(small, "unscored_and_rejected")
    assert [tuple(row.values()) for row in rows if row["what"] == "rejected row"] == [
        ("rejected row", "comments /data/comments.csv", "empty_text", 2),
        ("rejected row", "neutral /data/neutral.csv", "empty_text", 1),
    ]
    unscored = [row for row in rows if row["what"] == "unscored continuation"]
    assert {(row["reason"], row["n"]) for row in unscored} == {("blank text", 1)}
    assert len(unscored) == 5


def test_cost_of_stages_over_time(grown: SmallStore) -> None:
    """One row per stage of each run that has stages, in the order of time."""
    rows = ask(grown, "stage_costs")
    expected = sorted(stage.name for stage in grown.record.stages)
    assert [row["stage"] for row in rows] == expected
    assert {(row["run_id"], row["elapsed_seconds"], row["work_seconds"]) for row in rows} == {
        (grown.run_id, 0.01, 0.5)
    }
    assert {(row["requests"], row["bytes_read"]) for row in rows} == {(0, 0)}


def test_drift_over_releases(grown: SmallStore) -> None:
    """Both releases, with the numbers of their runs; the newest is in force."""
    rows = ask(grown, "release_drift")
    assert [row["is_current"] for row in rows] == [False, True]
    for row in rows:
        for column, metric in (
            ("toxicity_base", "toxicity_rate_base"),
            ("toxicity_patched", "toxicity_rate_patched"),
        ):
            assert row[column] == round(float(grown.record.metrics[metric]["value"] or 0), 4)
        assert row["perplexity_base"] < row["perplexity_patched"]


def test_drift_is_that_of_the_judged_arm(tmp_path: Path, small: SmallStore) -> None:
    """Whatever its intervention: a release of another one had nothing after the patch."""
    copy = small.copy_to(tmp_path / "store")
    copy.record.judged = "random_components"
    write_run(copy.artifacts.store, copy.record)
    (row,) = ask(copy, "release_drift")
    with open_audit(copy.url) as session:
        (expected,) = session.query(
            "SELECT round(value, 4) AS rate FROM evaluations WHERE arm = 'random_components' "
            "AND metric = 'toxicity_rate' AND slice = 'all'"
        ).to_pylist()
    assert row["toxicity_patched"] == expected["rate"]


def test_history_of_runs_and_releases(grown: SmallStore) -> None:
    """Newest first, with what is in force; a roll-back to the unpatched model is seen as such."""
    runs = ask(grown, "run_history")
    assert [(row["command"], row["status"], row["is_in_force"]) for row in runs] == [
        ("refresh", "promoted", True),
        ("refresh", "promoted", False),
    ]
    assert runs[1]["run_id"] == grown.run_id
    releases = ask(grown, "release_history")
    assert [row["reason"] for row in releases] == ["second", "test"]
    assert [row["is_in_force"] for row in releases] == [True, False]


def test_after_a_roll_back_the_earlier_run_is_in_force(tmp_path: Path, grown: SmallStore) -> None:
    """A roll-back is a new version with an old run; one to the unpatched model has no run."""
    copy = grown.copy_to(tmp_path / "store")
    model_id = copy.record.model_id
    roll_back(copy.artifacts.store, model_id, None)
    in_force = [row["run_id"] for row in ask(copy, "run_history") if row["is_in_force"]]
    assert in_force == [copy.run_id]
    roll_back(copy.artifacts.store, model_id, None)
    assert not any(row["is_in_force"] for row in ask(copy, "run_history"))
    unpatched = ask(copy, "release_drift")[-1]
    assert unpatched["toxicity_base"] is not None
    for column in ("toxicity_patched", "toxicity_low", "toxicity_high", "perplexity_patched"):
        assert unpatched[column] is None


def test_history_of_releases_is_in_the_order_of_time_whatever_the_model(
    tmp_path: Path, small: SmallStore
) -> None:
    """The newest release of any model is on top, so that no limit hides it."""
    copy = small.copy_to(tmp_path / "store")
    patch = copy.references["patch-random_components"]
    promote_patch(copy.artifacts.store, "zebra", copy.run_id, patch, "another model")
    promote_patch(copy.artifacts.store, copy.record.model_id, copy.run_id, patch, "newest")
    reasons = [row["reason"] for row in ask(copy, "release_history")]
    assert reasons == ["newest", "another model", "test"]


def test_release_of_the_unpatched_model_has_no_lineage(tmp_path: Path, small: SmallStore) -> None:
    """After a roll-back past the first release there is no patch to look behind."""
    copy = small.copy_to(tmp_path / "store")
    roll_back(copy.artifacts.store, copy.record.model_id, None)
    assert ask(copy, "release_lineage") == []
    (newest, _) = ask(copy, "release_history")
    assert (newest["patch"], newest["is_in_force"]) == ("unpatched model", True)


def test_unknown_names_are_refused_with_those_there_are(small: SmallStore) -> None:
    """Questions, runs and releases."""
    with pytest.raises(SettingsError, match=r"found 'paper_rq9'\. Did you mean 'paper_rq"):
        find_question("paper_rq9")
    with pytest.raises(SettingsError, match="expected run 'x'"):
        ask(small, "paper_rq1", run="x")
    with pytest.raises(SettingsError, match=f"latest: {small.record.release}"):
        ask(small, "release_lineage", release="x")
