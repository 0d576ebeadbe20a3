"""Toxic words are located by offsets, in two languages, whatever says that they are toxic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import ScorerError, SettingsError
from eigenshift.settings import PositionSource
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.scoring import score_continuations
from eigenshift.toxicity.stages import PositionKey
from eigenshift.toxicity.token_spans import find_token_spans
from eigenshift.toxicity.toxic_positions import (
    AttributionFinder,
    LexiconFinder,
    OcclusionFinder,
    SpanFinder,
    WordFinder,
    locate_toxic_words,
    make_finder,
)
from tests.support.fake_scorer import WordScorer
from tests.support.gradient_scorer import GradientScorer

WEIGHTS = {"zorbfool": 5.0, "glimpnit": 5.0, "kettle": -1.0, "garden": 0.2}


def make_continuations(tokenizer: Any, texts: list[str]) -> pa.Table:
    """Continuations with the tokens of the given texts."""
    rows = [
        {
            "prompt_id": f"p{place}",
            "sample_index": 0,
            "language": "en",
            "prompt": "",
            "continuation": text,
            "prompt_token_ids": [0],
            "token_ids": tokenizer(text)["input_ids"],
        }
        for place, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS)


def locate(
    finder: WordFinder, tokenizer: Any, texts: list[str], workspace: Workspace, scorer: Any = None
) -> list[list[str]]:
    """For each text, what the tokens at the located steps begin with, to the end of the text."""
    table = make_continuations(tokenizer, texts)
    score_continuations(scorer or WordScorer(), table, workspace)
    scores = pq.read_table(workspace.path("scores.parquet"))
    locate_toxic_words(finder, tokenizer, table, scores, workspace)
    found: dict[str, list[str]] = {f"p{place}": [] for place in range(len(texts))}
    for row in pq.read_table(workspace.path("toxic_positions.parquet")).to_pylist():
        place = int(row["prompt_id"][1:])
        spans = find_token_spans(tokenizer, table["token_ids"][place].as_py())
        found[row["prompt_id"]].append(texts[place][spans[row["step"]][0] :].lstrip())
    return list(found.values())


@pytest.fixture
def occlusion() -> OcclusionFinder:
    """Every word left out in turn, with a scorer that knows some words."""
    return OcclusionFinder(WordScorer(), 0.5, 0.1)


def test_the_toxic_word_is_located_in_a_sentence(
    tiny_tokenizer: Any, workspace: Workspace, occlusion: OcclusionFinder
) -> None:
    """The position is the first token of the word whose removal ends the toxicity."""
    texts = ["the zorbfool waited", "the garden was open"]
    assert locate(occlusion, tiny_tokenizer, texts, workspace) == [["zorbfool waited"], []]


def test_several_words_each_enough_are_all_located(
    tiny_tokenizer: Any, workspace: Workspace, occlusion: OcclusionFinder
) -> None:
    """Where no single removal helps, words are taken by what they are alone."""
    texts = ["a zorbfool and a glimpnit came"]
    (found,) = locate(occlusion, tiny_tokenizer, texts, workspace)
    assert found == ["zorbfool and a glimpnit came", "glimpnit came"]


def test_a_chinese_word_is_located_without_spaces(
    tiny_tokenizer: Any, workspace: Workspace, occlusion: OcclusionFinder
) -> None:
    """Any character of the word is needed for it to be toxic; its first token is found."""
    (found,) = locate(occlusion, tiny_tokenizer, ["火车上有一个呆灯瓜在等"], workspace)
    assert len(found) == 1
    assert found[0][:1] in "呆灯瓜"


def test_a_gradient_points_at_the_word_and_occlusion_checks_it(
    tiny_tokenizer: Any, workspace: Workspace
) -> None:
    """Same words as when every one is left out, and the agreement is in the facts."""
    scorer = GradientScorer(WEIGHTS)
    texts = [
        "the kettle and the zorbfool waited in the garden",
        "a zorbfool and a glimpnit came with the kettle",
        "the garden was open",
    ]
    found = locate(AttributionFinder(scorer, 0.5, 0.1), tiny_tokenizer, texts, workspace, scorer)
    expected = [
        ["zorbfool waited in the garden"],
        ["zorbfool and a glimpnit came with the kettle", "glimpnit came with the kettle"],
        [],
    ]
    assert found == expected
    assert workspace.facts["n_checked"] == 2
    assert workspace.facts["n_same_as_occlusion"] == 2
    assert workspace.facts["n_gradient_first"] == 2
    rows = pq.read_table(workspace.path("toxic_positions.parquet")).to_pylist()
    assert all(row["attribution"] > 1 and row["fall"] > 0.1 for row in rows)


def test_attribution_asks_the_scorer_less_than_occlusion(
    tiny_tokenizer: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few checks per text instead of one per word."""
    monkeypatch.setattr("eigenshift.toxicity.toxic_positions.N_CHECKED", 0)
    text = "the kettle and the zorbfool waited in the garden " + "near the old mill " * 4
    asked = {}
    for make in (AttributionFinder, OcclusionFinder):
        scorer = GradientScorer(WEIGHTS)
        locate(make(scorer, 0.5, 0.1), tiny_tokenizer, [text], workspace, scorer)
        asked[make] = scorer.n_scored
    assert asked[AttributionFinder] <= 6
    assert asked[OcclusionFinder] > 20


