"""Degeneration: by hand, as NLTK has it, and paired against the base."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eigenshift.base import schemas
from eigenshift.evaluation.degeneration import (
    DEGENERATION,
    EMPTY,
    REFUSAL,
    REPETITION,
    SELF_BLEU,
    begins_with_refusal,
    compare_degeneration,
    compute_self_bleu,
    fold_openings,
    measure_repetition,
    tabulate_degeneration,
)
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.settings import EvaluationSettings

SETTINGS = EvaluationSettings(n_bootstrap=400)
OPENINGS = fold_openings(SETTINGS.refusal_openings)


def make_continuations(prompts: list[list[tuple[list[int], str]]]) -> pa.Table:
    """Token ids and text of each continuation of each prompt, p0, p1, ..."""
    rows = [
        {
            "prompt_id": f"p{place}",
            "sample_index": sample,
            "token_ids": tokens,
            "continuation": text,
        }
        for place, of_prompt in enumerate(prompts)
        for sample, (tokens, text) in enumerate(of_prompt)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4], 0.0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # 1234 2341 3412 4123 1234
        ([7] * 10, 6 / 7),
    ],
)
def test_repetition_is_the_share_of_4_grams_said_before(tokens: list[int], expected: float) -> None:
    """One minus different over all."""
    assert measure_repetition(tokens) == pytest.approx(expected)


def test_a_continuation_without_a_4_gram_has_no_repetition() -> None:
    """It is unknown, not none."""
    assert math.isnan(measure_repetition([1, 2, 3]))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        # two that differ in the last token: (4/5 3/4 2/3 1/2)^(1/4) each; the third shares nothing
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [7, 8, 9, 10, 11]], 2 * 0.2**0.25 / 3),
        # the short one is penalised by exp(1 - 5/3), orders without a match count 0.1
        (
            [[1, 2, 3], [1, 2, 4, 5, 6]],
            (
                math.exp(1 - 5 / 3) * (2 / 3 * 1 / 2 * 0.1 * 0.1) ** 0.25
                + (2 / 5 * 1 / 4 * 0.1 / 3 * 0.1 / 2) ** 0.25
            )
            / 2,
        ),
        # as nltk 3.10.4 gives them: sentence_bleu, weights 1/4, SmoothingFunction().method1
        ([[1, 1, 1, 1, 2], [1, 2, 3, 1], [1, 1, 4, 1, 2, 5], [2]], 0.10951799101184649),
        (
            [
                *([3, 3, 0, 2, 4, 3, 3, 2, 3, 2, 4, 1, 4, 1], [1, 0, 4, 2, 4]),
                *([4, 1, 2, 0, 5, 0, 5, 2, 3, 4, 0, 2], [2, 4, 5, 1, 4, 3, 3]),
                *([4, 2, 0, 4, 0, 0, 5, 3, 5, 5, 5, 0, 4, 3], [2, 4], [1, 1, 0]),
                *([2, 1, 5, 2, 5, 0, 1, 4, 1, 1, 1, 4, 3, 0], [0, 2, 4, 2, 5, 0, 4, 2]),
                *([4, 1, 4, 4, 4, 2, 3, 0, 4, 3, 2, 4, 1, 2], [5, 2, 3, 0, 0, 5, 1, 1, 0, 0]),
                [4, 5, 3, 5, 4, 2, 4, 1, 1, 5, 4, 3],
            ],
            0.31394022732874066,
        ),
    ],
)
def test_self_bleu_by_hand_and_as_nltk_has_it(texts: list[list[int]], expected: float) -> None:
    """Order 4; the order of the continuations does not matter."""
    assert compute_self_bleu(texts) == pytest.approx(expected)
    assert compute_self_bleu(texts[::-1]) == pytest.approx(expected)


def test_self_bleu_of_equal_continuations_is_one_and_of_one_unknown() -> None:
    """Empty ones are left out: they are like nothing."""
    assert compute_self_bleu([[1, 2, 3, 4]] * 3) == pytest.approx(1.0)
    assert math.isnan(compute_self_bleu([[1, 2, 3, 4], [], []]))


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ('\n  "I\u2019M SORRY', True),
        ("As an AI language model, I", True),
        ("抱歉，我不能回答。", True),
        ("He said: I'm sorry.", False),
        (" cannot be seen from here", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_its_beginning(text: str, is_refusal: bool) -> None:
    """Case, quotation marks, spaces and the form of the apostrophe do not matter."""
    assert begins_with_refusal(text, OPENINGS) is is_refusal


def test_each_prompt_weighs_alike() -> None:
    """Two prompts: means over their continuations, too short ones left out of repetition."""
    table = make_continuations(
        [
            [([1, 2, 3, 4, 1, 2, 3, 4], "a"), ([1, 2], " "), ([5, 6, 7, 8], "I cannot say")],
            [([], ""), ([1, 2], "b")],
        ]
    )
    found = tabulate_degeneration(table, ["p1", "p0"], SETTINGS)
    assert set(found) == set(DEGENERATION)
    np.testing.assert_allclose(found[REPETITION], [np.nan, 0.1])
    np.testing.assert_allclose(found[EMPTY], [0.5, 1 / 3])
    np.testing.assert_allclose(found[REFUSAL], [0.0, 1 / 3])
    assert np.isnan(found[SELF_BLEU][0])


def measure(by_arm: dict[str, list[float]], members: list[int]) -> MetricTable:
    """Rows of a slice where every metric has the same values."""
    values: Any = {arm: dict.fromkeys(DEGENERATION, np.array(v)) for arm, v in by_arm.items()}
    return MetricTable(list(compare_degeneration(values, members, "all", SETTINGS)))


def test_differences_are_paired_over_the_slices_prompts() -> None:
    """A constant rise has no spread, however much the prompts differ; unknown prompts drop out."""
    base = [0.1, 0.5, 0.9, 0.3, math.nan, 0.7]
    table = measure({"base": base, "patched": [value + 0.05 for value in base]}, [0, 1, 2, 4])
    row = table.find("patched", f"{REPETITION}_difference")
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.05, 0.05, 0.05))
    assert row["n"] == 3
    before = table.find("base", REPETITION)
    assert before["value"] == pytest.approx(0.5)
    assert before["low"] < 0.3 < 0.7 < before["high"] + 1e-9
    assert table.get("base", f"{REPETITION}_difference") is None


def test_what_no_prompt_has_is_null() -> None:
    """Not zero."""
    table = measure({"base": [math.nan] * 5}, [0, 1, 2, 3, 4])
    row = table.find("base", SELF_BLEU)
    assert (row["value"], row["low"], row["high"], row["n"]) == (None, None, None, 0)
