"""Labelled texts as continuations: what is read is what was labelled."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.labelled_text import (
    choose_texts,
    encode_labelled_text,
)
from eigenshift.model.loading import LanguageModel
from eigenshift.settings import ComponentSettings
from eigenshift.stages.tables import CONTINUATIONS, LABELLED_SPANS, SCORES
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.token_spans import find_token_spans


def make_samples(texts: list[str], n_toxic: int) -> pa.Table:
    """Samples of which the first are toxic and have a marked span; the last has no label."""
    rows = [
        {
            "sample_id": f"s{place:02d}",
            "dataset": "demo",
            "language": "en",
            "is_toxic": None if place == len(texts) - 1 else place < n_toxic,
            "text": text,
            "attributes": json.dumps({"spans": [[4, 9]]} if place < n_toxic else {}),
        }
        for place, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.SAMPLES)


def encode(
    language_model: LanguageModel, samples: pa.Table, workspace: Workspace, **settings: Any
) -> dict[str, list[dict[str, Any]]]:
    """Encode and read all tables back."""
    encode_labelled_text(language_model, samples, ComponentSettings(**settings), workspace)
    names = (CONTINUATIONS.file, SCORES.file, LABELLED_SPANS.file)
    return {name: pq.read_table(workspace.path(name)).to_pylist() for name in names}


def test_texts_become_continuations_of_nothing_with_labels_as_scores(
    tiny_language_model: LanguageModel, neutral_texts: list[str], workspace: Workspace
) -> None:
    """The beginning token, then the text's own tokens, whose offsets are the text's."""
    found = encode(tiny_language_model, make_samples(neutral_texts, 10), workspace)
    assert len(found[CONTINUATIONS.file]) == 59
    texts = {f"s{place:02d}": text for place, text in enumerate(neutral_texts)}
    for row in found[CONTINUATIONS.file]:
        assert row["continuation"] == texts[row["prompt_id"]]
        assert row["prompt_token_ids"] == [tiny_language_model.tokenizer.bos_token_id]
        spans = find_token_spans(tiny_language_model.tokenizer, row["token_ids"])
        assert spans[-1][1] == len(row["continuation"])
    probabilities = {row["prompt_id"]: row["toxicity_probability"] for row in found[SCORES.file]}
    assert [place for place, value in sorted(probabilities.items()) if value == 1.0] == [
        f"s{place:02d}" for place in range(10)
    ]
    assert found[LABELLED_SPANS.file][0].keys() == {"prompt_id", "start", "end"}
    assert len(found[LABELLED_SPANS.file]) == 10


def test_a_long_text_is_cut_at_a_whole_character(
    tiny_language_model: LanguageModel, workspace: Workspace
) -> None:
    """What is kept is the beginning of the text, though its last token was half a character."""
    texts = ["花园里的猫在山脚下等着早上的第一班车" * 5, "the garden", "x"]
    found = encode(tiny_language_model, make_samples(texts, 1), workspace)
    row = next(row for row in found[CONTINUATIONS.file] if row["prompt_id"] == "s00")
    assert len(row["token_ids"]) == 63
    assert texts[0].startswith(row["continuation"])


def test_a_text_the_tokenizer_changes_is_left_out_and_counted(
    tiny_language_model: LanguageModel,
    neutral_texts: list[str],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offsets of labelled spans would not fit it."""
    original = type(tiny_language_model.tokenizer).decode

    def lose_capitals(self: Any, *arguments: Any, **options: Any) -> str:
        return str(original(self, *arguments, **options)).lower()

    monkeypatch.setattr(type(tiny_language_model.tokenizer), "decode", lose_capitals)
    found = encode(tiny_language_model, make_samples(["the river", *neutral_texts], 1), workspace)
    assert not any(row["continuation"].startswith("The") for row in found[CONTINUATIONS.file])
    assert workspace.facts["n_not_given_back"] == 40


def test_without_toxic_texts_there_is_nothing_to_compare(
    tiny_language_model: LanguageModel, neutral_texts: list[str], workspace: Workspace
) -> None:
    """The remedy is named."""
    with pytest.raises(ComponentError, match="states_from: generations"):
        encode(tiny_language_model, make_samples(neutral_texts, 0), workspace)


def test_toxic_and_nontoxic_texts_are_drawn_in_equal_numbers(neutral_texts: list[str]) -> None:
    """The rest of one kind where the other is short; the order of the samples does not matter."""
    samples = make_samples(neutral_texts, 10)
    chosen = choose_texts(samples, 12, seed=0)
    assert sum(row["is_toxic"] for row in chosen) == 6
    backwards = samples.take(list(range(len(samples) - 1, -1, -1)))
    assert choose_texts(backwards, 12, seed=0) == chosen
    many = choose_texts(samples, 40, seed=0)
    assert (len(many), sum(row["is_toxic"] for row in many)) == (40, 10)
