"""EigenShift: damp singular components of the head (Shaik et al., NeurIPS 2025, RQ3).

`eigenshift` multiplies the chosen singular values by a factor. `eigenshift_centered` damps only the
deviation of each component's activation from its mean on non-toxic states, so that what the
component contributes to ordinary text stays: logits gain the constant (1 - factor) W V_k V_k^T mu.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError, NothingToDampError
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.interventions.interface import Evidence, Outcome, split_states
from eigenshift.patches.requests import PatchRequest
from eigenshift.settings import ComponentScore

SCORE_COLUMNS = {
    ComponentScore.effect_size: "effect_size",
    ComponentScore.abs_delta: "delta",
    ComponentScore.auroc: "auroc",
    ComponentScore.logit_gain: "logit_gain",
    ComponentScore.release: "release_score",
}


def damp_components(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Multiply the gain of the selected (or top k) components by their factors."""
    indices, factors = choose_components(evidence.components, request)
    return scale_chosen(evidence, indices, factors)


def damp_deviations(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Damp the deviation of the selected components from their non-toxic mean."""
    indices, factors = choose_components(evidence.components, request)
    _, nontoxic = split_states(evidence.head_states)
    return scale_chosen(evidence, indices, factors, kept=nontoxic.mean(0))


def choose_components(components: pa.Table, request: PatchRequest) -> tuple[list[int], list[float]]:
    """The component table's own choice, or the top of a ranking where a number is asked for.

    Args:
        components: `schemas.COMPONENTS` rows in order of rank.
        request: How many, by which score, damped how far.

    Returns:
        Components and the factor of each.

    Raises:
        ComponentError: More are asked for than the head has.
        NothingToDampError: The table selects none.
    """
    rows = components.to_pylist()
    if request.n_components is None:
        selected = [row for row in rows if row["is_selected"]]
        if not selected:
            raise NothingToDampError(
                f"{request.intervention}: expected components that the table selects, found none: "
                "none lowers the probability of toxic tokens within the budget. Raise "
                "components.max_perplexity_increase, or choose another patch.intervention."
            )
        return [row["component_index"] for row in selected], [row["factor"] for row in selected]
    if request.n_components > len(rows):
        raise ComponentError(
            f"{request.intervention}: expected at most {len(rows)} components (those "
            f"decomposed), found {request.n_components}. Lower the number asked for, or raise "
            "components.n_decomposed if it is set."
        )
    if request.score is not None:
        column = SCORE_COLUMNS[request.score]
        rows.sort(key=lambda row: (-row[column], row["component_index"]))
    indices = [row["component_index"] for row in rows[: request.n_components]]
    return indices, [request.factor] * len(indices)


def scale_chosen(
    evidence: Evidence,
    indices: Sequence[int],
    factors: Sequence[float],
    kept: FloatArray | None = None,
) -> Outcome:
    """The patch of some components.

    Args:
        evidence: The head's decomposition.
        indices: Components.
        factors: What each one's singular value is multiplied by.
        kept: A state whose activations are left as they are, shape (hidden,); None for zero.
    """
    v = evidence.decomposition.v[:, list(indices)]
    edit = HeadEdit.scale_directions(v, factors, target=None if kept is None else kept @ v)
    common = factors[0] if len(set(factors)) == 1 else None
    return Outcome(ModelEdit(edit), tuple(indices), common, tuple(factors))
