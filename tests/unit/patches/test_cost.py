"""The cost of an edit against the folded model, kind by kind, one text at a time."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.model.writers import list_writers
from eigenshift.patches.cost import (
    MAX_LOGITS_OF_KIND,
    MAX_TOKENS_OF_KIND,
    ROUGH_SHARE,
    Cost,
    CostMeter,
    count_tokens_of_kind,
)
from eigenshift.patches.edits import HeadEdit, LogitEdit, ModelEdit
from eigenshift.patches.folding import fold_edit
from tests.support.architectures import change_linears, damp_head, list_mlp_layers, scale_units
from tests.support.fisher_beds import Bed, call_with, make_bed, measure_kinds

EVERY = pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2", "granite"])


def list_edits(bed: Bed) -> dict[str, ModelEdit]:
    """One of every kind, and of some together."""
    language_model = bed.language_model
    vocab, hidden = language_model.head.vocab, language_model.head.hidden
    generator = torch.Generator().manual_seed(4)
    marked = torch.zeros(vocab, 1, dtype=torch.float64)
    marked[list(bed.toxic_tokens)] = -1.5
    direction = torch.randn(hidden, 1, generator=generator, dtype=torch.float64) / hidden
    logits = LogitEdit(marked, direction, torch.zeros(1, dtype=torch.float64))
    head = damp_head(language_model, 0.4).head
    linears = change_linears(language_model, list(list_writers(language_model.model))[:2])
    weak = {name: type(edit)(0.2 * edit.left, edit.right) for name, edit in linears.linears.items()}
    return {
        "head": ModelEdit(head),
        "logits": ModelEdit(logits=logits),
        "head and logits": ModelEdit(head, logits=logits),
        "linears": ModelEdit(linears=weak),
        "units": scale_units(language_model, list_mlp_layers(language_model)[:1]),
        "all": ModelEdit(head, {}, weak, logits),
    }


def measure_divergence(bed: Bed, edit: ModelEdit) -> float:
    """Mean KL(base || folded) over predicting positions of the neutral texts, float64."""
    folded = fold_edit(bed.precise, edit)
    found = []
    for sequence in bed.evidence.budget_texts.by_kind["neutral"]:
        base, after = (
            call_with(bed.precise.model, values, sequence)[:-1].log_softmax(1)
            for values in ({}, folded)
        )
        found.append((base.exp() * (base - after)).sum(1))
    return float(torch.cat(found).mean())


@EVERY
@pytest.mark.parametrize("kind", ["head", "logits", "head and logits", "linears", "units", "all"])
def test_rises_are_those_of_the_folded_model(name: str, kind: str) -> None:
    """Of each kind of text; and the divergence on neutral text."""
    bed = make_bed(name)
    edit = list_edits(bed)[kind]
    meter = CostMeter(bed.language_model, bed.evidence.budget_texts, tokens_per_batch=64)
    cost = meter.measure(edit, with_divergence=True)
    expected = measure_kinds(bed, edit)
    assert cost.rises == pytest.approx(expected, abs=3e-5)
    assert cost.largest_rise == max(cost.rises.values())
    assert cost.perplexity_increase == pytest.approx(math.expm1(max(expected.values())), abs=1e-4)
    assert cost.divergence == pytest.approx(measure_divergence(bed, edit), rel=1e-3, abs=1e-6)
    assert max(map(abs, expected.values())) > 3e-4  # something was measured


def test_what_is_context_is_read_and_costs_nothing() -> None:
    """A prompt's own tokens are not counted, those after it are, given the prompt."""
    bed = make_bed("gpt2")
    edit = list_edits(bed)["all"]
    texts = bed.evidence.budget_texts
    kind = next(kind for kind in texts.by_kind if kind != "neutral")
    counted = BudgetTexts(texts.by_kind, {kind: [3] * len(texts.by_kind[kind])})
    found = CostMeter(bed.language_model, counted, tokens_per_batch=64).measure(edit).rises
    folded = fold_edit(bed.precise, edit)
    rises = []
    for sequence in texts.by_kind[kind]:
        base, after = (
            call_with(bed.precise.model, values, sequence)[2:-1].log_softmax(1)
            for values in ({}, folded)
        )
        targets = torch.tensor(sequence[3:])[:, None]
        rises.append((base - after).gather(1, targets))
    assert found[kind] == pytest.approx(float(torch.cat(rises).mean()), abs=3e-5)
    assert found["neutral"] == pytest.approx(measure_kinds(bed, edit)["neutral"], abs=3e-5)


