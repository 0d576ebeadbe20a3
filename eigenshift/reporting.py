"""Tables of a run's outcome, from its record and evaluation artifact only.

Returns data and Markdown; printing is the command line's, the HTML report `html_report.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from eigenshift.evaluation.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.runs import RunRecord, StageSummary, Status

HEADLINE = (
    ("toxicity rate", "toxicity_rate", "percent"),
    ("perplexity", "perplexity", "number"),
    ("TPH", "tph", "percent"),
)
"""Label, metric and unit of the table after a refresh; lower is better but for TPH."""

COMPARED = (
    ("toxicity rate", "toxicity_rate", "percent"),
    ("reduction", "toxicity_reduction", "percent"),
    ("perplexity", "perplexity", "number"),
    ("KL to base", "kl_to_base", "number"),
    ("distinct-2", "distinct_2", "percent"),
    ("TPH", "tph", "percent"),
    ("TPH (paper)", "tph_paper", "percent"),
)
"""Label, metric and unit of the columns of a comparison."""


class RefreshOutcome(BaseModel):
    """What a refresh found and decided; `as_contract` is the command line's JSON."""

    model_config = ConfigDict(protected_namespaces=())
    run_id: str
    status: Status
    store: str
    model_id: str
    metrics: dict[str, dict[str, float | None]]
    stages: list[StageSummary]
    checks: list[dict[str, Any]]
    release: str | None
    is_new_release: bool
    evaluations: list[dict[str, Any]]

    @classmethod
    def from_record(
        cls,
        record: RunRecord,
        store: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        is_new_release: bool,
    ) -> RefreshOutcome:
        """Gather a finished refresh."""
        return cls(
            run_id=record.run_id,
            status=record.status,
            store=store,
            model_id=record.model_id,
            metrics=record.metrics,
            stages=record.stages,
            checks=record.checks,
            release=record.release,
            is_new_release=is_new_release,
            evaluations=[dict(row) for row in rows if row["slice"] == ALL_SLICE],
        )

    def as_contract(self) -> dict[str, Any]:
        """The JSON object scripts rely on (design.md section 5)."""
        names = {"run_id", "status", "store", "model_id", "metrics", "stages", "checks", "release"}
        return self.model_dump(mode="json", include=names)

    @property
    def stages_are_all_cached(self) -> bool:
        """Whether this run found everything already done."""
        return all(stage.shards == stage.shards_cached for stage in self.stages)


def format_estimate(row: Mapping[str, Any] | None, unit: str) -> str:
    """`4.7% [4.1, 5.3]`, or a dash where it was not measured or is undefined."""
    if row is None or row["value"] is None:
        return "-"
    scale, suffix, digits = (100.0, "%", 1) if unit == "percent" else (1.0, "", 2)
    text = f"{row['value'] * scale:.{digits}f}{suffix}"
    if row["low"] is None:
        return text
    return f"{text} [{row['low'] * scale:.{digits}f}, {row['high'] * scale:.{digits}f}]"


