"""One row per arm: what it brings, what it costs, what it took to build it.

Reads an evaluation's long table and the manifests of patches; writes `comparison.parquet`
(`schemas.COMPARISONS`), `chart.png` and, of several operating points, `operating_points.png`.
Metrics are computed in `comparison.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eigenshift.base import schemas
from eigenshift.base.arms import describe_point, find_intervention, find_point
from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import INTERVAL_METRICS, POINT_METRICS
from eigenshift.charts.arm_charts import chart_comparison, chart_operating_points
from eigenshift.charts.rendering import render_png
from eigenshift.charts.run_charts import Chart
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.evaluation.stages import (
    CHART_NAME,
    POINTS_CHART_NAME,
    TabulationInputs,
    TabulationKey,
)
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference, Manifest
from eigenshift.store.workspace import Workspace


@dataclass(frozen=True)
class Built:
    """How an arm's patch came about.

    Attributes:
        facts: Of the patch's manifest.
        evidence_seconds: Work behind all that the patch was built from.
        request: What was asked for.
    """

    facts: Mapping[str, Any]
    evidence_seconds: float
    request: Mapping[str, Any]


def tabulate_arms(
    arms: Sequence[str],
    evaluations: Sequence[Mapping[str, Any]],
    built: Mapping[str, Built],
    workspace: Workspace,
) -> None:
    """Write the table and its charts.

    Args:
        arms: In the order they are to be shown.
        evaluations: `schemas.EVALUATIONS` rows.
        built: Arm -> its patch; the base has none.
        workspace: Receives the files.
    """
    table = MetricTable(evaluations)
    rows = [_describe_arm(arm, table, built.get(arm)) for arm in arms]
    workspace.write_rows(tables.COMPARISONS.file, rows, schemas.COMPARISONS)
    shown = [row for row in rows if not find_point(row["arm"])]
    workspace.path(CHART_NAME).write_bytes(render_png(chart_comparison(shown)))
    if (chart := chart_points(rows)) is not None:
        workspace.path(POINTS_CHART_NAME).write_bytes(render_png(chart))
    workspace.facts = {"arms": list(arms)}


def chart_points(rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The chart of all operating points, None where every arm is of the run's own budget.

    An arm of another name than its intervention's is at no point and left out: the paper's number
    of components and the search's best have a strength of their own.

    Args:
        rows: `schemas.COMPARISONS` rows, in any order.
    """
    points: dict[str, list[Mapping[str, Any]]] = {"": []}
    for row in rows:
        if find_intervention(row["arm"]) == row.get("intervention"):  # the base has none
            points.setdefault(find_point(row["arm"]), []).append(row)
    # Whoever is built for further points keeps to the run's budget at its own.
    tuned = {row["intervention"] for point, found in points.items() if point for row in found}
    own_budget = next((row["budget"] for row in points[""] if row["intervention"] in tuned), None)
    return chart_operating_points(
        [
            (describe_point(point, own_budget), points[point])
            for point in sorted(points, key=_rank_point)
        ]
    )


def _rank_point(point: str) -> tuple[bool, bool, float]:
    """The run's own budget, further ones from the largest down, then divergences likewise."""
    is_divergence = point.startswith("kl")
    return bool(point), is_divergence, -float(point.removeprefix("kl") or 0.0)


def _describe_arm(arm: str, table: MetricTable, built: Built | None) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm}
    for metric in INTERVAL_METRICS:
        found = table.get(arm, metric) or {}
        row |= {
            metric: found.get("value"),
            f"{metric}_low": found.get("low"),
            f"{metric}_high": found.get("high"),
        }
    for metric in POINT_METRICS:
        row[metric] = (table.get(arm, metric) or {}).get("value")
    if built is not None:
        names = ("intervention", "n_components", "n_units", "factor", "obstacle")
        row |= {name: built.facts.get(name) for name in names}
        row |= {name: built.facts.get(name) for name in ("build_seconds", "build_peak_bytes")}
        row["evidence_seconds"] = built.evidence_seconds
        row["budget"] = built.request.get("max_perplexity_increase")
        row["divergence"] = built.request.get("divergence")
    row["is_hooked_only"] = row.get("obstacle") is not None
    return row


def describe_build(artifacts: ArtifactStore, patch: ArtifactReference) -> Built:
    """Facts of a patch, and the seconds of the work it rests on, each artifact once."""
    manifest = artifacts.open(patch).manifest
    seen: dict[tuple[str, str], Manifest] = {}
    waiting = list(manifest.inputs)
    while waiting:
        item = waiting.pop()
        key = (item.kind, item.fingerprint)
        if key in seen or item.is_outside:
            continue
        reference = ArtifactReference(kind=item.kind, fingerprint=item.fingerprint)
        try:
            seen[key] = artifacts.open(reference).manifest
        except ArtifactError:  # collected as garbage since: what is known is counted
            continue
        waiting += seen[key].inputs
    seconds = sum(found.elapsed_seconds for found in seen.values())
    return Built(manifest.facts, seconds, manifest.settings["request"])


def carry_out(
    inputs: TabulationInputs, key: TabulationKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `tabulate_arms`."""
    artifacts = bench.artifacts
    built = {
        arm: describe_build(artifacts, patch)
        for arm, patch in inputs.patches.items()
        if patch is not None
    }
    rows = artifacts.read_shards([inputs.evaluation], tables.EVALUATIONS.file).to_pylist()
    tabulate_arms(key.arms, rows, built, workspace)
