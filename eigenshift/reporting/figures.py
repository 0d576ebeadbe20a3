"""Figures of a run: rows from the audit, drawn by `charts/`.

Reads a store through the audit; writes PNG files where asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from eigenshift.audit import AuditSession, open_audit
from eigenshift.audit.statements import quote
from eigenshift.base.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM, SUPPRESSION_ARM
from eigenshift.base.errors import SettingsError
from eigenshift.charts.arm_charts import OURS, chart_trials
from eigenshift.charts.overview_charts import (
    ArmPoint,
    Bounds,
    Kind,
    chart_arms,
    chart_overview,
)
from eigenshift.charts.rendering import render_png
from eigenshift.charts.run_charts import (
    N_BINS,
    Chart,
    chart_components,
    chart_cost,
    chart_layers,
    chart_slices,
    chart_toxicity,
    chart_units,
)
from eigenshift.evaluation.arm_table import chart_points
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.reporting.outcomes import OUTCOME_COLUMNS, order_arms

CONTROLS = (
    *(AGAIN_ARM, RANDOM_ARM, SUPPRESSION_ARM, "token_suppression_bias"),
    *("random_directions", "label_permuted", "top_sigma"),
)
"""Arms that show what chance, or something simpler, does."""
N_PEERS = 5
"""Published methods beside a run's own arms: the least toxic within the budget."""
SAME_RATE = 1e-9
"""Rates of the base no further apart are those of the same continuations."""


def render_run_figures(store_url: str, run_id: str) -> dict[str, bytes]:
    """Every figure of a run as PNG, by name; those whose data the run does not have are left out.

    Args:
        store_url: Root URL of the store.
        run_id: Any run.
    """
    with open_audit(store_url) as session:
        return {chart.name: render_png(chart) for chart in draw_run(session, run_id)}


def write_run_figures(store_url: str, run_id: str, folder: Path) -> list[Path]:
    """Write every figure of a run as PNG into a folder; returns the files.

    Raises:
        SettingsError: The folder cannot be written.
    """
    rendered = render_run_figures(store_url, run_id)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in rendered.items():
            path = folder / f"{name}.png"
            path.write_bytes(data)
            paths.append(path)
    except OSError as error:
        raise SettingsError(
            f"{folder}: expected to write files, found: {error.strerror or error}. Choose another "
            "--figures."
        ) from error
    return paths


def draw_run(session: AuditSession, run_id: str) -> list[Chart]:
    """Every chart a run has data for, in the order of the report."""
    charts: list[Chart | None] = [
        find_overview(session, run_id),
        find_toxicity(session, run_id),
        find_arms(session, run_id),
        find_points(session, run_id),
        *find_layers(session, run_id),
        *find_units(session, run_id),
        find_components(session, run_id),
        find_slices(session, run_id),
        find_cost(session, run_id),
    ]
    return [chart for chart in charts if chart is not None]


def find_overview(session: AuditSession, run_id: str) -> Chart | None:
    """What a refresh's patch brings and costs, beside its controls and published methods.

    The latter are of the latest comparison of the same model that judged the same continuations
    of the base: they are left out where there is none.
    """
    runs = session.query(
        "SELECT command, judged, model_digest, "
        "CAST(settings->'$.gate.max_perplexity_increase' AS DOUBLE) AS cost, "
        "CAST(settings->'$.gate.min_toxicity_reduction' AS DOUBLE) AS reduction "
        f"FROM runs WHERE run_id = {quote(run_id)}"
    ).to_pylist()
    if not runs or runs[0]["command"] == "compare":
        return None
    run = runs[0]
    points = list_points(session, run_id, run["judged"])
    if not points or points[0].kind != "before":
        return None
    base_rate = points[0].rate["value"]
    peers, note = _find_peers(session, run_id, run, base_rate)
    least = run["reduction"]
    bounds = Bounds(rate=base_rate * (1 - least) if least else None, cost=run["cost"])
    return chart_overview([*points, *peers], bounds, note)


def list_points(session: AuditSession, run_id: str, judged: str) -> list[ArmPoint]:
    """The arms of a refresh as its first picture shows them, those that were evaluated."""
    table = _read_arms(session, run_id)
    names = dict(zip(order_arms(judged), OUTCOME_COLUMNS, strict=True))
    return [
        ArmPoint(name, _tell_kind(arm, judged), rate, table.get(arm, "perplexity_change"))
        for arm, name in names.items()
        if (rate := table.get(arm, "toxicity_rate")) is not None and rate["value"] is not None
    ]


