"""Calibration: the closed form equals the patched model, and the budget holds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.calibration import (
    CalibrationStates,
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


def measure_perplexity(
    language_model: LanguageModel, calibration: CalibrationStates, weight: torch.Tensor
) -> float:
    """Independent reference: cross entropy in float64 with a head built in full."""
    logits = calibration.states.double() @ weight.double().T
    return float(torch.nn.functional.cross_entropy(logits, calibration.targets).exp())


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_the_cost_equals_that_of_the_patched_head(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    decomposition: Decomposition,
    factor: float,
) -> None:
    """Growing the patch by rank-one changes gives the perplexity of the whole patch."""
    kept, cost = choose_within_budget(
        tiny_language_model,
        calibration,
        [3, 8, 1, 20],
        decomposition.v,
        factor=factor,
        max_perplexity_increase=1e6,
        max_components=10,
    )
    assert kept == [3, 8, 1, 20]
    base = tiny_language_model.head_weight
    v = torch.from_numpy(np.ascontiguousarray(decomposition.v[:, kept]))
    ratio = measure_perplexity(
        tiny_language_model, calibration, scale_components(base, v, factor)
    ) / measure_perplexity(tiny_language_model, calibration, base)
    assert cost == pytest.approx(ratio - 1, rel=1e-4)


def test_components_over_the_budget_are_skipped_not_the_end(
    tiny_language_model: LanguageModel,
    calibration: CalibrationStates,
    decomposition: Decomposition,
) -> None:
    """A cheap component after a costly one is still taken, and the total stays within."""
    likeliest = (calibration.states @ tiny_language_model.head_weight.T).argmax(1)
    calibration = CalibrationStates(calibration.states, likeliest)
    kept, cost = choose_within_budget(
        tiny_language_model,
        calibration,
        list(range(32)),
        decomposition.v,
        factor=0.0,
        max_perplexity_increase=0.02,
        max_components=32,
    )
    assert 0 < len(kept) < 32
    assert kept != list(range(len(kept)))
    assert cost <= 0.02


def test_the_parts_are_disjoint_and_fixed(texts: pa.Table) -> None:
    """A text is for calibration or for evaluation, decided by its id alone."""
    parts = [
        set(split_neutral(texts, for_calibration=flag)["sample_id"].to_pylist())
        for flag in (True, False)
    ]
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0]) + len(parts[1]) == 60
    share = sum(is_calibration_text(f"x{i}") for i in range(5000)) / 5000
    assert share == pytest.approx(0.2, abs=0.03)


def test_without_calibration_texts_the_remedy_is_named(tiny_language_model: LanguageModel) -> None:
    """A choice cannot be calibrated on nothing."""
    empty = pa.table({"sample_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    with pytest.raises(ComponentError, match="neutral texts"):
        collect_calibration_states(tiny_language_model, empty, 32, 256)
