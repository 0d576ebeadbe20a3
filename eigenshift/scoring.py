"""Judge continuations: how toxic each is, and which words make it so.

Reads `continuations.parquet`; writes `scores.parquet` (`schemas.SCORES`) and
`toxic_positions.parquet` (`schemas.TOXIC_POSITIONS`). A continuation that cannot be scored is kept
as unscored with its reason and never counted as non-toxic
(docs/decisions/0005-unscored-continuations.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.errors import EvaluationError
from eigenshift.scorers import Scorer
from eigenshift.token_spans import find_token_spans

SCORING_STEP_VERSION = 1
LOCATION_STEP_VERSION = 1

MAX_TOXIC_WORDS = 4
MAX_HAN_WINDOW = 4
SHORTER_RUN_SHARE = 0.9
SATURATED_SHARE = 0.9
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’\-][^\W_\u3400-\u9fff]+)*")
HAN = re.compile(r"[\u3400-\u9fff]")


def score_continuations(scorer: Scorer, continuations: pa.Table, workspace: Workspace) -> None:
    """Score every continuation (without its prompt) and write `scores.parquet`."""
    rows = continuations.select(["prompt_id", "sample_index", "continuation"]).to_pylist()
    scores = scorer.score([row["continuation"] for row in rows])
    table = [
        {
            "prompt_id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "scorer": scorer.name,
            "toxicity_probability": score.probability,
            "status": "unscored" if score.probability is None else "scored",
            "reason": score.reason,
        }
        for row, score in zip(rows, scores, strict=True)
    ]
    workspace.write_rows("scores.parquet", table, schemas.SCORES)
    workspace.facts = {
        "n_scored": sum(score.probability is not None for score in scores),
        "n_unscored": sum(score.probability is None for score in scores),
    }


def require_scored(n_unscored: int, n_total: int, max_share: float, place: str) -> None:
    """Stop when too many continuations have no score.

    Raises:
        EvaluationError: The share is above the bound.
    """
    if n_total and n_unscored / n_total > max_share:
        raise EvaluationError(
            f"{place}: expected at most {max_share:.1%} unscored continuations, found "
            f"{n_unscored} of {n_total}. They are kept in the generations view with a reason; "
            "look at it, or raise scorer.max_unscored_share."
        )


@dataclass
class _Occlusion:
    """A toxic continuation from which words are taken until it is no longer toxic."""

    prompt_id: str
    sample_index: int
    text: str
    probability: float
    token_spans: list[tuple[int, int]]
    is_open: bool = True

    def windows(self) -> list[tuple[int, int]]:
        """Candidate spans: single words, and runs of up to four Han characters."""
        words = [match.span() for match in WORD.finditer(self.text)]
        windows = list(words)
        for first, (start, _) in enumerate(words):
            for last in range(first + 1, min(first + MAX_HAN_WINDOW, len(words))):
                end = words[last][1]
                if len(HAN.findall(self.text[start:end])) != end - start:
                    break
                windows.append((start, end))
        return windows


def locate_toxic_words(
    scorer: Scorer,
    tokenizer: Any,
    continuations: pa.Table,
    scores: pa.Table,
    *,
    toxic_threshold: float,
    min_attribution: float,
    workspace: Workspace,
) -> None:
    """Find the words that make toxic continuations toxic, by greedy leave-one-out occlusion.

    From each toxic continuation the word whose removal lowers the probability most is taken, and
    again, until it is no longer toxic (at most `MAX_TOXIC_WORDS`). Where several words are each
    enough, the one most toxic alone is taken. A word's position is the index of its first token.
    In Chinese, where words have no spaces, runs of one to four characters are
    tried and the shortest that explains nearly all of the fall is taken.

    Args:
        scorer: The classifier whose verdict is explained.
        tokenizer: The language model's tokenizer.
        continuations: `schemas.CONTINUATIONS` rows.
        scores: `schemas.SCORES` rows, in the same order.
        toxic_threshold: Above this probability a continuation is toxic.
        min_attribution: Smallest fall of the probability that counts.
        workspace: Receives `toxic_positions.parquet`.
    """
    cases = _open_cases(tokenizer, continuations, scores, toxic_threshold)
    positions: list[dict[str, Any]] = []
    for _ in range(MAX_TOXIC_WORDS):
        open_cases = [case for case in cases if case.is_open]
        for case, word in zip(open_cases, _find_toxic_words(scorer, open_cases), strict=True):
            if word is None or word.attribution < min_attribution:
                case.is_open = False
                continue
            positions.append(
                {
                    "prompt_id": case.prompt_id,
                    "sample_index": case.sample_index,
                    "step": find_step(case.token_spans, word.start),
                    "attribution": word.attribution,
                }
            )
            case.text = _blank(case.text, (word.start, word.end))
            case.probability = word.probability_without
            case.is_open = case.probability > toxic_threshold
    positions.sort(key=lambda row: (row["prompt_id"], row["sample_index"], row["step"]))
    workspace.write_rows("toxic_positions.parquet", positions, schemas.TOXIC_POSITIONS)
    workspace.facts = {
        "n_toxic_continuations": len(cases),
        "n_explained": len({(row["prompt_id"], row["sample_index"]) for row in positions}),
        "n_positions": len(positions),
    }


def find_step(spans: Sequence[tuple[int, int]], character: int) -> int:
    """Index of the token with which the word at `character` begins.

    Where the first character takes several byte tokens, this is the first of them.
    """
    step = next((place for place, (_, end) in enumerate(spans) if end > character), len(spans) - 1)
    while step > 0 and spans[step - 1] == (spans[step][0], spans[step][0]):
        step -= 1
    return step


def _open_cases(
    tokenizer: Any, continuations: pa.Table, scores: pa.Table, toxic_threshold: float
) -> list[_Occlusion]:
    cases = []
    for row, score in zip(continuations.to_pylist(), scores.to_pylist(), strict=True):
        probability = score["toxicity_probability"]
        if probability is not None and probability > toxic_threshold:
            cases.append(
                _Occlusion(
                    row["prompt_id"],
                    row["sample_index"],
                    row["continuation"],
                    probability,
                    find_token_spans(tokenizer, row["token_ids"]),
                )
            )
    return cases


@dataclass(frozen=True)
class _ToxicWord:
    start: int
    end: int
    attribution: float
    probability_without: float


def _find_toxic_words(scorer: Scorer, cases: Sequence[_Occlusion]) -> list[_ToxicWord | None]:
    """For each case the word to take next, None where it has no words.

    Usually that is the word whose removal lowers the probability most. Where several words are
    each enough to make the text toxic, no single removal helps; then it is the word that is most
    toxic alone, and its attribution is its own probability.
    """
    spans = [case.windows() for case in cases]
    without = _score_spans(scorer, cases, spans, _blank)
    words = [
        _choose_word(case.probability, case_spans, values)
        for case, case_spans, values in zip(cases, spans, without, strict=True)
    ]
    stuck = [
        place
        for place, word in enumerate(words)
        if word is not None
        and word.probability_without > SATURATED_SHARE * cases[place].probability
    ]
    alone = _score_spans(
        scorer, [cases[place] for place in stuck], [spans[place] for place in stuck], _keep_only
    )
    for place, values in zip(stuck, alone, strict=True):
        best = max(range(len(values)), key=lambda index: values[index])
        words[place] = _ToxicWord(*spans[place][best], values[best], without[place][best])
    return words


def _score_spans(
    scorer: Scorer,
    cases: Sequence[_Occlusion],
    spans: Sequence[Sequence[tuple[int, int]]],
    edit: Callable[[str, tuple[int, int]], str],
) -> list[list[float]]:
    """Probability of each case's text after `edit` of each span; a blank rest counts as 0."""
    texts = [
        edit(case.text, span)
        for case, case_spans in zip(cases, spans, strict=True)
        for span in case_spans
    ]
    scores = iter(scorer.score(texts))
    return [[next(scores).probability or 0.0 for _ in case_spans] for case_spans in spans]


def _choose_word(
    probability: float, spans: Sequence[tuple[int, int]], without: Sequence[float]
) -> _ToxicWord | None:
    """The word that explains most; among nested Chinese runs the shortest that nearly does."""
    if not spans:
        return None
    falls = [probability - value for value in without]
    best = max(range(len(spans)), key=lambda place: falls[place])
    for place, (start, end) in enumerate(spans):
        is_inside = spans[best][0] <= start and end <= spans[best][1]
        is_shorter = end - start < spans[best][1] - spans[best][0]
        if is_inside and is_shorter and falls[place] >= SHORTER_RUN_SHARE * falls[best]:
            best = place
    return _ToxicWord(*spans[best], falls[best], without[best])


def _keep_only(text: str, span: tuple[int, int]) -> str:
    return text[span[0] : span[1]]


def _blank(text: str, span: tuple[int, int]) -> str:
    """Replace a span by spaces, so that the positions of the rest stay."""
    start, end = span
    return text[:start] + " " * (end - start) + text[end:]
