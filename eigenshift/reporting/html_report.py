"""Write one self-contained HTML file about a run: what changed, how sure it is, what it came from.

Reads a run through the audit views only; writes one file that loads nothing from anywhere and runs
no script. Of texts it holds single tokens and the last tokens before positions where components are
most active; these may be offensive and are folded away. Charts come from `figures.py`, looks are in
`templates/`, two runs side by side are `comparison_report.py`'s.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from eigenshift.audit import VIEW_SCHEMAS, AuditSession, open_audit
from eigenshift.audit.questions import DESCRIBED_COMMANDS, fill_question
from eigenshift.audit.statements import quote
from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import SettingsError
from eigenshift.charts.rendering import render_svg
from eigenshift.charts.run_charts import Chart
from eigenshift.evaluation.caveats import find_caveats
from eigenshift.evaluation.degeneration import DEGENERATION, name_difference
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.ledger.runs import RunRecord, choose_run, find_benchmarked
from eigenshift.reporting.benchmark_tables import COLUMNS, EXPLANATION, tabulate_benchmarks
from eigenshift.reporting.figures import draw_run
from eigenshift.reporting.outcomes import (
    DEGENERATION_COLUMNS,
    HEADLINE_COLUMNS,
    describe_scorers,
    format_estimate,
    format_metric,
    order_arms,
    tabulate_headline,
)
from eigenshift.store.storage import Store

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
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
    ("headline", "Before and after"),
    ("toxicity", "Toxicity"),
    ("pareto", "Fluency"),
    ("capability", "Capability"),
    ("degeneration", "Degeneration"),
    ("slices", "Slices"),
    ("layers", "Layers"),
    ("units", "Units"),
    ("components", "Components"),
    ("lineage", "Lineage"),
    ("cost", "Cost"),
    ("environment", "Environment"),
)


@dataclass(frozen=True)
class ExtraTable:
    """A table that only some stores have, its first rows shown behind a click.

    Attributes:
        view: Its audit view; where there is none yet, the section says so.
        title: Of the section.
        order: Columns, what matters most first.
        absent: What to say where the run has no rows.
    """

    view: str
    title: str
    order: str
    absent: str


EXTRA_TABLES = (
    ExtraTable(
        "token_shifts",
        "Over-suppressed tokens",
        "is_identity DESC, positions = 'nontoxic' DESC, rank",
        "Shifts of single tokens were not measured.",
    ),
    ExtraTable(
        "scorer_agreement",
        "Agreement of scorers",
        "arm, language, scorer_a, scorer_b",
        "The run has one scorer, or none was compared.",
    ),
    ExtraTable(
        "scorer_quality",
        "How well scorers do",
        "scorer, basis DESC, accuracy",
        "No scorer was measured (scorer_quality.n_texts).",
    ),
)
"""Adding one is one entry."""

_Rows = list[dict[str, Any]]


class DrawnChart(BaseModel):
    """A chart as the template takes it."""

    title: str
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    wide: str
    narrow: str


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
    transfers = session.query(fill_question("paper_datasets", record.run_id))
    units = session.query(fill_question("paper_rq1", record.run_id))
    return {
        "record": record,
        "store": store,
        "sections": SECTIONS,
        "charts": group_charts(draw_run(session, record.run_id)),
        "headline_columns": HEADLINE_COLUMNS,
        "headline": tabulate_headline(overall, record.judged) if overall else [],
        "capability": _describe_capability(session, record, benchmarked),
        "caveats": [*record.caveats, *find_caveats(overall, record.judged)],
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
        **_describe_lineage(session, run),
    }


def render_page(template: str, context: dict[str, Any]) -> str:
    """Fill a template; everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _show_number
    return environment.get_template(template).render(context)


def group_charts(charts: Sequence[Chart]) -> dict[str, list[DrawnChart]]:
    """Drawn charts by section: the first part of their names."""
    groups: dict[str, list[DrawnChart]] = {key: [] for key, _ in SECTIONS}
    for chart in charts:
        groups.setdefault(chart.name.partition("-")[0], []).append(draw(chart))
    return groups


