"""Variant H: Fisher components of the output head, in closed form on cached states.

The edit is W' = W + L R^T. Half of a step's terms move tokens' own rows, any L; the other half move
what enters the head, L = W E, so that tokens near each other move together, those that were never
seen among them (docs/decisions/0052-rows-of-the-head.md). The trunk does not change, so states and
logits are collected once and a round costs products of matrices, no forward pass. Gradients by the
logits: at a toxic position g = r (p restricted to the toxic tokens and renormalised - p), with r
the weight of the position times p / p of the base; on harmless text E[g g^T] = diag p - p p^T over
labels drawn from the model is exact, nothing is drawn. Of rows the metric takes its diagonal, the
steps take all of it. A head's scale and soft cap enter by their derivative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.components.calibration import MIN_PROBABILITY, read_predicted
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.cost import Cost, count_tokens_of_kind
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.fisher.evidence import FisherEvidence
from eigenshift.patches.fisher.rounds import Direction, Study
from eigenshift.patches.fisher.toxic_gradients import differentiate_share, finish_logits
from eigenshift.patches.fisher.whitening import (
    METRIC_RIDGE,
    Metric,
    Triples,
    compress,
    find_triples,
    solve_steps,
)

POSITIONS_PER_BLOCK = 64
MAX_LOGITS = 1 << 30
"""Positions x vocabulary kept in memory at once over all texts (4 GiB in float32)."""
MAX_METRIC_POSITIONS = 8_192
"""Positions of harmless text whose exact Fisher matrix is the metric, as many of each kind."""


@dataclass
class _Positions:
    """Positions of some text under the model as edited so far; a step changes their logits.

    Attributes:
        states: What enters the head, shape (position, hidden), float32.
        logits: The head's own output there, before scale and soft cap, shape (position, vocab).
        targets: The tokens that follow, shape (position,); empty where none are needed.
    """

    states: Tensor
    logits: Tensor
    targets: Tensor

    def list_blocks(self) -> list[slice]:
        n_rows = len(self.logits)
        return [slice(i, i + POSITIONS_PER_BLOCK) for i in range(0, n_rows, POSITIONS_PER_BLOCK)]


@dataclass(frozen=True)
class _Moments:
    """Second moments on harmless text, of which metrics are made.

    Attributes:
        variances: Of each token's logit, shape (vocab,).
        entering: Of the gradient by what enters the head, shape (hidden, hidden), float64.
        inputs: Of what enters the head.
    """

    variances: Tensor
    entering: Tensor
    inputs: Tensor

    def weigh_rows(self, ridge: float) -> Metric:
        """What changes of tokens' own rows cost."""
        return Metric.of(self.variances, self.inputs, ridge)

    def weigh_entering(self, ridge: float) -> Metric:
        """What changes of what enters the head cost."""
        return Metric.of(self.entering, self.inputs, ridge)


