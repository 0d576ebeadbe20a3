"""Control arms: as many components, damped as much, chosen for no good reason.

What these do as well is not what toxicity has to do with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome, split_states
from eigenshift.patches.interventions.singular_components import choose_components, scale_chosen
from eigenshift.patches.requests import PatchRequest

RELATIVE_RIDGE = 1e-3
N_RANDOM_TERMS = 16


def damp_random_components(evidence: Evidence, request: PatchRequest) -> Outcome:
    """As many components drawn at random, those that are damped last."""
    damped, factors = choose_components(evidence.components, request)
    drawn = draw_components(len(evidence.decomposition.sigma), damped, request.seed)
    return scale_chosen(evidence, drawn, factors)


def damp_top_sigma(evidence: Evidence, request: PatchRequest) -> Outcome:
    """As many components with the largest singular values."""
    _, factors = choose_components(evidence.components, request)
    return scale_chosen(evidence, range(len(factors)), factors)


def damp_label_permuted(evidence: Evidence, request: PatchRequest) -> Outcome:
    """As many components with the largest effect size when toxic and non-toxic are shuffled."""
    _, factors = choose_components(evidence.components, request)
    toxic, nontoxic = split_states(evidence.head_states)
    activations = np.concatenate([toxic, nontoxic]) @ evidence.decomposition.v
    order = np.random.default_rng(request.seed).permutation(len(activations))
    first, second = activations[order[: len(toxic)]], activations[order[len(toxic) :]]
    spread = np.sqrt(first.var(0, ddof=1) + second.var(0, ddof=1))
    gap = np.abs(first.mean(0) - second.mean(0))
    effect = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
    ranking = [int(index) for index in np.argsort(-effect, kind="stable")]
    return scale_chosen(evidence, ranking[: len(factors)], factors)


def draw_components(n_components: int, damped: Sequence[int], seed: int) -> list[int]:
    """Draw as many components as are damped, from the others first."""
    generator = np.random.default_rng(seed)
    others = [index for index in range(n_components) if index not in set(damped)]
    order = [*generator.permutation(others), *generator.permutation(list(damped))]
    return [int(index) for index in order[: len(damped)]]


def change_random_directions(evidence: Evidence, request: PatchRequest) -> Outcome:
    """A random change of the head, of the rank of ours and of the same cost.

    Both sides are drawn in the metric of the states met (E[h h^T]), as large as the budget allows.
    """
    hidden = evidence.language_model.head.hidden
    states = np.concatenate(split_states(evidence.head_states))
    moment = states.T @ states / len(states)
    root = np.linalg.cholesky(moment + RELATIVE_RIDGE * np.trace(moment) / hidden * np.eye(hidden))
    generator = np.random.default_rng(request.seed)
    n_terms = min(N_RANDOM_TERMS, hidden)
    left, right = (generator.standard_normal((hidden, n_terms)) for _ in range(2))
    left, right = root @ left / hidden, np.linalg.solve(root.T, right)

    def make_edit(strength: float) -> ModelEdit:
        factors = (torch.from_numpy(strength * left), torch.from_numpy(right))
        return ModelEdit(HeadEdit.add_product(*factors))

    return tune_strength(evidence, request, make_edit, first=0.1, most=math.inf)
