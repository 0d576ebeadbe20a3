"""Variant H: Fisher components of the output head, in closed form on cached states.

The edit is h' = h + E h of what enters the head, so W' = W (I + E). The trunk does not change, so
states are collected once and a round costs products of matrices, no forward pass. Gradients by h:
at a toxic position g = r (p restricted to the toxic tokens and renormalised - p) W, with r the
weight of the position times p / p of the base; on harmless text the expectation over labels drawn
from the model is taken exactly, E[g g^T] = W^T (diag p - p p^T) W, so nothing is drawn. A head's
scale and soft cap enter by their derivative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.components.calibration import read_predicted
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.cost import Cost
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.fisher.evidence import FisherEvidence
from eigenshift.patches.fisher.rounds import Direction, Study
from eigenshift.patches.fisher.toxic_gradients import differentiate_share, finish_logits
from eigenshift.patches.fisher.whitening import Metric, Triples, compress, find_triples, solve_steps

POSITIONS_PER_BLOCK = 64
MAX_LOGITS = 1 << 30
"""Positions x vocabulary kept in memory at once over all texts (4 GiB in float32)."""
MAX_METRIC_POSITIONS = 8_192
"""Positions of harmless text whose exact Fisher matrix is the metric, as many of each kind."""


@dataclass
class _Positions:
    """Positions of some text under the model as edited so far; changed in place by a step.

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


