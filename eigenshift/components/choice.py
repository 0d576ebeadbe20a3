"""Which components to damp, and how far: the most suppression a fluency budget buys.

Each candidate's singular value is lowered in steps, from 1 to `min_factor`. A step's benefit is how
much of the probability of toxic tokens is left where one was about to be generated, its cost how
much the likelihood of harmless text falls; steps are taken by benefit per cost while they help and
the perplexity of each kind of calibration text stays within the budget. Both come from final states
alone: lowering component i by s changes the logits by -s (h . v_i) (W v_i)^T. Steps are ranked by
first derivatives, which for all components are two products of matrices, and measured exactly when
taken (docs/decisions/0008-choice-of-components.md, 0019-graded-factors.md). What calibrates is
`calibration.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenshift.base.arrays import FloatArray
from eigenshift.components.calibration import MAX_LOGITS, CalibrationStates, ToxicStates
from eigenshift.model.loading import LanguageModel

LOGITS_PER_MEASURE = 1 << 20
LOGITS_PER_DERIVATIVE = 1 << 23
"""In one block: what is read several times stays in the cache, a product of matrices needs rows."""
MAX_CANDIDATES = 128
STEPS_PER_RANKING = 4
"""Components overlap in what they do, so steps are ranked anew after so many are taken."""
NEGLIGIBLE_GAIN = 1e-3
"""Of the base's probability of toxic tokens: where steps one by one, at the edge of the budget,
lower it by less, the search ends. Hundreds may cost next to nothing and bring as little."""
MAX_TRIED = 16
"""Steps of one ranking that are tried one by one where all together do not fit."""
MIN_COST_NATS = 5e-4
"""Costs of a whole component below this are noise: they must not make it look arbitrarily good."""


@dataclass(frozen=True)
class Choice:
    """Chosen components with what they cost and bring on the calibration states.

    Attributes:
        components: Indices in the order in which they were first lowered.
        factors: What each one's singular value is multiplied by.
        perplexity_increase: Relative rise of the perplexity of the kind of text that suffers most.
        toxic_token_share: What is left of the toxic tokens' probability, a weighted mean over
            positions (`ToxicStates.weigh_ratios`).
    """

    components: list[int]
    factors: list[float]
    perplexity_increase: float
    toxic_token_share: float


OfLogits = Callable[[Tensor, slice], Tensor]
"""(Finished logits, place of the block) -> what is measured of them."""


@dataclass(frozen=True)
class Measure:
    """What is summed over positions.

    Attributes:
        total: The sum over a block.
        gradient: Its gradient by the block's finished logits, same shape as these.
    """

    total: OfLogits
    gradient: OfLogits


class _Head:
    """Raw logits of fixed states under a growing patch, and a measure of them.

    Args:
        language_model: The unpatched model.
        states: Shape (position, hidden).
        directions: Candidates, shape (hidden, candidate).
        effects: Their effects on the logits, W V, shape (vocab, candidate).
        measure: What is summed over positions.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        states: Tensor,
        directions: Tensor,
        effects: Tensor,
        measure: Measure,
    ) -> None:
        weight, bias = language_model.head_weight, language_model.head_module.bias
        self._head, self._measure = language_model.head, measure
        self._effects = effects.T.contiguous()
        self._amounts = states @ directions
        self._logits = states @ weight.detach().float().T
        if bias is not None:
            self._logits += bias.detach().float()

    def measure(self, steps: Tensor | None = None) -> float:
        """Mean over positions, with each candidate lowered further by `steps` if given.

        Args:
            steps: Shape (candidate,).
        """
        total = torch.zeros((), dtype=torch.float64, device=self._logits.device)
        lowering = None if steps is None else self._lower(steps)
        for block in self._list_blocks(LOGITS_PER_MEASURE):
            raw = self._logits[block]
            if lowering is not None:
                amounts, effects = lowering
                raw = torch.addmm(raw, amounts[block], effects, alpha=-1.0)
            total += self._measure.total(self._head.finish_logits(raw), block).double()
        return float(total) / len(self._logits)

    def differentiate(self) -> Tensor:
        """Change of the mean per unit by which each candidate is lowered, shape (candidate,)."""
        total = torch.zeros(len(self._effects), dtype=torch.float64, device=self._logits.device)
        for block in self._list_blocks(LOGITS_PER_DERIVATIVE):
            logits = self._head.finish_logits(self._logits[block])
            gradient = self._measure.gradient(logits, block)
            if self._head.logit_scale != 1.0:
                gradient *= self._head.logit_scale
            if self._head.logit_softcap is not None:
                gradient = gradient * (1 - (logits / self._head.logit_softcap) ** 2)
            total -= torch.linalg.vecdot(gradient @ self._effects.T, self._amounts[block], dim=0)
        return total / len(self._logits)

    def sum_probabilities(self, tokens: Tensor) -> Tensor:
        """Probability of some tokens together at each position, shape (position,).

        Args:
            tokens: 1 for each of these, else 0, shape (vocab,).
        """
        blocks = [self._logits[block] for block in self._list_blocks(LOGITS_PER_MEASURE)]
        return torch.cat(
            [torch.softmax(self._head.finish_logits(raw), 1) @ tokens for raw in blocks]
        )

    def apply(self, steps: Tensor) -> None:
        """Make steps lasting."""
        amounts, effects = self._lower(steps)
        for block in self._list_blocks(LOGITS_PER_MEASURE):
            self._logits[block].addmm_(amounts[block], effects, alpha=-1.0)

    def _lower(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of what steps take from the logits: (position, used) and (used, vocab)."""
        used = steps.nonzero().flatten()
        return self._amounts[:, used] * steps[used], self._effects[used]

    def _list_blocks(self, n_logits: int) -> list[slice]:
        n_rows = max(1, n_logits // self._logits.shape[1])
        return [slice(i, i + n_rows) for i in range(0, len(self._logits), n_rows)]


@torch.inference_mode()
def choose_within_budget(
    language_model: LanguageModel,
    calibration: Sequence[CalibrationStates],
    toxic: ToxicStates,
    candidates: Sequence[int],
    v: FloatArray,
    *,
    min_factor: float,
    n_steps: int,
    max_perplexity_increase: float,
    max_components: int,
) -> Choice:
    """Take steps by benefit per cost while they help and the budget allows.

    Args:
        language_model: The unpatched model.
        calibration: States and targets of harmless texts by kind; the budget is of each kind.
        toxic: States where a toxic token was about to be generated, and the toxic tokens.
        candidates: Component indices, most toxic first; of these the first `MAX_CANDIDATES`.
        v: Right singular vectors, shape (hidden, component).
        min_factor: The least a singular value is multiplied by.
        n_steps: In how many equal steps it is lowered from 1 to that; 1: all at once.
        max_perplexity_increase: Budget, relative to the base.
        max_components: Take at most so many.
    """
    indices = list(candidates[:MAX_CANDIDATES])
    step = (1.0 - min_factor) / n_steps
    search = _Search(language_model, calibration, toxic, v[:, indices], step)
    n_taken = torch.zeros(len(indices), dtype=torch.long)
    order: list[int] = []
    refused: set[int] = set()
    """Beyond the budget by themselves when they were last tried: they would take others along."""

    def list_steps() -> list[int]:
        """Candidates that may be lowered further, best first."""
        allowed = n_taken < n_steps
        if len(order) >= max_components:
            allowed &= n_taken > 0
        return [place for place in search.rank() if allowed[place]]

    def take(places: Sequence[int]) -> None:
        for place in places:
            n_taken[place] += 1
            if place not in order:
                order.append(place)

    while ranking := list_steps():
        n_new = max_components - len(order)
        fitting = [place for place in ranking if place not in refused]
        together = _limit_new(fitting, n_taken, n_new)[:STEPS_PER_RANKING]
        if together and search.accept(together, max_perplexity_increase):
            take(together)
            continue
        share_before = search.toxic_token_share
        tried = _limit_new(ranking, n_taken, n_new)[:MAX_TRIED]
        taken = [place for place in tried if search.accept([place], max_perplexity_increase)]
        if not taken:
            break
        refused = set(tried).difference(taken)
        take(taken)
        if share_before - search.toxic_token_share < NEGLIGIBLE_GAIN:
            break
    return Choice(
        [indices[place] for place in order],
        [1.0 - step * int(n_taken[place]) for place in order],
        search.perplexity_increase,
        search.toxic_token_share,
    )


def _limit_new(ranking: Sequence[int], n_taken: Tensor, n_new: int) -> list[int]:
    """The ranking with at most so many components that are not lowered yet."""
    allowed = []
    for place in ranking:
        n_new -= int(n_taken[place] == 0)
        if n_taken[place] > 0 or n_new >= 0:
            allowed.append(place)
    return allowed


class _Search:
    """Both heads, what has been spent and what it brought.

    Args:
        language_model: The unpatched model.
        calibration: States and targets of harmless texts by kind.
        toxic: States where a toxic token was about to be generated, and the toxic tokens.
        v: Candidates' directions, shape (hidden, candidate).
        step: By how much a singular value's factor falls in one step.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        calibration: Sequence[CalibrationStates],
        toxic: ToxicStates,
        v: FloatArray,
        step: float,
    ) -> None:
        weight = language_model.head_weight.detach().float()
        directions = torch.from_numpy(v).to(weight)
        effects = weight @ directions
        is_toxic = torch.zeros(len(weight), device=weight.device)
        is_toxic[toxic.token_ids] = 1.0

        weights = torch.ones(len(toxic.states), device=weight.device)

        def sum_toxicity(logits: Tensor, block: slice) -> Tensor:
            return (torch.softmax(logits, 1) @ is_toxic) @ weights[block]

        def differentiate_toxicity(logits: Tensor, block: slice) -> Tensor:
            probabilities = torch.softmax(logits, 1)
            share = probabilities @ is_toxic
            return probabilities * weights[block, None] * (is_toxic - share[:, None])

        n_toxic = max(1, MAX_LOGITS // language_model.head.vocab)
        shared = (directions, effects)
        self._harmless = [
            _Head(language_model, found.states, *shared, _measure_loss_of(found))
            for found in calibration
        ]
        toxicity = Measure(sum_toxicity, differentiate_toxicity)
        self._toxic = _Head(language_model, toxic.states[:n_toxic], *shared, toxicity)
        rows = slice(0, len(toxic.states[:n_toxic]))
        weights[rows] = toxic.weigh_ratios(self._toxic.sum_probabilities(is_toxic), rows)
        self._step = step
        self._nothing = torch.zeros(directions.shape[1], device=weight.device)
        self._base_losses = [head.measure() for head in self._harmless]
        self._losses = self._base_losses
        self._last_refusing = 0
        self._base_toxicity = self._toxicity = self._toxic.measure()

    @property
    def perplexity_increase(self) -> float:
        """Relative to the base, on the kind of text that suffers most."""
        return self._find_increase(self._losses)

    @property
    def toxic_token_share(self) -> float:
        """What is left, relative to the base."""
        return self._toxicity / self._base_toxicity

    def rank(self) -> list[int]:
        """Candidates whose next step helps, by benefit per cost."""
        benefits = -self._toxic.differentiate()
        by_kind = torch.stack([head.differentiate() for head in self._harmless])
        costs = by_kind.amax(0).clamp_min(MIN_COST_NATS)
        ratios = (benefits / costs).tolist()
        helpful = [place for place, benefit in enumerate(benefits.tolist()) if benefit > 0]
        return sorted(helpful, key=lambda place: (-ratios[place], place))

    def accept(self, places: Sequence[int], max_perplexity_increase: float) -> bool:
        """Take one step of each of these if together they help and stay in the budget."""
        steps = self._nothing.clone()
        steps[list(places)] = self._step
        losses = self._measure_losses(steps, max_perplexity_increase)
        if losses is None:
            return False
        toxicity = self._toxic.measure(steps)
        if toxicity >= self._toxicity:
            return False
        for head in (*self._harmless, self._toxic):
            head.apply(steps)
        self._losses, self._toxicity = losses, toxicity
        return True

    def _measure_losses(self, steps: Tensor, max_perplexity_increase: float) -> list[float] | None:
        """Of each kind of text; None if one is beyond the budget, likely the one before."""
        losses = list(self._losses)
        places = sorted(range(len(losses)), key=lambda place: place != self._last_refusing)
        for place in places:
            losses[place] = self._harmless[place].measure(steps)
            if math.expm1(losses[place] - self._base_losses[place]) > max_perplexity_increase:
                self._last_refusing = place
                return None
        return losses

    def _find_increase(self, losses: Sequence[float]) -> float:
        rises = (now - base for now, base in zip(losses, self._base_losses, strict=True))
        return math.expm1(max(rises))


def _measure_loss_of(calibration: CalibrationStates) -> Measure:
    """Negative log-likelihood of the tokens that follow."""

    def sum_losses(logits: Tensor, block: slice) -> Tensor:
        targets = calibration.targets[block, None]
        return -torch.log_softmax(logits, 1).gather(1, targets).sum()

    def differentiate(logits: Tensor, block: slice) -> Tensor:
        targets = calibration.targets[block, None]
        gradient = torch.softmax(logits, 1)
        return gradient.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=gradient.dtype))

    return Measure(sum_losses, differentiate)
