"""The ridge of the metric: by what steps leave on prompts that they were not made from."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.fisher import ridge as ridge_module
from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.ridge import RIDGES, choose_ridge
from eigenshift.patches.fisher.whitening import METRIC_RIDGE
from eigenshift.patches.strength import find_strongest
from tests.support.fisher_beds import Bed, make_bed, measure_benefit

BUDGET = 0.05
SEED = 0


def start(bed: Bed) -> HeadStudy:
    """A study of a bed's head."""
    return HeadStudy(bed.language_model, bed.evidence, 6, tokens_per_batch=64)


def weigh(bed: Bed, factors: torch.Tensor) -> Bed:
    """The bed with its toxic positions weighed."""
    toxic = bed.evidence.toxic
    states = dataclasses.replace(toxic.states, weights=toxic.states.weights * factors)
    toxic = dataclasses.replace(toxic, states=states)
    return dataclasses.replace(bed, evidence=dataclasses.replace(bed.evidence, toxic=toxic))


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_choice_is_what_separate_studies_of_the_halves_say(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step found by a study that knows one half, judged by folded models on the other."""
    monkeypatch.setattr(ridge_module, "LEAST_PROMPTS", 10)
    bed = make_bed(name)
    is_seen = ridge_module._draw_half(bed.evidence.toxic.prompts, SEED).float()
    seen, unseen = weigh(bed, is_seen), weigh(bed, 1.0 - is_seen)
    left = {}
    for ridge in RIDGES:
        study = start(seen)
        study.ridge = ridge
        direction = study.find_direction()
        strength, _ = find_strongest(
            lambda value, study=study, direction=direction: study.measure(direction(value)),
            math.log1p(BUDGET),
        )
        left[ridge] = measure_benefit(unseen, direction(strength))
    assert all(share < measure_benefit(unseen, ModelEdit()) for share in left.values())
    for slack in (1.0 + 1e-6, ridge_module.SLACK):
        monkeypatch.setattr(ridge_module, "SLACK", slack)
        enough = [ridge for ridge in RIDGES if left[ridge] <= slack * min(left.values())]
        assert choose_ridge(start(bed), BUDGET, SEED) == min(enough)


def test_a_study_is_left_as_it_was() -> None:
    """But for its ridge: the steps that follow look at all positions."""
    bed = make_bed("llama")
    study, other = start(bed), start(bed)
    other.ridge = choose_ridge(study, BUDGET, SEED)
    assert study.ridge == other.ridge
    assert torch.equal(study.weights, other.weights)
    edits = [each.find_direction()(0.1).logits for each in (study, other)]
    assert edits[0] is not None
    assert edits[1] is not None
    torch.testing.assert_close(edits[0].left @ edits[0].right.T, edits[1].left @ edits[1].right.T)


def test_halves_are_of_prompts_and_of_all_of_a_prompts_positions() -> None:
    """Of an odd number of prompts one half has one more."""
    prompts = torch.tensor([4, 4, 0, 7, 7, 7, 2, 9])
    halves = ridge_module._draw_half(prompts, SEED)
    by_prompt = {int(name): set(halves[prompts == name].tolist()) for name in prompts.unique()}
    assert all(len(found) == 1 for found in by_prompt.values())
    assert sum(found == {True} for found in by_prompt.values()) == 2


def test_with_few_prompts_nothing_is_chosen() -> None:
    """Halves of them would say nothing."""
    bed = make_bed("gpt2")
    toxic = dataclasses.replace(bed.evidence.toxic, prompts=bed.evidence.toxic.prompts % 7)
    evidence = dataclasses.replace(bed.evidence, toxic=toxic)
    study = HeadStudy(bed.language_model, evidence, 6, tokens_per_batch=64)
    assert choose_ridge(study, BUDGET, SEED) == METRIC_RIDGE
