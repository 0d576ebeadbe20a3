"""The arms against the base, question by question.

Reads every arm's answers; writes `benchmarks.parquet` (`schemas.BENCHMARKS`). All arms answered the
same questions, so a difference is that of marks to the same question: its interval is a bootstrap
over questions, its p-value a sign-flip test, which of right and wrong answers is McNemar's exact
test. Questions of all tasks together are the task "all", each by its task's main metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import EvaluationError
from eigenshift.benchmarks.stages import AnswerComparisonInputs, AnswerComparisonKey
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.capability import ALL_TASKS
from eigenshift.evaluation.permutation import compute_p_value
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

MIXED = "mixed"
"""Metric of the task "all" where the tasks have different ones."""


@dataclass(frozen=True)
class Measure:
    """A metric of a task.

    Attributes:
        task: Name, or `ALL_TASKS`.
        metric: As the task calls it.
        filter: How answers were read.
        is_main: What is told of the task.
    """

    task: str
    metric: str
    filter: str
    is_main: bool


@dataclass(frozen=True)
class Marks:
    """One arm's marks by one measure: hash of each question, and its mark, shape (question,)."""

    questions: tuple[str, ...]
    values: FloatArray


def compare_answers(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], key: AnswerComparisonKey
) -> Iterator[dict[str, Any]]:
    """Rows of `schemas.BENCHMARKS`, the base first.

    Args:
        answers: Arm -> `schemas.BENCHMARK_ANSWERS` rows of all its tasks; must hold "base".
        key: Intervals.

    Raises:
        EvaluationError: Arms answered other questions, or a task was asked for twice.
    """
    marks = {arm: _gather_marks(arm, rows) for arm, rows in answers.items()}
    base = marks.pop(BASE_ARM)
    for arm, found in marks.items():
        _require_same_questions(arm, found, base)
    counts = {
        measure: draw_counts(len(item.values), key.n_bootstrap, key.seed)
        for measure, item in base.items()
    }
    for arm, found in {BASE_ARM: base, **marks}.items():
        for measure, item in found.items():
            estimate = summarise(average(item.values, counts[measure]), key.confidence)
            row = {"arm": arm, **vars(measure), **estimate.as_dict(), "n": len(item.values)}
            if arm != BASE_ARM:
                differences = item.values - base[measure].values
                row |= _compare(differences, counts[measure], key)
            yield row


def _compare(
    differences: FloatArray, counts: FloatArray, key: AnswerComparisonKey
) -> dict[str, float | int | None]:
    estimate = summarise(average(differences, counts), key.confidence)
    return {
        "difference": estimate.value,
        "difference_low": estimate.low,
        "difference_high": estimate.high,
        "p_value": compute_p_value(differences, key.seed),
        "n_better": int((differences > 0).sum()),
        "n_worse": int((differences < 0).sum()),
    }


def _gather_marks(arm: str, rows: Sequence[Mapping[str, Any]]) -> dict[Measure, Marks]:
    """Marks by measure, questions in their tasks' order; those of all tasks last."""
    by_measure: dict[Measure, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        measure = Measure(row["task"], row["metric"], row["filter"], row["is_main"])
        questions = by_measure.setdefault(measure, {})
        if row["question_index"] in questions:
            raise EvaluationError(
                f"benchmark of {arm}: expected each task once, found {row['task']} twice. It is in "
                "two of benchmark.tasks; leave one of them out."
            )
        questions[row["question_index"]] = row
    marks = {
        measure: Marks(
            tuple(questions[index]["question_hash"] for index in sorted(questions)),
            np.array([questions[index]["value"] for index in sorted(questions)], np.float64),
        )
        for measure, questions in by_measure.items()
    }
    main = {measure: found for measure, found in marks.items() if measure.is_main}
    metrics = {(measure.metric, measure.filter) for measure in main}
    metric, filter_name = metrics.pop() if len(metrics) == 1 else (MIXED, MIXED)
    marks[Measure(ALL_TASKS, metric, filter_name, True)] = Marks(
        tuple(question for found in main.values() for question in found.questions),
        np.concatenate([found.values for found in main.values()]),
    )
    return marks


def _require_same_questions(
    arm: str, found: Mapping[Measure, Marks], base: Mapping[Measure, Marks]
) -> None:
    """Refuse to pair what is no pair: data on a hub may change between two runs."""
    for measure in base.keys() | found.keys():
        mine, theirs = base.get(measure), found.get(measure)
        if mine is not None and theirs is not None and mine.questions == theirs.questions:
            continue
        raise EvaluationError(
            f"benchmark task {measure.task}: expected that {arm} answered the base's questions, "
            "found others. The data behind the task changed between two runs on this store; change "
            "benchmark.limit, or start on a new store, so that both answer again."
        )


def carry_out(
    inputs: AnswerComparisonInputs,
    key: AnswerComparisonKey,
    bench: Bench,
    workspace: Workspace,
) -> None:
    """The work of the stage `compare_answers`."""
    answers = {
        arm: bench.artifacts.read_shards(shards, tables.BENCHMARK_ANSWERS.file).to_pylist()
        for arm, shards in inputs.answers.items()
    }
    rows = list(compare_answers(answers, key))
    workspace.write_rows(tables.BENCHMARKS.file, rows, schemas.BENCHMARKS)
    workspace.facts = {"arms": sorted(answers), "tasks": sorted({row["task"] for row in rows})}
