"""Variant D: Fisher components of every layer that writes into the residual stream, and the head.

Of each matrix W of y = W x the gradient of the benefit M = sum of g x^T over toxic texts, and the
second moments A of x and G of g over harmless text, are summed up while backward passes run; on
harmless text g is the derivative of the log-likelihood of tokens drawn from the model itself, so G
is the Fisher matrix's. Triples of all layers are ranked together, and steps come from the exact
Fisher matrix in these terms, which a second pass over a part of the harmless text measures. Nothing
of the size tokens x layers x width is kept: memory is that of A, G and M, for as many layers at a
time as `MAX_MOMENTS` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eigenshift.components.budget_texts import Tokens
from eigenshift.components.calibration import MIN_PROBABILITY
from eigenshift.model.divided import find_device
from eigenshift.model.gradients import HEAD, Objective, Traffic, run_backward
from eigenshift.model.loading import LanguageModel
from eigenshift.model.writers import count_features, list_writers
from eigenshift.patches.cost import CostMeter
from eigenshift.patches.edits import LinearEdit, LogitEdit, ModelEdit
from eigenshift.patches.fisher.evidence import FisherEvidence, ToxicTexts
from eigenshift.patches.fisher.rounds import Direction, Study
from eigenshift.patches.fisher.whitening import (
    METRIC_RIDGE,
    Metric,
    compress,
    find_triples,
    list_groups,
    solve_steps,
)
from eigenshift.patches.folding import run_hooked

MAX_MOMENTS = 1 << 31
"""Numbers of A, G and M kept at once (8 GiB in float32): beyond it, groups of layers take turns."""
FISHER_PART = 3
"""One harmless text in so many is passed over again for the Fisher matrix of the chosen terms."""
SEED_STRIDE = 1_000_003
SHIPPED_SHARE = 0.999
"""Of a layer's squared change, what is left of terms that are nearly the same after all rounds."""


@dataclass(frozen=True)
class Term:
    """One rank-one change of one layer, of cost 1/2 in its metric.

    Attributes:
        layer: Its name, or `HEAD`.
        gain: What it brings to first order.
        left: Direction that is written, shape (out,), float64.
        right: Direction that is read, shape (in,).
    """

    layer: str
    gain: float
    left: Tensor
    right: Tensor


@dataclass
class _Moments:
    """Sums over tokens of one layer: A of x, G of g, M of g x^T; and how many tokens.

    Of the head, whose outputs are all tokens, the diagonal of G alone, shape (vocab,).
    """

    inputs: Tensor
    outputs: Tensor
    gradient: Tensor
    n_tokens: int = 0


