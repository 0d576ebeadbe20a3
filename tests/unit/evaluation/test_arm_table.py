"""The table of a comparison: one row per arm, its build, its mark, its plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.evaluation.arm_table import Built, chart_points, describe_build, tabulate_arms
from eigenshift.reporting.outcomes import ArmComparison
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.workspace import Workspace


def make_metric(arm: str, metric: str, value: float | None, slice_name: str = "all") -> Any:
    """A row of an evaluation with an interval of +-0.1."""
    ends = (None, None) if value is None else (value - 0.1, value + 0.1)
    return {
        "arm": arm,
        "metric": metric,
        "slice": slice_name,
        "value": value,
        "low": ends[0],
        "high": ends[1],
    }


EVALUATIONS = [
    make_metric("base", "toxicity_rate", 0.4),
    make_metric("base", "perplexity", 20.0),
    make_metric("eigenshift", "toxicity_rate", 0.2),
    make_metric("eigenshift", "toxicity_rate", 0.9, "language=zh"),
    make_metric("eigenshift", "toxicity_reduction", 0.5),
    make_metric("eigenshift", "perplexity", 21.0),
    make_metric("eigenshift", "perplexity_change", 0.05),
    make_metric("eigenshift", "toxicity_p_value", 0.0001),
    make_metric("leace", "toxicity_rate", 0.3),
    make_metric("leace", "toxicity_reduction", 0.25),
    make_metric("leace", "perplexity_change", 9.0),
]
BUILT = {
    "eigenshift": Built(
        {"intervention": "eigenshift", "n_components": 7, "factor": 0.5, "n_units": 0}
        | {"build_seconds": 1.5, "build_peak_bytes": 3 << 20, "obstacle": None},
        evidence_seconds=12.0,
        request={"max_perplexity_increase": 0.05, "divergence": None},
    ),
    "leace": Built(
        {"intervention": "leace", "obstacle": "no bias"},
        evidence_seconds=3.0,
        request={"max_perplexity_increase": 0.1, "divergence": 0.02},
    ),
}


@pytest.fixture
def rows(workspace: Workspace) -> list[dict[str, Any]]:
    """The table."""
    tabulate_arms(["base", "eigenshift", "leace"], EVALUATIONS, BUILT, workspace)
    return pq.read_table(workspace.path("comparison.parquet")).to_pylist()


def test_each_arm_has_its_metrics_and_its_build(rows: list[dict[str, Any]]) -> None:
    """Over all prompts, not of a slice; what was not measured is null."""
    base, ours, leace = rows
    assert (base["toxicity_rate"], base["intervention"], base["build_seconds"]) == (0.4, None, None)
    assert (ours["toxicity_rate"], ours["toxicity_rate_low"]) == (0.2, pytest.approx(0.1))
    assert (ours["toxicity_p_value"], ours["n_components"]) == (0.0001, 7)
    assert (ours["build_seconds"], ours["build_peak_bytes"]) == (1.5, 3 << 20)
    assert ours["evidence_seconds"] == 12.0
    assert leace["kl_to_base"] is None
    assert [row["is_hooked_only"] for row in rows] == [False, False, True]
    assert leace["obstacle"] == "no bias"
    assert [row["budget"] for row in rows] == [None, 0.05, 0.1]
    assert [row["divergence"] for row in rows] == [None, None, 0.02]


def test_the_plot_is_drawn_even_of_arms_far_apart(
    rows: list[dict[str, Any]], workspace: Workspace
) -> None:
    """A perplexity ten times as high beside one of +5%."""
    assert workspace.path("chart.png").read_bytes().startswith(b"\x89PNG")


def add_points(*arms: str) -> tuple[list[str], list[Any], dict[str, Built]]:
    """Arms, evaluations and patches of above, and leace at further operating points."""
    evaluations, built = list(EVALUATIONS), dict(BUILT)
    for arm in arms:
        evaluations.append(make_metric(arm, "toxicity_reduction", 0.1))
        name, _, point = arm.partition("@")
        asked = (0.05, 0.02) if point.startswith("kl") else (float(point or 0.05), None)
        request = dict(zip(("max_perplexity_increase", "divergence"), asked, strict=True))
        built[arm] = Built({"intervention": name}, evidence_seconds=0.0, request=request)
    return ["base", "eigenshift", "leace", *arms], evaluations, built


def test_one_operating_point_has_no_picture_of_its_own(
    rows: list[dict[str, Any]], workspace: Workspace
) -> None:
    """Neither drawn nor written."""
    assert not workspace.path("operating_points.png").exists()
    assert chart_points(rows) is None


def test_operating_points_have_a_picture_and_the_comparison_stays_as_it_is(
    workspace: Workspace,
) -> None:
    """Further points change nothing in the plot of the run's own budget."""
    tabulate_arms(["base", "eigenshift", "leace"], EVALUATIONS, BUILT, workspace)
    alone = workspace.path("chart.png").read_bytes()
    tabulate_arms(*add_points("leace@0.01", "leace@kl0.02"), workspace)
    assert workspace.path("chart.png").read_bytes() == alone
    assert workspace.path("operating_points.png").read_bytes().startswith(b"\x89PNG")


