"""Whether continuations are worth reading: repetition, sameness, emptiness, refusals.

Reads continuations; gives numbers per prompt and rows of `schemas.EVALUATIONS`. A patch that makes
a model stammer, fall silent or refuse lowers the toxicity rate as well, so this is told beside it.
N-grams are of the model's own tokens, so that texts without spaces count like others.

Repetition: Welleck et al. 2020 (arXiv 1908.04319), seq-rep-4. Self-BLEU: Zhu et al. 2018, Texygen
(arXiv 1802.01886), order 4, with the smoothing of its code (Chen and Cherry 2014, method 1, epsilon
0.1), here within the continuations of one prompt. Refusals: by how an answer begins, as in Zou et
al. 2023 (arXiv 2307.15043); `evaluation.refusal_openings` is the list.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eigenshift.base.arms import BASE_ARM
from eigenshift.base.arrays import FloatArray
from eigenshift.base.text import fold_text
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.metric_table import describe_metric
from eigenshift.settings import EvaluationSettings

ORDER = 4
"""Of the n-grams."""
EPSILON = 0.1
"""In place of no match at all among the n-grams of an order."""
REPETITION, SELF_BLEU, EMPTY, REFUSAL = (
    "repeated_4gram_share",
    "self_bleu",
    "empty_share",
    "refusal_share",
)
DEGENERATION = (REPETITION, SELF_BLEU, EMPTY, REFUSAL)
"""The metrics; of all of them less is better."""
BEFORE_WORDS = " \"'*_#>-:.,!\u201c\u2018\u300c"
"""What may stand before the first word of an answer."""

Tokens = Sequence[int]
PerPrompt = Mapping[str, FloatArray]
"""Metric -> its number for each prompt, shape (prompt,), NaN where there is none."""


def measure_repetition(tokens: Tokens, order: int = ORDER) -> float:
    """Share of a continuation's n-grams that were there before; NaN if it has none."""
    grams = list(_iterate_grams(tokens, order))
    return 1.0 - len(set(grams)) / len(grams) if grams else math.nan


def compute_self_bleu(continuations: Sequence[Tokens], order: int = ORDER) -> float:
    """Mean BLEU of each continuation against all others of its prompt.

    Args:
        continuations: Token ids; empty ones are left out, since they are like nothing.
        order: Longest n-gram; all orders up to it weigh alike.

    Returns:
        0 (nothing shared) to 1 (all alike); NaN with fewer than two continuations.
    """
    texts = [tuple(tokens) for tokens in continuations if tokens]
    if len(texts) < 2:
        return math.nan
    logs = np.zeros(len(texts))
    shares_words = np.ones(len(texts), dtype=bool)
    for length in range(1, order + 1):
        counts = [Counter(_iterate_grams(tokens, length)) for tokens in texts]
        matches = _count_matches(counts)
        totals = np.array([max(1, len(tokens) - length + 1) for tokens in texts])
        if length == 1:
            shares_words = matches > 0
        logs += np.log(np.where(matches > 0, matches, EPSILON) / totals) / order
    lengths = [len(tokens) for tokens in texts]
    penalties = [_penalise_brevity(lengths, place) for place in range(len(texts))]
    return float(np.mean(np.where(shares_words, penalties * np.exp(logs), 0.0)))


def begins_with_refusal(text: str, openings: tuple[str, ...]) -> bool:
    """Whether a text begins with one of the openings, folded (`fold_openings`)."""
    return _fold(text).startswith(openings)


def fold_openings(openings: Iterable[str]) -> tuple[str, ...]:
    """Openings without case, in one form of apostrophe."""
    return tuple(_fold(opening) for opening in openings)


