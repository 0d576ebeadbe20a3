"""What a choice of components is calibrated on: states of harmless text and of toxic positions.

Runs the model; writes nothing. Which texts are `budget_texts.py`'s, the choice itself is
`choice.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel

MAX_LOGITS = 1 << 27
"""Positions x vocabulary kept in memory at once (512 MiB in float32)."""


MIN_PROBABILITY = 0.02
"""Below this a position's share is not magnified further: the word was blamed by mistake."""


@dataclass(frozen=True)
class CalibrationStates:
    """Predicting positions of the calibration texts.

    Attributes:
        states: What enters the head, shape (position, hidden), float32.
        targets: The tokens that follow, shape (position,).
    """

    states: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ToxicStates:
    """Positions about to generate a toxic token.

    Attributes:
        states: What enters the head, shape (position, hidden), float32.
        token_ids: The different toxic tokens generated there, shape (token,).
        weights: Of each position, shape (position,): 1 / toxic positions of its continuation, since
            a continuation stays toxic until the last of them is gone.
    """

    states: Tensor
    token_ids: Tensor
    weights: Tensor

    def weigh_ratios(self, base_probabilities: Tensor, rows: slice) -> Tensor:
        """Factors that turn the tokens' probabilities into weighted shares of what they were.

        Toxic positions were met in proportion to the probability p of their toxic token, so the
        mean of p' / p over them, not of p', estimates how much rarer such tokens become.

        Args:
            base_probabilities: Of the toxic tokens together, unpatched, shape (position,).
            rows: Which positions these are.
        """
        return self.weights[rows] / base_probabilities.clamp_min(MIN_PROBABILITY)


def collect_calibration_states(
    language_model: LanguageModel, texts: BudgetTexts, tokens_per_batch: int
) -> list[CalibrationStates]:
    """Run the trunk over texts, of each kind up to what `MAX_LOGITS` allows.

    Args:
        language_model: The unpatched model.
        texts: By kind.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Returns:
        Of each kind, in the order of the kinds.
    """
    n_positions = max(1, MAX_LOGITS // language_model.head.vocab)
    return [
        _collect_states(language_model, texts.take(kind), n_positions, tokens_per_batch)
        for kind in texts.by_kind
    ]


def _collect_states(
    language_model: LanguageModel, texts: BudgetTexts, n_positions: int, tokens_per_batch: int
) -> CalibrationStates:
    """Of texts of one kind, the first that have so many positions."""
    sequences: list[Sequence[int]] = []
    n_contexts: list[int] = []
    total = 0
    for sequence, n_context in zip(texts.sequences, texts.n_contexts, strict=True):
        if total < n_positions:
            sequences.append(sequence)
            n_contexts.append(n_context)
            total += len(sequence) - n_context
    states, targets = read_predicted(language_model, sequences, n_contexts, tokens_per_batch)
    return CalibrationStates(states[:n_positions].float(), targets[:n_positions])


def read_predicted(
    language_model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    n_contexts: Sequence[int],
    tokens_per_batch: int,
) -> tuple[Tensor, Tensor]:
    """What enters the head before each predicted token, and these tokens, text after text.

    Args:
        language_model: The model as it runs now.
        sequences: Token ids.
        n_contexts: Of each, how many tokens at the start are not predicted, at least one.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Returns:
        States, shape (position, hidden), and targets, shape (position,).
    """
    states: list[Tensor] = [torch.empty(0)] * len(sequences)
    for place, found in iterate_head_states(language_model, sequences, tokens_per_batch):
        states[place] = found[n_contexts[place] - 1 : -1]
    following = [
        token
        for sequence, n_context in zip(sequences, n_contexts, strict=True)
        for token in sequence[n_context:]
    ]
    return torch.cat(states), torch.tensor(following, device=language_model.device)
