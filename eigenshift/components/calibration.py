"""What a choice of components is calibrated on: states of neutral text and of toxic positions.

Calibration texts are half of the neutral texts, the same in every run, and are left out of the
evaluation (docs/decisions/0008-choice-of-components.md). Reads samples; writes nothing. The choice
itself is `choice.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base.errors import ComponentError, DatasetError
from eigenshift.model.forward import encode_text, iterate_head_states
from eigenshift.model.loading import LanguageModel

CALIBRATION_SHARE = 2
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


def is_calibration_text(sample_id: str) -> bool:
    """Whether a neutral text is for calibration; the others are for evaluation."""
    digest = hashlib.sha256(f"calibration:{sample_id}".encode()).digest()
    return digest[0] % CALIBRATION_SHARE == 0


def split_neutral(texts: pa.Table, *, for_calibration: bool) -> pa.Table:
    """The calibration or the evaluation part of neutral samples."""
    chosen = [
        is_calibration_text(sample_id) is for_calibration
        for sample_id in texts["sample_id"].to_pylist()
    ]
    return texts.filter(pa.array(chosen, pa.bool_()))


def require_both_parts(shards: Iterable[pa.Table]) -> None:
    """Refuse neutral samples that are all for calibration, or all for evaluation.

    Args:
        shards: Read until there is a sample of each part.

    Raises:
        DatasetError: A part has none.
    """
    counts = {True: 0, False: 0}
    for shard in shards:
        for sample_id in shard["sample_id"].to_pylist():
            counts[is_calibration_text(sample_id)] += 1
        if all(counts.values()):
            return
    raise DatasetError(
        f"neutral texts: expected some for calibration and some for evaluation, found "
        f"{counts[True]} and {counts[False]}. Each text belongs to one part by its id, about half "
        "to each. Add neutral texts; some hundred make perplexity meaningful."
    )


def collect_calibration_states(
    language_model: LanguageModel, texts: pa.Table, max_tokens: int, tokens_per_batch: int
) -> CalibrationStates:
    """Run the trunk over the calibration part of neutral samples, up to what `MAX_LOGITS` allows.

    Args:
        language_model: The unpatched model.
        texts: Neutral samples; those for evaluation are left out here.
        max_tokens: Longer texts are truncated.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Raises:
        ComponentError: No calibration text has two tokens.
    """
    rows = split_neutral(texts, for_calibration=True).select(["sample_id", "text"]).to_pylist()
    rows.sort(key=lambda row: hashlib.sha256(row["sample_id"].encode()).digest())
    n_positions = max(1, MAX_LOGITS // language_model.head.vocab)
    sequences: list[list[int]] = []
    for row in rows:
        sequence = encode_text(language_model, row["text"], max_tokens)
        if len(sequence) >= 2 and sum(len(item) - 1 for item in sequences) < n_positions:
            sequences.append(sequence)
    if not sequences:
        raise ComponentError(
            f"neutral texts: expected some for calibration (half of them), found none among "
            f"{len(texts)}. Add neutral texts, or set components.n_components."
        )
    states: list[Tensor] = [torch.empty(0)] * len(sequences)
    for place, found in iterate_head_states(language_model, sequences, tokens_per_batch):
        states[place] = found[:-1].float()
    targets = torch.tensor([token for sequence in sequences for token in sequence[1:]])
    return CalibrationStates(
        torch.cat(states)[:n_positions], targets[:n_positions].to(language_model.device)
    )
