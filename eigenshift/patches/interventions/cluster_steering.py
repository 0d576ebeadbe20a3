"""CHaRS: move each state by the shift of the clusters it is near, in hooks only.

Abdullaev et al., "Concept heterogeneity-aware representation steering" (2026, arXiv 2603.02237).
Toxic and non-toxic states are grouped into K clusters each, with centres a_i and b_j and shares p
and q; an entropic transport plan P between the shares, with cost |a_i - b_j|^2, says where the
toxic clusters go, and a state is moved by the kernel-weighted barycentric shift, v(x) = sum over
i, j of P_ij k(x, a_i) (b_j - a_i) / sum over i of p_i k(x, a_i), k Gaussian. With K = 1 it is
difference-in-means. How far a state moves depends on the state, so no weights can hold it.

Published (and in the authors' code for toxicity): K = 4, states averaged over a text's tokens, the
plan's temperature at the median cost. Ours: one bandwidth for all states, the median squared
distance of toxic states from the toxic centres, where the authors' varies with x. So the
logarithm of the kernel is linear in x up to a term that all clusters share, and the map is an
`AdaptiveEdit`. It acts on the outputs of the norms inside the blocks, fitted layer by layer, as
Linear-AcT's maps do (the authors' code for toxicity is a fork of Linear-AcT's). Its strength is
tuned to the common budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.model.encoding import ReadText
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import AdaptiveEdit, ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.interventions.labelled_states import (
    average_outputs,
    choose_texts,
    encode_texts,
    list_norms,
)
from eigenshift.patches.requests import PatchRequest

N_CLUSTERS = 4
MAX_STRENGTH = 8.0
"""At 1 a toxic cluster goes where the plan sends it."""
N_ITERATIONS = 50
"""Of k-means; it has come to rest by then."""
N_SCALINGS = 500
"""Of the plan's rows and columns."""


def steer_clusters(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Fit the moves of each norm, then take the largest strength in budget."""
    language_model = evidence.language_model
    toxic, nontoxic = choose_texts(evidence.labelled_texts, request.seed)
    texts = encode_texts(language_model, [*toxic, *nontoxic])
    moves = fit_moves(language_model, texts, len(toxic), request.seed)

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(
            adaptive={name: edit.scale_moves(strength) for name, edit in moves.items()}
        )

    outcome = tune_strength(evidence, request, make_edit, most=MAX_STRENGTH)
    facts = {"n_clusters": N_CLUSTERS, "n_modules": len(moves), "n_texts": len(toxic)}
    return Outcome(outcome.edit, parameters={**outcome.parameters, **facts})


def fit_moves(
    language_model: LanguageModel, texts: Sequence[ReadText], n_toxic: int, seed: int
) -> dict[str, AdaptiveEdit]:
    """Fit every norm's moves in the order of the layers.

    Args:
        language_model: The unpatched model.
        texts: Tokens of the toxic texts, then of as many non-toxic ones.
        n_toxic: How many are toxic.
        seed: Of the clusters' first centres.

    Returns:
        Name of the module -> its moves at full strength.
    """
    moves: dict[str, AdaptiveEdit] = {}
    for name in list_norms(language_model):
        with run_hooked(language_model, ModelEdit(adaptive=moves)):
            means = average_outputs(language_model, [name], texts)[name]
        moves[name] = fit_move(means[:n_toxic], means[n_toxic:], seed)
    return moves


def fit_move(toxic: FloatArray, nontoxic: FloatArray, seed: int) -> AdaptiveEdit:
    """The moves between the clusters of two samples of states.

    Args:
        toxic: Shape (text, unit).
        nontoxic: Shape (text, unit).
        seed: Of the clusters' first centres.
    """
    a, p = find_clusters(toxic, N_CLUSTERS, seed)
    b, q = find_clusters(nontoxic, N_CLUSTERS, seed)
    plan = find_plan(_measure_distances(a, b), p, q)
    shifts = plan @ b / plan.sum(1, keepdims=True) - a
    bandwidth = max(float(np.median(_measure_distances(toxic, a))), np.finfo(np.float64).tiny)
    readout = torch.from_numpy(np.ascontiguousarray(a.T / bandwidth))
    return AdaptiveEdit(
        readout=readout,
        offset=torch.from_numpy(np.log(p) - (a**2).sum(1) / (2.0 * bandwidth)),
        slope=torch.zeros_like(readout),
        shift=torch.from_numpy(np.ascontiguousarray(shifts.T)),
    )


def find_clusters(states: FloatArray, n_clusters: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Centres (cluster, unit) and shares (cluster,) by k-means, from k-means++ centres.

    There are fewer where states coincide.
    """
    generator = np.random.default_rng(seed)
    chosen = [int(generator.integers(len(states)))]
    for _ in range(n_clusters - 1):
        distances = _measure_distances(states, states[chosen]).min(1)
        if not distances.any():
            break
        chosen.append(int(generator.choice(len(states), p=distances / distances.sum())))
    centres = states[chosen]
    for _ in range(N_ITERATIONS):
        nearest = _measure_distances(states, centres).argmin(1)
        kept = [cluster for cluster in range(len(centres)) if (nearest == cluster).any()]
        moved = np.stack([states[nearest == cluster].mean(0) for cluster in kept])
        if moved.shape == centres.shape and np.array_equal(moved, centres):
            break
        centres = moved
    nearest = _measure_distances(states, centres).argmin(1)
    counts = np.bincount(nearest, minlength=len(centres))
    return centres[counts > 0], counts[counts > 0] / len(states)


def find_plan(costs: FloatArray, p: FloatArray, q: FloatArray) -> FloatArray:
    """The entropic transport plan with marginals p and q (Sinkhorn), shape (source, target)."""
    temperature = max(float(np.median(costs)), np.finfo(np.float64).tiny)
    kernel = np.exp(-(costs - costs.min()) / temperature)
    columns = np.ones(len(q))
    for _ in range(N_SCALINGS):
        rows = p / (kernel @ columns)
        columns = q / (rows @ kernel)
    return np.asarray(rows[:, None] * kernel * columns)


def _measure_distances(states: FloatArray, centres: FloatArray) -> FloatArray:
    """Squared distances, shape (state, centre)."""
    return np.asarray(((states[:, None] - centres[None]) ** 2).sum(-1))
