"""Fisher components of all writers: derivatives by finite differences, costs by folded models."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from eigenshift.components.head_states import permute_labels
from eigenshift.model.gradients import HEAD
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.fisher.deep_study import SEED_STRIDE, DeepStudy, draw_tokens, make_edit
from eigenshift.patches.fisher.evidence import gather_toxic_texts
from eigenshift.patches.fisher.rounds import spend_budget
from eigenshift.patches.folding import fold_edit
from tests.support.fisher_beds import Bed, call_with, make_bed, measure_benefit, measure_kinds

EVERY = pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere"])
BUDGET = 0.05
N_TERMS = 8


def study_all(bed: Bed, n_terms: int = N_TERMS, seed: int = 0, **changes: Any) -> DeepStudy:
    """A study of the bed's evidence."""
    evidence = dataclasses.replace(bed.evidence, **changes)
    return DeepStudy(bed.language_model, evidence, n_terms, tokens_per_batch=64, seed=seed)


def differ(measure: Any, terms: Any, place: int, taken: ModelEdit, size: float) -> Any:
    """Central difference along one term of something measured on folded models."""
    steps = torch.zeros(len(terms), dtype=torch.float64)
    steps[place] = size
    after, before = (
        measure(taken.then(make_edit([terms[place]], sign * steps[place : place + 1])))
        for sign in (1.0, -1.0)
    )
    return (after - before) / (2 * size)


@EVERY
def test_what_a_term_brings_is_the_derivative_of_the_benefit(name: str) -> None:
    """Along terms of every layer that has some: 1% of the finite difference."""
    bed = make_bed(name)
    study = study_all(bed, n_terms=24)
    terms = study.find_terms()
    brings = study.find_toxic_projections(terms).sum(0)
    layers = {term.layer: place for place, term in enumerate(terms)}
    assert len(layers) >= 3
    scale = float(brings.abs().max())
    for place in layers.values():
        size = 0.002 / float(study.find_fisher(terms[place : place + 1]).sqrt())
        expected = differ(lambda edit: measure_benefit(bed, edit), terms, place, ModelEdit(), size)
        assert float(brings[place]) == pytest.approx(expected, rel=0.01, abs=0.003 * scale)


@EVERY
def test_gains_are_what_terms_bring_and_the_best_come_first(name: str) -> None:
    """Over the weight of all positions; terms of all layers in one ranking."""
    bed = make_bed(name)
    study = study_all(bed)
    terms = study.find_terms()
    gains = [term.gain for term in terms]
    assert gains == sorted(gains, reverse=True)
    assert len({term.layer for term in terms}) > 1
    assert {term.layer for term in terms} <= {*list_writers(bed.language_model.model), HEAD}
    brings = study.find_toxic_projections(terms).sum(0) / study.total_weight
    torch.testing.assert_close(brings, torch.tensor(gains).double(), rtol=2e-3, atol=1e-7)


@EVERY
def test_after_a_step_the_edited_model_is_differentiated(name: str) -> None:
    """Within the hooks of what was taken: p' of the edited model, over p of the base."""
    bed = make_bed(name)
    study = study_all(bed)
    step = study.find_direction()
    taken = step(0.4)
    study.take(taken)
    with study._edited():
        terms = study.find_terms()
        brings = study.find_toxic_projections(terms).sum(0)
        sizes = 0.002 / study.find_fisher(terms).diagonal().sqrt()
    scale = float(brings.abs().max())
    for place in (0, 1, len(terms) - 1):
        size = float(sizes[place])
        expected = differ(lambda edit: measure_benefit(bed, edit), terms, place, taken, size)
        assert float(brings[place]) == pytest.approx(expected, rel=0.01, abs=0.003 * scale)
    again = study.find_direction()(0.05)
    before = measure_benefit(bed, taken)
    assert measure_benefit(bed, taken.then(again)) < before


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_projections_of_drawn_tokens_are_derivatives_of_their_likelihood(name: str) -> None:
    """Text by text, the tokens drawn anew here by inverse transform in float64."""
    bed = make_bed(name)
    study = study_all(bed, seed=5)
    terms = study.find_terms()[:3]
    sequences = bed.evidence.metric_texts.sequences[:4]
    objective = draw_tokens(sequences, [1] * len(sequences), 5)
    found = study.project_texts(terms, sequences, objective)
    model = bed.precise.model
    drawn = []
    for place, sequence in enumerate(sequences):
        generator = torch.Generator().manual_seed(5 * SEED_STRIDE + place)
        numbers = torch.rand(len(sequence), generator=generator).double()
        cumulative = call_with(model, {}, sequence).double().softmax(1).cumsum(1)
        drawn.append(torch.searchsorted(cumulative, numbers[:, None]))

    def measure(edit: ModelEdit) -> Tensor:
        folded = fold_edit(bed.precise, edit)
        return torch.stack(
            [
                call_with(model, folded, sequence).double().log_softmax(1).gather(1, tokens).sum()
                for sequence, tokens in zip(sequences, drawn, strict=True)
            ]
        )

    for place, term in enumerate(terms):
        size = 0.002 / float(study.find_fisher([term]).sqrt())
        expected = differ(measure, terms, place, ModelEdit(), size)
        tolerance = 0.01 * float(expected.abs().max())
        torch.testing.assert_close(found[:, place], expected, rtol=0.01, atol=tolerance)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_fisher_matrix_is_the_curvature_of_the_divergence(name: str) -> None:
    """Averaged over draws, half of its diagonal is KL(base || edited) a token of a small step."""
    bed = make_bed(name)
    terms = study_all(bed).find_terms()[:4]
    drawn = [study_all(bed, seed=seed).find_fisher(terms) for seed in range(24)]
    found = torch.stack(drawn).mean(0).diagonal()
    model, sequences = bed.precise.model, bed.evidence.metric_texts.sequences[::3]
    n_tokens = sum(map(len, sequences))
    for place, term in enumerate(terms):
        size = 0.01 / math.sqrt(float(found[place]))
        edit = make_edit([term], torch.tensor([size], dtype=torch.float64))
        folded = fold_edit(bed.precise, edit)
        divergence = 0.0
        for sequence in sequences:
            base, after = (
                call_with(model, values, sequence).double().log_softmax(1)
                for values in ({}, folded)
            )
            divergence += float((base.exp() * (base - after)).sum())
        curvature = 2 * divergence / n_tokens / size**2
        assert float(found[place]) == pytest.approx(curvature, rel=0.25)


