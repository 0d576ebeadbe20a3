"""Several steps instead of one: each from gradients of the model as edited so far.

A step makes the likeliest toxic tokens rare; what is cheap to suppress then is another direction.
Each round spends a share of the budget, measured roughly where that saves work; what all of them
come to is then made to fit on all texts. What a study is of, the head or all layers, is
`head_study.py`'s and `deep_study.py`'s.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.strength import find_strongest

logger = logging.getLogger(__name__)

GROWTH = 1.5
"""Round r of R may spend budget (r / R)^1.5 in all: early steps show the later ones where to go."""

Direction = Callable[[float], ModelEdit]
"""Strength -> change of the model, beside those that were taken before."""


class Study(ABC):
    """A model that is edited in steps."""

    @abstractmethod
    def find_direction(self) -> Direction:
        """The best step from where the model stands now."""

    @abstractmethod
    def measure(self, edit: ModelEdit) -> float:
        """Rise of the loss over the unpatched model with a further step, nats a token."""

    def measure_roughly(self, edit: ModelEdit) -> float:
        """About the same, at less work where there is a way to."""
        return self.measure(edit)

    @abstractmethod
    def take(self, edit: ModelEdit) -> None:
        """Make a step lasting."""

    @abstractmethod
    def finish(self) -> Direction:
        """All steps as one change, of as few terms as are shipped; the unpatched model is back.

        Strength 1 is what was taken; it may cost a little less or more, since terms were dropped.
        """


def spend_budget(study: Study, n_rounds: int, max_perplexity_increase: float) -> ModelEdit:
    """Take the rounds' steps and return the edit that they come to.

    Args:
        study: Of the unpatched model.
        n_rounds: How many steps.
        max_perplexity_increase: Budget, relative to the base.
    """
    for number in range(1, n_rounds + 1):
        direction = study.find_direction()
        share = (number / n_rounds) ** GROWTH
        strength, cost = find_strongest(
            lambda value, direction=direction: study.measure_roughly(direction(value)),  # type: ignore[misc]
            math.log1p(max_perplexity_increase * share),
        )
        logger.info(
            "fisher round: number=%d strength=%.3g perplexity_increase=%.4f",
            number,
            strength,
            math.expm1(cost),
        )
        if strength == 0.0:
            break
        study.take(direction(strength))
    shipped = study.finish()
    strength, _ = find_strongest(
        lambda value: study.measure(shipped(value)),
        math.log1p(max_perplexity_increase),
        first=1.0,
    )
    return shipped(strength)