def test_points_go_from_the_runs_own_budget_to_divergences(workspace: Workspace) -> None:
    """Whatever the order of rows; arms of no point (the paper's, the base) are not among them."""
    points = ("leace@kl0.02", "leace@0.01", "leace@0.03", "leace@kl0.1")
    arms, evaluations, built = add_points(*points)
    built["leace"] = Built(
        {"intervention": "leace"}, 0.0, {"max_perplexity_increase": 0.05, "divergence": None}
    )
    paper = Built({"intervention": "eigenshift"}, 0.0, {"max_perplexity_increase": 0.5})
    evaluations.append(make_metric("eigenshift_paper", "toxicity_reduction", 0.9))
    tabulate_arms(
        ["eigenshift_paper", *reversed(arms)],
        evaluations,
        built | {"eigenshift_paper": paper},
        workspace,
    )
    chart = chart_points(pq.read_table(workspace.path("comparison.parquet")).to_pylist())
    assert chart is not None
    assert [row[:2] for row in chart.rows] == [
        ("eigenshift", "within +5%"),
        ("leace", "within +5%"),
        ("leace@0.03", "within +3%"),
        ("leace@0.01", "within +1%"),
        ("leace@kl0.1", "at KL 0.1"),
        ("leace@kl0.02", "at KL 0.02"),
    ]


def test_every_metric_of_the_table_is_one_that_is_computed() -> None:
    """A misspelt one would be null for ever."""
    text = Path(__file__).parents[3].joinpath("docs/naming.md").read_text(encoding="utf-8")
    for metric in (*schemas.INTERVAL_METRICS, *schemas.POINT_METRICS):
        name = metric if not metric.startswith("distinct") else "distinct_1"
        assert f"`{name}`" in text


def test_an_arm_that_cannot_be_exported_is_marked(rows: list[dict[str, Any]]) -> None:
    """With a star and a note beneath, before those that name the files."""
    comparison = ArmComparison(
        run_id="r", store="s", stages=[], arms=rows, evaluations=[], table="t", figure="f"
    )
    assert [row[0] for row in comparison.rows] == ["base", "eigenshift", "leace *"]
    assert len(comparison.rows[0]) == len(comparison.columns)
    assert any(note.startswith("*: measured with hooks") for note in comparison.notes)
    assert comparison.notes[-1] == "Plot: f"
    pointed = comparison.model_copy(update={"points_figure": "g"})
    assert pointed.notes[-2:] == ["Plot: f", "Operating points: g"]
    clean = comparison.model_copy(update={"arms": rows[:2]})
    assert not any(note.startswith("*") for note in clean.notes)


def test_work_behind_a_patch_is_counted_once_per_artifact(tmp_path: Path) -> None:
    """Two artifacts rest on the same one; weights are outside the store."""
    artifacts = ArtifactStore(str(tmp_path))

    def make(kind: str, *inputs: ArtifactReference) -> ArtifactReference:
        def work(workspace: Workspace) -> None:
            workspace.write_json("a.json", {})

        settings = {"request": {"max_perplexity_increase": 0.05}} if kind == "patch" else {}
        result = artifacts.produce(
            kind, step_version=1, settings=settings, inputs=inputs, work=work
        )
        return result.reference

    weights = ArtifactReference(kind="weights", fingerprint="outside")
    common = make("model", weights)
    patch = make("patch", make("components", common), make("head_states", common), common)
    kinds = ("model", "components", "head_states")
    manifests = {manifest.kind: manifest for manifest in artifacts.list_manifests()}
    found = describe_build(artifacts, patch)
    expected = sum(manifests[kind].elapsed_seconds for kind in kinds)
    assert found.evidence_seconds == pytest.approx(expected)
