"""Fisher components of the head: gradient and Fisher matrix against autograd and float64 sums.

On models with a tied head, a bias, a soft cap and a scale.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.rounds import spend_budget
from eigenshift.patches.fisher.whitening import DIAGONAL_RIDGE, METRIC_RIDGE
from tests.support.fisher_beds import Bed, make_bed, measure_benefit, measure_kinds

EVERY = pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2", "cohere", "opt"])
BUDGET = 0.05
N_TERMS = 6


def study_head(bed: Bed, n_terms: int = N_TERMS, **changes: Any) -> HeadStudy:
    """A study of the bed's evidence, perhaps with other parts."""
    evidence = dataclasses.replace(bed.evidence, **changes)
    return HeadStudy(bed.language_model, evidence, n_terms, tokens_per_batch=64)


def finish(language_model: LanguageModel, states: Tensor, change: Tensor | float = 0.0) -> Tensor:
    """Logits in float64, written out: product, bias, scale, soft cap; of a changed weight."""
    head = language_model.head_module
    raw = states @ (head.weight.double() + change).T
    if head.bias is not None:
        raw = raw + head.bias.double()
    raw = raw * language_model.head.logit_scale
    cap = language_model.head.logit_softcap
    return raw if cap is None else cap * torch.tanh(raw / cap)


def make_step(bed: Bed, seed: int, size: float) -> ModelEdit:
    """A made-up change of the head."""
    generator = torch.Generator().manual_seed(seed)
    head = bed.language_model.head
    left, right = (
        torch.randn(n, 3, generator=generator, dtype=torch.float64)
        for n in (head.vocab, head.hidden)
    )
    return ModelEdit(logits=LogitEdit.add_product(0.3 * size * left, right / head.hidden**0.5))


def find_reference_gradient(bed: Bed, edit: ModelEdit) -> Tensor:
    """Of sum of w p' / max(p, 0.02) by the head's weight, by autograd in float64."""
    toxic = bed.evidence.toxic.states
    states = toxic.states.double()
    tokens = list(bed.toxic_tokens)
    base = finish(bed.language_model, states).softmax(1)[:, tokens].sum(1)
    change = torch.zeros_like(bed.language_model.head_module.weight, dtype=torch.float64)
    if edit.logits is not None:
        change += edit.logits.left @ edit.logits.right.T
    change.requires_grad_()
    share = finish(bed.language_model, states, change).softmax(1)[:, tokens].sum(1)
    (toxic.weights.double() * share / base.clamp_min(0.02)).sum().backward()
    assert change.grad is not None
    return change.grad / toxic.weights.double().sum()


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest entry."""
    difference = (found.double() - expected.double()).abs().max()
    assert float(difference) <= tolerance * float(expected.abs().max())


@EVERY
def test_the_gradient_is_that_of_autograd(name: str) -> None:
    """Of the unpatched head, and of one that has taken two steps; position by position it adds up.

    A sum over positions of what each contributes along a change is the gradient along it.
    """
    bed = make_bed(name)
    study = study_head(bed)
    assert_near(study.find_gradient(), find_reference_gradient(bed, ModelEdit()))
    first, second = make_step(bed, 1, 0.2), make_step(bed, 2, 0.2)
    study.take(first)
    study.take(second)
    expected = find_reference_gradient(bed, first.then(second))
    assert_near(study.find_gradient(), expected)
    along = make_step(bed, 3, 1.0).logits
    assert along is not None
    found = study.find_contributions(along.left, along.right).sum(0) / study.weights.sum()
    assert_near(found, (along.left * (expected @ along.right)).sum(0))


@EVERY
def test_metrics_are_second_moments_over_all_labels(name: str) -> None:
    """Of rows every token's variance, of what enters the head the moment of W^T g, in float64."""
    bed = make_bed(name)
    study = study_head(bed)
    language_model = bed.language_model
    states, weight = study._metric.states.double(), language_model.head_weight.double()
    logits = finish(language_model, states)
    cap = language_model.head.logit_softcap
    slopes = torch.full_like(logits, language_model.head.logit_scale)
    if cap is not None:
        slopes = slopes * (1 - (logits / cap) ** 2)
    moments = []
    for p, slope in zip(logits.softmax(1), slopes, strict=True):
        covariance = (torch.diag(p) - torch.outer(p, p)) * torch.outer(slope, slope)
        moments.append((covariance.diagonal(), weight.T @ covariance @ weight))
    variances, entering = (torch.stack(each).mean(0) for each in zip(*moments, strict=True))
    expected = (variances + DIAGONAL_RIDGE * variances.mean()).sqrt()
    of_rows, of_entering = (
        weigh(METRIC_RIDGE)
        for weigh in (study._base_moments.weigh_rows, study._base_moments.weigh_entering)
    )
    assert_near(of_rows.of_outputs, expected)
    read = states.T @ states / len(states)
    for root, moment in (
        (of_rows.of_inputs, read),
        (of_entering.of_inputs, read),
        (of_entering.of_outputs, entering),
    ):
        ridge = METRIC_RIDGE * moment.diagonal().mean() * torch.eye(len(moment)).double()
        assert_near(root @ root.T, moment + ridge)


