"""Arms compared question by question: against hand-made marks and scipy's McNemar test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from eigenshift.base.errors import EvaluationError
from eigenshift.benchmarks.comparison import compare_answers
from eigenshift.benchmarks.stages import AnswerComparisonKey

KEY = AnswerComparisonKey(arms=("base", "ours"), n_bootstrap=2000, confidence=0.95, seed=0)


def list_answers(
    marks: list[float], task: str = "one", metric: str = "acc", is_main: bool = True
) -> list[dict[str, Any]]:
    """`schemas.BENCHMARK_ANSWERS` rows."""
    return [
        {
            "task": task,
            "metric": metric,
            "filter": "none",
            "is_main": is_main,
            "question_index": index,
            "question_hash": f"{task}-{index}",
            "prompt_hash": f"{task}-{index}",
            "value": float(mark),
        }
        for index, mark in enumerate(marks)
    ]


def find_row(rows: list[dict[str, Any]], arm: str, task: str, metric: str) -> dict[str, Any]:
    """The one row."""
    (row,) = (
        row for row in rows if (row["arm"], row["task"], row["metric"]) == (arm, task, metric)
    )
    return row


def test_shares_and_differences_are_those_of_the_marks() -> None:
    """Eight questions: six right before; after, one gained and three lost."""
    before, after = [1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 1, 0]
    rows = list(compare_answers({"ours": list_answers(after), "base": list_answers(before)}, KEY))
    base, ours = find_row(rows, "base", "one", "acc"), find_row(rows, "ours", "one", "acc")
    assert (base["value"], ours["value"]) == (0.75, 0.5)
    assert (ours["difference"], ours["n_better"], ours["n_worse"], ours["n"]) == (-0.25, 1, 3, 8)
    assert "difference" not in base
    assert ours["difference_low"] < -0.25 < ours["difference_high"]
    assert rows[0]["arm"] == "base"


def test_the_interval_is_of_paired_differences() -> None:
    """Models that differ on few questions have a narrow one, however many both get wrong."""
    generator = np.random.default_rng(0)
    before = generator.integers(0, 2, 400).astype(float)
    after = before.copy()
    after[:8] = 1 - after[:8]
    rows = list(
        compare_answers(
            {"base": list_answers(list(before)), "ours": list_answers(list(after))}, KEY
        )
    )
    ours = find_row(rows, "ours", "one", "acc")
    width = ours["difference_high"] - ours["difference_low"]
    differences = after - before
    # The bootstrap agrees with the normal interval of the mean of paired differences.
    assert width == pytest.approx(2 * 1.96 * differences.std() / np.sqrt(400), rel=0.1)
    assert width < 0.35 * (ours["high"] - ours["low"])


def test_the_p_value_is_mcnemars() -> None:
    """Of right and wrong answers: flipping signs tosses a coin for each that changed."""
    before = [1] * 30 + [0] * 10
    after = [0] * 9 + [1] * 21 + [1] * 2 + [0] * 8
    rows = list(compare_answers({"base": list_answers(before), "ours": list_answers(after)}, KEY))
    exact = binomtest(2, 11, 0.5).pvalue
    assert find_row(rows, "ours", "one", "acc")["p_value"] == pytest.approx(exact, abs=0.01)


def test_all_tasks_together_count_every_question_once_by_the_main_metric() -> None:
    """Two right of four, and six of six: eight of ten, whatever a second metric says."""
    answers = [
        *list_answers([1, 1, 0, 0], "one"),
        *list_answers([0, 0, 0, 0], "one", "acc_norm", is_main=False),
        *list_answers([1] * 6, "two"),
    ]
    rows = list(compare_answers({"base": answers}, KEY))
    row = find_row(rows, "base", "all", "acc")
    assert (row["value"], row["n"], row["is_main"]) == (0.8, 10, True)
    assert [row["task"] for row in rows] == ["one", "one", "two", "all"]


def test_tasks_of_different_metrics_are_mixed() -> None:
    """Each is a share of right answers, so they add up; the name says that they differ."""
    answers = [*list_answers([1, 0], "one"), *list_answers([1, 1], "two", "exact_match")]
    rows = list(compare_answers({"base": answers}, KEY))
    assert find_row(rows, "base", "all", "mixed")["value"] == 0.75


@pytest.mark.parametrize(
    "after",
    [
        list_answers([1, 0, 1]),
        list_answers([1, 0], "two"),
        [row | {"question_hash": "other"} for row in list_answers([1, 0])],
        [*list_answers([1, 0]), *list_answers([1, 0], metric="acc_norm", is_main=False)],
    ],
    ids=["more", "another task", "changed", "another metric"],
)
def test_other_questions_are_no_pair(after: list[dict[str, Any]]) -> None:
    """Answers of a store's earlier run may be to data that has changed since."""
    with pytest.raises(EvaluationError, match="answered the base's questions"):
        list(compare_answers({"base": list_answers([1, 0]), "ours": after}, KEY))


def test_a_task_asked_for_twice_is_refused() -> None:
    """By its name and in a folder, say: every question would count twice."""
    twice = [*list_answers([1, 0]), *list_answers([1, 0])]
    with pytest.raises(EvaluationError, match="found one twice"):
        list(compare_answers({"base": twice}, KEY))
