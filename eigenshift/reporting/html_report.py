"""Write one self-contained HTML file about a run: what happened, how sure it is, what it came from.

Reads a run through the audit views only; writes one file that loads nothing from anywhere and runs
no script. Of texts it holds single tokens and the last tokens before positions where components are
most active; these may be offensive and are folded away. The sentence it opens with is `story.py`'s,
charts come from `figures.py`, where numbers came from is `lineage.py`'s, looks are in `templates/`,
two runs side by side are `comparison_report.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenshift.audit import VIEW_SCHEMAS, AuditSession, open_audit
from eigenshift.audit.questions import DESCRIBED_COMMANDS, fill_question
from eigenshift.audit.statements import quote
from eigenshift.base.arms import BASE_ARM
from eigenshift.charts.run_charts import Chart
from eigenshift.evaluation.caveats import find_caveats, show_points
from eigenshift.evaluation.degeneration import DEGENERATION, name_difference
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.ledger.runs import RunRecord, choose_run, find_benchmarked
from eigenshift.reporting import arm_tables
from eigenshift.reporting.benchmark_tables import COLUMNS, EXPLANATION, tabulate_benchmarks
from eigenshift.reporting.figures import draw_run
from eigenshift.reporting.lineage import describe_lineage
from eigenshift.reporting.outcomes import (
    DEGENERATION_COLUMNS,
    HEADLINE_COLUMNS,
    describe_scorers,
    format_estimate,
    format_metric,
    order_arms,
    tabulate_headline,
)
from eigenshift.reporting.pages import (
    DASH,
    DrawnChart,
    ask,
    draw,
    render_page,
    show_number,
    write_whole,
)
from eigenshift.reporting.story import judge_light, tell_comparison, tell_story
from eigenshift.store.storage import Store

TEMPLATE_NAME = "report.html.j2"
N_COMPONENTS_SHOWN = 32
N_EXTRA_ROWS = 50
PERCENT_METRICS = (
    "toxicity_rate",
    "toxicity_reduction",
    "any_toxic_share",
    "perplexity_change",
    "changed_argmax_share",
    "unscored_share",
    *DEGENERATION,
    "distinct_",
    "tph",
)
"""Beginnings of the names of metrics shown in percent."""

SECTIONS = (
    ("numbers", "The numbers"),
    ("detects", "What detects toxicity"),
    ("generates", "What generates toxicity"),
    ("changed", "What was changed"),
    ("brought", "What it brought"),
    ("cost", "What it cost"),
    ("examples", "Examples"),
    ("lineage", "Where it came from"),
    ("environment", "Work, environment, settings"),
)
"""In the order of the data; those of which a run has nothing are left out."""
PLACES = {
    "toxicity": "brought",
    "slices": "brought",
    "pareto": "cost",
    "layers": "detects",
    "units": "detects",
    "components": "generates",
    "cost": "environment",
}
"""Beginning of a chart's name -> its section."""
LEADS = {"compare": "pareto", "tune": "pareto", "detect": "layers"}
"""Command -> beginning of the name of the chart its report opens with; else the overview."""


@dataclass(frozen=True)
class ExtraTable:
    """A table that only some stores have, its first rows shown behind a click.

    Attributes:
        view: Its audit view; where there is none yet, the section says so.
        title: What it is about.
        section: Where it stands.
        order: Columns, what matters most first.
        absent: What to say where the run has no rows.
    """

    view: str
    title: str
    section: str
    order: str
    absent: str


EXTRA_TABLES = (
    ExtraTable(
        "token_shifts",
        "Over-suppressed tokens",
        "examples",
        "is_identity DESC, positions = 'nontoxic' DESC, rank",
        "Shifts of single tokens were not measured.",
    ),
    ExtraTable(
        "scorer_agreement",
        "Agreement of scorers",
        "brought",
        "arm, language, scorer_a, scorer_b",
        "The run has one scorer, or none was compared.",
    ),
    ExtraTable(
        "scorer_quality",
        "How well scorers do, kind by kind",
        "brought",
        "scorer, basis DESC, accuracy",
        "No scorer was measured (scorer_quality.n_texts).",
    ),
)
"""Adding one is one entry."""

_Rows = list[dict[str, Any]]


def write_html_report(store_url: str, run_id: str | None, out: Path) -> str:
    """Write the report of a run.

    Args:
        store_url: Root URL of the store.
        run_id: Any run; by default the latest refresh or detection that ended.
        out: HTML file to write, replaced if it is there.

    Returns:
        The run's id.

    Raises:
        SettingsError: There is no such run, or the file cannot be written.
    """
    store = Store(store_url)
    record = choose_run(store, run_id, DESCRIBED_COMMANDS)
    benchmarked = find_benchmarked(store, record, record.judged)
    with open_audit(store_url) as session:
        report = gather_report(session, record, benchmarked, store.root)
        html = render_page(TEMPLATE_NAME, report)
    write_whole(out, html)
    return record.run_id