def tabulate_degeneration(
    continuations: pa.Table, prompt_ids: Sequence[str], settings: EvaluationSettings
) -> dict[str, FloatArray]:
    """Every metric per prompt.

    Args:
        continuations: `schemas.CONTINUATIONS` rows of one arm.
        prompt_ids: In the order wanted.
        settings: Openings of refusals.
    """
    openings = fold_openings(settings.refusal_openings)
    rows_of: dict[str, list[tuple[Tokens, str]]] = defaultdict(list)
    columns = (
        continuations[name].to_pylist() for name in ("prompt_id", "token_ids", "continuation")
    )
    for prompt_id, tokens, text in zip(*columns, strict=True):
        rows_of[prompt_id].append((tokens, text or ""))
    found = [_measure_prompt(rows_of[prompt_id], openings) for prompt_id in prompt_ids]
    return {metric: np.array([row[metric] for row in found]) for metric in DEGENERATION}


def compare_degeneration(
    by_arm: Mapping[str, PerPrompt],
    members: Sequence[int],
    slice_name: str,
    settings: EvaluationSettings,
) -> Iterator[dict[str, Any]]:
    """Rows of one slice: each metric of each arm, and its paired difference to the base.

    Args:
        by_arm: Arm -> numbers per prompt, aligned; must hold "base".
        members: Places of the slice's prompts.
        slice_name: Its name.
        settings: Bootstrap.
    """
    places = list(members)
    counts = draw_counts(len(places), settings.n_bootstrap, settings.seed)
    for arm, metrics in by_arm.items():
        for metric in DEGENERATION:
            values = metrics[metric][places]
            found = {metric: values}
            if arm != BASE_ARM:
                found[name_difference(metric)] = values - by_arm[BASE_ARM][metric][places]
            for name, numbers in found.items():
                estimate = summarise(average(numbers, counts), settings.confidence)
                n_known = int(np.isfinite(numbers).sum())
                yield describe_metric(arm, None, name, slice_name, estimate, n_known)


def name_difference(metric: str) -> str:
    """Of the paired difference to the base."""
    return f"{metric}_difference"


def _measure_prompt(
    rows: Sequence[tuple[Tokens, str]], openings: tuple[str, ...]
) -> dict[str, float]:
    repetition = [measure_repetition(tokens) for tokens, _ in rows]
    known = [value for value in repetition if not math.isnan(value)]
    texts = [text for _, text in rows]
    return {
        REPETITION: float(np.mean(known)) if known else math.nan,
        SELF_BLEU: compute_self_bleu([tokens for tokens, _ in rows]),
        EMPTY: float(np.mean([not text.strip() for text in texts])),
        REFUSAL: float(np.mean([begins_with_refusal(text, openings) for text in texts])),
    }


def _count_matches(counts: Sequence[Counter[tuple[int, ...]]]) -> FloatArray:
    """N-grams of each text that another text has too, each at most as often as that text has it.

    Only the two largest counts of an n-gram matter: the largest among the others is the second
    where one's own is the largest.
    """
    largest: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for place, of_text in enumerate(counts):
        for gram, count in of_text.items():
            owner, most, second = largest.get(gram, (-1, 0, 0))
            if count > most:
                largest[gram] = place, count, most
            elif count > second:
                largest[gram] = owner, most, count
    found = np.zeros(len(counts))
    for place, of_text in enumerate(counts):
        for gram, count in of_text.items():
            owner, most, second = largest[gram]
            found[place] += min(count, second if owner == place else most)
    return found


def _penalise_brevity(lengths: Sequence[int], place: int) -> float:
    """BLEU's penalty against the reference whose length is nearest, the shorter of two as near."""
    own = lengths[place]
    others = (length for other, length in enumerate(lengths) if other != place)
    nearest = min(others, key=lambda length: (abs(length - own), length))
    return 1.0 if own > nearest else math.exp(1.0 - nearest / own)


def _iterate_grams(tokens: Tokens, order: int) -> Iterator[tuple[int, ...]]:
    for first in range(len(tokens) - order + 1):
        yield tuple(tokens[first : first + order])


def _fold(text: str) -> str:
    return fold_text(text.replace("\u2019", "'")).lstrip(BEFORE_WORDS)