def tabulate_headline(evaluations: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows (metric, before, after, random components, base again) of the table after a refresh."""
    table = MetricTable(evaluations)
    return [
        [
            label,
            *(
                format_estimate(table.get(arm, metric), unit)
                for arm in (BASE_ARM, PATCHED_ARM, RANDOM_ARM, AGAIN_ARM)
            ),
        ]
        for label, metric, unit in HEADLINE
    ]


HEADLINE_COLUMNS = ("", "before", "after", "random components", "base again (A/A)")


def describe_outcome(outcome: RefreshOutcome) -> str:
    """Markdown for the Prefect UI: the decision, the table, the checks, the stages."""
    lines = [f"# {outcome.model_id}: {outcome.status}", "", f"Run `{outcome.run_id}`"]
    if outcome.release is not None:
        lines.append(f", release `{outcome.release}`")
    lines += ["", *_markdown_table(HEADLINE_COLUMNS, tabulate_headline(outcome.evaluations))]
    lines += ["", "## Gate", ""]
    lines += _markdown_table(
        ("check", "passed", "expected", "found"),
        [
            [
                check["name"],
                "yes" if check["is_passed"] else "**no**",
                check["expected"],
                check["found"],
            ]
            for check in outcome.checks
        ],
    )
    lines += ["", "## Stages", ""]
    lines += _markdown_table(
        ("stage", "shards", "cached", "seconds", "requests", "bytes read", "bytes written"),
        [
            [
                stage.name,
                str(stage.shards),
                str(stage.shards_cached),
                f"{stage.elapsed_seconds:.1f}",
                f"{stage.traffic.requests:,}",
                f"{stage.traffic.bytes_read:,}",
                f"{stage.traffic.bytes_written:,}",
            ]
            for stage in outcome.stages
        ],
    )
    return "\n".join(lines) + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


class ArmComparison(BaseModel):
    """All arms of a comparison, side by side."""

    run_id: str
    store: str
    stages: list[StageSummary]
    evaluations: list[dict[str, Any]]
    arms: list[str]

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        return ["arm", *(label for label, _, _ in COMPARED)]

    @property
    def rows(self) -> list[list[str]]:
        """One row per arm."""
        table = MetricTable(self.evaluations)
        return [
            [arm, *(format_estimate(table.get(arm, metric), unit) for _, metric, unit in COMPARED)]
            for arm in self.arms
        ]

    def as_contract(self) -> dict[str, Any]:
        """For `--json`: every metric of every arm."""
        return {
            "run_id": self.run_id,
            "status": "finished",
            "store": self.store,
            "arms": self.arms,
            "evaluations": self.evaluations,
            "stages": [stage.model_dump() for stage in self.stages],
        }


class Detection(BaseModel):
    """A run that studied which units and layers detect toxicity; its tables are in the store."""

    run_id: str
    store: str
    stages: list[StageSummary]

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.model_dump(), "status": "finished"}


class Trial(BaseModel):
    """One point of the grid that `tune` searches."""

    arm: str
    n_components: int
    factor: float
    toxicity_rate: dict[str, float | None]
    toxicity_reduction: dict[str, float | None]
    perplexity_change: dict[str, float | None]

    @classmethod
    def from_rows(
        cls, rows: Sequence[Mapping[str, Any]], arm: str, n_components: int, factor: float
    ) -> Trial:
        """Pick one arm's numbers out of an evaluation."""
        table = MetricTable(rows)

        def find(metric: str) -> dict[str, float | None]:
            row = table.find(arm, metric)
            return {key: row[key] for key in ("value", "low", "high")}

        return cls(
            arm=arm,
            n_components=n_components,
            factor=factor,
            toxicity_rate=find("toxicity_rate"),
            toxicity_reduction=find("toxicity_reduction"),
            perplexity_change=find("perplexity_change"),
        )


class Tuning(BaseModel):
    """The trials of a search and the best within the budget."""

    run_id: str
    store: str
    stages: list[StageSummary]
    budget: float
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The trial with the largest reduction whose perplexity stays in the budget."""
        fitting = [
            (trial.toxicity_reduction["value"], trial)
            for trial in self.trials
            if trial.toxicity_reduction["value"] is not None
            and trial.perplexity_change["value"] is not None
            and trial.perplexity_change["value"] <= self.budget
        ]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None

    @property
    def pareto_front(self) -> list[str]:
        """Arms that no other arm beats in both toxicity and perplexity."""
        points = {
            trial.arm: (trial.toxicity_rate["value"], trial.perplexity_change["value"])
            for trial in self.trials
        }
        known = {
            arm: (rate, change)
            for arm, (rate, change) in points.items()
            if rate is not None and change is not None
        }
        return [
            arm
            for arm, (rate, change) in known.items()
            if not any(
                other[0] <= rate and other[1] <= change and other != (rate, change)
                for other in known.values()
            )
        ]

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        return ["k", "factor", "toxicity rate", "reduction", "perplexity change", "Pareto"]

    @property
    def rows(self) -> list[list[str]]:
        """One row per trial."""
        front = set(self.pareto_front)
        return [
            [
                str(trial.n_components),
                f"{trial.factor:g}",
                format_estimate(trial.toxicity_rate, "percent"),
                format_estimate(trial.toxicity_reduction, "percent"),
                format_estimate(trial.perplexity_change, "percent"),
                "*" if trial.arm in front else "",
            ]
            for trial in self.trials
        ]

    @property
    def advice(self) -> str:
        """What to do with the result."""
        best = self.best
        if best is None:
            return f"No trial stays within +{self.budget:.0%} perplexity: try smaller k."
        return (
            f"Best within +{self.budget:.0%} perplexity: refresh with --set "
            f"components.n_components={best.n_components} --set components.factor={best.factor:g}"
        )

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run_id": self.run_id,
            "status": "finished",
            "store": self.store,
            "budget": self.budget,
            "best": None if self.best is None else self.best.model_dump(),
            "pareto_front": self.pareto_front,
            "trials": [trial.model_dump() for trial in self.trials],
            "stages": [stage.model_dump() for stage in self.stages],
        }
