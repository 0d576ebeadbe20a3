"""Calibration: the closed form equals the patched model, and the budget holds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.calibration import (
    CalibrationStates,
    Choice,
    ToxicStates,
    choose_within_budget,
    collect_calibration_states,
    is_calibration_text,
    split_neutral,
)
from eigenshift.decomposition import Decomposition, decompose_head
from eigenshift.errors import ComponentError
from eigenshift.models import LanguageModel
from eigenshift.patching import scale_components


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
    return ToxicStates(calibration.states[5:25], torch.tensor([7, 30, 111]))


def measure_perplexity(calibration: CalibrationStates, weight: torch.Tensor) -> float:
    """Independent reference: cross entropy in float64 with a head built in full."""
    logits = calibration.states.double() @ weight.double().T
    return float(torch.nn.functional.cross_entropy(logits, calibration.targets).exp())


def measure_toxic_probability(toxic: ToxicStates, weight: torch.Tensor) -> float:
    """Independent reference: mean probability of the toxic tokens."""
    probabilities = (toxic.states.double() @ weight.double().T).softmax(1)
    return float(probabilities[:, toxic.token_ids].sum(1).mean())


def choose(
    language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
    **options: float,
) -> Choice:
    """Choose among all components."""
    given = {"factor": 0.0, "max_perplexity_increase": 1e6, "max_components": 32, **options}
    return choose_within_budget(
        language_model,
        calibration,
        toxic,
        range(32),
        decomposition.v,
        factor=given["factor"],
        max_perplexity_increase=given["max_perplexity_increase"],
        max_components=int(given["max_components"]),
    )


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_cost_and_benefit_equal_those_of_the_patched_head(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    toxic: ToxicStates,
    decomposition: Decomposition,
    factor: float,
) -> None:
    """Growing the patch by rank-one changes gives the numbers of the whole patch."""
    choice = choose(
        tiny_language_model, calibration, toxic, decomposition, factor=factor, max_components=6
    )
    assert len(choice.components) == 6
    base = tiny_language_model.head_weight
    v = torch.from_numpy(np.ascontiguousarray(decomposition.v[:, choice.components]))
    patched = scale_components(base, v, factor)
    ratio = measure_perplexity(calibration, patched) / measure_perplexity(calibration, base)
    assert choice.perplexity_increase == pytest.approx(ratio - 1, rel=1e-3)
    share = measure_toxic_probability(toxic, patched) / measure_toxic_probability(toxic, base)
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


def test_the_parts_are_disjoint_and_fixed(texts: pa.Table) -> None:
    """A text is for calibration or for evaluation, decided by its id alone."""
    parts = [
        set(split_neutral(texts, for_calibration=flag)["sample_id"].to_pylist())
        for flag in (True, False)
    ]
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0]) + len(parts[1]) == 60
    share = sum(is_calibration_text(f"x{i}") for i in range(5000)) / 5000
    assert share == pytest.approx(0.5, abs=0.03)


def test_without_calibration_texts_the_remedy_is_named(tiny_language_model: LanguageModel) -> None:
    """A choice cannot be calibrated on nothing."""
    empty = pa.table({"sample_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    with pytest.raises(ComponentError, match="neutral texts"):
        collect_calibration_states(tiny_language_model, empty, 32, 256)
