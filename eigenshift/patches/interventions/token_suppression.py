"""A word filter in the weights: lower the logits of the toxic tokens, wherever they occur.

The control a sceptic asks for: whatever it does as well needs no study of components. Folded it is
a rank-one change of the toxic tokens' rows, W' = W - c 1_S r^T with r . h close to 1 on harmless
states; with a bias it is b' = b - c 1_S. It knows words, not what they are used for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eigenshift.components.table import find_toxic_tokens
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.requests import PatchRequest

RELATIVE_RIDGE = 1e-3
MAX_FALL = 30.0
"""Nats beyond which a token is as good as gone."""


def lower_rows(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Lower the toxic tokens' rows along the direction that all states share."""
    direction = find_common_direction(evidence)
    return _tune(evidence, request, direction[:, None], torch.zeros(1, dtype=torch.float64))


def lower_bias(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Lower the toxic tokens' bias; most heads have none, then it is hooked."""
    nothing = torch.zeros(evidence.language_model.head.hidden, 1, dtype=torch.float64)
    return _tune(evidence, request, nothing, torch.ones(1, dtype=torch.float64))


def find_common_direction(evidence: Evidence) -> Tensor:
    """The direction r whose r . h is closest to 1 over all head states, shape (hidden,), float64.

    Least squares: (E[h h^T] + ridge) r = E[h].
    """
    values = evidence.head_states["state"].combine_chunks()
    hidden = evidence.language_model.head.hidden
    states = torch.from_numpy(values.flatten().to_numpy().reshape(-1, hidden).copy()).double()
    moment = states.T @ states / len(states)
    ridge = RELATIVE_RIDGE * moment.diagonal().mean() * torch.eye(hidden, dtype=torch.float64)
    direction: Tensor = torch.linalg.solve(moment + ridge, states.mean(0))
    return direction


def _tune(evidence: Evidence, request: PatchRequest, right: Tensor, shift: Tensor) -> Outcome:
    tokens = find_toxic_tokens(evidence.head_states, evidence.language_model.head.vocab)
    marked = torch.zeros(evidence.language_model.head.vocab, 1, dtype=torch.float64)
    marked[torch.from_numpy(tokens)] = 1.0
    scale = evidence.language_model.head.logit_scale

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(logits=LogitEdit(-strength / scale * marked, right, shift))

    outcome = tune_strength(evidence, request, make_edit, first=1.0, most=MAX_FALL)
    return Outcome(outcome.edit, parameters={**outcome.parameters, "n_tokens": len(tokens)})
