"""EigenShift: damp singular components of the head (Shaik et al., NeurIPS 2025, RQ3).

`eigenshift` multiplies the chosen singular values by a factor. `eigenshift_centered` damps only the
deviation of each component's activation from its mean on non-toxic states, so that what the
component contributes to ordinary text stays: logits gain the constant (1 - factor) W V_k V_k^T mu.
"""

from __future__ import annotations

import pyarrow as pa

from eigenshift.edits import HeadEdit, ModelEdit
from eigenshift.errors import ComponentError
from eigenshift.interventions.interface import Evidence, Outcome, PatchRequest, split_states
from eigenshift.settings import ComponentScore

SCORE_COLUMNS = {
    ComponentScore.effect_size: "effect_size",
    ComponentScore.abs_delta: "delta",
    ComponentScore.auroc: "auroc",
    ComponentScore.logit_gain: "logit_gain",
    ComponentScore.release: "release_score",
}


def damp_components(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Multiply the gain of the selected (or top k) components by the factor."""
    indices = choose_components(evidence.components, request)
    return scale_chosen(evidence, indices, request.factor)


def damp_deviations(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Damp the deviation of the selected components from their non-toxic mean."""
    indices = choose_components(evidence.components, request)
    v = evidence.decomposition.v[:, indices]
    _, nontoxic = split_states(evidence.head_states)
    edit = HeadEdit.scale_directions(v, request.factor, target=nontoxic.mean(0) @ v)
    return Outcome(ModelEdit(edit), tuple(indices), request.factor)


def choose_components(components: pa.Table, request: PatchRequest) -> list[int]:
    """The component table's own choice, or the top of a ranking where a number is asked for.

    Args:
        components: `schemas.COMPONENTS` rows in order of rank.
        request: How many, by which score.

    Raises:
        ComponentError: More are asked for than the head has.
    """
    rows = components.to_pylist()
    if request.n_components is None:
        return [row["component_index"] for row in rows if row["is_selected"]]
    if request.n_components > len(rows):
        raise ComponentError(
            f"{request.intervention}: expected at most {len(rows)} components (the head's rank), "
            f"found {request.n_components}. Lower the number asked for."
        )
    if request.score is not None:
        column = SCORE_COLUMNS[request.score]
        rows.sort(key=lambda row: (-row[column], row["component_index"]))
    return [row["component_index"] for row in rows[: request.n_components]]


def scale_chosen(evidence: Evidence, indices: list[int], factor: float) -> Outcome:
    """The patch of some components."""
    edit = HeadEdit.scale_directions(evidence.decomposition.v[:, indices], factor)
    return Outcome(ModelEdit(edit), tuple(indices), factor)
