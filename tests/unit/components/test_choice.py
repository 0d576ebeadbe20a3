"""The choice of components: exact, within the budget, and better in steps than all at once."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest
import torch

from eigenshift.components.calibration import (
    MIN_PROBABILITY,
    CalibrationStates,
    ToxicStates,
    collect_calibration_states,
)
from eigenshift.components.choice import Choice, _Search, choose_within_budget
from eigenshift.components.decomposition import Decomposition, decompose_head
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit


@pytest.fixture
def texts(neutral_texts: list[str]) -> pa.Table:
    """Neutral samples."""
    return pa.table({"sample_id": [f"s{i}" for i in range(60)], "text": neutral_texts})


@pytest.fixture
def calibration(tiny_language_model: LanguageModel, texts: pa.Table) -> CalibrationStates:
    """States of the calibration part."""
    return collect_calibration_states(tiny_language_model, texts, 32, 256)


@pytest.fixture
def decomposition(tiny_language_model: LanguageModel) -> Decomposition:
    """Of the tiny model's head."""
    return decompose_head(tiny_language_model.head_weight)


@pytest.fixture
def toxic(calibration: CalibrationStates) -> ToxicStates:
    """Some of the states, with three tokens that stand for toxic ones."""
    weights = torch.linspace(0.25, 1.0, 20)
    return ToxicStates(calibration.states[5:25], torch.tensor([7, 30, 111]), weights)


def measure_perplexity(calibration: CalibrationStates, weight: torch.Tensor) -> float:
    """Independent reference: cross entropy in float64 with a head built in full."""
    logits = calibration.states.double() @ weight.double().T
    return float(torch.nn.functional.cross_entropy(logits, calibration.targets).exp())


def measure_toxic_share(toxic: ToxicStates, base: torch.Tensor, patched: torch.Tensor) -> float:
    """Independent reference: weighted mean of what is left of the toxic tokens' probability."""
    before, after = (
        (toxic.states.double() @ weight.double().T).softmax(1)[:, toxic.token_ids].sum(1)
        for weight in (base, patched)
    )
    magnified = toxic.weights.double() / before.clamp_min(MIN_PROBABILITY)
    return float((magnified * after).sum() / (magnified * before).sum())


def choose(
    language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
    **options: float,
) -> Choice:
    """Choose among all components."""
    given = {
        "factor": 0.0,
        "n_steps": 1,
        "max_perplexity_increase": 1e6,
        "max_components": 32,
        **options,
    }
    return choose_within_budget(
        language_model,
        calibration,
        toxic,
        range(32),
        decomposition.v,
        min_factor=given["factor"],
        n_steps=int(given["n_steps"]),
        max_perplexity_increase=given["max_perplexity_increase"],
        max_components=int(given["max_components"]),
    )


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_cost_and_benefit_equal_those_of_the_patched_head(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
    factor: float,
    n_steps: int,
) -> None:
    """Growing the patch step by step gives the numbers of the whole patch."""
    choice = choose(
        tiny_language_model,
        calibration,
        toxic,
        decomposition,
        factor=factor,
        n_steps=n_steps,
        max_components=6,
    )
    assert len(choice.components) == len(set(choice.components)) == 6
    assert all(factor - 1e-9 <= value < 1.0 for value in choice.factors)
    base = tiny_language_model.head_weight
    v = decomposition.v[:, choice.components]
    patched = HeadEdit.scale_directions(v, choice.factors).fold_weight(base)
    ratio = measure_perplexity(calibration, patched) / measure_perplexity(calibration, base)
    assert choice.perplexity_increase == pytest.approx(ratio - 1, rel=1e-3)
    share = measure_toxic_share(toxic, base, patched)
    assert choice.toxic_token_share == pytest.approx(share, rel=1e-3)


def test_the_budget_holds_and_more_budget_never_buys_less(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """The likeliest tokens as targets make every damping cost something."""
    likeliest = (calibration.states @ tiny_language_model.head_weight.T).argmax(1)
    calibration = CalibrationStates(calibration.states, likeliest)
    choices = [
        choose(
            tiny_language_model,
            calibration,
            toxic,
            decomposition,
            max_perplexity_increase=budget,
        )
        for budget in (0.01, 0.1, 1.0)
    ]
    for choice, budget in zip(choices, (0.01, 0.1, 1.0), strict=True):
        assert choice.perplexity_increase <= budget
    shares = [choice.toxic_token_share for choice in choices]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1.0


def test_components_that_do_not_help_are_left_alone(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """Even without a budget, only what lowers the toxic tokens' probability is taken."""
    choice = choose(tiny_language_model, calibration, toxic, decomposition)
    assert 0 < len(choice.components) < 32
    assert choice.toxic_token_share < 1.0


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_steps_are_ranked_by_true_derivatives(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
    softcap: float | None,
) -> None:
    """Benefit and cost of a small step, against finite differences; with a soft cap too."""
    head = dataclasses.replace(tiny_language_model.head, logit_softcap=softcap, logit_scale=0.7)
    model = dataclasses.replace(tiny_language_model, head=head)
    search = _Search(model, calibration, toxic, decomposition.v, 1.0)
    for measured in (search._neutral, search._toxic):
        derivatives = measured.differentiate().numpy()
        base = measured.measure()
        for place in (0, 5, 31):
            steps = torch.zeros(32)
            steps[place] = 1e-2
            found = (measured.measure(steps) - base) / 1e-2
            assert found == pytest.approx(derivatives[place], rel=0.05, abs=2e-4)


def test_in_steps_the_budget_buys_at_least_as_much(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """The likeliest tokens as targets: fewer toxic tokens are left at the same cost."""
    likeliest = (calibration.states @ tiny_language_model.head_weight.T).argmax(1)
    calibration = CalibrationStates(calibration.states, likeliest)
    found = {
        n_steps: choose(
            tiny_language_model,
            calibration,
            toxic,
            decomposition,
            n_steps=n_steps,
            max_perplexity_increase=0.5,
        )
        for n_steps in (1, 8)
    }
    assert found[8].perplexity_increase <= 0.5
    assert found[8].toxic_token_share < found[1].toxic_token_share
    assert len(set(found[8].factors)) > 1


def test_no_more_components_are_lowered_than_allowed(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """The bound counts components, not steps; those it has are lowered further."""
    choice = choose(
        tiny_language_model, calibration, toxic, decomposition, n_steps=4, max_components=3
    )
    assert len(choice.components) == 3
    assert min(choice.factors) <= 0.25