@EVERY
def test_half_of_the_terms_lie_in_the_span_of_the_head(name: str) -> None:
    """Those move what enters it, so that tokens near each other move together; others do not."""
    bed = make_bed(name)
    triples = study_head(bed, n_terms=7).find_triples()
    weight = bed.language_model.head_weight.double()
    basis = torch.linalg.qr(weight).Q
    left = triples.left / triples.left.norm(dim=0)
    outside = (left - basis @ (basis.T @ left)).norm(dim=0)
    assert float(outside[:3].max()) < 1e-5
    assert float(outside[3:].min()) > 0.1
    assert len(triples.gain) == 7


@EVERY
def test_the_fisher_matrix_is_the_sum_over_all_labels(name: str) -> None:
    """E over the model's own labels of (g . l)(r . h) products, label by label in float64."""
    bed = make_bed(name)
    language_model = bed.language_model
    sequences = bed.evidence.metric_texts.sequences
    found_states = dict(iterate_head_states(language_model, sequences, 64))
    states = torch.cat([found_states[place][:-1] for place in range(len(sequences))]).double()
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(n, 4, generator=generator, dtype=torch.float64)
        for n in (language_model.head.vocab, states.shape[1])
    )
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for state in states[::5]:
        logits = finish(language_model, state)

        def move(steps: Tensor, state: Tensor = state) -> Tensor:
            change = (left * steps) @ right.T
            return torch.log_softmax(finish(language_model, state, change), -1)

        contributions = torch.autograd.functional.jacobian(move, torch.zeros(4).double())
        expected += contributions.T @ (contributions * logits.softmax(-1)[:, None])
    expected /= len(states[::5])
    study = study_head(bed)
    study._metric.states = study._metric.states[::5]
    study._metric.logits = study._metric.logits[::5]
    assert_near(study.find_fisher(left, right), expected)


@EVERY
def test_the_fisher_matrix_is_the_curvature_of_the_divergence(name: str) -> None:
    """KL(base || edited) of a small step is half of the quadratic form."""
    bed = make_bed(name)
    study = study_head(bed)
    triples = study.find_triples()
    fisher = study.find_fisher(triples.left, triples.right)
    states = study._metric.states.double()
    steps = torch.randn(len(fisher), generator=torch.Generator().manual_seed(1)).double()
    quadratic = float(steps @ fisher @ steps) / 2
    size = 1e-3 / math.sqrt(quadratic)
    change = (triples.left * steps * size) @ triples.right.T
    base, after = (
        finish(bed.language_model, states, moved).log_softmax(1) for moved in (0.0, change)
    )
    divergence = float((base.exp() * (base - after)).sum(1).mean())
    assert divergence == pytest.approx(quadratic * size**2, rel=0.02)


@EVERY
def test_a_measured_step_costs_what_the_folded_model_costs(name: str) -> None:
    """The dearest kind of text, for a first step and for one after others."""
    bed = make_bed(name)
    study = study_head(bed)
    taken = ModelEdit()
    for seed in (3, 4, 5):
        step = make_step(bed, seed, 0.3)
        rises = measure_kinds(bed, taken.then(step))
        assert study.measure(step) == pytest.approx(max(rises.values()), abs=3e-5)
        study.take(step)
        taken = taken.then(step)


@EVERY
def test_afterwards_the_base_is_back(name: str) -> None:
    """A fresh step costs what it did, gradients and triples are what they were, to rounding."""
    bed = make_bed(name)
    study = study_head(bed)
    fresh = make_step(bed, 6, 0.4)
    cost, gradient = study.measure(fresh), study.find_gradient()
    gain = study.find_triples().gain
    for seed in (7, 8, 9):
        study.take(make_step(bed, seed, 0.5))
    assert study.measure(fresh) != pytest.approx(cost, abs=1e-3)
    study.finish()
    assert study.measure(fresh) == pytest.approx(cost, abs=1e-5)
    assert_near(study.find_gradient(), gradient, 1e-4)
    assert_near(study.find_triples().gain, gain, 1e-4)


@EVERY
def test_what_is_shipped_is_what_was_taken(name: str) -> None:
    """Where the rank suffices, strength 1 is all steps; strength goes with the change."""
    bed = make_bed(name)
    study = study_head(bed, n_terms=6)
    steps = [make_step(bed, seed, 0.2) for seed in (11, 12)]
    for step in steps:
        study.take(step)
    shipped = study.finish()
    edits = [shipped(1.0).logits, steps[0].then(steps[1]).logits, shipped(0.5).logits]
    found, expected, half = (edit.left @ edit.right.T for edit in edits if edit is not None)
    assert_near(found, expected, 1e-9)
    assert_near(half, expected / 2, 1e-9)


