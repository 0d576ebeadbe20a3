"""What an edit costs on harmless text: rises of the loss by kind of text, and divergence.

One meter for all interventions, so that ours and the peers spend the same budget: the largest rise
over neutral sentences, the base's own harmless continuations and labelled harmless texts
(docs/decisions/0049-cost-in-domain.md). Edits of the head are measured on cached states; an edit of
the trunk runs the model. Reads token sequences; writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenshift.components.budget_texts import NEUTRAL, BudgetTexts
from eigenshift.components.calibration import read_predicted
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import compute_logits, run_hooked

MAX_TOKENS_OF_KIND = 8_192
MAX_LOGITS_OF_KIND = 1 << 27
"""Positions x vocabulary of each kind: with a wide vocabulary fewer positions, as many logits."""
ROUGH_SHARE = 4
"""A rough measure reads one text in so many."""
TOKENS_PER_BATCH = 2_048
POSITIONS_PER_BLOCK = 256


@dataclass(frozen=True)
class Cost:
    """What an edit costs.

    Attributes:
        rises: Rise of the mean negative log-likelihood by kind of text, nats a token.
        divergence: Mean KL(base || edited) on neutral text, nats a token.
    """

    rises: dict[str, float]
    divergence: float

    @property
    def largest_rise(self) -> float:
        """Of all kinds; infinite where a loss is not finite, which `max` would pass over."""
        rises = self.rises.values()
        return max(rises) if all(map(math.isfinite, rises)) else math.inf

    @property
    def perplexity_increase(self) -> float:
        """Relative, on the kind of text that suffers most."""
        return math.expm1(self.largest_rise)


class CostMeter:
    """Measures edits of one model on the same texts.

    Args:
        language_model: The unpatched model.
        texts: By kind, at least neutral ones; of each kind the first `MAX_TOKENS_OF_KIND` tokens.
        tokens_per_batch: Budget of a forward pass; does not change the result.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        texts: BudgetTexts,
        *,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> None:
        self._language_model, self._tokens_per_batch = language_model, tokens_per_batch
        self.texts = texts.limit(count_tokens_of_kind(language_model.head.vocab))
        self._states, self._targets = self._collect_states()
        self._base = self._measure_losses(ModelEdit(), self._states)

    def make_rough(self) -> CostMeter:
        """A meter of a part of the texts: to find about where a budget is spent, at less work."""
        n_tokens = max(1, count_tokens_of_kind(self._language_model.head.vocab) // ROUGH_SHARE)
        return CostMeter(
            self._language_model,
            self.texts.limit(n_tokens),
            tokens_per_batch=self._tokens_per_batch,
        )

    def measure(self, edit: ModelEdit, *, with_divergence: bool = False) -> Cost:
        """What an edit costs; the divergence is nan unless it is asked for.

        Args:
            edit: Measured as hooks would apply it.
            with_divergence: Measure it too, which takes another product with the head.
        """
        states = self._states
        if edit.changes_trunk:
            with run_hooked(self._language_model, edit.of_trunk):
                states, _ = self._collect_states()
        found = self._measure_losses(edit, states)
        rises = {kind: loss - self._base[kind] for kind, loss in found.items()}
        divergence = self._measure_divergence(edit, states) if with_divergence else math.nan
        return Cost(rises, divergence)

    def _collect_states(self) -> tuple[Tensor, Tensor]:
        """What enters the head before each target, and the targets."""
        texts = self.texts
        return read_predicted(
            self._language_model, texts.sequences, texts.n_contexts, self._tokens_per_batch
        )

    def _list_rows(self) -> dict[str, slice]:
        """Where the positions of each kind of text lie."""
        rows: dict[str, slice] = {}
        first = 0
        for kind in self.texts.by_kind:
            texts = self.texts.take(kind)
            after = first + sum(map(len, texts.sequences)) - sum(texts.n_contexts)
            rows[kind] = slice(first, after)
            first = after
        return rows

    @torch.inference_mode()
    def _measure_losses(self, edit: ModelEdit, states: Tensor) -> dict[str, float]:
        """Mean negative log-likelihood by kind of text."""
        losses = torch.cat(
            [
                -self._find_log_probabilities(edit, states[block])
                .gather(1, self._targets[block, None])
                .double()
                for block in _list_blocks(slice(0, len(states)))
            ]
        )
        return {kind: float(losses[rows].mean()) for kind, rows in self._list_rows().items()}

    @torch.inference_mode()
    def _measure_divergence(self, edit: ModelEdit, states: Tensor) -> float:
        rows, nothing, total = self._list_rows()[NEUTRAL], ModelEdit(), 0.0
        for block in _list_blocks(rows):
            base = self._find_log_probabilities(nothing, self._states[block])
            found = self._find_log_probabilities(edit, states[block])
            total += float((base.exp() * (base - found)).double().sum())
        return total / len(range(rows.start, rows.stop))

    def _find_log_probabilities(self, edit: ModelEdit, states: Tensor) -> Tensor:
        logits = compute_logits(self._language_model, edit, states)
        return torch.log_softmax(logits.float(), dim=-1)


def count_tokens_of_kind(vocab: int) -> int:
    """How many tokens of each kind of text costs are measured on."""
    return min(MAX_TOKENS_OF_KIND, max(1, MAX_LOGITS_OF_KIND // vocab))


def _list_blocks(rows: slice) -> list[slice]:
    size = POSITIONS_PER_BLOCK
    return [
        slice(first, min(first + size, rows.stop)) for first in range(rows.start, rows.stop, size)
    ]
