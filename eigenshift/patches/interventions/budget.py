"""How strong an intervention may be: the strongest whose cost on calibration texts is in budget.

Interventions inside the trunk have a number (units, strength) that a fair comparison must tune. It
is tuned as EigenShift's components are, on the calibration half of the neutral texts, never on
evaluation prompts or texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from eigenshift.base.errors import ComponentError
from eigenshift.components.calibration import split_neutral
from eigenshift.model.forward import encode_text, iterate_head_states
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.interface import Evidence

MAX_TOKENS = 128
MAX_CALIBRATION_TOKENS = 8_192
TOKENS_PER_BATCH = 2_048
POSITIONS_PER_BLOCK = 256


def choose_strongest(
    evidence: Evidence,
    strengths: Sequence[float],
    make_edit: Callable[[float], ModelEdit],
    max_perplexity_increase: float,
) -> tuple[float, float]:
    """The strongest edit in budget; the weakest where none is.

    Args:
        evidence: The model and neutral texts.
        strengths: Candidates, weakest first, at least one.
        make_edit: Strength -> edit.
        max_perplexity_increase: Budget, relative to the base.

    Returns:
        The strength, and the relative rise of the calibration perplexity it costs.
    """
    sequences = encode_calibration_texts(evidence)
    base = measure_loss(evidence.language_model, sequences)
    increase = math.nan
    for strength in reversed(strengths):
        with run_hooked(evidence.language_model, make_edit(strength)):
            increase = math.expm1(measure_loss(evidence.language_model, sequences) - base)
        if increase <= max_perplexity_increase:
            return strength, increase
    return strengths[0], increase


def encode_calibration_texts(evidence: Evidence) -> list[list[int]]:
    """Tokens of calibration texts, up to a bound.

    Raises:
        ComponentError: There is none with two tokens.
    """
    language_model = evidence.language_model
    texts = split_neutral(evidence.neutral_texts, for_calibration=True)["text"].to_pylist()
    sequences: list[list[int]] = []
    n_tokens = 0
    for text in texts:
        sequence = encode_text(language_model, text, MAX_TOKENS)
        if len(sequence) < 2:
            continue
        if n_tokens + len(sequence) > MAX_CALIBRATION_TOKENS:
            break
        sequences.append(sequence)
        n_tokens += len(sequence)
    if not sequences:
        raise ComponentError(
            "neutral texts: expected some for calibration (half of them), found none with two "
            "tokens. Add neutral texts."
        )
    return sequences


@torch.inference_mode()
def measure_loss(language_model: LanguageModel, sequences: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood of the model as it runs now, nats per token."""
    head = language_model.head_module
    total, n_tokens = 0.0, 0
    for place, states in iterate_head_states(language_model, sequences, TOKENS_PER_BATCH):
        targets = torch.tensor(sequences[place][1:], device=states.device)
        for first in range(0, len(targets), POSITIONS_PER_BLOCK):
            block = slice(first, first + POSITIONS_PER_BLOCK)
            logits = language_model.head.compute_logits(states[:-1][block], head.weight, head.bias)
            loss = torch.nn.functional.cross_entropy(
                logits.float(), targets[block], reduction="none"
            )
            total += float(loss.double().sum())
        n_tokens += len(targets)
    return total / n_tokens
