"""The choice of components: exact, within the budget, and better in steps than all at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.components.calibration import (
    MIN_PROBABILITY,
    CalibrationStates,
    ToxicStates,
    collect_calibration_states,
)
from eigenshift.components.choice import Choice, _Search, choose_within_budget
from eigenshift.components.decomposition import Decomposition, decompose_head
from eigenshift.model.encoding import encode_text
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit

Calibration = list[CalibrationStates]


@pytest.fixture
def calibration(tiny_language_model: LanguageModel, neutral_texts: list[str]) -> Calibration:
    """States of two kinds of text."""
    encoded = [encode_text(tiny_language_model, text, 32).token_ids for text in neutral_texts]
    texts = BudgetTexts({"neutral": encoded[:25], "labelled": encoded[30:50]})
    return collect_calibration_states(tiny_language_model, texts, 256)


@pytest.fixture
def decomposition(tiny_language_model: LanguageModel) -> Decomposition:
    """Of the tiny model's head."""
    return decompose_head(tiny_language_model.head_weight)


@pytest.fixture
def toxic(calibration: Calibration) -> ToxicStates:
    """Some of the states, with three tokens that stand for toxic ones."""
    weights = torch.linspace(0.25, 1.0, 20)
    return ToxicStates(calibration[0].states[5:25], torch.tensor([7, 30, 111]), weights)


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
    calibration: Calibration,
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


def aim_at_likeliest(language_model: LanguageModel, calibration: Calibration) -> Calibration:
    """The same states, with the likeliest tokens as targets: every damping costs something."""
    weight = language_model.head_weight
    return [
        CalibrationStates(kind.states, (kind.states @ weight.T).argmax(1)) for kind in calibration
    ]


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_cost_and_benefit_equal_those_of_the_patched_head(
    tiny_language_model: LanguageModel,
    calibration: Calibration,
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
    ratios = [
        measure_perplexity(kind, patched) / measure_perplexity(kind, base) for kind in calibration
    ]
    assert choice.perplexity_increase == pytest.approx(max(ratios) - 1, rel=1e-3)
    share = measure_toxic_share(toxic, base, patched)
    assert choice.toxic_token_share == pytest.approx(share, rel=1e-3)


def test_the_budget_holds_and_more_budget_never_buys_less(
    tiny_language_model: LanguageModel,
    calibration: Calibration,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """The likeliest tokens as targets make every damping cost something."""
    calibration = aim_at_likeliest(tiny_language_model, calibration)
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


def test_the_budget_is_of_every_kind_of_text(
    tiny_language_model: LanguageModel,
    calibration: Calibration,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """A second kind of text that suffers more leaves less to be bought; alone each buys more."""
    kinds = aim_at_likeliest(tiny_language_model, calibration)
    options = {"max_perplexity_increase": 0.1, "n_steps": 4}
    given = (tiny_language_model, toxic, decomposition)
    shares = [
        choose(given[0], found, *given[1:], **options).toxic_token_share
        for found in (kinds[:1], kinds[1:], kinds)
    ]
    assert shares[2] >= max(shares[:2]) - 1e-6
    both = choose(given[0], kinds, *given[1:], **options)
    patched = HeadEdit.scale_directions(
        decomposition.v[:, both.components], both.factors
    ).fold_weight(tiny_language_model.head_weight)
    for kind in kinds:
        base = measure_perplexity(kind, tiny_language_model.head_weight)
        assert measure_perplexity(kind, patched) / base <= 1.1 * (1 + 1e-6)


def test_components_that_do_not_help_are_left_alone(
    tiny_language_model: LanguageModel,
    calibration: Calibration,
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
    calibration: Calibration,
    toxic: ToxicStates,
    decomposition: Decomposition,
    softcap: float | None,
) -> None:
    """Benefit and cost of a small step, against finite differences; with a soft cap too."""
    head = dataclasses.replace(tiny_language_model.head, logit_softcap=softcap, logit_scale=0.7)
    model = dataclasses.replace(tiny_language_model, head=head)
    search = _Search(model, calibration, toxic, decomposition.v, 1.0)
    for measured in (*search._harmless, search._toxic):
        derivatives = measured.differentiate().numpy()
        base = measured.measure()
        for place in (0, 5, 31):
            steps = torch.zeros(32)
            steps[place] = 1e-2
            found = (measured.measure(steps) - base) / 1e-2
            assert found == pytest.approx(derivatives[place], rel=0.05, abs=2e-4)


def test_in_steps_the_budget_buys_at_least_as_much(
    tiny_language_model: LanguageModel,
    calibration: Calibration,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """The likeliest tokens as targets: fewer toxic tokens are left at the same cost."""
    calibration = aim_at_likeliest(tiny_language_model, calibration)
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
    calibration: Calibration,
    toxic: ToxicStates,
    decomposition: Decomposition,
) -> None:
    """The bound counts components, not steps; those it has are lowered further."""
    choice = choose(
        tiny_language_model, calibration, toxic, decomposition, n_steps=4, max_components=3
    )
    assert len(choice.components) == 3
    assert min(choice.factors) <= 0.25
