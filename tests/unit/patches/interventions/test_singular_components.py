"""EigenShift, its centred form and the control arms: which components, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenshift.base.errors import ComponentError
from eigenshift.patches.interventions.controls import (
    damp_label_permuted,
    damp_random_components,
    damp_top_sigma,
)
from eigenshift.patches.interventions.interface import Evidence, split_states
from eigenshift.patches.interventions.singular_components import damp_components, damp_deviations
from eigenshift.patches.requests import PatchRequest
from eigenshift.settings import ComponentScore
from tests.unit.patches.interventions.conftest import FACTORS, HIDDEN, SELECTED


def test_the_tables_own_choice_is_damped(evidence: Evidence) -> None:
    """Without a number the selected components, in the order of their rank, by their factors."""
    outcome = damp_components(evidence, PatchRequest(factor=0.9))
    assert outcome.component_indices == SELECTED
    assert outcome.factors == FACTORS
    assert outcome.factor is None
    v = torch.from_numpy(evidence.decomposition.v[:, list(SELECTED)])
    states = torch.from_numpy(split_states(evidence.head_states)[0])
    damped = outcome.edit.head.apply_to_states(states) @ v
    torch.testing.assert_close(damped, (states @ v) * torch.tensor(FACTORS, dtype=torch.float64))


def test_a_number_takes_the_top_of_the_asked_for_score(evidence: Evidence) -> None:
    """By the table's rank, or by another column."""
    by_rank = damp_components(evidence, PatchRequest(n_components=2, factor=0.4))
    assert by_rank.component_indices == SELECTED[:2]
    assert (by_rank.factor, by_rank.factors) == (0.4, (0.4, 0.4))
    request = PatchRequest(n_components=2, score=ComponentScore.abs_delta)
    assert damp_components(evidence, request).component_indices == (HIDDEN - 1, HIDDEN - 2)
    with pytest.raises(ComponentError, match="expected at most 32"):
        damp_components(evidence, PatchRequest(n_components=33))


def test_only_deviations_from_the_non_toxic_mean_are_damped(evidence: Evidence) -> None:
    """At the mean non-toxic state nothing changes; elsewhere components shrink towards it."""
    edit = damp_deviations(evidence, PatchRequest()).edit.head
    toxic, nontoxic = split_states(evidence.head_states)
    mean = torch.from_numpy(nontoxic.mean(0))
    torch.testing.assert_close(edit.apply_to_states(mean), mean)
    v = torch.from_numpy(evidence.decomposition.v[:, list(SELECTED)])
    states = torch.from_numpy(toxic)
    deviation = (edit.apply_to_states(states) - mean) @ v
    expected = torch.tensor(FACTORS, dtype=torch.float64) * ((states - mean) @ v)
    torch.testing.assert_close(deviation, expected, atol=1e-8, rtol=0)


def test_random_components_avoid_the_damped_ones(evidence: Evidence) -> None:
    """As many, none of them selected, decided by the seed."""
    drawn = [
        damp_random_components(evidence, PatchRequest(seed=seed)).component_indices
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert damp_random_components(evidence, PatchRequest()).factors == FACTORS
    assert len(drawn[0]) == len(SELECTED)
    assert not set(drawn[0]) & set(SELECTED)


def test_top_sigma_takes_the_first_components(evidence: Evidence) -> None:
    """As many, by singular value alone."""
    assert damp_top_sigma(evidence, PatchRequest()).component_indices == (0, 1, 2)


def test_shuffled_labels_choose_by_chance(evidence: Evidence) -> None:
    """Over many seeds every component is chosen about equally often, the planted ones too."""
    counts = np.zeros(HIDDEN)
    for seed in range(60):
        indices = damp_label_permuted(evidence, PatchRequest(seed=seed)).component_indices
        assert len(indices) == len(set(indices)) == len(SELECTED)
        counts[list(indices)] += 1
    assert counts.max() < 0.4 * 60
