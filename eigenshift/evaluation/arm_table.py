"""One row per arm: what it brings, what it costs, what it took to build it.

Reads an evaluation's long table and the manifests of patches; writes `comparison.parquet`
(`schemas.COMPARISONS`) and `chart.png`. Metrics are computed in `comparison.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eigenshift.base import schemas
from eigenshift.base.arms import find_point
from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import INTERVAL_METRICS, POINT_METRICS
from eigenshift.charts.arm_charts import chart_comparison
from eigenshift.charts.rendering import render_png
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.evaluation.stages import CHART_NAME, TabulationInputs, TabulationKey
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
    """Write the table and its chart.

    Args:
        arms: In the order they are to be shown.
        evaluations: `schemas.EVALUATIONS` rows.
        built: Arm -> its patch; the base has none.
        workspace: Receives both files.
    """
    table = MetricTable(evaluations)
    rows = [_describe_arm(arm, table, built.get(arm)) for arm in arms]
    workspace.write_rows(tables.COMPARISONS.file, rows, schemas.COMPARISONS)
    shown = [row for row in rows if not find_point(row["arm"])]  # one point of each is readable
    workspace.path(CHART_NAME).write_bytes(render_png(chart_comparison(shown)))
    workspace.facts = {"arms": list(arms)}


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
