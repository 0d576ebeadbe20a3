"""Tables of benchmark results, from `schemas.BENCHMARKS` rows; and what `benchmark` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation.capability import ALL_TASKS
from eigenshift.ledger.runs import StageSummary
from eigenshift.reporting.outcomes import format_difference, format_estimate

COLUMNS = ("task", "metric", "before", "after", "difference", "better", "worse", "questions", "p")
EXPLANATION = (
    "Share of benchmark questions answered right (EleutherAI's lm-evaluation-harness); both models "
    "answered the same questions. In brackets bootstrap intervals over questions, paired for the "
    "difference; better, worse: questions that only one of the two got right; p: McNemar's test. "
    "Where none of n answers changed, the interval is 0 to 0, and up to 3 / n of all such may."
)


def tabulate_benchmarks(rows: Sequence[Mapping[str, Any]], arm: str) -> list[list[str]]:
    """Task by task, all metrics; of all tasks together at the end, where there are several.

    Args:
        rows: `schemas.BENCHMARKS` rows.
        arm: What is "after".
    """
    measures = {_name_measure(row): row for row in rows if row["arm"] == BASE_ARM}
    after = {_name_measure(row): row for row in rows if row["arm"] == arm}
    n_tasks = len({row["task"] for row in rows} - {ALL_TASKS})
    return [
        [
            row["task"],
            row["metric"] if row["filter"] == "none" else f"{row['metric']}, {row['filter']}",
            format_estimate(row, "percent"),
            format_estimate(after[name], "percent"),
            format_difference(after[name]),
            str(after[name]["n_better"]),
            str(after[name]["n_worse"]),
            str(row["n"]),
            f"{after[name]['p_value']:.3g}",
        ]
        for name, row in measures.items()
        if name in after and (row["task"] != ALL_TASKS or n_tasks > 1)
    ]


def _name_measure(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["metric"], row["filter"]


class Benchmark(BaseModel):
    """What the patch of a run cost in capability.

    Attributes:
        about: Id of the run.
        judged: Its arm that was compared with the base.
        benchmarks: `schemas.BENCHMARKS` rows.
    """

    run_id: str
    store: str
    about: str
    judged: str
    stages: list[StageSummary]
    benchmarks: list[dict[str, Any]]

    @property
    def rows(self) -> list[list[str]]:
        """The table, as `COLUMNS`."""
        return tabulate_benchmarks(self.benchmarks, self.judged)

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.model_dump(mode="json"), "status": "finished"}
