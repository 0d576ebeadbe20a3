"""How many components to damp: as many as a fluency budget on neutral text allows.

Takes components in the order of their ranking and keeps each that leaves the perplexity of
calibration texts within the budget, given those already kept; the others are skipped. Exact, from
the final states of the texts alone: logits change by -(1 - factor) (h . v_i) (W v_i)^T. The
calibration texts are a fifth of the neutral texts, the same in every run, and are left out of the
evaluation (docs/decisions/0008-choice-of-components.md).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.decomposition import Matrix
from eigenshift.errors import ComponentError
from eigenshift.forward import encode_text, iterate_head_states
from eigenshift.models import LanguageModel

logger = logging.getLogger(__name__)

CALIBRATION_SHARE = 5
MAX_LOGITS = 1 << 27
"""Positions x vocabulary kept in memory at once (512 MiB in float32)."""
ROWS_PER_BLOCK = 64


@dataclass(frozen=True)
class CalibrationStates:
    """Predicting positions of the calibration texts.

    Attributes:
        states: What enters the head, shape (position, hidden), float32.
        targets: The tokens that follow, shape (position,).
    """

    states: Tensor
    targets: Tensor


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
        sequence = encode_text(language_model.tokenizer, row["text"], max_tokens)
        if len(sequence) >= 2 and sum(len(item) - 1 for item in sequences) < n_positions:
            sequences.append(sequence)
    if not sequences:
        raise ComponentError(
            f"neutral texts: expected some for calibration (a fifth of them), found none among "
            f"{len(texts)}. Add neutral texts, or set components.n_components."
        )
    states: list[Tensor] = [torch.empty(0)] * len(sequences)
    for place, found in iterate_head_states(language_model, sequences, tokens_per_batch):
        states[place] = found[:-1].float()
    targets = torch.tensor([token for sequence in sequences for token in sequence[1:]])
    return CalibrationStates(
        torch.cat(states)[:n_positions], targets[:n_positions].to(language_model.device)
    )


@torch.inference_mode()
def choose_within_budget(
    language_model: LanguageModel,
    calibration: CalibrationStates,
    candidates: Sequence[int],
    v: Matrix,
    *,
    factor: float,
    max_perplexity_increase: float,
    max_components: int,
) -> tuple[list[int], float]:
    """Keep candidates in order while the calibration perplexity stays within the budget.

    Args:
        language_model: The unpatched model.
        calibration: States and targets.
        candidates: Component indices, most toxic first.
        v: Right singular vectors, shape (hidden, component).
        factor: What the singular values are multiplied by.
        max_perplexity_increase: Budget, relative to the base.
        max_components: Stop when so many are kept.

    Returns:
        The kept components in order, and the relative increase of the perplexity they cost.
    """
    weight = language_model.head_weight.detach()
    bias = language_model.head_module.bias
    logits = calibration.states @ weight.float().T
    if bias is not None:
        logits += bias.float()
    base = _mean_nll(language_model, logits, calibration.targets, None)
    kept: list[int] = []
    cost = 0.0
    for index in candidates:
        direction = torch.from_numpy(v[:, index]).to(calibration.states)
        change = (
            (1.0 - factor) * (calibration.states @ direction),
            weight.float() @ direction,
        )
        nll = _mean_nll(language_model, logits, calibration.targets, change)
        increase = float(torch.exp(nll - base)) - 1.0
        if increase > max_perplexity_increase:
            logger.debug("component %d skipped: perplexity %+.3f", index, increase)
            continue
        logits.addr_(*change, alpha=-1.0)
        kept.append(index)
        cost = increase
        if len(kept) == max_components:
            break
    return kept, cost


def _mean_nll(
    language_model: LanguageModel,
    logits: Tensor,
    targets: Tensor,
    change: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Mean negative log-likelihood in nats, with a rank-one change of the raw logits if given."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for first in range(0, len(logits), ROWS_PER_BLOCK):
        block = slice(first, first + ROWS_PER_BLOCK)
        raw = logits[block]
        if change is not None:
            raw = torch.addr(raw, change[0][block], change[1], alpha=-1.0)
        found = language_model.head.finish_logits(raw)
        chosen = found.gather(1, targets[block, None]).squeeze(1)
        total += (found.logsumexp(1) - chosen).double().sum()
    return total / len(logits)