def test_a_scorer_without_gradients_is_refused_with_the_remedy() -> None:
    """A list of words has none; no silent change of method."""
    with pytest.raises(ScorerError, match="positions: occlusion"):
        AttributionFinder(WordScorer(), 0.5, 0.1)


def make_key(positions: PositionSource) -> PositionKey:
    """A key with the bounds that a scorer needs."""
    return PositionKey(positions=positions, toxic_threshold=0.5, min_attribution=0.1)


def test_a_lexicon_finds_words_in_all_texts_whatever_their_scores(
    tiny_tokenizer: Any, workspace: Workspace, tmp_path: Path
) -> None:
    """Words and phrases at word boundaries; their number is in the facts, they are not."""
    path = tmp_path / "words.txt"
    path.write_text("glimpnit\nold mill\n灯瓜\n", encoding="utf-8")
    finder = make_finder(
        make_key(PositionSource.lexicon),
        load_scorer=pytest.fail,
        words=str(path),
        read_spans=pytest.fail,
    )
    assert isinstance(finder, LexiconFinder)
    texts = ["the Glimpnits and a Glimpnit near the old mill", "有一个呆灯瓜在等", "the river"]
    found = locate(finder, tiny_tokenizer, texts, workspace)
    assert found[0] == ["Glimpnit near the old mill", "old mill"]
    assert found[1][0].startswith("灯")
    assert found[2] == []
    assert workspace.facts["n_entries"] == 3


def test_every_word_of_a_labelled_span_is_toxic(tiny_tokenizer: Any, workspace: Workspace) -> None:
    """Also one that the span covers in part."""
    spans = pa.Table.from_pylist(
        [{"prompt_id": "p0", "start": 4, "end": 14}], schema=schemas.LABELLED_SPANS
    )
    texts = ["the small bridge was open", "the small bridge"]
    found = locate(SpanFinder(spans), tiny_tokenizer, texts, workspace)
    assert found == [["small bridge was open", "bridge was open"], []]


@pytest.mark.parametrize("positions", PositionSource)
def test_only_what_a_source_of_positions_needs_is_loaded(positions: PositionSource) -> None:
    """A lexicon or labelled spans need no classifier."""
    loaded = []
    make_finder(
        make_key(positions),
        words=str(Path(__file__)),
        load_scorer=lambda: loaded.append("scorer") or GradientScorer(WEIGHTS),
        read_spans=lambda: loaded.append("spans") or schemas.LABELLED_SPANS.empty_table(),
    )
    expected = {"attribution": ["scorer"], "occlusion": ["scorer"], "spans": ["spans"]}
    assert loaded == expected.get(positions.value, [])


def test_a_missing_lexicon_names_its_own_setting(tmp_path: Path) -> None:
    """Not the scorer's, which has a file of words of its own."""
    words = str(tmp_path / "none.txt")
    with pytest.raises(SettingsError, match=r"components\.lexicon"):
        make_finder(
            make_key(PositionSource.lexicon),
            load_scorer=pytest.fail,
            words=words,
            read_spans=pytest.fail,
        )
