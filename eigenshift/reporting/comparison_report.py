"""Write one self-contained HTML file about two runs side by side: A against B.

Reads both through the audit views only. Nothing here is paired: each number keeps the interval of
its own run, and the page says whether both judged the same prompts. Looks are in
`templates/comparison.html.j2`; one run alone is `html_report.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eigenshift.audit import AuditSession, open_audit
from eigenshift.audit.questions import DESCRIBED_COMMANDS, find_question
from eigenshift.audit.statements import quote
from eigenshift.base.arms import BASE_ARM
from eigenshift.charts.overview_charts import Bounds, chart_overview
from eigenshift.charts.run_charts import N_BINS, chart_toxicity
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.ledger.runs import RunRecord, choose_run
from eigenshift.reporting.figures import list_points
from eigenshift.reporting.html_report import choose_unit, find_quality
from eigenshift.reporting.outcomes import format_metric
from eigenshift.reporting.pages import DrawnChart, ask, draw, render_page, write_whole
from eigenshift.reporting.story import judge_light, tell_difference
from eigenshift.store.storage import Store

TEMPLATE_NAME = "comparison.html.j2"
SECTIONS = (
    ("numbers", "Numbers"),
    ("toxicity", "Toxicity"),
    ("gate", "Gate"),
    ("changes", "What changed"),
    ("components", "Components"),
    ("work", "Work"),
)


def write_comparison_report(
    store_url: str, run_id: str | None, against: str, out: Path
) -> tuple[str, str]:
    """Write the report of two runs.

    Args:
        store_url: Root URL of the store.
        run_id: Run A; by default the latest refresh or detection that ended.
        against: Run B.
        out: HTML file to write, replaced if it is there.

    Returns:
        The ids of A and B.

    Raises:
        SettingsError: There is no such run, or the file cannot be written.
    """
    store = Store(store_url)
    before = choose_run(store, against)
    after = choose_run(store, run_id, DESCRIBED_COMMANDS)
    with open_audit(store_url) as session:
        html = render_page(TEMPLATE_NAME, gather_comparison(session, before, after))
    write_whole(out, html)
    return after.run_id, before.run_id


def gather_comparison(session: AuditSession, before: RunRecord, after: RunRecord) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    pair = {"before": before.run_id, "after": after.run_id}
    judged = [_list_judged(session, record.run_id) for record in (before, after)]
    is_same_generation = before.settings.get("generation") == after.settings.get("generation")
    rows = [_read_overall(session, record) for record in (after, before)]
    return {
        "sections": list(SECTIONS),
        "story": tell_difference((after, rows[0]), (before, rows[1])),
        "lights": [
            (name, judge_light(record, record.caveats))
            for name, record in (("A", after), ("B", before))
        ],
        "overview": _draw_overview(session, before, after),
        "before": before,
        "after": after,
        "numbers": _tabulate_numbers(before, after, rows),
        "quality": [
            f"{name}: {line}"
            for name, record in (("A", after), ("B", before))
            for line in find_quality(session, record.run_id)
        ],
        "is_same_prompts": judged[0] == judged[1] != set() and is_same_generation,
        "toxicity": _draw_toxicity(session, before, after),
        "checks": _tabulate_checks(before, after),
        "changes": [
            tuple("-" if value is None else value for value in row.values())
            for row in ask(session, find_question("changes").fill(pair))
            if row["part"] != "metrics"  # they are above, with their intervals
        ],
        "components": _count_components(session, before.run_id, after.run_id),
        "costs": _tabulate_costs(before, after),
    }


def _read_overall(session: AuditSession, record: RunRecord) -> list[dict[str, Any]]:
    """A run's evaluation over all prompts."""
    return ask(
        session,
        "SELECT arm, metric, slice, value, low, high FROM evaluations WHERE run_id = "
        f"{quote(record.run_id)} AND slice = '{ALL_SLICE}'",
    )


def _draw_overview(session: AuditSession, before: RunRecord, after: RunRecord) -> DrawnChart | None:
    """Base and judged patch of both runs; the budget where both have the same."""
    points = [
        replace(point, name=f"{name} {point.name}")
        for name, record in (("A", after), ("B", before))
        for point in list_points(session, record.run_id, record.judged)
        if point.kind in ("before", "after")
    ]
    budgets = {
        record.settings.get("gate", {}).get("max_perplexity_increase") for record in (before, after)
    }
    bounds = Bounds(cost=budgets.pop()) if len(budgets) == 1 else Bounds()
    chart = chart_overview(points, bounds)
    return None if chart is None else draw(chart)


