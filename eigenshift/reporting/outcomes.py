"""Tables of a run's outcome, from its record and evaluation artifact only.

Returns data and Markdown; printing is the command line's, the HTML report `html_report.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from eigenshift.base.arms import (
    AGAIN_ARM,
    BASE_ARM,
    PATCHED_ARM,
    RANDOM_ARM,
    SUPPRESSION_ARM,
    TUNED_ARM,
    find_point,
)
from eigenshift.evaluation.capability import find_headline
from eigenshift.evaluation.caveats import find_caveats, find_caveats_of_all
from eigenshift.evaluation.degeneration import (
    DEGENERATION,
    EMPTY,
    REFUSAL,
    REPETITION,
    SELF_BLEU,
)
from eigenshift.evaluation.headlines import LABELLED, is_whole
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.evaluation.trials import AUTOMATIC, TrialPoint, find_damped
from eigenshift.ledger.runs import RunRecord, StageSummary, Status
from eigenshift.reporting.history_tables import Column

HEADLINE = (
    ("toxicity rate", "toxicity_rate", "percent"),
    ("perplexity", "perplexity", "number"),
    ("in-domain perplexity", "perplexity_indomain", "number"),
    ("TPH", "tph", "percent"),
)
"""Label, metric and unit of the table after a refresh; lower is better but for TPH."""

DEGENERATION_COLUMNS = (
    ("repeated 4-grams", REPETITION, "percent"),
    ("self-BLEU", SELF_BLEU, "percent"),
    ("empty", EMPTY, "percent"),
    ("refusals", REFUSAL, "percent"),
)
"""Whether continuations are worth reading; less is better."""

COMPARED = (
    ("toxicity rate", "toxicity_rate", "percent"),
    ("reduction", "toxicity_reduction", "percent"),
    ("perplexity", "perplexity", "number"),
    ("perplexity change", "perplexity_change", "percent"),
    ("in-domain change", "perplexity_change_indomain", "percent"),
    ("KL to base", "kl_to_base", "number"),
    ("distinct-2", "distinct_2", "percent"),
    ("TPH", "tph", "percent"),
    ("TPH (paper)", "tph_paper", "percent"),
    *DEGENERATION_COLUMNS,
)
"""Label, metric and unit of what is told about one arm."""

MEASURED = tuple(metric for _, metric, _ in COMPARED)
"""By which two arms are known to be alike."""
_ELSEWHERE = ("perplexity", "distinct_2", *DEGENERATION)
ARM_COLUMNS = tuple(item for item in COMPARED if item[1] not in _ELSEWHERE)
"""Columns of a comparison of many arms that have intervals; the others are short ones, and those of
the second table."""
REDUCTIONS = ("toxicity_reduction", "reduction")
TRADE_OFFS = ("tph", "tph_paper")
HOLDS_ZERO = "(holds 0)"
FAILED_RUN = "failed_run"
"""Attribute of an error that ended a run: what `describe_failure` says of the run."""
HOOKED_MARK = " *"


class RefreshOutcome(BaseModel):
    """What a refresh found and decided; `as_contract` is the command line's JSON."""

    model_config = ConfigDict(protected_namespaces=())
    run_id: str
    status: Status
    store: str
    model_id: str
    judged: str = PATCHED_ARM
    metrics: dict[str, dict[str, float | None]]
    stages: list[StageSummary]
    checks: list[dict[str, Any]]
    release: str | None
    is_new_release: bool
    evaluations: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]] = []
    caveats: list[str] = []
    """What must be read with the numbers."""
    quality: list[dict[str, Any]] = []
    """`schemas.SCORER_QUALITY` rows: how well the scorers themselves do."""

    @classmethod
    def from_record(
        cls,
        record: RunRecord,
        store: str,
        rows: Sequence[Mapping[str, Any]],
        benchmarks: Sequence[Mapping[str, Any]] = (),
        *,
        is_new_release: bool,
        quality: Sequence[Mapping[str, Any]] = (),
    ) -> RefreshOutcome:
        """Gather a finished refresh."""
        return cls(
            run_id=record.run_id,
            status=record.status,
            store=store,
            model_id=record.model_id,
            judged=record.judged,
            metrics=record.metrics,
            stages=record.stages,
            checks=record.checks,
            release=record.release,
            is_new_release=is_new_release,
            evaluations=[dict(row) for row in rows if row["slice"] == ALL_SLICE],
            benchmarks=[dict(row) for row in benchmarks],
            caveats=[*record.caveats, *find_caveats(rows, record.judged)],
            quality=[dict(row) for row in quality],
        )

    @property
    def headline(self) -> list[list[str]]:
        """The table after a refresh, as `HEADLINE_COLUMNS`."""
        return tabulate_headline(self.evaluations, self.judged, self.benchmarks)

    def as_contract(self) -> dict[str, Any]:
        """The JSON object scripts rely on (how-it-works.md section 5)."""
        names = {"run_id", "status", "store", "model_id", "metrics", "stages", "checks", "release"}
        names |= {"caveats"}
        return self.model_dump(mode="json", include=names)