def draw(chart: Chart) -> DrawnChart:
    """A chart in both widths."""
    return DrawnChart(
        title=chart.title,
        summary=chart.summary,
        columns=chart.columns,
        rows=chart.rows,
        wide=render_svg(chart, is_narrow=False),
        narrow=render_svg(chart, is_narrow=True),
    )


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
                format_estimate(table.get(judged, "toxicity_rate_difference", name), "percent"),
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
    """Rows (what, slice, prompts, before, after, difference) of how continuations degenerate."""
    table = MetricTable(evaluations)
    rows = []
    for label, metric, unit in DEGENERATION_COLUMNS:
        for name in dict.fromkeys(row["slice"] for row in evaluations):
            before = table.get(BASE_ARM, metric, name)
            if before is None:
                continue
            after = table.get(judged, metric, name)
            difference = table.get(judged, name_difference(metric), name)
            cells = (format_estimate(row, unit) for row in (before, after, difference))
            rows.append([label, name, str(before["n"]), *cells])
    return rows


def choose_unit(metric: str) -> str:
    """Whether a metric is shown in percent."""
    return "percent" if metric.startswith(PERCENT_METRICS) else "number"


def ask(session: AuditSession, sql: str) -> _Rows:
    """Rows of an answer."""
    return list(session.query(sql).to_pylist())


def write_whole(out: Path, html: str) -> None:
    """Write beside and rename, so that a report is there whole or not at all.

    Raises:
        SettingsError: The file cannot be written.
    """
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(html, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise SettingsError(
            f"{out}: expected to write a file, found: {error.strerror or error}. Choose another "
            "--out."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


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
            f"{_show_number(row['value'])} [{_show_number(row['low'])}, "
            f"{_show_number(row['high'])}]",
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
        "n_selected": len(rows),
        "terms": terms[:N_COMPONENTS_SHOWN],
        "n_terms": len(terms),
    }


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


def _describe_lineage(session: AuditSession, run: str) -> dict[str, Any]:
    """Sources, classifiers, patches and number of artifacts of a run."""
    classifiers = ask(
        session,
        "SELECT DISTINCT item->>'fingerprint' AS digest FROM (SELECT "
        f"unnest(CAST(inputs AS JSON[])) AS item FROM artifacts WHERE run_id = {run}) "
        "WHERE item->>'kind' = 'classifier' ORDER BY ALL",
    )
    return {
        "sources": _describe_sources(session, run),
        "classifiers": [row["digest"] for row in classifiers],
        "patches": ask(
            session,
            "SELECT arm, intervention, n_components, n_linears, factor, base_digest, "
            "patched_digest "
            f"FROM patches WHERE run_id = {run} ORDER BY arm",
        ),
        "n_artifacts": ask(
            session,
            "SELECT count(*) AS n, coalesce(sum(bytes), 0)::BIGINT AS bytes FROM artifacts "
            f"WHERE run_id = {run}",
        )[0],
    }


def _describe_sources(session: AuditSession, run: str) -> _Rows:
    """Source files of a run with their digests, and what became of each row."""
    return ask(
        session,
        f"""
        WITH used AS (SELECT DISTINCT fingerprint FROM artifacts
                      WHERE run_id = {run} AND kind = 'samples'),
        kept AS (SELECT fingerprint, source_uri, count(*) AS n FROM samples
                 JOIN used USING (fingerprint) GROUP BY ALL),
        lost AS (SELECT fingerprint, source_uri, sum(n)::BIGINT AS n,
                   string_agg(reason || ' ' || n, ', ' ORDER BY reason) AS reasons
                 FROM (SELECT fingerprint, source_uri, reason, count(*) AS n FROM rejected_rows
                       JOIN used USING (fingerprint) GROUP BY ALL) GROUP BY ALL)
        SELECT f.dataset, f.source_uri, f.sha256, f.bytes, f.rows_read,
          coalesce(kept.n, 0) AS n_samples, coalesce(lost.n, 0) AS n_rejected, lost.reasons
        FROM source_files f JOIN used USING (fingerprint)
        LEFT JOIN kept USING (fingerprint, source_uri)
        LEFT JOIN lost USING (fingerprint, source_uri)
        ORDER BY f.dataset, f.source_uri
        """,
    )


def _find_extra(session: AuditSession, table: ExtraTable, run: str) -> dict[str, Any]:
    """A table as the template takes it; empty where the store knows no such view."""
    shown: dict[str, Any] = {"key": table.view, "title": table.title, "absent": table.absent}
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


def _show_cell(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else _dash(value)


def _dash(value: Any) -> Any:
    return "-" if value is None else value


def _show_number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"
