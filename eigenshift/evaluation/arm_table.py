"""One row per arm: what it brings, what it costs, what it took to build it.

Reads an evaluation's long table and the manifests of patches; writes `comparison.parquet`
(`schemas.COMPARISONS`) and `chart.png`. Metrics are computed in `comparison.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eigenshift import schemas
from eigenshift.arm_charts import chart_comparison
from eigenshift.artifacts import ArtifactStore, Workspace
from eigenshift.errors import ArtifactError
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.figures import render_png
from eigenshift.manifests import ArtifactReference, Manifest
from eigenshift.schemas import INTERVAL_METRICS, POINT_METRICS
from eigenshift.verification import OUTSIDE_KINDS

STEP_VERSION = 1


@dataclass(frozen=True)
class Built:
    """How an arm's patch came about.

    Attributes:
        facts: Of the patch's manifest.
        evidence_seconds: Work behind all that the patch was built from.
    """

    facts: Mapping[str, Any]
    evidence_seconds: float


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
    workspace.write_rows("comparison.parquet", rows, schemas.COMPARISONS)
    workspace.path("chart.png").write_bytes(render_png(chart_comparison(rows)))
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
        if key in seen or item.kind in OUTSIDE_KINDS:
            continue
        reference = ArtifactReference(kind=item.kind, fingerprint=item.fingerprint)
        try:
            seen[key] = artifacts.open(reference).manifest
        except ArtifactError:  # collected as garbage since: what is known is counted
            continue
        waiting += seen[key].inputs
    return Built(manifest.facts, sum(found.elapsed_seconds for found in seen.values()))
