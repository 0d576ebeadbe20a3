"""DSAS: Linear-AcT's maps, as far as a classifier takes a state for toxic; in hooks only.

Ferrando et al., "Dynamically scaled activation steering" (2025, arXiv 2512.03661): when to steer is
decided apart from how. Per layer a logistic regression on a few principal components tells the
source texts (toxic) from control texts, both averaged over their tokens; while the model runs, each
token's state is moved in proportion to the probability that it is of the source, y' = y + s g(y)
(omega y + beta - y). The gate depends on the state, so no weights can hold it.

Published: Linear-AcT as what is scaled, regressions on averaged states and used on tokens. Ours:
the control texts are neutral calibration texts and the non-toxic texts of the maps, in equal parts
as far as there are any, because the budget counts harmless text of the domain too; the number of
components and the regression's penalty are set once, not for any data; regressions are fitted on
the unmoved model. The end-to-end variant is left out. s is tuned to the common budget and may
exceed 1, where the maps overshoot, since a gate that is seldom open costs little.
"""

from __future__ import annotations

import numpy as np
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.components.text_halves import split_neutral
from eigenshift.patches.edits import AdaptiveEdit, ModelEdit, UnitEdit
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.interventions.labelled_states import (
    average_outputs,
    choose_texts,
    encode_texts,
)
from eigenshift.patches.interventions.linear_act import fit_maps
from eigenshift.patches.requests import PatchRequest

N_COMPONENTS = 16
PENALTY = 1.0
"""On the squared coefficients of components of unit variance."""
N_STEPS = 30
"""Of Newton's method; the penalty makes it converge."""
MIN_SHARE = 1e-10
"""Of the total variance, below which a component is rounding."""
MAX_STRENGTH = 4.0


def transport_gated(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Fit maps and gates, then take the largest strength in budget."""
    language_model = evidence.language_model
    toxic, nontoxic = choose_texts(evidence.labelled_texts, request.seed)
    texts = encode_texts(language_model, [*toxic, *nontoxic])
    maps = fit_maps(language_model, texts, len(toxic))
    neutral = encode_texts(language_model, _choose_neutral(evidence, request.seed, len(toxic)))
    means = average_outputs(language_model, list(maps), [*texts, *neutral])
    gated = {
        name: gate_map(unit, *fit_gate(means[name][: len(toxic)], means[name][len(toxic) :]))
        for name, unit in maps.items()
    }

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(
            adaptive={name: edit.scale_moves(strength) for name, edit in gated.items()}
        )

    outcome = tune_strength(evidence, request, make_edit, most=MAX_STRENGTH)
    facts = {"n_texts": len(toxic), "n_neutral": len(neutral), "n_modules": len(gated)}
    return Outcome(outcome.edit, parameters={**outcome.parameters, **facts})


def gate_map(unit: UnitEdit, direction: FloatArray, offset: float) -> AdaptiveEdit:
    """A map of units in proportion to sigmoid(direction . y + offset).

    Two moves, the map's and none: the softmax of (z, 0) is the sigmoid of z.
    """
    move, stay = torch.from_numpy(direction), torch.zeros(len(direction), dtype=torch.float64)
    return AdaptiveEdit(
        readout=torch.stack([move, stay], 1),
        offset=torch.tensor([offset, 0.0], dtype=torch.float64),
        slope=torch.stack([unit.scale - 1.0, stay], 1),
        shift=torch.stack([unit.shift, stay], 1),
    )


def fit_gate(source: FloatArray, control: FloatArray) -> tuple[FloatArray, float]:
    """Logistic regression on the leading principal components, both classes of equal weight.

    Args:
        source: States where to steer, shape (text, unit).
        control: States to leave alone, shape (text, unit).

    Returns:
        Direction (unit,) and offset of the log-odds that a state is of the source.
    """
    states = np.concatenate([source, control])
    labels = np.r_[np.ones(len(source)), np.zeros(len(control))]
    weights = np.where(labels == 1.0, 0.5 / len(source), 0.5 / len(control)) * len(states)
    mean = states.mean(0)
    _, s, vt = np.linalg.svd(states - mean, full_matrices=False)
    kept = (s**2 > MIN_SHARE * (s**2).sum())[:N_COMPONENTS]
    spread = s[: len(kept)][kept] / np.sqrt(len(states))
    project = vt[: len(kept)][kept].T / spread
    scores = np.c_[(states - mean) @ project, np.ones(len(states))]
    penalty = np.diag([PENALTY] * len(spread) + [0.0])
    coefficients = np.zeros(scores.shape[1])
    for _ in range(N_STEPS):
        odds = 1.0 / (1.0 + np.exp(-scores @ coefficients))
        gradient = scores.T @ (weights * (odds - labels)) + penalty @ coefficients
        curvature = (scores * (weights * odds * (1.0 - odds))[:, None]).T @ scores + penalty
        coefficients = coefficients - np.linalg.solve(curvature, gradient)
    direction = project @ coefficients[:-1]
    return np.asarray(direction), float(coefficients[-1] - direction @ mean)


def _choose_neutral(evidence: Evidence, seed: int, n_texts: int) -> list[str]:
    """Neutral texts for calibration, in an order that the seed decides."""
    texts = split_neutral(evidence.neutral_texts, for_calibration=True)["text"].to_pylist()
    order = np.random.default_rng(seed).permutation(len(texts))[:n_texts]
    return [texts[place] for place in order]