def test_draws_depend_on_the_text_and_the_seed_alone() -> None:
    """Not on how texts are batched; another seed draws others; shares are the model's own."""
    bed = make_bed("llama")
    sequences = bed.evidence.metric_texts.sequences
    terms = study_all(bed).find_terms()
    evidence = bed.evidence
    one, many = (
        DeepStudy(bed.language_model, evidence, N_TERMS, tokens_per_batch=n_tokens).find_fisher(
            terms
        )
        for n_tokens in (1, 1000)
    )
    torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-6 * float(one.abs().max()))
    other = study_all(bed, seed=1).find_fisher(terms)
    assert not torch.allclose(other, one, rtol=0.01)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(1, 4000, 3).clone().requires_grad_()
    draw_tokens([[0] * 4000], [1], 3)([0], logits).backward()
    assert logits.grad is not None
    # d log p(y) / d logits = onehot(y) - p: what is positive was drawn.
    shares = (logits.grad[0] > 0).double().mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]).double(), rtol=0, atol=0.03)
    assert sequences


@EVERY
def test_a_measured_step_costs_what_the_folded_model_costs(name: str) -> None:
    """The dearest kind, for a first step and for one after others."""
    bed = make_bed(name)
    study = study_all(bed)
    taken = ModelEdit()
    for strength in (0.3, 0.2):
        step = study.find_direction()(strength)
        rises = measure_kinds(bed, taken.then(step))
        assert study.measure(step) == pytest.approx(max(rises.values()), abs=3e-5)
        study.take(step)
        taken = taken.then(step)
    shipped = study.finish()(1.0)
    whole = max(measure_kinds(bed, taken).values())
    assert study.measure(shipped) == pytest.approx(whole, rel=0.1)  # nearly all of the change
    for layer, edit in shipped.linears.items():
        assert edit.rank <= taken.linears[layer].rank


@EVERY
def test_the_budget_is_kept_on_every_kind_of_text_and_spent(name: str) -> None:
    """By the folded model, which writes fewer toxic tokens; weights and hooks are left alone."""
    bed = make_bed(name)
    before = {key: value.clone() for key, value in bed.language_model.model.named_parameters()}
    edit = spend_budget(study_all(bed), 2, BUDGET)
    assert edit.changes_trunk
    rises = measure_kinds(bed, edit)
    assert max(rises.values()) <= math.log1p(BUDGET) + 1e-5
    assert max(rises.values()) >= 0.85 * math.log1p(BUDGET)
    assert measure_benefit(bed, edit) < 0.9 * measure_benefit(bed, ModelEdit())
    for key, value in bed.language_model.model.named_parameters():
        assert torch.equal(value, before[key])
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for module in bed.language_model.model.modules()
    )


def test_layers_in_turns_give_the_terms_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where moments of all layers do not fit, groups take turns: the same terms."""
    bed = make_bed("llama")
    expected = study_all(bed).find_terms()
    monkeypatch.setattr("eigenshift.patches.fisher.deep_study.MAX_MOMENTS", 1500)
    found = study_all(bed).find_terms()
    assert [term.layer for term in found] == [term.layer for term in expected]
    for term, other in zip(found, expected, strict=True):
        assert term.gain == pytest.approx(other.gain, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_run_through(seed: int) -> None:
    """A control run: whatever is found is noise, within the same budget."""
    bed = make_bed("gpt2")
    states = permute_labels(bed.states, seed)
    toxic = gather_toxic_texts(bed.language_model, states, bed.continuations)
    edit = spend_budget(study_all(bed, toxic=toxic), 2, BUDGET)
    assert max(measure_kinds(bed, edit).values()) <= math.log1p(BUDGET) + 1e-5
