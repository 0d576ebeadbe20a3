"""Budget texts: kinds kept apart, in an order of their own, each cut where it is full."""

from __future__ import annotations

import pyarrow as pa
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.budget_texts import NEUTRAL, BudgetTexts, gather_budget_texts
from eigenshift.components.text_halves import split_neutral
from eigenshift.model.encoding import encode_text
from eigenshift.model.loading import LanguageModel

NO_HARMLESS = schemas.HARMLESS_TEXTS.empty_table()


def make_neutral(texts: list[str]) -> pa.Table:
    """Neutral samples."""
    return pa.table({"sample_id": [f"s{i}" for i in range(len(texts))], "text": texts})


def make_harmless() -> pa.Table:
    """Texts of both kinds and every use, and one that predicts nothing."""
    rows = [
        {"text_id": f"{origin}-{use}", "origin": origin, "use": use, "language": "en"}
        | {"token_ids": [5, 6, 7 + len(origin), 8 + len(use)]}
        | {"n_context": 3 if origin == "continuation" else 1}
        for origin in ("labelled", "continuation")
        for use in ("fisher", "budget", "evaluation")
    ]
    rows.append(rows[0] | {"text_id": "short", "use": "budget", "token_ids": [5]})
    rows.append(rows[3] | {"text_id": "nothing said", "use": "budget", "token_ids": [5, 6, 7]})
    return pa.Table.from_pylist(rows, schema=schemas.HARMLESS_TEXTS)


def test_kinds_are_kept_apart_and_only_the_use_asked_for_is_read(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """Neutral texts of the calibration half, and of each origin the texts of that use."""
    neutral = make_neutral(neutral_texts)
    found = {
        use: gather_budget_texts(tiny_language_model, neutral, make_harmless(), 12, use=use)
        for use in ("fisher", "budget")
    }
    half = split_neutral(neutral, for_calibration=True)["text"].to_pylist()
    expected = [encode_text(tiny_language_model, text, 12).token_ids for text in half]
    for use, texts in found.items():
        assert list(texts.by_kind) == [NEUTRAL, "continuation", "labelled"]
        assert sorted(texts.by_kind[NEUTRAL]) == sorted(map(list, expected))
        assert texts.by_kind["labelled"] == [[5, 6, 15, 8 + len(use)]]
        assert texts.by_kind["continuation"] == [[5, 6, 19, 8 + len(use)]]
        n_neutral = len(expected)
        assert texts.contexts == {NEUTRAL: [1] * n_neutral, "continuation": [3], "labelled": [1]}
        assert texts.n_contexts == [1] * len(expected) + [3, 1]
        assert texts.take("continuation").n_contexts == [3]


def test_the_order_of_rows_does_not_matter(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """Shards may come in any order; what is cut off does not depend on it."""
    neutral, harmless = make_neutral(neutral_texts), make_harmless()
    first, second = (
        gather_budget_texts(tiny_language_model, *pair, 12, use="budget")
        for pair in (
            (neutral, harmless),
            (neutral.take(list(range(59, -1, -1))), harmless.take(list(range(7, -1, -1)))),
        )
    )
    assert first == second


def test_each_kind_is_cut_by_itself_and_keeps_at_least_one_text() -> None:
    """A kind of long texts does not crowd the others out; rows follow the kinds."""
    texts = BudgetTexts({"a": [[1] * 4, [2] * 4, [3] * 4], "b": [[4] * 20], "c": [[5] * 3]})
    cut = texts.limit(9)
    assert cut.by_kind == {"a": [[1] * 4, [2] * 4], "b": [[4] * 20], "c": [[5] * 3]}
    assert cut.list_rows() == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert [cut.sequences[rows] for rows in cut.list_rows()] == list(cut.by_kind.values())


def test_without_calibration_texts_the_remedy_is_named(tiny_language_model: LanguageModel) -> None:
    """A choice cannot be calibrated on nothing."""
    empty = pa.table({"sample_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    with pytest.raises(ComponentError, match=r"neutral texts.*Add neutral texts"):
        gather_budget_texts(tiny_language_model, empty, NO_HARMLESS, 32, use="budget")


def test_without_harmless_texts_neutral_ones_decide_alone(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """A run that was told to draw none has one kind."""
    neutral = make_neutral(neutral_texts)
    texts = gather_budget_texts(tiny_language_model, neutral, NO_HARMLESS, 32, use="budget")
    assert list(texts.by_kind) == [NEUTRAL]
