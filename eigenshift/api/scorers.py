"""What judges texts: a scorer of the settings' kinds, or any function.

Kinds, and what they need, are `settings/scorers.py`'s; their work is `toxicity/scorers/`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from eigenshift.base.errors import ScorerError
from eigenshift.settings import ExecutionSettings, ScorerSettings, parse_section
from eigenshift.toxicity.attribution import GradientProposer
from eigenshift.toxicity.scorers.interface import Score, Scorer, score_by_length
from eigenshift.toxicity.scorers.loading import open_scorer

EXECUTION = ExecutionSettings()
Judge = Callable[[list[str]], Sequence[float | None]]
"""Texts -> the probability that each is toxic, 0 to 1; None where it cannot say."""


class FunctionScorer:
    """A function as a scorer.

    Args:
        judge: Is given at most 64 texts at once, none of them blank.
    """

    digest = "function"

    def __init__(self, judge: Judge) -> None:
        self.name = str(getattr(judge, "__name__", type(judge).__name__)).strip("<>")
        self._judge = judge

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones are unscored.

        Raises:
            ScorerError: The function gives too few values, or one that is no probability.
        """
        return score_by_length(texts, EXECUTION.texts_per_scoring_batch, self._score_batch)

    def _score_batch(self, texts: list[str]) -> list[Score]:
        values = [None if value is None else float(value) for value in self._judge(texts)]
        if len(values) != len(texts) or not all(
            value is None or 0.0 <= value <= 1.0 for value in values
        ):
            raise ScorerError(
                f"scorer {self.name}: expected for each of {len(texts)} texts a probability from 0 "
                f"to 1, or None, found {len(values)} values, or others. Let the function return "
                "one number a text."
            )
        return [Score(value, "no verdict" if value is None else None) for value in values]


def load_scorer(
    scorer: ScorerSettings | str = "detoxify", *, device: str = "auto", **fields: Any
) -> Scorer:
    """Load what judges texts.

    Args:
        scorer: A kind (detoxify, classifier, linear, lexicon, judge) or `ScorerSettings`.
        device: Where it runs.
        fields: Of `ScorerSettings` (docs/settings.md, section scorer), e.g. model="my/classifier".

    Raises:
        ScorerError: It cannot be loaded or trusted.
        SettingsError: A field does not fit.
    """
    document = scorer.model_dump() if isinstance(scorer, ScorerSettings) else {"kind": scorer}
    chosen = parse_section(ScorerSettings, {**document, **fields}, "load_scorer")
    return open_scorer(chosen, EXECUTION.model_copy(update={"device": device}))


def take_scorer(given: Any) -> Scorer:
    """A scorer as it is; settings of one loaded; a function as one.

    Raises:
        ScorerError: It is none of these.
    """
    if isinstance(given, ScorerSettings):
        return load_scorer(given)
    if hasattr(given, "score"):
        return cast("Scorer", given)
    if callable(given):
        return FunctionScorer(given)
    raise ScorerError(
        "scorer: expected what load_scorer gives, or a function from texts to probabilities, "
        f"found a {type(given).__name__}."
    )


def has_gradients(scorer: Scorer) -> bool:
    """Whether a scorer can say by itself which words its verdict rests on."""
    try:
        GradientProposer(scorer)
    except ScorerError:
        return False
    return True