def gather_report(
    session: AuditSession, record: RunRecord, benchmarked: RunRecord | None, store: str
) -> dict[str, Any]:
    """Everything the template shows, as plain values.

    Args:
        session: Over the store.
        record: Of the run.
        benchmarked: Of the run that benchmarked its judged patch, itself or another.
        store: Root URL.
    """
    run = quote(record.run_id)
    evaluations = ask(
        session,
        f"SELECT arm, scorer, metric, slice, value, low, high, n FROM evaluations "
        f"WHERE run_id = {run}",
    )
    overall = [row for row in evaluations if row["slice"] == ALL_SLICE]
    compared = ask(session, f"SELECT * FROM comparisons WHERE run_id = {run} ORDER BY arm")
    transfers = session.query(fill_question("paper_datasets", record.run_id))
    units = session.query(fill_question("paper_rq1", record.run_id))
    charts = draw_run(session, record.run_id)
    drawn = group_charts(charts)
    lead = take_lead(drawn, record.command)
    caveats = [*record.caveats, *find_caveats(overall, record.judged)]
    is_refresh = bool(overall) and not compared
    shown = {
        "record": record,
        "store": store,
        "story": _tell(record, overall, compared, charts),
        "light": judge_light(record, caveats),
        "lead": lead,
        "charts": drawn,
        "headline": _turn(tabulate_headline(overall, record.judged)) if is_refresh else [],
        "arm_headings": arm_tables.HEADINGS,
        "arms": arm_tables.tabulate_arms(compared),
        "arm_notes": arm_tables.explain_arms(compared),
        "capability": _describe_capability(session, record, benchmarked),
        "caveats": caveats,
        "slices": tabulate_slices(evaluations, record.judged),
        "quality": find_quality(session, record.run_id),
        "degeneration": tabulate_degeneration(evaluations, record.judged),
        "confirmation": _tabulate_confirmation(session, run, record.judged),
        "metrics": _tabulate_metrics(overall, record.judged),
        "units": [tuple(row.values()) for row in units.to_pylist()],
        "transfers": [tuple(map(_dash, row.values())) for row in transfers.to_pylist()],
        "stability": _tabulate_stability(session, run),
        "extras": [_find_extra(session, table, run) for table in EXTRA_TABLES],
        **_describe_components(session, record.run_id),
        **describe_lineage(session, record),
    }
    present = _find_present(shown)
    return shown | {
        "sections": [(key, name) for key, name in SECTIONS if key in present],
        "missing": _list_missing(shown),
    }


def _tell(
    record: RunRecord,
    overall: _Rows,
    compared: _Rows,
    charts: Sequence[Chart],
) -> str:
    """The sentence a report opens with."""
    if compared and record.status == "finished":
        budget = record.settings.get("components", {}).get("max_perplexity_increase")
        return tell_comparison(compared, budget)
    telling = LEADS.get(record.command)
    finding = next((c.summary for c in charts if c.name.partition("-")[0] == telling), "")
    return tell_story(record, overall, finding)


