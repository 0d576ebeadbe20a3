"""Write one self-contained HTML file about a run: what changed, how sure it is, what it came from.

Reads a run through the audit views only; writes one file that loads nothing from anywhere. Holds no
sample text; tokens of components, which may be offensive, are folded away. Looks are in
`templates/report.html.j2`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eigenshift.audit import AuditSession, open_audit
from eigenshift.errors import SettingsError
from eigenshift.evaluation.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.questions import DESCRIBED_COMMANDS, fill_question
from eigenshift.reporting import HEADLINE_COLUMNS, format_estimate, tabulate_headline
from eigenshift.runs import RunRecord, choose_run
from eigenshift.storage import Store

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
TEMPLATE_NAME = "report.html.j2"
N_BINS = 20
N_COMPONENTS_SHOWN = 32
ARM_ORDER = (BASE_ARM, PATCHED_ARM, RANDOM_ARM, AGAIN_ARM)
PERCENT_METRICS = (
    "toxicity_rate",
    "toxicity_reduction",
    "any_toxic_share",
    "perplexity_change",
    "changed_argmax_share",
    "unscored_share",
    "distinct_",
    "tph",
)
"""Beginnings of the names of metrics shown in percent."""

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
    with open_audit(store_url) as session:
        html = render_report(gather_report(session, record, store.root))
    _write_whole(out, html)
    return record.run_id


def gather_report(session: AuditSession, record: RunRecord, store: str) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    run = _quote(record.run_id)
    evaluations = _ask(
        session,
        f"SELECT arm, scorer, metric, slice, value, low, high, n FROM evaluations "
        f"WHERE run_id = {run}",
    )
    overall = [row for row in evaluations if row["slice"] == ALL_SLICE]
    return {
        "record": record,
        "store": store,
        "headline_columns": HEADLINE_COLUMNS,
        "headline": tabulate_headline(overall) if overall else [],
        "histogram": _describe_histogram(session, run),
        "slices": tabulate_slices(evaluations),
        "metrics": _tabulate_metrics(overall),
        "units": _ask(session, fill_question("paper_rq1", record.run_id)),
        "layers": _ask(session, fill_question("paper_rq2", record.run_id)),
        "transfers": _ask(session, fill_question("paper_datasets", record.run_id)),
        "stability": _ask(
            session,
            "SELECT dataset, site, pooling, layer, metric, value, low, high, top_k "
            f"FROM neuron_stability WHERE run_id = {run} "
            "AND metric IN ('top_overlap', 'rank_correlation') "
            "ORDER BY dataset, site, pooling, layer, metric",
        ),
        "components": _ask(
            session,
            "SELECT component_index, sigma, effect_size, auroc, logit_gain, q_value, factor, "
            f"tokens_up, tokens_down FROM components WHERE run_id = {run} AND is_selected "
            f"ORDER BY rank LIMIT {N_COMPONENTS_SHOWN}",
        ),
        "n_selected": _ask(
            session,
            f"SELECT count(*) FILTER (is_selected) AS n, count(*) AS total FROM components "
            f"WHERE run_id = {run}",
        )[0],
        "patches": _ask(
            session,
            "SELECT arm, intervention, n_components, factor, base_digest, patched_digest "
            f"FROM patches WHERE run_id = {run} ORDER BY arm",
        ),
        "sources": _describe_sources(session, run),
        "outside": _ask(
            session,
            "SELECT DISTINCT item->>'kind' AS kind, item->>'fingerprint' AS digest FROM (SELECT "
            "unnest(CAST(inputs AS JSON[])) AS item FROM artifacts "
            f"WHERE run_id = {run}) WHERE kind IN ('weights', 'classifier') ORDER BY ALL",
        ),
        "n_artifacts": _ask(
            session,
            "SELECT count(*) AS n, coalesce(sum(bytes), 0)::BIGINT AS bytes FROM artifacts "
            f"WHERE run_id = {run}",
        )[0],
    }


def render_report(context: dict[str, Any]) -> str:
    """Fill the template; everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _show_number
    return environment.get_template(TEMPLATE_NAME).render(context)