def describe_failure(record: RunRecord, store: str) -> dict[str, Any]:
    """The same object of a run that failed, with its error; tables it did not make are left out."""
    names = {"run_id", "status", "model_id", "metrics", "stages", "error"}
    return {**record.model_dump(mode="json", include=names), "store": store}


def format_estimate(row: Mapping[str, Any] | None, unit: str) -> str:
    """`4.7% [4.1, 5.3]`, or a dash where it was not measured or is undefined."""
    if row is None or row["value"] is None:
        return "-"
    scale, suffix, digits = (100.0, "%", 1) if unit == "percent" else (1.0, "", 2)
    text = f"{row['value'] * scale:.{digits}f}{suffix}"
    if row["low"] is None:
        return text
    return f"{text} [{row['low'] * scale:.{digits}f}, {row['high'] * scale:.{digits}f}]"


def format_metric(metric: str, row: Mapping[str, Any] | None, unit: str) -> str:
    """As `format_estimate`, with what its metric must not be shown without.

    A reduction below 0 is told as the rise that it is, and a trade-off whose interval holds 0, so
    that it may be chance alone, says so.
    """
    if row is None or row["value"] is None:
        return format_estimate(row, unit)
    if metric in REDUCTIONS and row["value"] < 0:
        is_known = row["low"] is not None
        ends = (-row["high"], -row["low"]) if is_known else (None, None)
        rise = {"value": -row["value"], "low": ends[0], "high": ends[1]}
        number, _, interval = format_estimate(rise, unit).partition(" ")
        return f"{number} rise {interval}".rstrip()
    text = format_estimate(row, unit)
    is_uncertain = metric in TRADE_OFFS and row["low"] is not None and row["low"] <= 0
    return f"{text} {HOLDS_ZERO}" if is_uncertain else text


def format_difference(row: Mapping[str, Any] | None) -> str:
    """`-1.2% [-2.5, 0.1]` of an arm's `schemas.BENCHMARKS` row: points, no part of the base's."""
    if row is None:
        return "-"
    ends = ("value", ""), ("low", "_low"), ("high", "_high")
    return format_estimate({name: row[f"difference{end}"] for name, end in ends}, "percent")


def tabulate_headline(
    evaluations: Sequence[Mapping[str, Any]],
    judged: str,
    benchmarks: Sequence[Mapping[str, Any]] = (),
) -> list[list[str]]:
    """Rows (metric, before, after and the controls) of the table after a refresh.

    Args:
        evaluations: `schemas.EVALUATIONS` rows.
        judged: Arm that is "after".
        benchmarks: `schemas.BENCHMARKS` rows, where any were measured.
    """
    table = MetricTable(evaluations)
    arms = order_arms(judged)
    answered = ["questions right"]
    answered += [format_estimate(find_headline(benchmarks, arm), "percent") for arm in arms]
    return [
        [
            label,
            *(format_metric(metric, table.get(arm, metric), unit) for arm in arms),
        ]
        for label, metric, unit in HEADLINE
    ] + ([answered] if benchmarks else [])