def _find_peers(
    session: AuditSession, run_id: str, run: dict[str, Any], base_rate: float
) -> tuple[list[ArmPoint], str]:
    """The least toxic published methods within the budget, and where they were measured."""
    compared = session.query(
        "SELECT run_id FROM runs WHERE command = 'compare' AND status = 'finished' "
        f"AND model_digest = {quote(run['model_digest'] or '')} AND run_id <> {quote(run_id)} "
        "ORDER BY run_id DESC LIMIT 1"
    ).to_pylist()
    if not compared:
        return [], ""
    source = compared[0]["run_id"]
    table = _read_arms(session, source)
    base = table.get(BASE_ARM, "toxicity_rate")
    if base is None or base["value"] is None:
        return [], ""
    if abs(base["value"] - base_rate) > SAME_RATE:
        return [], ""
    known = [
        (rate, cost, arm)
        for arm in table.arms
        if "@" not in arm
        and _tell_kind(arm, run["judged"]) == "peer"
        and (rate := table.get(arm, "toxicity_rate")) is not None
        and (cost := table.get(arm, "perplexity_change")) is not None
        and None not in (rate["value"], cost["value"])
    ]
    within = [row for row in known if run["cost"] is None or row[1]["value"] <= run["cost"]]
    shown = sorted(within or known, key=lambda row: float(row[0]["value"]))[:N_PEERS]
    if not shown:
        return [], ""
    points = [ArmPoint(arm.replace("_", " "), "peer", rate, cost) for rate, cost, arm in shown]
    words = "within the budget" if within else "none is within the budget"
    return points, (
        f"Published methods: {len(points)} of {len(known)} that run {source} compared on the same "
        f"prompts, the least toxic first ({words})."
    )


def _read_arms(session: AuditSession, run_id: str) -> MetricTable:
    return MetricTable(
        _ask(
            session,
            "SELECT arm, metric, slice, value, low, high FROM evaluations",
            run_id,
            f"AND slice = '{ALL_SLICE}' AND metric IN ('toxicity_rate', 'perplexity_change') "
            "ORDER BY arm",
        )
    )


def _tell_kind(arm: str, judged: str) -> Kind:
    if arm == BASE_ARM:
        return "before"
    if arm == judged or arm.startswith(OURS):
        return "after"
    return "control" if arm in CONTROLS else "peer"


def find_toxicity(session: AuditSession, run_id: str) -> Chart | None:
    """Distribution over the evaluation's continuations, of the base and the judged arm."""
    judged = find_judged(session, run_id)
    return chart_toxicity(
        _ask(
            session,
            f"SELECT least(floor(toxicity_probability * {N_BINS})::INT, {N_BINS - 1}) AS bin, "
            f"count(*) FILTER (arm = '{BASE_ARM}') AS n_before, "
            f"count(*) FILTER (arm = {quote(judged)}) AS n_after FROM generations",
            run_id,
            f"AND part = 'evaluation' AND status = 'scored' AND arm IN ('{BASE_ARM}', "
            f"{quote(judged)}) GROUP BY bin ORDER BY bin",
        )
    )


def find_judged(session: AuditSession, run_id: str) -> str:
    """Name of the arm whose patch a run's gate judged."""
    rows = session.query(f"SELECT judged FROM runs WHERE run_id = {quote(run_id)}").to_pylist()
    return str(rows[0]["judged"]) if rows else PATCHED_ARM


def find_components(session: AuditSession, run_id: str) -> Chart | None:
    """Effect sizes of the head's singular components, and what became of those chosen."""
    return chart_components(
        _ask(
            session,
            "SELECT component_index, effect_size, is_selected, is_in_patch FROM components",
            run_id,
            "AND basis = 'singular'",
        )
    )


def find_arms(session: AuditSession, run_id: str) -> Chart | None:
    """The Pareto front: of the run, if it searched or compared, else of the latest one that did.

    One counts for a run if it is about the same model.
    """
    source = session.query(
        "SELECT s.run_id, s.command, s.judged, "
        "CAST(s.settings->'$.components.max_perplexity_increase' AS DOUBLE) AS own_budget, "
        "CAST(s.settings->'$.tune.max_perplexity_increase' AS DOUBLE) AS budget "
        "FROM runs r JOIN runs s ON s.command IN ('tune', 'compare') AND (s.run_id = r.run_id "
        "OR (s.status = 'finished' AND s.model_digest = r.model_digest "
        "AND r.command NOT IN ('tune', 'compare'))) "
        f"WHERE r.run_id = {quote(run_id)} ORDER BY s.run_id DESC LIMIT 1"
    ).to_pylist()
    if not source:
        return None
    found = source[0]
    if found["command"] == "tune":
        return _find_trials(session, found["run_id"], found["budget"])
    table = _read_arms(session, found["run_id"])
    rows = [
        {"arm": arm, "kind": _tell_kind(arm, found["judged"])}
        | {
            f"{metric}{end}": (table.get(arm, metric) or {}).get(key)
            for metric in ("toxicity_rate", "perplexity_change")
            for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
        }
        for arm in table.arms
        if "@" not in arm
    ]
    return chart_arms(rows, BASE_ARM, found["run_id"], Bounds(cost=found["own_budget"]))