def _tabulate_numbers(
    before: RunRecord, after: RunRecord, evaluations: Sequence[list[dict[str, Any]]]
) -> list[list[str]]:
    """Rows (arm, metric, A, B, difference) of what both runs measured, base and judged arm."""
    rows = evaluations[0]
    of_a, of_b = map(MetricTable, evaluations)
    shown = []
    for in_a, in_b in ((BASE_ARM, BASE_ARM), (after.judged, before.judged)):
        arm = in_a if in_a == in_b else f"{in_a} / {in_b}"
        for metric in dict.fromkeys(row["metric"] for row in rows if row["arm"] == in_a):
            a, b = of_a.get(in_a, metric), of_b.get(in_b, metric)
            if a is None or b is None or a["value"] is None or b["value"] is None:
                continue
            unit = choose_unit(metric)
            difference = (a["value"] - b["value"]) * (100 if unit == "percent" else 1)
            suffix = " points" if unit == "percent" else ""
            shown.append(
                [
                    arm,
                    metric,
                    format_metric(metric, a, unit),
                    format_metric(metric, b, unit),
                    f"{difference:+.{1 if suffix else 2}f}{suffix}",
                ]
            )
    return shown


def _list_judged(session: AuditSession, run: str) -> set[tuple[str, str]]:
    """Prompts, by artifact and file, that a run's evaluation judged."""
    rows = ask(
        session,
        "SELECT item->>'fingerprint' AS fingerprint, item->>'file' AS file FROM (SELECT "
        "unnest(CAST(inputs AS JSON[])) AS item FROM artifacts WHERE kind = 'evaluation' "
        f"AND run_id = {quote(run)}) WHERE item->>'kind' = 'prompts'",
    )
    return {(row["fingerprint"], row["file"]) for row in rows}


def _draw_toxicity(session: AuditSession, before: RunRecord, after: RunRecord) -> list[Any]:
    """Distributions of the judged arm in both runs, drawn as one chart."""
    is_a, is_b = (
        f"run_id = {quote(run.run_id)} AND arm = {quote(run.judged)}" for run in (after, before)
    )
    rows = ask(
        session,
        f"SELECT least(floor(toxicity_probability * {N_BINS})::INT, {N_BINS - 1}) AS bin, "
        f"count(*) FILTER ({is_b}) AS n_before, count(*) FILTER ({is_a}) AS n_after "
        f"FROM generations WHERE (({is_a}) OR ({is_b})) AND part = 'evaluation' "
        "AND status = 'scored' GROUP BY bin ORDER BY bin",
    )
    chart = chart_toxicity(rows, ("in B", "in A"))
    return [] if chart is None or not sum(row["n_after"] for row in rows) else [draw(chart)]


def _tabulate_checks(before: RunRecord, after: RunRecord) -> list[list[str]]:
    found = [{check["name"]: check for check in record.checks} for record in (after, before)]

    def show(checks: dict[str, Any], name: str) -> str:
        if name not in checks:
            return "-"
        check = checks[name]
        return f"{'passed' if check['is_passed'] else 'failed'}: {check['found']}"

    return [
        [
            name,
            show(found[0], name),
            show(found[1], name),
            found[0].get(name, {}).get("expected", "-"),
        ]
        for name in dict.fromkeys([*found[0], *found[1]])
    ]


def _count_components(session: AuditSession, before: str, after: str) -> dict[str, Any]:
    """Components of the judged patches; a Fisher component is known by where it was found."""
    rows = ask(
        session,
        "SELECT run_id, basis, component_index, CASE basis WHEN 'fisher' THEN fingerprint END "
        "AS found FROM components WHERE is_in_patch AND run_id IN "
        f"({quote(before)}, {quote(after)})",
    )
    chosen = {
        run: {
            (row["basis"], row["found"], row["component_index"])
            for row in rows
            if row["run_id"] == run
        }
        for run in (before, after)
    }
    return {
        "is_fisher": any(row["basis"] == "fisher" for row in rows),
        "both": len(chosen[before] & chosen[after]),
        "only_after": len(chosen[after] - chosen[before]),
        "only_before": len(chosen[before] - chosen[after]),
    }


def _tabulate_costs(before: RunRecord, after: RunRecord) -> list[list[str]]:
    stages = [{stage.name: stage for stage in record.stages} for record in (after, before)]
    return [
        [
            name,
            *(f"{part[name].work_seconds:.1f} s" if name in part else "-" for part in stages),
            *(
                f"{part[name].shards_cached} of {part[name].shards}" if name in part else "-"
                for part in stages
            ),
        ]
        for name in dict.fromkeys([*stages[0], *stages[1]])
    ]
