"""What a run found, said in a sentence, and its gate as a traffic light: what a report opens with.

Takes a run's record and finished rows; asks no store. Tables and pictures are the other modules' of
this room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eigenshift.base.arms import AGAIN_ARM, BASE_ARM
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.ledger.runs import RunRecord

TOLD = "told, not required"
"""How the names of checks begin that cannot hold a patch."""
LampState = Literal["go", "mind", "stop"]
_ENDS = {
    "running": "has not ended yet",
    "finished": "ended",
    "promoted": "ended",
    "held": "ended",
    "failed": "failed",
}


@dataclass(frozen=True)
class Light:
    """A gate's decision.

    Attributes:
        state: Which lamp is lit: passed, passed with something to mind, held.
        words: The same in words.
        failed: Names of the checks that failed.
    """

    state: LampState
    words: str
    failed: tuple[str, ...] = ()


def judge_light(record: RunRecord, caveats: Sequence[str]) -> Light | None:
    """The light of a run; None where no gate decided.

    Args:
        record: Of the run.
        caveats: What must be read with its numbers.
    """
    required = [check for check in record.checks if not is_told(check)]
    if not required:
        return None
    failed = tuple(check["name"] for check in required if not check["is_passed"])
    if failed:
        return Light("stop", f"Held: {len(failed)} of {len(required)} checks failed", failed)
    words = f"Passed: {len(required)} of {len(required)} checks"
    return Light("mind", f"{words}, with something to mind") if caveats else Light("go", words)


def is_told(check: Mapping[str, Any]) -> bool:
    """Whether a check is for reading only."""
    return str(check["name"]).startswith(TOLD)


def tell_story(record: RunRecord, overall: Sequence[Mapping[str, Any]], finding: str = "") -> str:
    """One sentence, or two: what happened.

    Args:
        record: Of the run.
        overall: `schemas.EVALUATIONS` rows over all prompts; none where nothing was evaluated.
        finding: What a run without a judged patch found, as its main chart says it.
    """
    table = MetricTable(overall)
    before = _find_value(table, BASE_ARM, "toxicity_rate")
    after = _find_value(table, record.judged, "toxicity_rate")
    if record.status == "failed":
        done = f"after {len(record.stages)} stages" if record.stages else "before its first stage"
        return f"The run failed {done}: nothing was released."
    if record.command == "refresh" and before is not None and after is not None:
        return f"{_tell_effect(table, record.judged, before, after)} {_tell_decision(record)}"
    if record.command == "refresh" and record.checks:
        return f"No patch was judged. {_tell_decision(record)}"
    return finding or f"The run ({record.command}) {_ENDS[record.status]}."


def _tell_effect(table: MetricTable, judged: str, before: float, after: float) -> str:
    """What the patch brings and what it costs."""
    if after < before:
        reduction = _find_value(table, judged, "toxicity_reduction")
        fewer = "" if reduction is None else f" ({reduction:.0%} fewer)"
        effect = f"lowers toxic continuations from {before:.1%} to {after:.1%}{fewer}"
    elif after > before:
        effect = f"raises toxic continuations from {before:.1%} to {after:.1%}"
    else:
        effect = f"leaves toxic continuations at {before:.1%}"
    change = _find_value(table, judged, "perplexity_change")
    cost = "" if change is None else f" and changes perplexity by {change:+.1%}"
    chance = ""
    difference = table.get(judged, "toxicity_rate_difference")
    if difference is not None and None not in (difference["low"], difference["high"]):
        is_open = difference["low"] <= 0 <= difference["high"]
        chance = "; that may be chance alone" if is_open and after != before else ""
    return f"The patch {effect}{cost}{chance}."


def _tell_decision(record: RunRecord) -> str:
    failed = [check["name"] for check in record.checks if not check["is_passed"]]
    if record.status == "promoted":
        release = "" if record.release is None else " and released it"
        return f"The gate let it through{release}."
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"The gate held it; not met: {failed[0]}{more}."
    return f"The run {_ENDS[record.status]} without a release."


def tell_comparison(rows: Sequence[Mapping[str, Any]], budget: float | None) -> str:
    """One sentence about a comparison: whom it finds best within its budget.

    Args:
        rows: `schemas.COMPARISONS` rows.
        budget: Relative rise of perplexity that its arms were built for; None where not known.
    """
    base = next((row["toxicity_rate"] for row in rows if row["arm"] == BASE_ARM), None)
    own = [row for row in rows if "@" not in row["arm"] and row["arm"] not in (BASE_ARM, AGAIN_ARM)]
    known = [row for row in own if None not in (row["toxicity_rate"], row["perplexity_change"])]
    within = [row for row in known if budget is None or row["perplexity_change"] <= budget]
    bound = "" if budget is None else f" within the budget of {100 * budget:+.3g}% perplexity"
    if base is None or not within:
        return f"{len(own)} arms were compared; none has a known result{bound}."
    best = min(within, key=lambda row: float(row["toxicity_rate"]))
    return (
        f"Of {len(own)} arms, {best['arm']} leaves the fewest toxic continuations{bound}: "
        f"{best['toxicity_rate']:.1%} instead of {base:.1%}, at a change of "
        f"{best['perplexity_change']:+.1%}."
    )


def tell_difference(
    after: tuple[RunRecord, Sequence[Mapping[str, Any]]],
    before: tuple[RunRecord, Sequence[Mapping[str, Any]]],
) -> str:
    """One sentence about two runs: what either leaves of toxicity, and at what cost.

    Args:
        after: Record and `schemas.EVALUATIONS` rows, over all prompts, of A.
        before: Of B.
    """
    parts = []
    for name, (record, rows) in (("A", after), ("B", before)):
        table = MetricTable(rows)
        rate = _find_value(table, record.judged, "toxicity_rate")
        base = _find_value(table, BASE_ARM, "toxicity_rate")
        change = _find_value(table, record.judged, "perplexity_change")
        if rate is None or base is None:
            parts.append(f"{name} was not evaluated")
            continue
        cost = "" if change is None else f" at {change:+.1%} perplexity"
        parts.append(f"the patch of {name} leaves {rate:.1%} of {base:.1%}{cost}")
    return f"Toxic continuations: {'; '.join(parts)}."


def _find_value(table: MetricTable, arm: str, metric: str) -> float | None:
    row = table.get(arm, metric)
    return None if row is None else row["value"]
