"""AlphaSteer at the head: steer toxic states, and leave alone what harmless states span.

Sheng et al., "AlphaSteer: Learning refusal steering with principled null-space constraint" (2025,
arXiv 2506.07022). A linear map of states h' = h + s R P h, with P the projection onto the
directions in which harmless states have least power (eigenvectors of their uncentred second moment
with the smallest eigenvalues) and R from a ridge regression so that toxic states are moved by a
steering vector r. All toxic states have the same target, so the solution has rank one, R P = r u^T
with u = Q (Y^T Y + lambda I)^-1 Y^T 1, Y = H_toxic Q and Q a basis of the null space: it is
computed so, which keeps u in the null space exactly. It has no constant, so every head can hold it.

Published: the uncentred moment, the null space's share of all directions (60% in nearly all
layers of the authors' configuration). Ours: it acts on what enters the head instead of the residual
stream of some middle layers, so that it folds, W' = W (I + s r u^T); r goes from the mean toxic to
the mean matched non-toxic state, where the paper has a refusal vector; harmless states are those of
neutral and harmless calibration texts and the matched non-toxic ones; the ridge is relative to the
mean power of toxic states in the null space (the authors' 10 does not scale with the states). s is
tuned to the common budget, up to `MAX_STRENGTH`.
"""

from __future__ import annotations

import numpy as np
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.components.budget_texts import gather_budget_texts
from eigenshift.components.harmless_texts import FISHER
from eigenshift.model.forward import iterate_head_states
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.interventions.budget import MAX_TOKENS, tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome, split_states
from eigenshift.patches.requests import PatchRequest

NULL_SHARE = 0.6
RELATIVE_RIDGE = 1.0
MAX_STRENGTH = 16.0
"""At 1 the mean toxic state goes about where the mean non-toxic one is."""
MAX_TOKENS_OF_KIND = 4_096
TOKENS_PER_BATCH = 2_048


def steer_null_space(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Move toxic states by what they have in the null space of harmless ones."""
    toxic, nontoxic = split_states(evidence.head_states)
    harmless = np.concatenate([nontoxic, collect_harmless_states(evidence)])
    right = torch.from_numpy(find_reader(toxic, harmless)[:, None])
    left = torch.from_numpy((toxic.mean(0) - nontoxic.mean(0))[:, None])
    target = torch.zeros(1, dtype=torch.float64)

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(HeadEdit(left * strength, right, target))

    outcome = tune_strength(evidence, request, make_edit, most=MAX_STRENGTH)
    parameters = {**outcome.parameters, "n_harmless": len(harmless), "null_share": NULL_SHARE}
    return Outcome(outcome.edit, parameters=parameters)


def collect_harmless_states(evidence: Evidence) -> FloatArray:
    """What enters the head on calibration texts, other harmless ones than the budget's.

    Returns:
        Shape (position, hidden).
    """
    language_model = evidence.language_model
    texts = gather_budget_texts(
        language_model, evidence.neutral_texts, evidence.harmless_texts, MAX_TOKENS, use=FISHER
    ).limit(MAX_TOKENS_OF_KIND)
    found = [
        states.double().cpu().numpy()
        for _, states in iterate_head_states(language_model, texts.sequences, TOKENS_PER_BATCH)
    ]
    return np.concatenate(found)


def find_reader(toxic: FloatArray, harmless: FloatArray) -> FloatArray:
    """The u in the null space of harmless states with u . h near 1 on toxic ones, (hidden,).

    Args:
        toxic: States, shape (position, hidden).
        harmless: States, shape (position, hidden).
    """
    _, vectors = np.linalg.eigh(harmless.T @ harmless / len(harmless))  # weakest first
    null_space = vectors[:, : max(1, int(NULL_SHARE * len(vectors)))]
    inside = toxic @ null_space
    moment = inside.T @ inside
    ridge = RELATIVE_RIDGE * np.trace(moment) / len(moment)
    solved = np.linalg.solve(moment + ridge * np.eye(len(moment)), inside.sum(0))
    return np.asarray(null_space @ solved)