def test_batches_leave_no_trace_and_nothing_costs_nothing() -> None:
    """One text at a time and all at once; hooks of a changed trunk are gone afterwards."""
    bed = make_bed("gpt2")
    edit = list_edits(bed)["all"]
    first, second = (
        CostMeter(bed.language_model, bed.evidence.budget_texts, tokens_per_batch=n_tokens)
        for n_tokens in (1, 10_000)
    )
    assert first.measure(edit).rises == pytest.approx(second.measure(edit).rises, abs=1e-5)
    nothing = first.measure(ModelEdit(), with_divergence=True)
    assert nothing.rises == dict.fromkeys(nothing.rises, 0.0)
    assert nothing.divergence == 0.0


def test_the_divergence_is_told_only_if_asked_for() -> None:
    """It takes another product with the head; nan is no number to compare with."""
    bed = make_bed("gpt2")
    meter = CostMeter(bed.language_model, bed.evidence.budget_texts)
    assert math.isnan(meter.measure(list_edits(bed)["head"]).divergence)


def test_of_each_kind_so_many_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones, at least one text of every kind."""
    monkeypatch.setattr("eigenshift.patches.cost.MAX_TOKENS_OF_KIND", 25)
    bed = make_bed("llama")
    meter = CostMeter(bed.language_model, bed.evidence.budget_texts)
    assert meter.texts == bed.evidence.budget_texts.limit(25)
    evidence = dataclasses.replace(bed.evidence, budget_texts=meter.texts)
    cut = dataclasses.replace(bed, evidence=evidence)
    edit = list_edits(bed)["head"]
    assert meter.measure(edit).rises == pytest.approx(measure_kinds(cut, edit), abs=3e-5)


def test_a_loss_that_is_not_finite_is_beyond_any_budget() -> None:
    """Of any kind of text: the largest rise is infinite, whichever comes first."""
    for broken in (math.nan, math.inf):
        assert Cost({"a": 0.1, "b": broken}, 0.0).largest_rise == math.inf
        assert Cost({"a": broken, "b": 0.1}, 0.0).largest_rise == math.inf


def test_an_edit_that_overflows_costs_infinitely_much() -> None:
    """Measured, not crashed on: a search backs off from it."""
    bed = make_bed("llama")
    hidden = bed.language_model.head.hidden
    huge = torch.full((hidden, 1), 1e30, dtype=torch.float64)
    edit = ModelEdit(HeadEdit(huge, huge, torch.zeros(1, dtype=torch.float64)))
    texts = BudgetTexts({"neutral": bed.evidence.budget_texts.by_kind["neutral"]})
    assert CostMeter(bed.language_model, texts).measure(edit).largest_rise == math.inf


def test_a_wide_vocabulary_is_read_at_fewer_positions() -> None:
    """As many logits of each kind whatever the vocabulary, and never more tokens than the bound."""
    assert count_tokens_of_kind(2_000) == MAX_TOKENS_OF_KIND
    assert count_tokens_of_kind(49_152) == MAX_LOGITS_OF_KIND // 49_152 == 2_730
    assert count_tokens_of_kind(2 * MAX_LOGITS_OF_KIND) == 1


def test_a_rough_meter_reads_the_first_texts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind some; on them it says what a meter of them says."""
    bed = make_bed("gpt2")
    monkeypatch.setattr("eigenshift.patches.cost.MAX_TOKENS_OF_KIND", 40 * ROUGH_SHARE)
    meter = CostMeter(bed.language_model, bed.evidence.budget_texts, tokens_per_batch=64)
    rough, few = meter.make_rough(), bed.evidence.budget_texts.limit(40)
    assert rough.texts == few
    assert len(few.sequences) < len(meter.texts.sequences)
    edit = list_edits(bed)["all"]
    expected = CostMeter(bed.language_model, few, tokens_per_batch=64).measure(edit)
    assert rough.measure(edit).rises == expected.rises