class DeepStudy(Study):
    """All writing layers and the head, edited in steps.

    Args:
        language_model: The unpatched model; edited by hooks, its weights stay.
        evidence: Toxic positions and harmless texts.
        n_terms: Rank-one changes of a step, over all layers.
        tokens_per_batch: Budget of a forward pass; does not change the result.
        seed: Of the drawn tokens.
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
        self._toxic, self._metric_texts = evidence.toxic, evidence.metric_texts
        self._tokens_per_batch = tokens_per_batch
        self.layers = list_writers(language_model.model, with_quantised=True)
        self._meter = CostMeter(
            language_model, evidence.budget_texts, tokens_per_batch=tokens_per_batch
        )
        self._rough_meter = self._meter.make_rough()
        self._taken = ModelEdit()
        self._is_toxic = torch.zeros(language_model.head.vocab, device=language_model.device)
        self._is_toxic[evidence.toxic.states.token_ids] = 1.0
        self._base_probabilities = self._sum_toxic_probabilities()

    def find_direction(self) -> Direction:
        """A step along the best terms of all layers together."""
        with self._edited():
            terms = self.find_terms()
            fisher = self.find_fisher(terms)
        gains = torch.tensor([term.gain for term in terms], dtype=torch.float64)
        steps = solve_steps(gains, fisher)

        def step(strength: float) -> ModelEdit:
            return make_edit(terms, strength * steps)

        return step

    def measure(self, edit: ModelEdit) -> float:
        """The largest rise over the kinds of text."""
        return self._meter.measure(self._taken.then(edit)).largest_rise

    def measure_roughly(self, edit: ModelEdit) -> float:
        """The same on a part of the texts."""
        return self._rough_meter.measure(self._taken.then(edit)).largest_rise

    def take(self, edit: ModelEdit) -> None:
        """Make a step lasting."""
        self._taken = self._taken.then(edit)

    def finish(self) -> Direction:
        """All steps; of each layer as few terms as hold nearly all of its change."""
        logits, linears = self._taken.logits, {}
        for name, edit in self._taken.linears.items():
            linears[name] = LinearEdit(
                *compress(edit.left, edit.right, edit.rank, share=SHIPPED_SHARE)
            )
        if logits is not None:
            factors = compress(logits.left, logits.right, logits.rank, share=SHIPPED_SHARE)
            logits = LogitEdit.add_product(*factors)
        self._taken = ModelEdit()
        return ModelEdit(linears=linears, logits=logits).scale

    def find_terms(self) -> list[Term]:
        """The best rank-one changes over all layers, from the model as it stands."""
        shapes = {name: count_features(module) for name, module in self.layers.items()}
        sizes: dict[str, tuple[int, int]] = {name: size for name, size in shapes.items() if size}
        sizes[HEAD] = (self._language_model.head.hidden, self._language_model.head.vocab)
        names = list(sizes)
        cells = [
            n_in**2 + (n_out if name == HEAD else n_out**2) + n_in * n_out
            for name, (n_in, n_out) in sizes.items()
        ]
        found: list[Term] = []
        for group in list_groups(cells, MAX_MOMENTS):
            chosen = {names[place]: sizes[names[place]] for place in group}
            for name, moments in self.sum_moments(chosen).items():
                found += self._find_terms_of(name, moments)
        found.sort(key=lambda term: -term.gain)
        return found[: self._n_terms]

    def find_fisher(self, terms: Sequence[Term]) -> Tensor:
        """Exact Fisher matrix along some terms, shape (k, k), float64, on part of the text."""
        texts = self._metric_texts
        sequences, n_contexts = texts.sequences[::FISHER_PART], texts.n_contexts[::FISHER_PART]
        rows = self.project_texts(terms, sequences, draw_tokens(sequences, n_contexts, self._seed))
        return rows.T @ rows / (sum(map(len, sequences)) - sum(n_contexts) + len(sequences))

    def find_toxic_projections(self, terms: Sequence[Term]) -> Tensor:
        """What each toxic text contributes to the benefit along each term, (text, k), float64."""
        return self.project_texts(terms, self._toxic.sequences, self._objective_of_toxic())

    def project_texts(
        self, terms: Sequence[Term], sequences: Sequence[Tokens], objective: Objective
    ) -> Tensor:
        """Derivative of an objective along each term, by text: shape (text, term), float64."""
        places = _group_by_layer(terms)
        factors = {
            name: tuple(
                torch.stack([getattr(terms[place], side) for place in chosen], 1).float()
                for side in ("left", "right")
            )
            for name, chosen in places.items()
        }
        device = self._language_model.device
        found = torch.zeros(len(sequences), len(terms), dtype=torch.float64, device=device)

        def begin() -> Callable[[Traffic], None]:
            found.zero_()

            def add(traffic: Traffic) -> None:
                if traffic.name in places:
                    left, right = (part.to(traffic.inputs) for part in factors[traffic.name])
                    product = (traffic.gradients @ left) * (traffic.inputs @ right)
                    part = torch.zeros(len(sequences), product.shape[1], device=product.device)
                    part.index_add_(0, traffic.sequence, product)
                    found[:, places[traffic.name]] += part.double().to(device)

            return add

        layers = {name: module for name, module in self.layers.items() if name in places}
        self._run(sequences, objective, layers, begin)
        return found.cpu()

    @property
    def total_weight(self) -> float:
        """Of all toxic positions."""
        return float(self._toxic.states.weights.sum())

    @property
    def toxic(self) -> ToxicTexts:
        """Texts with toxic positions."""
        return self._toxic

    def _edited(self) -> AbstractContextManager[None]:
        return run_hooked(self._language_model, self._taken)

    def _run(
        self,
        sequences: Sequence[Tokens],
        objective: Objective,
        layers: Mapping[str, nn.Module],
        begin: Callable[[], Callable[[Traffic], None]],
    ) -> None:
        run_backward(
            self._language_model,
            sequences,
            objective,
            layers,
            begin,
            tokens_per_batch=self._tokens_per_batch,
        )

    def sum_moments(self, sizes: Mapping[str, tuple[int, int]]) -> dict[str, _Moments]:
        """A, G and M of some layers: a pass over the toxic texts, one over the harmless ones."""
        layers = {name: module for name, module in self.layers.items() if name in sizes}
        moments: dict[str, _Moments] = {}

        def begin_toxic() -> Callable[[Traffic], None]:
            for name, (n_in, n_out) in sizes.items():
                device = find_device(layers.get(name, self._language_model.head_module))
                moments[name] = _Moments(
                    torch.zeros(n_in, n_in, device=device),
                    torch.zeros((n_out,) if name == HEAD else (n_out, n_out), device=device),
                    torch.zeros(n_out, n_in, device=device),
                )

            def add(traffic: Traffic) -> None:
                if traffic.name in moments:
                    moments[traffic.name].gradient.addmm_(traffic.gradients.T, traffic.inputs)

            return add

        def begin_harmless() -> Callable[[Traffic], None]:
            for found in moments.values():
                found.inputs.zero_()
                found.outputs.zero_()
                found.n_tokens = 0

            def add(traffic: Traffic) -> None:
                if traffic.name in moments:
                    found = moments[traffic.name]
                    found.inputs.addmm_(traffic.inputs.T, traffic.inputs)
                    if traffic.name == HEAD:
                        found.outputs += traffic.gradients.square().sum(0)
                    else:
                        found.outputs.addmm_(traffic.gradients.T, traffic.gradients)
                    found.n_tokens += len(traffic.inputs)

            return add

        self._run(self._toxic.sequences, self._objective_of_toxic(), layers, begin_toxic)
        harmless, n_contexts = self._metric_texts.sequences, self._metric_texts.n_contexts
        objective = draw_tokens(harmless, n_contexts, self._seed)
        self._run(harmless, objective, layers, begin_harmless)
        return moments

    def _find_terms_of(self, name: str, moments: _Moments) -> list[Term]:
        if not moments.n_tokens or not moments.gradient.any():
            return []  # an expert that no token was sent to
        n_tokens = moments.n_tokens
        metric = Metric.of(
            moments.outputs / n_tokens, moments.inputs / n_tokens, METRIC_RIDGE, name
        )
        gradient = moments.gradient / self.total_weight
        triples = find_triples(gradient, metric, self._n_terms, self._seed)
        left, right = triples.left.cpu(), triples.right.cpu()
        return [
            Term(name, float(gain), left[:, place], right[:, place])
            for place, gain in enumerate(triples.gain)
        ]

    def _objective_of_toxic(self) -> Objective:
        """Weighted log-probability of the toxic tokens, by how much of it is left."""
        toxic = self._toxic

        def measure(places: list[int], logits: Tensor) -> Tensor:
            rows, positions, chosen = zip(
                *(
                    (row, position, state)
                    for row, place in enumerate(places)
                    for position, state in zip(
                        toxic.positions[place], toxic.rows[place], strict=True
                    )
                ),
                strict=True,
            )
            # one look-up: a slice for each text would each have a gradient as large as all logits
            found = torch.log_softmax(logits[list(rows), list(positions)].float(), -1)
            share = torch.logsumexp(found[:, toxic.states.token_ids], 1)
            base = self._base_probabilities[list(chosen)].clamp_min(MIN_PROBABILITY)
            weights = toxic.states.weights[list(chosen)] * share.detach().exp() / base
            return (weights * share).sum()

        return measure

    @torch.inference_mode()
    def _sum_toxic_probabilities(self) -> Tensor:
        """Of the toxic tokens together at each toxic position, by the base, shape (position,)."""
        language_model = self._language_model
        head, states = language_model.head_module, self._toxic.states.states
        found = []
        for first in range(0, len(states), 256):
            logits = language_model.head.compute_precise_logits(
                states[first : first + 256].to(head.weight), head.weight, head.bias
            )
            found.append(torch.softmax(logits.float(), 1) @ self._is_toxic)
        return torch.cat(found).clone()


def draw_tokens(sequences: Sequence[Tokens], n_contexts: Sequence[int], seed: int) -> Objective:
    """Log-likelihood of one token at each predicted position, drawn from the model as it runs.

    Its gradients' second moment is the Fisher matrix. Numbers are drawn by sequence, so that every
    pass over the same texts draws the same tokens, however they are batched.

    Args:
        sequences: Token ids.
        n_contexts: Of each, how many tokens at the start are not predicted, at least one; the token
            after the last is drawn too.
        seed: Of the numbers.
    """
    predicting = [
        range(n_context - 1, len(sequence))
        for sequence, n_context in zip(sequences, n_contexts, strict=True)
    ]

    def measure(places: list[int], logits: Tensor) -> Tensor:
        rows = [row for row, place in enumerate(places) for _ in predicting[place]]
        positions = [position for place in places for position in predicting[place]]
        # one look-up: a slice for each text would each have a gradient as large as all logits
        found = torch.log_softmax(logits[rows, positions].float(), -1)
        numbers = torch.cat(
            [_draw_numbers(len(predicting[place]), seed, place) for place in places]
        )
        cumulative = found.detach().exp().cumsum(1)
        wanted = numbers[:, None].to(cumulative) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, wanted).clamp_max(found.shape[1] - 1)
        return found.gather(1, drawn).sum()

    return measure


def _draw_numbers(n_numbers: int, seed: int, place: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * SEED_STRIDE + place)
    return torch.rand(n_numbers, generator=generator)


def make_edit(terms: Sequence[Term], steps: Tensor) -> ModelEdit:
    """The change of the model that goes so far along each term.

    Args:
        terms: Of any layers.
        steps: Shape (term,).
    """
    linears: dict[str, LinearEdit] = {}
    logits: LogitEdit | None = None
    for name, chosen in _group_by_layer(terms).items():
        left = torch.stack([terms[place].left * steps[place] for place in chosen], 1)
        right = torch.stack([terms[place].right for place in chosen], 1)
        if name == HEAD:
            logits = LogitEdit.add_product(left, right)
        else:
            linears[name] = LinearEdit(left, right)
    return ModelEdit(linears=linears, logits=logits)


def _group_by_layer(terms: Sequence[Term]) -> dict[str, list[int]]:
    """Places of the terms of each layer."""
    places: dict[str, list[int]] = {}
    for place, term in enumerate(terms):
        places.setdefault(term.layer, []).append(place)
    return places
