"""Scale output units of the MLPs' linear layers: AurA, Damp and Det-0 (Suau et al., ICML 2024).

Unit m is output m of an up, gate or down projection, its response the maximum over a text's
tokens, and AUROC_m how well that tells toxic texts. AurA scales unit m by 2 (1 - AUROC_m) where
AUROC_m > 0.5 (equation 4). Damp and Det-0 scale the k units with the largest AUROC over all layers
by 0.5 and 0; k is as large as its cost on calibration texts allows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.model.loading import LanguageModel
from eigenshift.model.taps import Tap, find_taps
from eigenshift.patches.edits import ModelEdit, UnitEdit
from eigenshift.patches.interventions.budget import PARAMETER, tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.requests import PatchRequest
from eigenshift.settings import Site

DAMP_FACTOR = 0.5
FIRST_UNITS = 64
"""How many are tried first."""


def scale_by_auroc(evidence: Evidence, request: PatchRequest) -> Outcome:
    """AurA: the better a unit tells toxic texts, the more it is damped; weaker if over budget."""
    aurocs = _read_aurocs(evidence.units)
    scales = np.where(aurocs > 0.5, 2.0 * (1.0 - aurocs), 1.0)
    edit = make_unit_edit(evidence.language_model, evidence.units, scales)

    outcome = tune_strength(evidence, request, edit.scale, first=1.0)
    n_units = int((scales != 1).sum())
    return Outcome(outcome.edit, parameters={**outcome.parameters, "n_units": n_units})


def damp_units(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Damp: halve the best units."""
    return _scale_best(evidence, request, DAMP_FACTOR)


def remove_units(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Det-0: set the best units to zero."""
    return _scale_best(evidence, request, 0.0)


def _scale_best(evidence: Evidence, request: PatchRequest, factor: float) -> Outcome:
    units = evidence.units
    order = np.argsort(-_read_aurocs(units), kind="stable")

    def make_edit(n_units: float) -> ModelEdit:
        scales = np.ones(len(order))
        scales[order[: max(1, int(n_units))]] = factor
        return make_unit_edit(evidence.language_model, units, scales)

    if request.n_components is not None:
        n_chosen = request.n_components
        return Outcome(make_edit(n_chosen), factor=factor, parameters={"n_units": n_chosen})
    outcome = tune_strength(
        evidence, request, make_edit, first=min(FIRST_UNITS, len(order)), most=len(order)
    )
    n_chosen = max(1, int(outcome.parameters["strength"]))
    parameters = {PARAMETER: outcome.parameters[PARAMETER], "n_units": n_chosen}
    return Outcome(outcome.edit, factor=factor, parameters=parameters)


def _read_aurocs(units: pa.Table) -> FloatArray:
    """AUROC per row; a unit without one is as good as chance."""
    aurocs = np.asarray(units["auroc"].to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.where(np.isnan(aurocs), 0.5, aurocs)


def make_unit_edit(language_model: LanguageModel, units: pa.Table, scales: FloatArray) -> ModelEdit:
    """The edit that scales each row's unit.

    Args:
        language_model: Where the modules are.
        units: `schemas.NEURONS` rows: layer, site, neuron_index.
        scales: One factor per row.

    Raises:
        ComponentError: The rows are of another model.
    """
    names = {id(module): name for name, module in language_model.model.named_modules()}
    layers = units["layer"].to_numpy()
    sites = np.array(units["site"].to_pylist())
    indices = units["neuron_index"].to_numpy()
    edits: dict[str, torch.Tensor] = {}
    for tap in _find_unit_taps(language_model, {Site(site) for site in set(sites)}):
        rows = (layers == tap.layer) & (sites == tap.site.value)
        if not rows.any() or (scales[rows] == 1).all():
            continue
        name = names[id(tap.module)]
        n_outputs = _count_outputs(tap)
        scale = edits.setdefault(name, torch.ones(n_outputs, dtype=torch.float64))
        first = 0 if not tap.part else n_outputs // 2
        if first + int(indices[rows].max()) >= n_outputs:
            raise ComponentError(
                f"{name}: expected units below {n_outputs}, found {int(indices[rows].max())}. The "
                "statistics are of another model."
            )
        scale[torch.from_numpy(first + indices[rows])] = torch.from_numpy(scales[rows])
    return ModelEdit(units={name: UnitEdit.scale_units(s.numpy()) for name, s in edits.items()})


def _find_unit_taps(language_model: LanguageModel, sites: set[Site]) -> list[Tap]:
    return find_taps(language_model.model, sorted(sites), None)


def _count_outputs(tap: Tap) -> int:
    weight = tap.module.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - find_taps gives linear layers
    return int(weight.shape[1] if type(tap.module).__name__ == "Conv1D" else weight.shape[0])
