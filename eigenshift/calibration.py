"""Which components to damp, and how many: the most suppression a fluency budget buys.

For each candidate the benefit is how much the probability of toxic tokens falls where one was about
to be generated, and the cost how much the likelihood of neutral text falls; candidates are taken
by benefit per cost, each only if it still helps and the perplexity of the calibration texts stays
within the budget. Exact, from final states alone: damping component i changes the logits by
-(1 - factor) (h . v_i) (W v_i)^T. The calibration texts are half of the neutral texts, the same in
every run, and are left out of the evaluation (docs/decisions/0008-choice-of-components.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.decomposition import Matrix
from eigenshift.errors import ComponentError
from eigenshift.forward import encode_text, iterate_head_states
from eigenshift.models import LanguageModel

CALIBRATION_SHARE = 2
MAX_LOGITS = 1 << 27
"""Positions x vocabulary kept in memory at once (512 MiB in float32)."""
ROWS_PER_BLOCK = 64
MAX_CANDIDATES = 128
MAX_RANKED_AGAIN = 48
TAKEN_PER_RANKING = 4
"""Components overlap in what they do, so the rest is ranked anew after so many are taken."""
MIN_COST_NATS = 5e-4
"""Costs below this are noise: they must not make a component look arbitrarily good."""


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
    """

    states: Tensor
    token_ids: Tensor


@dataclass(frozen=True)
class Choice:
    """Chosen components with what they cost and bring on the calibration states.

    Attributes:
        components: Indices in the order they were taken.
        perplexity_increase: Relative rise of the calibration perplexity.
        toxic_token_share: Mean probability of the toxic tokens that is left, relative to before.
    """

    components: list[int]
    perplexity_increase: float
    toxic_token_share: float


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


class _Head:
    """Raw logits of fixed states under a growing patch, and a measure of them.

    Args:
        language_model: The unpatched model.
        states: Shape (position, hidden).
        measure: Sum over a block of positions: (finished logits, place of the block) -> scalar.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        states: Tensor,
        measure: Callable[[Tensor, slice], Tensor],
    ) -> None:
        weight, bias = language_model.head_weight, language_model.head_module.bias
        self._head = language_model.head
        self._states = states
        self._measure = measure
        self._logits = states @ weight.detach().float().T
        if bias is not None:
            self._logits += bias.detach().float()

    def measure(self, change: tuple[Tensor, Tensor] | None = None) -> float:
        """Mean over positions, with a rank-one change (direction, effect) of the logits if given.

        Args:
            change: Direction, shape (hidden,), and its effect on the logits, shape (vocab,).
        """
        total = torch.zeros((), dtype=torch.float64, device=self._logits.device)
        amounts = None if change is None else self._states @ change[0]
        for first in range(0, len(self._logits), ROWS_PER_BLOCK):
            block = slice(first, first + ROWS_PER_BLOCK)
            raw = self._logits[block]
            if change is not None and amounts is not None:
                raw = torch.addr(raw, amounts[block], change[1], alpha=-1.0)
            total += self._measure(self._head.finish_logits(raw), block).double()
        return float(total) / len(self._logits)

    def apply(self, change: tuple[Tensor, Tensor]) -> None:
        """Make a change lasting."""
        self._logits.addr_(self._states @ change[0], change[1], alpha=-1.0)


@torch.inference_mode()
def choose_within_budget(
    language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    candidates: Sequence[int],
    v: Matrix,
    *,
    factor: float,
    max_perplexity_increase: float,
    max_components: int,
) -> Choice:
    """Take candidates by benefit per cost while they help and the budget allows.

    Args:
        language_model: The unpatched model.
        calibration: States and targets of neutral text.
        toxic: States where a toxic token was about to be generated, and the toxic tokens.
        candidates: Component indices, most toxic first; of these the first `MAX_CANDIDATES`.
        v: Right singular vectors, shape (hidden, component).
        factor: What the singular values are multiplied by.
        max_perplexity_increase: Budget, relative to the base.
        max_components: Take at most so many.
    """
    neutral_head = _Head(
        language_model,
        calibration.states,
        lambda logits, block: (
            logits.logsumexp(1) - logits.gather(1, calibration.targets[block, None]).squeeze(1)
        ).sum(),
    )
    n_toxic = max(1, MAX_LOGITS // language_model.head.vocab)
    toxic_head = _Head(
        language_model,
        toxic.states[:n_toxic],
        lambda logits, _: torch.softmax(logits, 1)[:, toxic.token_ids].sum(),
    )
    base_nll, base_toxic = neutral_head.measure(), toxic_head.measure()
    weight = language_model.head_weight.detach().float()
    directions = {
        index: torch.from_numpy(v[:, index]).to(weight) for index in candidates[:MAX_CANDIDATES]
    }
    changes = {
        index: (direction, (1.0 - factor) * (weight @ direction))
        for index, direction in directions.items()
    }
    kept: list[int] = []
    dropped: set[int] = set()
    nll, toxic_probability = base_nll, base_toxic

    def rank_remaining() -> list[int]:
        """By benefit per cost, given what is already taken."""
        ratios = {}
        for index in changes.keys() - set(kept) - dropped:
            benefit = toxic_probability - toxic_head.measure(changes[index])
            cost = neutral_head.measure(changes[index]) - nll
            ratios[index] = benefit / max(cost, MIN_COST_NATS)
        ranking = sorted(ratios, key=lambda index: (-ratios[index], index))
        dropped.update(ranking[MAX_RANKED_AGAIN:])
        return ranking

    while len(kept) < max_components:
        n_before = len(kept)
        for index in rank_remaining():
            new_nll = neutral_head.measure(changes[index])
            new_toxic = toxic_head.measure(changes[index])
            is_in_budget = math.expm1(new_nll - base_nll) <= max_perplexity_increase
            if is_in_budget and new_toxic < toxic_probability:
                neutral_head.apply(changes[index])
                toxic_head.apply(changes[index])
                nll, toxic_probability = new_nll, new_toxic
                kept.append(index)
            if len(kept) == min(n_before + TAKEN_PER_RANKING, max_components):
                break
        if len(kept) == n_before:
            break
    return Choice(kept, math.expm1(nll - base_nll), toxic_probability / base_toxic)
