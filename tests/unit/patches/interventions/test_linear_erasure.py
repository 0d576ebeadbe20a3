"""LEACE and mean-difference ablation against independent forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from eigenshift.patches.cost import Cost
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.interventions.interface import Evidence, split_states
from eigenshift.patches.interventions.linear_erasure import (
    ablate_mean_difference,
    erase_concept,
    find_eraser,
)
from eigenshift.patches.requests import PatchRequest

WHOLE = PatchRequest(max_perplexity_increase=1e9)
"""A budget that allows to erase all the way."""


def test_leace_equals_the_general_formula() -> None:
    """It is x - W^+ P W (x - mu), W whitening, P the projection onto W Sxz (theorem 4.2)."""
    generator = np.random.default_rng(3)
    states = generator.normal(size=(400, 10)) @ generator.normal(size=(10, 10)) + 2.0
    is_toxic = states[:, 0] + generator.normal(size=400) > 4.0
    left, right, mean = find_eraser(states[is_toxic], states[~is_toxic])
    ordered = np.concatenate([states[is_toxic], states[~is_toxic]])
    labels = np.concatenate([np.ones(is_toxic.sum()), np.zeros((~is_toxic).sum())])
    covariance = np.cov(ordered, rowvar=False, bias=True)
    covariance += 1e-3 * np.trace(covariance) / 10 * np.eye(10)
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    crossing = ((ordered - ordered.mean(0)) * (labels - labels.mean())[:, None]).mean(0)
    direction = whitening @ crossing
    projection = np.outer(direction, direction) / (direction @ direction)
    general = np.linalg.inv(whitening) @ projection @ whitening
    np.testing.assert_allclose(np.outer(left, right), general, atol=1e-10)
    np.testing.assert_allclose(mean, ordered.mean(0))


@pytest.mark.parametrize("build", [ablate_mean_difference, erase_concept])
def test_class_means_are_equal_afterwards(build: object, evidence: Evidence) -> None:
    """Erased states of both classes have one mean."""
    edit = build(evidence, WHOLE).edit.head  # type: ignore[operator]
    toxic, nontoxic = split_states(evidence.head_states)
    means = [edit.apply_to_states(torch.from_numpy(part)).mean(0) for part in (toxic, nontoxic)]
    torch.testing.assert_close(*means, atol=1e-8, rtol=0)


def test_leace_moves_states_less_and_keeps_their_mean(evidence: Evidence) -> None:
    """In the norm of the states' own covariance it is the smaller change, and it has no bias."""
    toxic, nontoxic = split_states(evidence.head_states)
    states = torch.from_numpy(np.concatenate([toxic, nontoxic]))
    covariance = np.cov(states.numpy(), rowvar=False, bias=True)
    inverse = np.linalg.inv(covariance + 1e-9 * np.eye(len(covariance)))
    moved = {}
    for build in (ablate_mean_difference, erase_concept):
        change = (build(evidence, WHOLE).edit.head.apply_to_states(states) - states).numpy()
        moved[build] = np.einsum("ij,jk,ik->i", change, inverse, change).mean()
        if build is erase_concept:
            np.testing.assert_allclose(change.mean(0), 0, atol=1e-8)
    assert moved[erase_concept] < moved[ablate_mean_difference]


def test_no_linear_classifier_tells_erased_states_apart(evidence: Evidence) -> None:
    """A logistic regression fitted on erased states does not beat the class share."""
    toxic, nontoxic = split_states(evidence.head_states)
    states = torch.from_numpy(np.concatenate([toxic, nontoxic]))
    labels = np.r_[np.ones(len(toxic)), np.zeros(len(nontoxic))]
    edit = erase_concept(evidence, WHOLE).edit.head
    erased = edit.apply_to_states(states).numpy()
    raw_probe = LogisticRegression(max_iter=5000).fit(states.numpy(), labels)
    probe = LogisticRegression(max_iter=5000).fit(erased, labels)
    assert raw_probe.score(states.numpy(), labels) > 0.95
    assert probe.score(erased, labels) <= 0.76  # three quarters are non-toxic


class SquareMeter:
    """What an edit costs is how large it is."""

    def make_rough(self) -> SquareMeter:
        """Itself: it costs nothing to ask."""
        return self

    def measure(self, edit: ModelEdit) -> Cost:
        """Its squared size, on one kind of text."""
        assert edit.head is not None
        return Cost({"neutral": float((edit.head.left @ edit.head.right.T).square().sum())}, 0.0)


def test_a_budget_goes_part_of_the_way(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the strength that is told: so much of the difference of the class means is gone."""
    monkeypatch.setattr(
        "eigenshift.patches.interventions.budget.make_meter", lambda _: SquareMeter()
    )
    toxic, nontoxic = split_states(evidence.head_states)
    before = toxic.mean(0) - nontoxic.mean(0)
    for build in (ablate_mean_difference, erase_concept):
        outcome = build(evidence, PatchRequest(max_perplexity_increase=0.1))
        edit, strength = outcome.edit.head, outcome.parameters["strength"]
        assert 0 < strength < 1
        assert 0.09 < outcome.parameters["calibration_perplexity_increase"] <= 0.1
        after = [edit.apply_to_states(torch.from_numpy(p)).mean(0) for p in (toxic, nontoxic)]
        left = (1 - strength) * before
        np.testing.assert_allclose((after[0] - after[1]).numpy(), left, atol=1e-8)
