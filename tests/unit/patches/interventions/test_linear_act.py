"""Linear-AcT: the map of the paper, fitted layer by layer."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.labelled_states import (
    average_outputs,
    choose_texts,
    encode_texts,
    list_norms,
)
from eigenshift.patches.interventions.linear_act import (
    fit_affine,
    fit_maps,
    transport_units,
)
from eigenshift.patches.requests import PatchRequest


def test_the_map_is_the_least_squares_line_of_sorted_values() -> None:
    """Equal to numpy.polyfit on the sorted samples, unit by unit."""
    generator = np.random.default_rng(0)
    toxic = generator.normal(1.0, 2.0, size=(50, 4))
    nontoxic = generator.gamma(2.0, size=(50, 4))
    found = fit_affine(toxic, nontoxic)
    for unit in range(4):
        slope, intercept = np.polyfit(np.sort(toxic[:, unit]), np.sort(nontoxic[:, unit]), 1)
        assert float(found.scale[unit]) == pytest.approx(slope)
        assert float(found.shift[unit]) == pytest.approx(intercept)


def test_between_gaussians_it_is_the_optimal_transport() -> None:
    """The exact map between N(m, s) and N(n, t) is affine: n + t / s (x - m)."""
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(2000) + 0.5) / 2000).numpy()
    found = fit_affine(3.0 + 2.0 * quantiles[:, None], -1.0 + 0.5 * quantiles[:, None])
    assert float(found.scale[0]) == pytest.approx(0.25)
    assert float(found.shift[0]) == pytest.approx(-1.0 - 0.25 * 3.0)


def test_a_unit_that_never_varies_is_only_shifted() -> None:
    """No spread, no slope: the mean is moved."""
    found = fit_affine(np.full((9, 1), 2.0), np.arange(9.0)[:, None])
    assert (float(found.scale[0]), float(found.shift[0])) == (1.0, 2.0)


def test_full_strength_moves_the_means_of_every_norm(evidence: Evidence) -> None:
    """With all maps in force, a norm's mean output on toxic texts is that on non-toxic ones.

    The non-toxic texts are moved too, so the comparison is with their outputs as they were when
    the map was fitted: under the maps of the layers before.
    """
    model = evidence.language_model
    toxic, nontoxic = choose_texts(evidence.labelled_texts, 0)
    texts = encode_texts(model, [*toxic, *nontoxic])
    maps = fit_maps(model, texts, len(toxic))
    assert list(maps) == list_norms(model)
    last = list(maps)[-1]
    earlier = {name: unit for name, unit in maps.items() if name != last}
    with run_hooked(model, ModelEdit(units=earlier)):
        before = average_outputs(model, [last], texts)[last]
    moved = maps[last].apply_to_outputs(torch.from_numpy(before[: len(toxic)])).numpy()
    np.testing.assert_allclose(moved.mean(0), before[len(toxic) :].mean(0), atol=1e-6)


def test_strength_goes_part_of_the_way(evidence: Evidence) -> None:
    """Shares s of the way: y' = (1 - s) y + s (omega y + beta)."""
    generator = np.random.default_rng(1)
    unit = fit_affine(generator.normal(size=(20, 3)), generator.normal(2, 1, size=(20, 3)))
    values = torch.from_numpy(generator.normal(size=(5, 3)))
    expected = 0.75 * values + 0.25 * unit.apply_to_outputs(values)
    weaker = ModelEdit(units={"norm": unit}).scale(0.25).units["norm"]
    torch.testing.assert_close(weaker.apply_to_outputs(values), expected)


def test_the_strength_is_the_largest_within_the_budget(evidence: Evidence) -> None:
    """With room for everything it is 1; with none, the weakest, and the cost is told."""

    def spend(budget: float, seed: int) -> dict[str, Any]:
        request = PatchRequest(max_perplexity_increase=budget, seed=seed)
        return transport_units(evidence, request).parameters

    # Of a random model some maps cost nothing; one is looked for that does.
    costs = (spend(1e6, seed)["calibration_perplexity_increase"] for seed in count())
    seed = next(place for place, cost in enumerate(costs) if cost > 0.03)
    assert spend(1e6, seed)["strength"] == 1.0
    none = spend(0.0, seed)
    assert 0 < none["strength"] < 0.5
    assert np.isfinite(none["calibration_perplexity_increase"])
    some = spend(0.02, seed)
    assert none["strength"] < some["strength"] <= 1.0
    assert some["calibration_perplexity_increase"] <= 0.02
    if some["strength"] < 1.0:
        assert some["calibration_perplexity_increase"] > 0.8 * 0.02


def test_classes_are_drawn_in_equal_numbers_by_the_seed(evidence: Evidence) -> None:
    """As many toxic as non-toxic texts; the same seed draws the same."""
    toxic, nontoxic = choose_texts(evidence.labelled_texts, 5)
    assert len(toxic) == len(nontoxic)
    assert (toxic, nontoxic) == choose_texts(evidence.labelled_texts, 5)
    assert min(map(len, toxic)) > 40 >= max(map(len, nontoxic))