def find_points(session: AuditSession, run_id: str) -> Chart | None:
    """What a comparison brought at each of its operating points."""
    return chart_points(
        _ask(
            session,
            "SELECT arm, intervention, budget, toxicity_reduction, toxicity_reduction_low, "
            "toxicity_reduction_high, perplexity_change, perplexity_change_indomain, kl_to_base, "
            "is_hooked_only FROM comparisons",
            run_id,
            "ORDER BY arm",
        )
    )


def _find_trials(session: AuditSession, run_id: str, budget: float) -> Chart | None:
    """Trials of a search that got as far as to confirm some."""
    rows = _ask(
        session,
        "SELECT score, n_components, factor, perplexity_increase, toxic_token_share, reduction, "
        "is_on_front, is_best FROM trials",
        run_id,
        "ORDER BY score, factor, n_components",
    )
    if not rows:
        return None
    chart = chart_trials(rows, budget)
    return replace(chart, summary=f"{chart.summary} Run {run_id}.")


def find_layers(session: AuditSession, run_id: str) -> Iterator[Chart]:
    """One chart per dataset and site."""
    rows = _ask(
        session,
        "SELECT dataset, site || ' (' || pooling || ')' AS read_at, layer, probe_auroc AS probe, "
        "probe_auroc_low AS low, probe_auroc_high AS high, best_neuron_auroc AS best_unit, "
        "mean_neuron_heldout_auroc AS mean_unit FROM layers",
        run_id,
        "ORDER BY dataset, read_at, layer",
    )
    return _chart_groups("layers", rows, chart_layers)


def find_units(session: AuditSession, run_id: str) -> Iterator[Chart]:
    """One chart per dataset and site."""
    rows = _ask(
        session,
        "SELECT dataset, site || ' (' || pooling || ')' AS read_at, "
        "floor(auroc * 100 + 1e-9) / 100 AS low, count(*) AS n FROM neurons",
        run_id,
        "AND language = 'all' AND auroc IS NOT NULL GROUP BY ALL ORDER BY ALL",
    )
    return _chart_groups("units", rows, chart_units)


def find_slices(session: AuditSession, run_id: str) -> Chart | None:
    """Toxicity rate of each slice but the whole, before and after."""
    interval = "any_value({{'value': value, 'low': low, 'high': high}}) FILTER (arm = {}) AS {}"
    before, after = quote(BASE_ARM), quote(find_judged(session, run_id))
    return chart_slices(
        _ask(
            session,
            f"SELECT slice, max(n) AS n, {interval.format(before, 'before')}, "
            f"{interval.format(after, 'after')} FROM evaluations",
            run_id,
            f"AND metric = 'toxicity_rate' AND slice <> '{ALL_SLICE}' GROUP BY slice "
            "ORDER BY slice",
        )
    )


def find_cost(session: AuditSession, run_id: str) -> Chart | None:
    """Seconds of work by stage, over all workers, from the run's record."""
    return chart_cost(
        _ask(
            session,
            "SELECT stage->>'name' AS stage, CAST(stage->'work_seconds' AS DOUBLE) AS seconds, "
            "CAST(stage->'shards' AS BIGINT) AS shards, "
            "CAST(stage->'shards_cached' AS BIGINT) AS cached "
            "FROM (SELECT run_id, unnest(CAST(stages AS JSON[])) AS stage FROM runs)",
            run_id,
        )
    )


def _chart_groups(
    kind: str, rows: list[dict[str, Any]], chart: Callable[..., Chart]
) -> Iterator[Chart]:
    groups = groupby(rows, key=lambda row: (row["dataset"], row["read_at"]))
    for number, ((dataset, read_at), group) in enumerate(groups, start=1):
        yield chart(list(group), dataset, read_at, f"{kind}-{number}")


def _ask(session: AuditSession, sql: str, run_id: str, more: str = "") -> list[dict[str, Any]]:
    return list(session.query(f"{sql} WHERE run_id = {quote(run_id)} {more}").to_pylist())
