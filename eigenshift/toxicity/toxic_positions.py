"""Where a model generates, or a text has, a toxic word: the positions components are judged at.

Reads `continuations.parquet` and `scores.parquet` (of generations, or of labelled texts in the same
form); writes `toxic_positions.parquet` (`schemas.TOXIC_POSITIONS`). What is toxic is said by the
classifier (`attribution.py`, `occlusion.py`), by a list of words (`phrases.py`) or by labelled
spans; words are mapped to tokens by offsets, never by matching token strings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.model.loading import use_model
from eigenshift.settings import PositionSource
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.attribution import GradientProposer
from eigenshift.toxicity.occlusion import ToxicWord, find_toxic_words, propose_every_word
from eigenshift.toxicity.phrases import PhraseList
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scorers.loading import open_scorer
from eigenshift.toxicity.stages import PositionInputs, PositionKey
from eigenshift.toxicity.token_spans import find_step, find_token_spans
from eigenshift.toxicity.word_lists import read_words
from eigenshift.toxicity.word_spans import Span, list_words

N_CHECKED = 24
"""Texts of a shard for which all words are occluded, to see what the gradient misses."""

Facts = dict[str, float | int]


class WordFinder(Protocol):
    """Finds the toxic words of texts."""

    def find(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[ToxicWord]], Facts]:
        """Toxic words of each continuation row, and facts about the search.

        A row has the columns of `schemas.CONTINUATIONS` and `toxicity_probability`.
        """
        ...


class OcclusionFinder:
    """Words without which the classifier calls a text less toxic, every word tried.

    Args:
        scorer: The classifier whose verdict is explained.
        toxic_threshold: Above this probability a text is toxic.
        min_fall: Smallest fall of the probability that counts.
    """

    def __init__(self, scorer: Scorer, toxic_threshold: float, min_fall: float) -> None:
        self._scorer = scorer
        self._toxic_threshold = toxic_threshold
        self._min_fall = min_fall
        self._propose = propose_every_word

    def find(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[ToxicWord]], Facts]:
        """Search the toxic rows."""
        places = self._list_toxic(rows)
        words = self._search([rows[place]["continuation"] for place in places])
        found: list[list[ToxicWord]] = [[] for _ in rows]
        for place, of_text in zip(places, words, strict=True):
            found[place] = of_text
        return found, {"n_toxic_continuations": len(places)}

    def _list_toxic(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        return [
            place
            for place, row in enumerate(rows)
            if (row["toxicity_probability"] or 0.0) > self._toxic_threshold
        ]

    def _search(self, texts: Sequence[str], **options: int) -> list[list[ToxicWord]]:
        return find_toxic_words(
            self._scorer,
            texts,
            self._propose,
            toxic_threshold=self._toxic_threshold,
            min_fall=self._min_fall,
            **options,
        )


class AttributionFinder(OcclusionFinder):
    """Words with the largest gradient x input, each checked by leave-one-out occlusion.

    On some texts every word is occluded as well, to report how often the two agree.

    Raises:
        ScorerError: The scorer has no gradients.
    """

    def __init__(self, scorer: Scorer, toxic_threshold: float, min_fall: float) -> None:
        super().__init__(scorer, toxic_threshold, min_fall)
        self._propose = GradientProposer(scorer).propose

    def find(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[ToxicWord]], Facts]:
        """Search the toxic rows and compare with full occlusion on some of them."""
        found, facts = super().find(rows)
        checked = sorted(self._list_toxic(rows), key=lambda place: _draw(rows[place]))[:N_CHECKED]
        texts = [rows[place]["continuation"] for place in checked]
        full = OcclusionFinder(self._scorer, self._toxic_threshold, self._min_fall)
        references = full._search(texts, max_words=1)
        proposals = self._propose(texts)
        n_same = n_first = 0
        for place, reference, proposed in zip(checked, references, proposals, strict=True):
            own, best = found[place][:1], proposed[:1]
            n_same += _begin_alike([word.span for word in own], [word.span for word in reference])
            n_first += _begin_alike([item.span for item in best], [x.span for x in reference])
        return found, {
            **facts,
            "n_checked": len(checked),
            "n_same_as_occlusion": n_same,
            "n_gradient_first": n_first,
        }


class LexiconFinder:
    """Words and phrases of a list, in all texts whatever their scores."""

    def __init__(self, lexicon: PhraseList) -> None:
        self._lexicon = lexicon

    def find(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[ToxicWord]], Facts]:
        """Search all rows."""
        found = [
            [ToxicWord(span) for span in self._lexicon.find(row["continuation"])] for row in rows
        ]
        return found, {"n_entries": len(self._lexicon)}


class SpanFinder:
    """Words inside labelled spans.

    Args:
        spans: `schemas.LABELLED_SPANS` rows.
    """

    def __init__(self, spans: pa.Table) -> None:
        self._spans: dict[str, list[Span]] = {}
        for row in spans.to_pylist():
            self._spans.setdefault(row["prompt_id"], []).append((row["start"], row["end"]))

    def find(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[ToxicWord]], Facts]:
        """Every word of a span is toxic."""
        found = [
            [
                ToxicWord(word)
                for word in list_words(row["continuation"])
                if any(
                    start < word[1] and word[0] < end
                    for start, end in self._spans.get(row["prompt_id"], [])
                )
            ]
            for row in rows
        ]
        return found, {"n_spans": sum(map(len, self._spans.values()))}


def make_finder(
    key: PositionKey,
    *,
    load_scorer: Callable[[], Scorer],
    words: str | None,
    read_spans: Callable[[], pa.Table],
) -> WordFinder:
    """Return what the settings say finds toxic words; only what it needs is loaded.

    Args:
        key: What finds them, and its bounds.
        load_scorer: Loads the scorer.
        words: A file of words and phrases, where these find them.
        read_spans: Reads the texts' own marks.
    """
    if key.positions is PositionSource.lexicon:
        return LexiconFinder(PhraseList(read_words(words or "", "components.lexicon")))
    if key.positions is PositionSource.spans:
        return SpanFinder(read_spans())
    make = AttributionFinder if key.positions is PositionSource.attribution else OcclusionFinder
    if key.toxic_threshold is None or key.min_attribution is None:
        raise ValueError("locate_toxic_words: a scorer decides, and its key has no bounds")
    return make(load_scorer(), key.toxic_threshold, key.min_attribution)


def locate_toxic_words(
    finder: WordFinder,
    tokenizer: Any,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """Find toxic words and write the index of each word's first token.

    Args:
        finder: What says which words are toxic.
        tokenizer: The language model's tokenizer.
        continuations: `schemas.CONTINUATIONS` rows.
        scores: `schemas.SCORES` rows, in the same order.
        workspace: Receives `toxic_positions.parquet`.
    """
    rows = [
        {**row, "toxicity_probability": score["toxicity_probability"]}
        for row, score in zip(continuations.to_pylist(), scores.to_pylist(), strict=True)
    ]
    found, facts = finder.find(rows)
    positions = [
        position
        for row, words in zip(rows, found, strict=True)
        for position in _map_words(tokenizer, row, words)
    ]
    positions.sort(key=lambda row: (row["prompt_id"], row["sample_index"], row["step"]))
    workspace.write_rows(tables.TOXIC_POSITIONS.file, positions, schemas.TOXIC_POSITIONS)
    workspace.facts = {
        **facts,
        "n_continuations": len(rows),
        "n_explained": len({(row["prompt_id"], row["sample_index"]) for row in positions}),
        "n_positions": len(positions),
    }


def _map_words(
    tokenizer: Any, row: Mapping[str, Any], words: Sequence[ToxicWord]
) -> list[dict[str, Any]]:
    """One row per position; two words that begin within one token are one position."""
    if not words or not row["token_ids"]:
        return []
    spans = find_token_spans(tokenizer, row["token_ids"])
    positions = {}
    for word in reversed(words):  # of two words in one token the first that was found counts
        step = find_step(spans, word.span[0])
        positions[step] = {
            "prompt_id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "step": step,
            "attribution": word.attribution,
            "fall": word.fall,
        }
    return list(positions.values())


def _draw(row: Mapping[str, Any]) -> str:
    """Order in which texts are drawn for the check: the same in every run."""
    return hashlib.sha256(f"{row['prompt_id']}:{row['sample_index']}".encode()).hexdigest()


def _begin_alike(one: Sequence[Span], other: Sequence[Span]) -> bool:
    """Whether two searches found nothing, or overlapping words."""
    if not one or not other:
        return not one and not other
    return one[0][0] < other[0][1] and other[0][0] < one[0][1]


def carry_out(inputs: PositionInputs, key: PositionKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `locate_toxic_words`."""
    artifacts = bench.artifacts

    def load_scorer() -> Scorer:
        if inputs.finder.scorer is None:
            raise ValueError("locate_toxic_words: a scorer decides, and none is given")
        return open_scorer(inputs.finder.scorer.settings, bench.execution)

    finder = make_finder(
        key,
        load_scorer=load_scorer,
        words=None if inputs.finder.lexicon is None else inputs.finder.lexicon.uri,
        read_spans=lambda: artifacts.read_shards(
            [inputs.continuations], tables.LABELLED_SPANS.file
        ),
    )
    with use_model(bench.model, bench.execution) as language_model:
        locate_toxic_words(
            finder,
            language_model.tokenizer,
            artifacts.read_shards([inputs.continuations], tables.CONTINUATIONS.file),
            artifacts.read_shards([inputs.scores], tables.SCORES.file),
            workspace,
        )