@EVERY
def test_the_budget_is_kept_on_every_kind_of_text_and_spent(name: str) -> None:
    """By the folded model; toxic tokens get rarer; the rank is as asked for."""
    bed = make_bed(name)
    edit = spend_budget(study_head(bed), 3, BUDGET)
    assert edit.logits is not None
    assert edit.head is None
    assert not edit.changes_trunk
    assert edit.logits.rank <= N_TERMS
    rises = measure_kinds(bed, edit)
    assert max(rises.values()) <= math.log1p(BUDGET) + 1e-5
    assert max(rises.values()) >= 0.9 * math.log1p(BUDGET)
    benefit = measure_benefit(bed, edit) / measure_benefit(bed, ModelEdit())
    assert benefit < 0.9


def test_a_single_term_is_of_tokens_own_rows() -> None:
    """The least rank that settings allow: no term is left for what enters the head."""
    bed = make_bed("gpt2")
    study = study_head(bed, n_terms=1)
    assert study.find_triples().left.shape == (bed.language_model.head.vocab, 1)
    edit = spend_budget(study, 2, BUDGET)
    assert edit.logits is not None
    assert edit.logits.rank == 1
    assert measure_benefit(bed, edit) < measure_benefit(bed, ModelEdit())


def test_three_rounds_buy_more_than_one_and_a_larger_budget_more() -> None:
    """On the bed of GPT-2, by the folded model."""
    bed = make_bed("gpt2")
    left = {
        (n_rounds, budget): measure_benefit(bed, spend_budget(study_head(bed), n_rounds, budget))
        for n_rounds, budget in ((1, 0.05), (3, 0.05), (3, 0.2))
    }
    assert left[3, 0.2] < left[3, 0.05] < 1.02 * left[1, 0.05]


def test_it_beats_random_directions_of_the_same_cost() -> None:
    """None of twenty random changes of that rank leaves as few toxic tokens."""
    from eigenshift.patches.strength import find_strongest

    bed = make_bed("llama")
    study = study_head(bed)
    ours = measure_benefit(bed, spend_budget(study, 3, BUDGET))
    for seed in range(20):
        strength, _ = find_strongest(
            lambda value, seed=seed: study.measure(make_step(bed, 100 + seed, value)),
            math.log1p(BUDGET),
        )
        assert measure_benefit(bed, make_step(bed, 100 + seed, strength)) > ours


def test_a_planted_direction_is_the_first_triple() -> None:
    """Toxic states have something that harmless ones lack: it is read, and the tokens fall."""
    bed = make_bed("llama")
    language_model, toxic = bed.language_model, bed.evidence.toxic
    generator = torch.Generator().manual_seed(2)
    hidden = language_model.head.hidden
    planted = torch.randn(hidden, generator=generator)
    harmless = study_head(bed)._metric.states
    states = toxic.states.states + 6.0 * planted
    tokens = language_model.head_weight.float()[list(bed.toxic_tokens)].mean(0)
    states = states + 4.0 * tokens / tokens.norm()
    moved = dataclasses.replace(toxic, states=dataclasses.replace(toxic.states, states=states))
    triples = study_head(bed, toxic=moved).find_triples()
    for first in (0, N_TERMS // 2):  # of what enters the head, of tokens' own rows
        assert float(triples.gain[first]) > 2 * float(triples.gain[first + 1])
        read = triples.right[:, first].float()
        signal = float((states @ read).mean().abs())
        noise = float((harmless @ read).square().mean().sqrt())
        assert signal > 5 * noise
        # Written against what is read, it lowers exactly the toxic tokens.
        sign = float(torch.sign((states @ read).mean()))
        effects = sign * triples.left[:, first]
        top = set(effects.argsort(descending=True)[: len(bed.toxic_tokens)].tolist())
        assert top == set(bed.toxic_tokens)


def test_states_of_one_kind_do_not_crowd_out_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short, every kind is cut alike, and positions still fit their targets."""
    monkeypatch.setattr("eigenshift.patches.fisher.head_study.MAX_LOGITS", 96 * 240)
    bed = make_bed("llama")
    study = study_head(bed)
    assert len(study.toxic.states) <= 60
    assert len(study._metric.states) <= 60
    sizes = {kind: len(found.targets) for kind, found in study._budget.items()}
    assert all(20 <= size <= 60 for size in sizes.values())
    assert math.isfinite(study.measure(make_step(bed, 1, 0.1)))
    assert np.isfinite(study.find_gradient().numpy()).all()


@EVERY
def test_what_is_left_of_the_toxic_tokens_is_measured_as_folded_models_do(name: str) -> None:
    """Weighted mean of p' / p by float64 passes over whole texts, also after a step was taken."""
    bed = make_bed(name)
    study = study_head(bed)
    first, second = make_step(bed, 0, 0.3), make_step(bed, 1, 0.3)
    base = measure_benefit(bed, ModelEdit())
    assert study.measure_share(first) == pytest.approx(measure_benefit(bed, first) / base, rel=1e-4)
    study.take(first)
    both = measure_benefit(bed, first.then(second)) / base
    assert study.measure_share(second) == pytest.approx(both, rel=1e-4)
