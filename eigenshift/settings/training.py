"""How a scorer is trained; given on the command line, part of no run's settings."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from eigenshift.settings.fields import Frozen


class NgramChoice(str, Enum):
    """Which n-grams a linear scorer reads."""

    words = "words"
    characters = "characters"
    both = "both"


class FittingMethod(str, Enum):
    """What weighs the n-grams."""

    logistic = "logistic"
    calibrated = "calibrated"


class TrainingSettings(Frozen):
    """How a linear scorer is made of labelled texts."""

    ngrams: NgramChoice = Field(
        NgramChoice.both,
        description="words: one or two of them; characters: two to five within a word, also for "
        "languages without spaces; both.",
    )
    method: FittingMethod = Field(
        FittingMethod.logistic,
        description="logistic: a logistic regression; calibrated: the mean of five linear support "
        "vector machines with a sigmoid each.",
    )
    held_out_share: float = Field(
        0.2, gt=0.0, lt=1.0, description="Share of the texts that are kept to measure it on."
    )
    seed: int = Field(0, ge=0, description="Which texts these are, and the folds of 'calibrated'.")
    min_texts: int = Field(2, ge=1, description="N-grams of fewer texts are left out.")
    max_ngrams: int = Field(
        200_000, ge=1, description="Most n-grams of each kind: the most frequent ones."
    )