class HeadStudy(Study):
    """The output head, edited in steps.

    Args:
        language_model: The unpatched model.
        evidence: Toxic positions and harmless texts.
        n_terms: Rank of a step, and of what is shipped.
        tokens_per_batch: Budget of a forward pass; does not change the result.
        seed: Of the randomised decomposition of wide heads.

    Attributes:
        ridge: Of the metric, relative to mean diagonals; `ridge.py` finds the one that does best.
        weights: Of the toxic positions, shape (position,); where they are 0, no step looks.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        evidence: FisherEvidence,
        n_terms: int,
        *,
        tokens_per_batch: int,
        seed: int = 0,
    ) -> None:
        self._language_model, self._n_terms, self._seed = language_model, n_terms, seed
        self._weight = language_model.head_weight.detach().float()
        toxic, budget, metric = evidence.toxic.states, evidence.budget_texts, evidence.metric_texts
        n_positions = max(4, MAX_LOGITS // len(self._weight))
        n_metric = min(MAX_METRIC_POSITIONS, n_positions // 4)
        toxic_states = toxic.states[: n_positions // 4]
        n_free = (n_positions - n_metric - len(toxic_states)) // len(budget.by_kind)
        n_budget = min(n_free, count_tokens_of_kind(len(self._weight)))
        self.toxic = self._prepare(toxic_states, torch.empty(0, dtype=torch.long))
        self._budget = {
            kind: self._read(budget.take(kind).limit(n_budget), tokens_per_batch)
            for kind in budget.by_kind
        }
        self._metric = self._read(metric.limit(n_metric // len(metric.by_kind)), tokens_per_batch)
        self._everything = [self.toxic, self._metric, *self._budget.values()]
        self.prompts = evidence.toxic.prompts
        self._is_toxic = torch.zeros(len(self._weight), device=self._weight.device)
        self._is_toxic[toxic.token_ids] = 1.0
        self.weights = toxic.weights[: len(self.toxic.states)].float()
        self.ridge = METRIC_RIDGE
        self._base_probabilities = self._sum_toxic_probabilities()
        self._base_losses = self._measure_losses(None)
        self._taken: LogitEdit | None = None
        states = self._metric.states.double()
        self._input_moment = states.T @ states / len(states)
        self._base_moments = self._find_moments()

    def find_triples(self) -> Triples:
        """The best rank-one changes of the head as it stands now: shared ones, then tokens' own."""
        moments = self._base_moments if self._taken is None else self._find_moments()
        gradient, n_shared = self.find_gradient(), self._n_terms // 2
        entering = self._weight.T @ gradient
        shared = find_triples(entering, moments.weigh_entering(self.ridge), n_shared, self._seed)
        own = find_triples(
            gradient, moments.weigh_rows(self.ridge), self._n_terms - n_shared, self._seed
        )
        spread = (self._weight @ shared.left.to(self._weight)).double()
        return Triples(
            torch.cat([shared.gain, own.gain]),
            torch.cat([spread, own.left], 1),
            torch.cat([shared.right, own.right], 1),
        )

    def find_direction(self) -> Direction:
        """A step along the best terms, as far along each as the exact Fisher matrix says."""
        triples = self.find_triples()
        steps = solve_steps(triples.gain, self.find_fisher(triples.left, triples.right))

        def step(strength: float) -> ModelEdit:
            left = triples.left * (strength * steps)
            return ModelEdit(logits=LogitEdit.add_product(left, triples.right))

        return step

    def measure(self, edit: ModelEdit) -> float:
        """The largest rise over the kinds of text, in closed form."""
        losses = self._measure_losses(edit.logits)
        rises = {kind: losses[kind] - base for kind, base in self._base_losses.items()}
        return Cost(rises, math.nan).largest_rise

    def measure_share(self, edit: ModelEdit) -> float:
        """What a further step leaves of the toxic tokens' probability, over all weights."""
        assert edit.logits is not None  # noqa: S101 - its own
        amounts, effects = self._project(self.toxic, edit.logits)
        found = torch.cat(
            [
                self._finish(torch.addmm(self.toxic.logits[block], amounts[block], effects.T))[0]
                @ self._is_toxic
                for block in self.toxic.list_blocks()
            ]
        )
        shares = self.weights / self._base_probabilities.clamp_min(MIN_PROBABILITY)
        return float((shares * found).sum() / (shares * self._base_probabilities).sum())

    def take(self, edit: ModelEdit) -> None:
        """Change all cached logits as the step does."""
        assert edit.logits is not None  # noqa: S101 - its own
        self._change(edit.logits)
        self._taken = edit.logits if self._taken is None else self._taken.then(edit.logits)

    def finish(self) -> Direction:
        """The sum of all steps, cut to the rank that is shipped in the metric of the base."""
        taken = self._taken
        left, right = (torch.zeros(n, 0).double() for n in self._weight.shape)
        if taken is not None:
            metric = self._base_moments.weigh_rows(self.ridge)
            factors = (taken.left.to(metric.of_inputs), taken.right.to(metric.of_inputs))
            left, right = compress(*factors, self._n_terms, metric)
            self._change(replace(taken, left=-taken.left))
            self._taken = None
        return ModelEdit(logits=LogitEdit.add_product(left, right)).scale

    def find_gradient(self) -> Tensor:
        """Derivative of the benefit by the head's weight, over all weights, (vocab, hidden)."""
        total = torch.zeros_like(self._weight)
        for block, gradients in self._iterate_gradients():
            total.addmm_(gradients.T, self.toxic.states[block])
        return total.div_(self.weights.sum())

    def find_contributions(self, left: Tensor, right: Tensor) -> Tensor:
        """What each toxic position contributes to the benefit along rank-one changes.

        Args:
            left: Shape (vocab, k).
            right: Shape (hidden, k).

        Returns:
            Shape (position, k).
        """
        left, amounts = left.to(self._weight), self.toxic.states @ right.to(self._weight)
        found = [gradients @ left for _, gradients in self._iterate_gradients()]
        return torch.cat(found) * amounts

    def find_fisher(self, left: Tensor, right: Tensor) -> Tensor:
        """Exact Fisher matrix of the head along rank-one changes, shape (k, k), float64.

        Args:
            left: Shape (vocab, k).
            right: Shape (hidden, k).
        """
        effects = left.to(self._weight)
        first, second = torch.triu_indices(effects.shape[1], effects.shape[1])
        pairs = effects[:, first] * effects[:, second]
        total = torch.zeros(len(first), dtype=torch.float64, device=pairs.device)
        amounts = self._metric.states @ right.to(self._weight)
        for block in self._metric.list_blocks():
            probabilities, slopes = self._finish(self._metric.logits[block])
            means = (probabilities * slopes) @ effects
            squares = (probabilities * slopes**2) @ pairs
            active = amounts[block][:, first] * amounts[block][:, second]
            total += (active * (squares - means[:, first] * means[:, second])).double().sum(0)
        fisher = torch.zeros(len(left.T), len(left.T), dtype=torch.float64, device=pairs.device)
        fisher[first, second] = fisher[second, first] = total / len(amounts)
        return fisher

    def _iterate_gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """Derivative of the benefit by the logits, a block of toxic positions at a time."""
        for block in self.toxic.list_blocks():
            yield (
                block,
                differentiate_share(
                    self._language_model.head,
                    self.toxic.logits[block],
                    self._is_toxic,
                    self.weights[block],
                    self._base_probabilities[block],
                ),
            )

    def _find_moments(self) -> _Moments:
        """Of the head as it stands: the states are those of the base throughout."""
        variances, squares = torch.zeros(2, len(self._weight), device=self._weight.device)
        means = []
        for block in self._metric.list_blocks():
            probabilities, slopes = self._finish(self._metric.logits[block])
            variances += (probabilities * (1.0 - probabilities) * slopes**2).sum(0)
            squares += (probabilities * slopes**2).sum(0)
            means.append((probabilities * slopes) @ self._weight)
        of_means, n_positions = torch.cat(means).double(), len(self._metric.states)
        of_squares = self._weight.T @ (self._weight * squares[:, None])
        entering = (of_squares.double() - of_means.T @ of_means) / n_positions
        return _Moments(variances / n_positions, entering, self._input_moment)

    def _sum_toxic_probabilities(self) -> Tensor:
        return torch.cat(
            [
                self._finish(self.toxic.logits[block])[0] @ self._is_toxic
                for block in self.toxic.list_blocks()
            ]
        )

    def _measure_losses(self, edit: LogitEdit | None) -> dict[str, float]:
        """Mean negative log-likelihood by kind of text, with a further step if given."""
        return {kind: self._measure_loss(found, edit) for kind, found in self._budget.items()}

    def _measure_loss(self, positions: _Positions, edit: LogitEdit | None) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self._weight.device)
        amounts, effects = (None, None) if edit is None else self._project(positions, edit)
        for block in positions.list_blocks():
            raw = positions.logits[block]
            if amounts is not None and effects is not None:
                raw = torch.addmm(raw, amounts[block], effects.T)
            logits = self._language_model.head.finish_logits(raw)
            targets = positions.targets[block, None]
            total += (logits.logsumexp(1) - logits.gather(1, targets).squeeze(1)).double().sum()
        return float(total) / len(positions.targets)

    def _project(self, positions: _Positions, edit: LogitEdit) -> tuple[Tensor, Tensor]:
        """What an edit adds to the raw logits, as factors (position, k) and (vocab, k)."""
        return positions.states @ edit.right.to(self._weight), edit.left.to(self._weight)

    def _change(self, edit: LogitEdit) -> None:
        for positions in self._everything:
            amounts, effects = self._project(positions, edit)
            positions.logits.addmm_(amounts, effects.T)

    def _finish(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, and the slope of each logit by the head's own output."""
        return finish_logits(self._language_model.head, raw)

    def _read(self, texts: BudgetTexts, tokens_per_batch: int) -> _Positions:
        states, targets = read_predicted(
            self._language_model, texts.sequences, texts.n_contexts, tokens_per_batch
        )
        return self._prepare(states.float(), targets.to(self._weight.device))

    def _prepare(self, states: Tensor, targets: Tensor) -> _Positions:
        bias = self._language_model.head_module.bias
        logits = states @ self._weight.T
        if bias is not None:
            logits += bias.detach().float()
        return _Positions(states, logits, targets)