def tabulate_slices(evaluations: Sequence[dict[str, Any]]) -> list[list[str]]:
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
                format_estimate(table.get(PATCHED_ARM, "toxicity_rate", name), "percent"),
                format_estimate(
                    table.get(PATCHED_ARM, "toxicity_rate_difference", name), "percent"
                ),
            ]
        )
    return rows


def _tabulate_metrics(rows: _Rows) -> dict[str, Any]:
    """Every metric of every arm."""
    found = {row["arm"] for row in rows}
    arms = [arm for arm in ARM_ORDER if arm in found] + sorted(found - set(ARM_ORDER))
    table = MetricTable(rows)
    return {
        "arms": arms,
        "rows": [
            [
                metric,
                *(format_estimate(table.get(arm, metric), _choose_unit(metric)) for arm in arms),
            ]
            for metric in dict.fromkeys(row["metric"] for row in rows)
        ],
    }


def _choose_unit(metric: str) -> str:
    return "percent" if metric.startswith(PERCENT_METRICS) else "number"


def _describe_histogram(session: AuditSession, run: str) -> dict[str, Any]:
    """Shares of the evaluation continuations by toxicity probability, before and after."""
    rows = _ask(
        session,
        f"SELECT arm, least(floor(toxicity_probability * {N_BINS})::INT, {N_BINS - 1}) AS bin, "
        f"count(*) AS n FROM generations WHERE run_id = {run} AND part = 'evaluation' "
        f"AND status = 'scored' AND arm IN ('{BASE_ARM}', '{PATCHED_ARM}') GROUP BY ALL",
    )
    totals = {
        arm: sum(row["n"] for row in rows if row["arm"] == arm) for arm in (BASE_ARM, PATCHED_ARM)
    }
    counts = {(row["arm"], row["bin"]): row["n"] for row in rows}
    bins = [
        {
            "low": number / N_BINS,
            "high": (number + 1) / N_BINS,
            "before": _divide(counts.get((BASE_ARM, number), 0), totals[BASE_ARM]),
            "after": _divide(counts.get((PATCHED_ARM, number), 0), totals[PATCHED_ARM]),
        }
        for number in range(N_BINS)
    ]
    top = max(max(item["before"], item["after"]) for item in bins)
    return {"bins": bins, "top": top, "n_before": totals[BASE_ARM], "n_after": totals[PATCHED_ARM]}


def _describe_sources(session: AuditSession, run: str) -> _Rows:
    """Source files of a run with their digests, and what became of each row."""
    return _ask(
        session,
        f"""
        WITH used AS (SELECT DISTINCT fingerprint FROM artifacts
                      WHERE run_id = {run} AND kind = 'samples'),
        kept AS (SELECT fingerprint, source_uri, count(*) AS n FROM samples GROUP BY ALL),
        lost AS (SELECT fingerprint, source_uri, sum(n)::BIGINT AS n,
                   string_agg(reason || ' ' || n, ', ' ORDER BY reason) AS reasons
                 FROM (SELECT fingerprint, source_uri, reason, count(*) AS n FROM rejected_rows
                       GROUP BY ALL) GROUP BY ALL)
        SELECT f.dataset, f.source_uri, f.sha256, f.bytes, f.rows_read,
          coalesce(kept.n, 0) AS n_samples, coalesce(lost.n, 0) AS n_rejected, lost.reasons
        FROM source_files f JOIN used USING (fingerprint)
        LEFT JOIN kept USING (fingerprint, source_uri)
        LEFT JOIN lost USING (fingerprint, source_uri)
        ORDER BY f.dataset, f.source_uri
        """,
    )


def _ask(session: AuditSession, sql: str) -> _Rows:
    return list(session.query(sql).to_pylist())


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _divide(count: int, total: int) -> float:
    return count / total if total else 0.0


def _show_number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _write_whole(out: Path, html: str) -> None:
    """Write beside and rename, so that a report is there whole or not at all."""
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