def describe_scorers(quality: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each scorer and basis: what a toxicity rate by this scorer is worth.

    Args:
        quality: `schemas.SCORER_QUALITY` rows, in the order the scorers are to be told.
    """
    lines = []
    for row in filter(is_whole, quality):
        if row["basis"] == LABELLED:
            lines.append(
                f"{row['scorer']} on {row['n']} labelled texts of this run: "
                f"AUROC {_format_auroc(row)}; calls {_format_share(row['recall'])} of the toxic "
                f"ones toxic, and {_format_share(row['false_alarm_share'])} of the others"
            )
            continue
        parts = [
            part
            for part in quality
            if part["basis"] == row["basis"]
            and part["scorer"] == row["scorer"]
            and part["accuracy"] is not None
            and not is_whole(part)
        ]
        worst = min(parts, key=lambda part: part["accuracy"], default=row)
        right = {name: row[f"accuracy{end}"] for name, end in _ENDS}
        lines.append(
            f"{row['scorer']} on {row['n']} functional cases: "
            f"{format_estimate(right, 'percent')} right; worst {worst['subject']}, "
            f"{_format_share(worst['accuracy'])}"
        )
    return lines


_ENDS = (("value", ""), ("low", "_low"), ("high", "_high"))


def _format_auroc(row: Mapping[str, Any]) -> str:
    if row["auroc"] is None:
        return f"not computable ({row['reason']})"
    return f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def order_arms(judged: str) -> tuple[str, ...]:
    """The arms of a refresh in the order they are shown."""
    return BASE_ARM, judged, RANDOM_ARM, SUPPRESSION_ARM, AGAIN_ARM


OUTCOME_COLUMNS = (*("before", "after", "random components", "word filter", "base again (A/A)"),)
HEADLINE_COLUMNS = ("", *OUTCOME_COLUMNS)


def describe_outcome(outcome: RefreshOutcome) -> str:
    """Markdown for the Prefect UI: the decision, the table, the checks, the stages."""
    lines = [f"# {outcome.model_id}: {outcome.status}", "", f"Run `{outcome.run_id}`"]
    if outcome.release is not None:
        lines.append(f", release `{outcome.release}`")
    reason = explain_hold(outcome.checks)
    if reason:
        lines += ["", "**Held, because of:**", "", *(f"- {line}" for line in reason.splitlines())]
    # Two narrow tables: one as wide as both leaves the page's column, and a phone's screen.
    n_first = HEADLINE_COLUMNS.index("after") + 1
    for columns in (slice(1, n_first), slice(n_first, None)):
        rows = [[row[0], *row[columns]] for row in outcome.headline]
        lines += ["", *_markdown_table(["", *HEADLINE_COLUMNS[columns]], rows)]
    if outcome.caveats:
        lines += ["", "**Mind:**", "", *(f"- {caveat}" for caveat in outcome.caveats)]
    if outcome.quality:
        lines += ["", "How well the scorers do:", ""]
        lines += [f"- {line}" for line in describe_scorers(outcome.quality)]
    lines += ["", "## Gate", ""]
    lines += [
        _describe_check(check) for check in sorted(outcome.checks, key=lambda it: it["is_passed"])
    ]
    lines += ["", "## Stages", "", *map(_describe_stage, outcome.stages)]
    return "\n".join(lines) + "\n"


def _describe_check(check: Mapping[str, Any]) -> str:
    """A line of a list: its words wrap on any screen, where a table's columns leave it."""
    found = f"**{check['name']}**: {check['found']}"
    if check["is_passed"]:
        return f"- passed: {found}"
    missed = f", missed by {check['missed_by']}" if check.get("missed_by") else ""
    return f"- **failed**: {found}; expected {check['expected']}{missed}"


def _describe_stage(stage: StageSummary) -> str:
    rates = {"rows/s": stage.rows_per_second, "tokens/s": stage.tokens_per_second}
    told = [
        f"{stage.shards} shards",
        f"{stage.shards_cached} cached",
        f"{stage.elapsed_seconds:.1f} s",
        *(f"{rate:,.0f} {unit}" for unit, rate in rates.items() if rate is not None),
    ]
    return f"- {stage.name}: {', '.join(told)}"


def summarise_outcome(outcome: RefreshOutcome) -> str:
    """A promoted run in one line: the release, and what it brings and costs."""
    is_new = "" if outcome.is_new_release else " (already in force)"
    changes = "; ".join(
        f"{label} {before} before, {after} after" for label, before, after, *_ in outcome.headline
    )
    return f"Released {outcome.release}{is_new}. {changes}"


def explain_hold(checks: Sequence[Mapping[str, Any]]) -> str:
    """Why the gate held a patch, in one line per failed check; empty if it passed."""
    return "\n".join(
        f"{check['name']}: expected {check['expected']}, found {check['found']}"
        + (f", missed by {check['missed_by']}" if check.get("missed_by") else "")
        for check in checks
        if not check["is_passed"]
    )


def tabulate_results(evaluations: Sequence[Mapping[str, Any]], judged: str) -> list[dict[str, str]]:
    """Every metric, one row each, as text: before, after and the control arms."""
    table = MetricTable(evaluations)
    columns = dict(zip(order_arms(judged), OUTCOME_COLUMNS, strict=True))
    return [
        {"metric": metric}
        | {
            column: format_metric(metric, table.get(arm, metric), "number")
            for arm, column in columns.items()
        }
        for metric in dict.fromkeys(row["metric"] for row in evaluations)
    ]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


class ArmComparison(BaseModel):
    """All arms of a comparison, side by side.

    Attributes:
        arms: `schemas.COMPARISONS` rows.
        evaluations: `schemas.EVALUATIONS` rows: every metric, also by slice.
        benchmarks: `schemas.BENCHMARKS` rows, none where the settings name no task.
        table: Where the Parquet file of `arms` is.
        figure: Where the plot is.
        points_figure: Where that of the operating points is; None: there is but one point.
        quality: `schemas.SCORER_QUALITY` rows: how well the scorers themselves do.
    """

    run_id: str
    store: str
    stages: list[StageSummary]
    arms: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    benchmarks: list[dict[str, Any]] = []
    table: str
    figure: str
    points_figure: str | None = None
    caveats: list[str] = []
    """What was known to limit the run before it did its work."""
    quality: list[dict[str, Any]] = []

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        return [
            "arm",
            *(label for label, _, _ in ARM_COLUMNS),
            *(("questions right", "change") if self.benchmarks else ()),
            *("p", "perplexity", "distinct-2", "seconds", "MiB"),
        ]

    @property
    def rows(self) -> list[list[str]]:
        """One row per arm, operating point by operating point, the run's own budget first."""
        return [self._format_arm(row) for row in self._in_order]

    @property
    def _in_order(self) -> list[dict[str, Any]]:
        return sorted(self.arms, key=lambda row: find_point(row["arm"]))

    @property
    def essentials(self) -> list[Column]:
        """The same for a narrow screen: what each arm brings, with its interval, and costs."""
        rows = self._in_order

        def take(name: str, form: str) -> tuple[str, ...]:
            return tuple(_format_number(row[name], form) for row in rows)

        reduction = tuple(_format_columns(row, "toxicity_reduction", "percent") for row in rows)
        return [
            Column("arm", tuple(_name_arm(row) for row in rows), True),
            Column("reduction", reduction, True),
            Column("perplexity", take("perplexity_change", "+.1%"), True),
            Column("KL", take("kl_to_base", ".3f"), True),
            Column("toxic", take("toxicity_rate", ".1%")),
            Column("in-domain change", take("perplexity_change_indomain", "+.1%")),
            Column("TPH", take("tph", ".1%")),
            *(
                Column(name, tuple(row[self.columns.index(name)] for row in self.rows))
                for name in ("p", "distinct-2", "seconds", "MiB")
            ),
        ]

    def _format_arm(self, row: Mapping[str, Any]) -> list[str]:
        peak = row["build_peak_bytes"]
        return [
            _name_arm(row),
            *(_format_columns(row, metric, unit) for _, metric, unit in ARM_COLUMNS),
            *self._format_answers(row["arm"]),
            _format_number(row["toxicity_p_value"], ".4f"),
            _format_number(row["perplexity"], ".2f"),
            _format_number(row["distinct_2"], ".1%"),
            _format_number(row["build_seconds"], ".1f"),
            _format_number(None if peak is None else peak / 2**20, ".0f"),
        ]

    def _format_answers(self, arm: str) -> list[str]:
        if not self.benchmarks:
            return []
        found = find_headline(self.benchmarks, arm)
        return [format_estimate(found, "percent"), format_difference(found)]

    @property
    def degeneration_columns(self) -> list[str]:
        """Headings of the second table."""
        return ["arm", *(label for label, _, _ in DEGENERATION_COLUMNS)]

    @property
    def degeneration_rows(self) -> list[list[str]]:
        """How each arm's continuations degenerate, in the order of the first table."""
        return [
            [row["arm"], *(_format_columns(row, *column[1:]) for column in DEGENERATION_COLUMNS)]
            for row in self._in_order
        ]

    @property
    def notes(self) -> list[str]:
        """What the table does not say by itself."""
        notes = [
            "p: sign-flip test of the toxicity rate against base over prompts. seconds, MiB: "
            "building the patch from its evidence. Repeated 4-grams: within a continuation; "
            "self-BLEU: of the continuations of a prompt; refusals: by how they begin."
        ]
        if self.benchmarks:
            notes.append(
                "questions right: of all benchmark tasks together; change: against base, paired, "
                "in points. Task by task: view benchmarks."
            )
        if any(find_point(row["arm"]) for row in self.arms):
            notes.append(
                "@0.01: built for a budget of +1%; @kl0.02: scaled to that KL to the base."
            )
        notes += explain_twins(self.arms)
        notes += self.caveats
        notes += find_caveats_of_all(self.evaluations, [row["arm"] for row in self.arms])
        if any(row["is_hooked_only"] for row in self.arms):
            notes.append("*: measured with hooks; it cannot be folded into the weights.")
        notes += describe_scorers(self.quality)
        notes += [f"Table: {self.table}", f"Plot: {self.figure}"]
        if self.points_figure is not None:
            notes.append(f"Operating points: {self.points_figure}")
        return notes

    def as_contract(self) -> dict[str, Any]:
        """For `--json`: every metric of every arm."""
        return {**self.model_dump(mode="json"), "status": "finished"}


def explain_twins(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each group of arms that are equal in all that was measured of them.

    Args:
        arms: `schemas.COMPARISONS` rows.
    """
    groups: dict[tuple[float | None, ...], list[str]] = {}
    for row in arms:
        numbers = tuple(row.get(metric) for metric in MEASURED)
        if row["arm"] not in (BASE_ARM, AGAIN_ARM) and any(numbers):
            groups.setdefault(numbers, []).append(row["arm"])
    lines = []
    for names in groups.values():
        if len(names) < 2:
            continue
        line = (
            f"{', '.join(names[:-1])} and {names[-1]} are equal in every number: they change the "
        )
        line += "model alike."
        if {PATCHED_ARM, TUNED_ARM} <= set(names):
            line += " The search found no better choice than the one it began with."
        lines.append(line)
    return lines


class Detection(BaseModel):
    """A run that studied which units and layers detect toxicity; its tables are in the store."""

    run_id: str
    store: str
    stages: list[StageSummary]

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.model_dump(), "status": "finished"}


class Tuning(BaseModel):
    """The trials of a search and the best within the budget.

    Attributes:
        budget: Relative rise of perplexity that is allowed.
        trials: `schemas.TRIALS` rows.
        figure: Where the plot is.
    """

    run_id: str
    store: str
    stages: list[StageSummary]
    budget: float
    trials: list[dict[str, Any]]
    figure: str

    @property
    def best(self) -> dict[str, Any] | None:
        """The confirmed trial with the largest reduction within the budget."""
        return next((trial for trial in self.trials if trial["is_best"]), None)

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        return [
            *("score", "k", "factor", "perplexity", "toxic tokens left"),
            *("foretold rate", "toxicity rate", "reduction", ""),
        ]

    @property
    def rows(self) -> list[list[str]]:
        """Trials on the Pareto front and confirmed ones, cheapest first; equal ones once."""
        order = sorted(self.trials, key=lambda row: row["stage"] != "confirmed")
        different = {find_damped(row): row for row in reversed(order)}
        shown = [
            row for row in different.values() if row["is_on_front"] or row["stage"] == "confirmed"
        ]
        shown.sort(key=lambda row: row["perplexity_increase"])
        return [
            [
                row["score"],
                str(row["n_components"]),
                f"{row['factor']:g}",
                f"{row['perplexity_increase']:+.1%}",
                f"{row['toxic_token_share']:.1%}",
                _format_columns(row, "predicted_rate", "percent"),
                _format_columns(row, "toxicity_rate", "percent"),
                _format_columns(row, "reduction", "percent"),
                "best" if row["is_best"] else "front" if row["is_on_front"] else "",
            ]
            for row in shown
        ]

    @property
    def overrides(self) -> list[str]:
        """Settings of the best trial, for a refresh."""
        best = self.best
        if best is None:
            return []
        found = TrialPoint.from_row(best).overrides
        if best["score"] == AUTOMATIC:
            found = [*found, f"components.max_perplexity_increase={self.budget:g}"]
        return found

    @property
    def advice(self) -> str:
        """What to do with the result."""
        if self.best is None:
            return (
                f"No trial lowers the toxicity rate within +{self.budget:.0%} perplexity. Raise "
                "tune.max_perplexity_increase, or try more of tune.n_components and tune.factors."
            )
        lines = " ".join(f"--set {override}" for override in self.overrides)
        return f"Best within +{self.budget:.0%} perplexity: refresh with {lines}"

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run_id": self.run_id,
            "status": "finished",
            "store": self.store,
            "budget": self.budget,
            "best": self.best,
            "overrides": self.overrides,
            "trials": self.trials,
            "figure": self.figure,
            "stages": [stage.model_dump() for stage in self.stages],
        }


def _name_arm(row: Mapping[str, Any]) -> str:
    return str(row["arm"]) + (HOOKED_MARK if row["is_hooked_only"] else "")


def _format_columns(row: Mapping[str, Any], name: str, unit: str) -> str:
    estimate = {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return format_metric(name, estimate, unit)


def _format_number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
