"""AlphaSteer: the map of the paper, of rank one, blind to what harmless states span."""

from __future__ import annotations

import numpy as np
import torch

from eigenshift.patches.interventions.interface import Evidence, split_states
from eigenshift.patches.interventions.null_space_steering import (
    NULL_SHARE,
    RELATIVE_RIDGE,
    find_reader,
    steer_null_space,
)
from eigenshift.patches.requests import PatchRequest

HIDDEN = 20


def make_states() -> tuple[np.ndarray, np.ndarray]:
    """Harmless states that span 8 of 20 dimensions, toxic ones that also go along a ninth."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(HIDDEN, HIDDEN)))[0]
    harmless = generator.normal(size=(300, 8)) @ axes[:, :8].T
    toxic = generator.normal(size=(50, 8)) @ axes[:, :8].T + 2.0 * axes[:, 8]
    return toxic + 0.01 * generator.normal(size=toxic.shape), harmless


def test_harmless_states_are_not_read_and_toxic_ones_are() -> None:
    """The reader gives zero on what harmless states span, and the same on all toxic states."""
    toxic, harmless = make_states()
    reader = find_reader(toxic, harmless)
    read = toxic @ reader
    assert np.abs(harmless @ reader).max() < 1e-8
    assert read.min() > 0.5
    assert read.std() < 0.05 * read.mean()


def test_it_is_the_ridge_solution_of_the_paper() -> None:
    """Delta = (P H^T H P + lambda P)^+ P H^T R, all targets r; h gains h^T P Delta."""
    toxic, harmless = make_states()
    steering = np.random.default_rng(1).normal(size=HIDDEN)
    _, vectors = np.linalg.eigh(harmless.T @ harmless)
    n_null = int(NULL_SHARE * HIDDEN)
    projection = vectors[:, :n_null] @ vectors[:, :n_null].T
    inside = toxic @ projection
    ridge = RELATIVE_RIDGE * (inside**2).sum() / n_null
    moment = inside.T @ inside + ridge * projection
    targets = np.tile(steering, (len(toxic), 1))
    expected = projection @ np.linalg.pinv(moment, rcond=1e-10) @ inside.T @ targets
    found = np.outer(find_reader(toxic, harmless), steering)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_toxic_states_go_towards_the_mean_of_the_others(evidence: Evidence) -> None:
    """By one direction, without a constant: the patch folds into any head."""
    outcome = steer_null_space(evidence, PatchRequest(max_perplexity_increase=1e6))
    head = outcome.edit.head
    assert head is not None
    assert head.rank == 1
    assert not head.has_shift
    toxic, nontoxic = split_states(evidence.head_states)
    moved = head.apply_to_states(torch.from_numpy(toxic)).numpy().mean(0) - toxic.mean(0)
    difference = nontoxic.mean(0) - toxic.mean(0)
    cosine = moved @ difference / np.linalg.norm(moved) / np.linalg.norm(difference)
    assert cosine > 1.0 - 1e-9
