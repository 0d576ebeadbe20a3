"""What every scorer is: a name, a digest, and probabilities with reasons where there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

BLANK_REASON = "blank text"


@dataclass(frozen=True)
class Score:
    """A probability, or the reason why there is none."""

    probability: float | None
    reason: str | None = None


class Scorer(Protocol):
    """Anything that gives a text a probability of being toxic."""

    name: str
    digest: str

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order. Safe to call from several threads."""
        ...


def score_by_length(
    texts: Sequence[str], texts_per_batch: int, judge: Callable[[list[str]], list[Score]]
) -> list[Score]:
    """Judge texts in batches of similar length, so that little is padded; blank ones are unscored.

    Args:
        texts: In any order.
        texts_per_batch: Most texts in one call of `judge`.
        judge: Scores of a batch, in its order.

    Returns:
        Scores in the order of `texts`.
    """
    scores = [Score(None, BLANK_REASON)] * len(texts)
    places = [place for place, text in enumerate(texts) if text.strip()]
    places.sort(key=lambda place: len(texts[place]))
    for first in range(0, len(places), texts_per_batch):
        batch = places[first : first + texts_per_batch]
        for place, score in zip(batch, judge([texts[place] for place in batch]), strict=True):
            scores[place] = score
    return scores


def score_patiently(texts: list[str], compute: Callable[[list[str]], list[float]]) -> list[Score]:
    """Scores of one batch; if the model chokes on it, of one text at a time.

    Args:
        texts: Of the batch.
        compute: Their probabilities; NaN where there is none.
    """
    try:
        values = compute(texts)
    except (RuntimeError, IndexError, ValueError) as error:
        if len(texts) == 1:
            return [Score(None, f"classifier failed: {type(error).__name__}")]
        return [score for text in texts for score in score_patiently([text], compute)]
    return [
        Score(value) if math.isfinite(value) else Score(None, "classifier gave no finite number")
        for value in values
    ]