def _turn(rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The headline table with a row for each arm: a column has one unit then."""
    columns = [row[0] for row in rows]
    cells = zip(*(row[1:] for row in rows), strict=True)
    return {
        "columns": ["", *columns],
        "rows": [
            [name, *values]
            for name, values in zip(HEADLINE_COLUMNS[1:], cells, strict=True)
            if set(values) != {DASH}
        ],
    }


def _find_present(shown: dict[str, Any]) -> set[str]:
    """Keys of the sections that have something to show."""
    contents = {
        "numbers": [shown["headline"], shown["arms"], shown["record"].checks],
        "detects": [shown["units"], shown["transfers"], shown["stability"]],
        "generates": [shown["components"]],
        "changed": [shown["terms"], shown["patches"]],
        "brought": [shown["slices"], shown["confirmation"]["rows"]],
        "cost": [shown["degeneration"], shown["capability"]["rows"]],
        "examples": [shown["components"], shown["terms"]],
        "lineage": [shown["picture"], shown["sources"]],
        "environment": [True],
    }
    for extra in shown["extras"]:
        contents[extra["section"]].append(extra["rows"])
    for name, drawn in shown["charts"].items():
        if name in PLACES:
            contents[PLACES[name]].append(drawn)
    return {key for key, found in contents.items() if any(found)}


def _list_missing(shown: dict[str, Any]) -> list[str]:
    """What this run does not have, a sentence each: in one place, not in sections of their own."""
    charts = shown["charts"]
    lead = LEADS.get(shown["record"].command) if shown["lead"] else None
    found = (
        (shown["headline"] or shown["arms"], "This run was not evaluated."),
        (charts["toxicity"], "No scored continuations of the evaluation."),
        (
            charts["pareto"] or lead == "pareto",
            "No search of this model is in the store (eigenshift tune).",
        ),
        (
            shown["capability"]["rows"],
            "No benchmark questions were put to it (eigenshift benchmark).",
        ),
        (shown["degeneration"], "How continuations degenerate was not measured."),
        (shown["slices"], "The evaluation has no slices."),
        (charts["layers"] or lead == "layers", "No layers were studied."),
        (charts["units"], "No units were studied."),
        (charts["components"], "No components were scored."),
        *((extra["rows"], extra["absent"]) for extra in shown["extras"]),
        (charts["cost"], "No stage ended."),
        (shown["sources"], "The run read no source files."),
    )
    return [sentence for content, sentence in found if not content]


def group_charts(charts: Sequence[Chart]) -> dict[str, list[DrawnChart]]:
    """Drawn charts by the first part of their names."""
    groups: dict[str, list[DrawnChart]] = {"overview": [], **{name: [] for name in PLACES}}
    for chart in charts:
        groups[chart.name.partition("-")[0]].append(draw(chart))
    return groups


def take_lead(drawn: dict[str, list[DrawnChart]], command: str) -> DrawnChart | None:
    """Take the chart that a report opens with out of its group; None where there is none."""
    group = drawn[LEADS.get(command, "overview")]
    return group.pop(0) if group else None


def tabulate_slices(evaluations: Sequence[dict[str, Any]], judged: str) -> list[list[str]]:
    """Rows (slice, prompts, before, after, difference) of the toxicity rate."""
    table = MetricTable(evaluations)
    rows = []
    for name in dict.fromkeys(row["slice"] for row in evaluations):
        before = table.get(BASE_ARM, "toxicity_rate", name)
        if name == ALL_SLICE or before is None:
            continue
        rows.append(
            [
                name,
                str(before["n"]),
                format_estimate(before, "percent"),
                format_estimate(table.get(judged, "toxicity_rate", name), "percent"),
                _show_points(table.get(judged, "toxicity_rate_difference", name)),
            ]
        )
    return rows


def find_quality(session: AuditSession, run_id: str) -> list[str]:
    """What is said beside a toxicity rate: how well the scorers do; none where not measured."""
    return describe_scorers(
        ask(
            session,
            f"SELECT * FROM scorer_quality WHERE run_id = {quote(run_id)} "
            "ORDER BY scorer, basis DESC, subject, language",
        )
    )


def tabulate_degeneration(evaluations: Sequence[dict[str, Any]], judged: str) -> list[list[str]]:
    """Rows (what, slice, prompts, before, after, difference) of how continuations degenerate.

    Those over all prompts first.
    """
    table = MetricTable(evaluations)
    rows = []
    for label, metric, unit in DEGENERATION_COLUMNS:
        for name in dict.fromkeys(row["slice"] for row in evaluations):
            before = table.get(BASE_ARM, metric, name)
            if before is None:
                continue
            after = table.get(judged, metric, name)
            difference = table.get(judged, name_difference(metric), name)
            cells = (
                *(format_estimate(row, unit) for row in (before, after)),
                _show_points(difference),
            )
            rows.append([label, name, str(before["n"]), *cells])
    return sorted(rows, key=lambda row: row[1] != ALL_SLICE)


def choose_unit(metric: str) -> str:
    """Whether a metric is shown in percent."""
    return "percent" if metric.startswith(PERCENT_METRICS) else "number"


def _tabulate_metrics(rows: _Rows, judged: str) -> dict[str, Any]:
    """Every metric of every arm."""
    found = {row["arm"] for row in rows}
    order = order_arms(judged)
    arms = [arm for arm in order if arm in found] + sorted(found - set(order))
    table = MetricTable(rows)
    return {
        "arms": arms,
        "rows": [
            [
                metric,
                *(
                    format_metric(metric, table.get(arm, metric), choose_unit(metric))
                    for arm in arms
                ),
            ]
            for metric in dict.fromkeys(row["metric"] for row in rows)
        ],
    }


def _tabulate_confirmation(session: AuditSession, run: str, judged: str) -> dict[str, Any]:
    """What long continuations show, before and after; no rows where there are none."""
    found = ask(
        session,
        "SELECT arm, metric, slice, n_tokens, value, low, high, n FROM confirmations "
        f"WHERE run_id = {run} AND slice = '{ALL_SLICE}'",
    )
    table = MetricTable(found)
    rows = []
    for metric in dict.fromkeys(row["metric"] for row in found):
        cells = (
            format_estimate(table.get(arm, metric), choose_unit(metric))
            for arm in (BASE_ARM, judged)
        )
        rows.append([metric, *cells])
    return {"rows": rows, "n_tokens": found[0]["n_tokens"] if found else None}


def _tabulate_stability(session: AuditSession, run: str) -> list[tuple[Any, ...]]:
    rows = ask(
        session,
        "SELECT dataset, site, pooling, layer, metric, value, low, high, top_k "
        f"FROM neuron_stability WHERE run_id = {run} "
        "AND metric IN ('top_overlap', 'rank_correlation') "
        "ORDER BY dataset, site, pooling, layer, metric",
    )
    return [
        (
            row["dataset"],
            f"{row['site']} ({row['pooling']})",
            row["layer"],
            f"top {row['top_k']} units kept"
            if row["metric"] == "top_overlap"
            else "rank correlation",
            f"{show_number(row['value'])} [{show_number(row['low'])}, {show_number(row['high'])}]",
        )
        for row in rows
    ]


def _describe_components(session: AuditSession, run_id: str) -> dict[str, Any]:
    rows = ask(session, fill_question("damped_components", run_id))
    found = ask(session, fill_question("fisher_components", run_id))
    terms = [row for row in found if row["is_in_patch"]]
    return {
        "is_damped": any(row["is_in_patch"] for row in rows),
        "components": rows[:N_COMPONENTS_SHOWN],
        "component_rows": [_show_component(row) for row in rows[:N_COMPONENTS_SHOWN]],
        "n_selected": len(rows),
        "terms": terms[:N_COMPONENTS_SHOWN],
        "term_rows": [_show_term(row) for row in terms[:N_COMPONENTS_SHOWN]],
        "n_terms": len(terms),
    }


def _show_component(row: dict[str, Any]) -> list[str]:
    return [
        str(row["component_index"]),
        show_number(row["sigma"], 2),
        show_number(row["effect_size"], 2),
        show_number(row["auroc"]),
        show_number(row["logit_gain"]),
        show_number(row["inclusion_frequency"], 2),
        show_number(row["factor"], 2),
    ]


def _show_term(row: dict[str, Any]) -> list[str]:
    benefit, low, high = (_show_cell(row[f"benefit{end}"]) for end in ("", "_low", "_high"))
    return [
        str(row["component_index"]),
        row["module"],
        f"{benefit} [{low}, {high}]",
        _show_cell(row["cost"]),
        show_number(row["inclusion_frequency"], 2),
    ]


def _describe_capability(
    session: AuditSession, record: RunRecord, benchmarked: RunRecord | None
) -> dict[str, Any]:
    rows = (
        ask(session, f"SELECT * FROM benchmarks WHERE run_id = {quote(benchmarked.run_id)}")
        if benchmarked is not None
        else []
    )
    return {
        "columns": COLUMNS,
        "rows": tabulate_benchmarks(rows, record.judged),
        "explanation": EXPLANATION,
        "run_id": None if benchmarked is None else benchmarked.run_id,
    }


def _find_extra(session: AuditSession, table: ExtraTable, run: str) -> dict[str, Any]:
    """A table as the template takes it; empty where the store knows no such view."""
    shown: dict[str, Any] = {"key": table.view, "title": table.title, "absent": table.absent}
    shown["section"] = table.section
    schema = VIEW_SCHEMAS.get(table.view)
    if schema is None:
        return shown | {"columns": (), "rows": [], "n_rows": 0}
    columns = [name for name in schema.names if name not in ("run_id", "fingerprint")]
    names = ", ".join(columns)
    found = f"FROM {table.view} WHERE run_id = {run}"
    rows = ask(session, f"SELECT {names} {found} ORDER BY {table.order} LIMIT {N_EXTRA_ROWS}")
    return shown | {
        "columns": columns,
        "rows": [tuple(map(_show_cell, row.values())) for row in rows],
        "n_rows": ask(session, f"SELECT count(*) AS n {found}")[0]["n"],
    }


def _show_points(row: Mapping[str, Any] | None) -> str:
    return DASH if row is None or row["value"] is None else show_points(row)


def _show_cell(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else _dash(value)


def _dash(value: Any) -> Any:
    return DASH if value is None else value
