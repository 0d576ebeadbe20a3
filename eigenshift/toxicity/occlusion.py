"""Which words make a text toxic: those without which the classifier calls it less toxic.

Leave-one-out, greedily: the word whose removal lowers the probability most is taken, and again,
until the text is no longer toxic. What is tried is proposed from outside: every word (full
occlusion), or the few that a gradient points at (`attribution.py`), which are checked so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.word_spans import Span, blank, keep_only, list_windows

MAX_TOXIC_WORDS = 4
SHORTER_RUN_SHARE = 0.9
SATURATED_SHARE = 0.9


@dataclass(frozen=True)
class Proposal:
    """A span that may be a toxic word, and what speaks for it, if anything was computed."""

    span: Span
    attribution: float | None = None


@dataclass(frozen=True)
class ToxicWord:
    """A word found toxic.

    Attributes:
        span: Where it is.
        attribution: What a gradient said of it; None where none was asked.
        fall: How much of the toxicity probability goes with it; of a word that is one of several
            which are each enough, its probability alone. None where it was not occluded.
    """

    span: Span
    attribution: float | None = None
    fall: float | None = None


Propose = Callable[[Sequence[str]], list[list[Proposal]]]
"""Texts -> what to try in each of them."""


@dataclass
class _Case:
    """A text from which words are taken until it is no longer toxic."""

    text: str
    probability: float
    found: list[ToxicWord] = field(default_factory=list)
    is_open: bool = True


@dataclass(frozen=True)
class _Taken:
    word: ToxicWord
    probability_without: float


def propose_every_word(texts: Sequence[str]) -> list[list[Proposal]]:
    """Full occlusion: every word, and every run of up to four Chinese characters."""
    return [[Proposal(window) for window in list_windows(text)] for text in texts]


def find_toxic_words(
    scorer: Scorer,
    texts: Sequence[str],
    propose: Propose,
    *,
    toxic_threshold: float,
    min_fall: float,
    max_words: int = MAX_TOXIC_WORDS,
) -> list[list[ToxicWord]]:
    """Find the words of each text, in the order they were taken.

    Where several words are each enough, no single removal helps; then the one most toxic alone is
    taken. In Chinese the shortest run that explains nearly all of the fall is taken.

    Args:
        scorer: The classifier whose verdict is explained.
        texts: Those it does not call toxic, or cannot score, have no words.
        propose: What to try; a text without proposals is done.
        toxic_threshold: Above this probability a text is toxic.
        min_fall: Smallest fall of the probability that counts.
        max_words: At most so many per text.
    """
    cases = [
        _Case(text, score.probability or 0.0)
        for text, score in zip(texts, scorer.score(texts), strict=True)
    ]
    for case in cases:
        case.is_open = case.probability > toxic_threshold
    for _ in range(max_words):
        still_open = [case for case in cases if case.is_open]
        proposals = propose([case.text for case in still_open])
        for case, taken in zip(still_open, _take_words(scorer, still_open, proposals), strict=True):
            if taken is None or (taken.word.fall or 0.0) < min_fall:
                case.is_open = False
                continue
            case.found.append(taken.word)
            case.text = blank(case.text, taken.word.span)
            case.probability = taken.probability_without
            case.is_open = case.probability > toxic_threshold
    return [case.found for case in cases]


def _take_words(
    scorer: Scorer, cases: Sequence[_Case], proposals: Sequence[Sequence[Proposal]]
) -> list[_Taken | None]:
    """For each case the word to take next, None where nothing is proposed."""
    without = _score_spans(scorer, cases, proposals, blank)
    taken = [
        _choose_word(case.probability, of_case, values)
        for case, of_case, values in zip(cases, proposals, without, strict=True)
    ]
    stuck = [
        place
        for place, item in enumerate(taken)
        if item is not None
        and item.probability_without > SATURATED_SHARE * cases[place].probability
    ]
    alone = _score_spans(
        scorer, [cases[place] for place in stuck], [proposals[place] for place in stuck], keep_only
    )
    for place, values in zip(stuck, alone, strict=True):
        best = max(range(len(values)), key=lambda index: values[index])
        proposal = proposals[place][best]
        word = ToxicWord(proposal.span, proposal.attribution, values[best])
        taken[place] = _Taken(word, without[place][best])
    return taken


def _score_spans(
    scorer: Scorer,
    cases: Sequence[_Case],
    proposals: Sequence[Sequence[Proposal]],
    edit: Callable[[str, Span], str],
) -> list[list[float]]:
    """Probability of each case's text after `edit` of each span; a blank rest counts as 0."""
    texts = [
        edit(case.text, proposal.span)
        for case, of_case in zip(cases, proposals, strict=True)
        for proposal in of_case
    ]
    scores = iter(scorer.score(texts))
    return [[next(scores).probability or 0.0 for _ in of_case] for of_case in proposals]


def _choose_word(
    probability: float, proposals: Sequence[Proposal], without: Sequence[float]
) -> _Taken | None:
    """The word that explains most; among nested Chinese runs the shortest that nearly does."""
    if not proposals:
        return None
    falls = [probability - value for value in without]
    best = max(range(len(proposals)), key=lambda place: falls[place])
    for place, proposal in enumerate(proposals):
        (start, end), chosen = proposal.span, proposals[best].span
        is_inside = chosen[0] <= start and end <= chosen[1]
        is_shorter = end - start < chosen[1] - chosen[0]
        if is_inside and is_shorter and falls[place] >= SHORTER_RUN_SHARE * falls[best]:
            best = place
    proposal = proposals[best]
    return _Taken(ToxicWord(proposal.span, proposal.attribution, falls[best]), without[best])
