"""Interventions: ours, its controls and the published peers, each giving one edit of the model.

Reads the evidence that `registry.py` lists for each; writes a patch (`patching.py`).
"""

from __future__ import annotations

from eigenshift.artifacts import Workspace
from eigenshift.interventions.interface import Evidence, Need, Outcome, PatchRequest
from eigenshift.interventions.registry import INTERVENTIONS, find_recipe
from eigenshift.patching import make_patch, write_patch
from eigenshift.resources import measuring

__all__ = [
    "INTERVENTIONS",
    "STEP_VERSION",
    "Evidence",
    "Need",
    "Outcome",
    "PatchRequest",
    "build_patch",
    "find_recipe",
]

STEP_VERSION = 4


def build_patch(
    request: PatchRequest, evidence: Evidence, *, model_id: str, workspace: Workspace
) -> None:
    """Write the patch of one intervention.

    Args:
        request: Intervention, number of components and factor.
        evidence: The unpatched model and what the intervention reads.
        model_id: Name for the patch's description.
        workspace: Receives the patch.

    Raises:
        ComponentError: More components are asked for than the head has, or evidence is missing.
        SettingsError: There is no such intervention.
    """
    recipe = find_recipe(request.intervention)
    with measuring(evidence.language_model.device) as cost:
        outcome = recipe.build(evidence, request)
        patch = make_patch(
            evidence.language_model,
            outcome.edit,
            model_id=model_id,
            intervention=request.intervention,
            component_indices=outcome.component_indices,
            factor=outcome.factor,
            factors=outcome.factors,
            parameters=outcome.parameters,
        )
    write_patch(patch, workspace)
    workspace.facts |= {
        "build_seconds": round(cost.seconds, 4),
        "build_peak_bytes": cost.peak_bytes,
    }
