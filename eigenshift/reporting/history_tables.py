"""The runs and the releases of a store as tables for a terminal, from the saved questions' answers.

Returns columns, which say whether a narrow screen must have them; printing is the command line's,
the questions are `audit/sql/run_history.sql` and `release_history.sql`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eigenshift.base.durations import format_duration, format_moment

IN_FORCE = "*"
MAX_REASON = 60
"""Characters; what the gate found is longer, and is told by `--ask why_held`."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        cells: One for each row.
        is_essential: Whether it is shown however narrow the screen is.
    """

    name: str
    cells: tuple[str, ...]
    is_essential: bool = False


def tabulate_runs(rows: Sequence[Row]) -> list[Column]:
    """Runs, with what is essential first and the rest in the order of its worth.

    Args:
        rows: Answers to `run_history`.
    """
    models = Column("model", tuple(row["model_id"] for row in rows))
    findings = [
        Column("toxicity", tuple(_show_change(row, "toxicity", ".1%") for row in rows)),
        Column("perplexity", tuple(_show_change(row, "perplexity", ".2f") for row in rows)),
        Column("scorer AUROC", tuple(_show(row["scorer_auroc"]) for row in rows)),
        Column("release", tuple(row["release"] or "" for row in rows)),
    ]
    has_many = len(set(models.cells)) > 1
    return [
        Column("", tuple(IN_FORCE if row["is_in_force"] else "" for row in rows), True),
        Column("run", tuple(row["run_id"] for row in rows), True),
        Column("command", tuple(row["command"] for row in rows), True),
        Column("status", tuple(row["status"] for row in rows), True),
        Column("started (UTC)", tuple(format_moment(row["started"]) for row in rows), True),
        Column("took", tuple(_show_seconds(row["seconds"]) for row in rows), True),
        *([models] if has_many else []),
        findings[0],
        *([] if has_many else [models]),
        *findings[1:],
    ]


def tabulate_releases(rows: Sequence[Row]) -> dict[str, list[Column]]:
    """Releases and roll-backs by model, with what is essential first.

    Args:
        rows: Answers to `release_history`.
    """
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row["model_id"], []).append(row)
    return {model: _tabulate_releases(found) for model, found in by_model.items()}


def _tabulate_releases(rows: Sequence[Row]) -> list[Column]:
    reasons = (row["reason"] if len(row["reason"]) <= MAX_REASON else "" for row in rows)
    return [
        Column("", tuple(IN_FORCE if row["is_in_force"] else "" for row in rows), True),
        Column("version", tuple(row["version"] for row in rows), True),
        Column("action", tuple(row["action"] for row in rows), True),
        Column("released (UTC)", tuple(format_moment(row["released"]) for row in rows), True),
        Column("patch", tuple(row["patch"] for row in rows), True),
        Column("run", tuple(row["run_id"] for row in rows)),
        Column("by", tuple(row["released_by"] or "" for row in rows)),
        Column("reason", tuple(reasons)),
    ]


def _show_change(row: Row, name: str, form: str) -> str:
    before, after = row[f"{name}_base"], row[f"{name}_patched"]
    if before is None or after is None:
        return ""
    return f"{format(before, form)} -> {format(after, form)}"


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _show_seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds)