class HeadStudy(Study):
    """The output head, edited in steps.

    Args:
        language_model: The unpatched model.
        evidence: Toxic positions and harmless texts.
        n_terms: Rank of a step, and of what is shipped.
        tokens_per_batch: Budget of a forward pass; does not change the result.
        seed: Of the randomised decomposition of wide heads.
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
        n_budget = (n_positions - n_metric - len(toxic_states)) // len(budget.by_kind)
        self.toxic = self._prepare(toxic_states, torch.empty(0, dtype=torch.long))
        self._budget = {
            kind: self._read(budget.take(kind).limit(n_budget), tokens_per_batch)
            for kind in budget.by_kind
        }
        shared = metric.limit(n_metric // len(metric.by_kind))
        self._metric = self._read(shared, tokens_per_batch)
        self._everything = [self.toxic, self._metric, *self._budget.values()]
        self._base_states = [positions.states for positions in self._everything]
        self.prompts = evidence.toxic.prompts
        self._is_toxic = torch.zeros(len(self._weight), device=self._weight.device)
        self._is_toxic[toxic.token_ids] = 1.0
        self._weights = toxic.weights[: len(self.toxic.states)].float()
        self._base_probabilities = self._sum_toxic_probabilities()
        self._base_losses = self._measure_losses(None)
        self._taken: HeadEdit | None = None
        self.base_metric = Metric.of(self._find_output_moment(), self._find_input_moment())

    def find_triples(self) -> Triples:
        """The best rank-one changes of the head as it stands now."""
        metric = self.base_metric
        if self._taken is not None:
            metric = Metric.of(self._find_output_moment(), self._find_input_moment())
        gradients = self.find_toxic_gradients()
        gradient = gradients.double().T @ self.toxic.states.double() / self._weights.sum().double()
        return find_triples(gradient, metric, self._n_terms, self._seed)

    def find_direction(self) -> Direction:
        """A step along the best terms, as far along each as the exact Fisher matrix says."""
        triples = self.find_triples()
        steps = solve_steps(triples.gain, self.find_fisher(triples.left, triples.right))

        def step(strength: float) -> ModelEdit:
            return ModelEdit(HeadEdit.add_product(triples.left * (strength * steps), triples.right))

        return step

    def measure(self, edit: ModelEdit) -> float:
        """The largest rise over the kinds of text, in closed form."""
        losses = self._measure_losses(edit.head)
        rises = {kind: losses[kind] - base for kind, base in self._base_losses.items()}
        return Cost(rises, math.nan).largest_rise

    def take(self, edit: ModelEdit) -> None:
        """Change all cached states and logits as the step does."""
        assert edit.head is not None  # noqa: S101 - its own
        self._change(edit.head)
        self._taken = edit.head if self._taken is None else self._taken.then(edit.head)

    def finish(self) -> Direction:
        """The sum of all steps, cut to the rank that is shipped in the metric of the base."""
        taken = self._taken
        size = (len(self.base_metric.of_inputs), 0)
        left = right = torch.zeros(size, dtype=torch.float64)
        if taken is not None:
            left, right = compress(
                -taken.left.to(self.base_metric.of_outputs),
                taken.right.to(self.base_metric.of_outputs),
                self._n_terms,
                self.base_metric,
            )
            self._change_back(taken)
            self._taken = None

        return ModelEdit(HeadEdit.add_product(left, right)).scale

    def find_toxic_gradients(self) -> Tensor:
        """Derivative of the benefit by each toxic state, shape (position, hidden), float32."""
        found = []
        for block in self.toxic.list_blocks():
            found.append(
                differentiate_share(
                    self._language_model.head,
                    self._weight,
                    self.toxic.logits[block],
                    self._is_toxic,
                    self._weights[block],
                    self._base_probabilities[block],
                )
            )
        return torch.cat(found)

    def find_fisher(self, left: Tensor, right: Tensor) -> Tensor:
        """Exact Fisher matrix of the head along rank-one changes, shape (k, k), float64.

        Args:
            left: Shape (hidden, k).
            right: Shape (hidden, k).
        """
        effects = self._weight @ left.to(self._weight)
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

    def find_amounts(self, right: Tensor) -> Tensor:
        """How much of each read direction is in the toxic states, shape (position, k)."""
        return self.toxic.states @ right.to(self._weight)

    @property
    def weights(self) -> Tensor:
        """Of the toxic positions, shape (position,)."""
        return self._weights

    def _find_input_moment(self) -> Tensor:
        states = self._metric.states.double()
        return states.T @ states / len(states)

    def _find_output_moment(self) -> Tensor:
        """E[g g^T] over positions and labels drawn from the model, shape (hidden, hidden)."""
        frequencies = torch.zeros(len(self._weight), device=self._weight.device)
        means = []
        for block in self._metric.list_blocks():
            probabilities, slopes = self._finish(self._metric.logits[block])
            frequencies += (probabilities * slopes**2).sum(0)
            means.append((probabilities * slopes) @ self._weight)
        gathered = torch.cat(means).double()
        of_means = gathered.T @ gathered
        squares = self._weight.T @ (self._weight * frequencies[:, None])
        return (squares.double() - of_means) / len(gathered)

    def _sum_toxic_probabilities(self) -> Tensor:
        return torch.cat(
            [
                self._finish(self.toxic.logits[block])[0] @ self._is_toxic
                for block in self.toxic.list_blocks()
            ]
        )

    def _measure_losses(self, edit: HeadEdit | None) -> dict[str, float]:
        """Mean negative log-likelihood by kind of text, with a further step if given."""
        return {kind: self._measure_loss(found, edit) for kind, found in self._budget.items()}

    def _measure_loss(self, positions: _Positions, edit: HeadEdit | None) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self._weight.device)
        amounts, effects = (None, None) if edit is None else self._project(positions, edit)
        for block in positions.list_blocks():
            raw = positions.logits[block]
            if amounts is not None and effects is not None:
                raw = torch.addmm(raw, amounts[block], effects.T, alpha=-1.0)
            logits = self._language_model.head.finish_logits(raw)
            targets = positions.targets[block, None]
            total += (logits.logsumexp(1) - logits.gather(1, targets).squeeze(1)).double().sum()
        return float(total) / len(positions.targets)

    def _project(self, positions: _Positions, edit: HeadEdit) -> tuple[Tensor, Tensor]:
        """What an edit takes out of the raw logits, as factors (position, k) and (vocab, k)."""
        left, right = edit.left.to(self._weight), edit.right.to(self._weight)
        return positions.states @ right, self._weight @ left

    def _change(self, edit: HeadEdit) -> None:
        for positions in self._everything:
            amounts, effects = self._project(positions, edit)
            positions.logits.addmm_(amounts, effects.T, alpha=-1.0)
            positions.states = positions.states - amounts @ edit.left.to(self._weight).T

    def _change_back(self, edit: HeadEdit) -> None:
        """Undo all steps, given as one edit of the unpatched head."""
        effects = self._weight @ edit.left.to(self._weight)
        for positions, states in zip(self._everything, self._base_states, strict=True):
            positions.logits.addmm_(states @ edit.right.to(self._weight), effects.T)
            positions.states = states

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
