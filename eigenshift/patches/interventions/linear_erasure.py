"""Take one direction out of the head's input: mean-difference ablation and LEACE.

Both act on h and are folded into the head, W (I - P). LEACE (Belrose et al., NeurIPS 2023, theorem
4.2) is the smallest change after which no linear classifier tells toxic from non-toxic states: h'
= h - Sxz (Szx Sxx^+ Sxz)^-1 Szx Sxx^+ (h - mean). For one binary label Sxz is the mean difference
up to a factor, so it is of rank one. It keeps the mean, which needs a bias.
"""

from __future__ import annotations

import numpy as np
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome, split_states
from eigenshift.patches.requests import PatchRequest

RELATIVE_RIDGE = 1e-3
"""Added to the covariance, relative to its mean eigenvalue: few positions, many dimensions."""


def ablate_mean_difference(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Damp the direction from the mean non-toxic to the mean toxic state, as the budget allows."""
    toxic, nontoxic = split_states(evidence.head_states)
    difference = toxic.mean(0) - nontoxic.mean(0)
    direction = (difference / np.linalg.norm(difference))[:, None]

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(HeadEdit.scale_directions(direction, 1.0 - strength))

    outcome = tune_strength(evidence, request, make_edit)
    factor = 1.0 - float(outcome.parameters["strength"])
    return Outcome(outcome.edit, factor=factor, parameters=outcome.parameters)


def erase_concept(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Least-squares concept erasure of the toxic label, as far as is in budget."""
    toxic, nontoxic = split_states(evidence.head_states)
    left, right, mean = find_eraser(toxic, nontoxic)

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(
            HeadEdit(
                torch.from_numpy(strength * left[:, None]),
                torch.from_numpy(right[:, None]),
                torch.from_numpy(np.array([right @ mean])),
            )
        )

    outcome = tune_strength(evidence, request, make_edit)
    parameters = {**outcome.parameters, "relative_ridge": RELATIVE_RIDGE}
    return Outcome(outcome.edit, parameters=parameters)


def find_eraser(
    toxic: FloatArray, nontoxic: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Left and right vector of the projection and the mean, each of shape (hidden,).

    Args:
        toxic: States, shape (position, hidden).
        nontoxic: States, shape (position, hidden).

    Returns:
        l, r, m such that h - l (r . (h - m)) is the erased state; r . l = 1.
    """
    states = np.concatenate([toxic, nontoxic])
    mean = states.mean(0)
    covariance = np.cov(states, rowvar=False, bias=True)
    ridge = RELATIVE_RIDGE * np.trace(covariance) / len(covariance)
    difference = toxic.mean(0) - nontoxic.mean(0)
    right = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), difference)
    left = difference / (right @ difference)
    return left, right, mean
