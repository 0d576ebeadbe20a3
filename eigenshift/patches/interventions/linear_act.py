"""Linear-AcT: transport each unit from toxic to non-toxic texts (Rodriguez et al., ICLR 2025).

Per unit the optimal map between two one-dimensional samples is monotone; its best affine
approximation pairs the sorted values: y = omega a + beta with omega = cov(a, b) / var(a) over
sorted a (toxic) and b (non-toxic). Units are the outputs of the norms inside the blocks, averaged
over a text's tokens, as the paper found best; maps are fitted layer by layer, each on states that
the maps before it have moved. A strength below 1 goes only part of the way, y' = (1 - s) y + s
(omega y + beta). A map has a constant, so it folds into norms with a bias; elsewhere it is
measured with hooks. The paper uses 32 texts of each class and reports little gain from more; here
there are `labelled_states.N_TEXTS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.model.encoding import ReadText
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import ModelEdit, UnitEdit
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


def transport_units(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Fit the maps, then take the largest strength in budget."""
    language_model = evidence.language_model
    toxic, nontoxic = choose_texts(evidence.labelled_texts, request.seed)
    texts = encode_texts(language_model, [*toxic, *nontoxic])
    maps = fit_maps(language_model, texts, len(toxic))

    outcome = tune_strength(evidence, request, ModelEdit(units=maps).scale)
    return Outcome(outcome.edit, parameters={**outcome.parameters, "n_texts": len(toxic)})


def fit_maps(
    language_model: LanguageModel, texts: Sequence[ReadText], n_toxic: int
) -> dict[str, UnitEdit]:
    """Fit every norm's map in the order of the layers.

    Args:
        language_model: The unpatched model.
        texts: Tokens of the toxic texts, then of as many non-toxic ones.
        n_toxic: How many are toxic.

    Returns:
        Name of the module -> its map at full strength.

    Raises:
        ComponentError: The blocks have no norms.
    """
    maps: dict[str, UnitEdit] = {}
    for name in list_norms(language_model):
        with run_hooked(language_model, ModelEdit(units=maps)):
            means = average_outputs(language_model, [name], texts)[name]
        maps[name] = fit_affine(means[:n_toxic], means[n_toxic:])
    return maps


def fit_affine(toxic: FloatArray, nontoxic: FloatArray) -> UnitEdit:
    """The least-squares affine map of sorted toxic onto sorted non-toxic values, per unit.

    Args:
        toxic: Shape (text, unit).
        nontoxic: Same shape.
    """
    a, b = np.sort(toxic, axis=0), np.sort(nontoxic, axis=0)
    centred = a - a.mean(0)
    variance = (centred**2).sum(0)
    covariance = (centred * (b - b.mean(0))).sum(0)
    omega = np.divide(covariance, variance, out=np.ones_like(variance), where=variance > 0)
    beta = b.mean(0) - omega * a.mean(0)
    return UnitEdit(torch.from_numpy(omega), torch.from_numpy(beta))
