"""Build a patch: gather the evidence an intervention reads, and nothing else, and let it work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eigenshift.base.errors import ComponentError
from eigenshift.components.decomposition import open_decomposition
from eigenshift.model.divided import list_gpus
from eigenshift.model.loading import use_model
from eigenshift.model.resources import measuring
from eigenshift.patches.fisher.table import open_fisher_edit
from eigenshift.patches.interventions.budget import match_divergence
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.registry import find_recipe, list_needs
from eigenshift.patches.patching import make_patch, write_patch
from eigenshift.patches.requests import Need, PatchRequest
from eigenshift.patches.stages import PatchInputs, PatchKey
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.workspace import Workspace


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
    _require_one_factor(request, recipe.needs)
    devices = list_gpus(evidence.language_model.model) or [evidence.language_model.device]
    with measuring(*devices) as cost:
        outcome = recipe.load_builder()(evidence, request)
        if request.divergence is not None:
            outcome = match_divergence(evidence, outcome, request.divergence)
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


def _require_one_factor(request: PatchRequest, needs: frozenset[Need]) -> None:
    """A factor is of a number of components: else the component table or the budget decides."""
    if request.n_components is not None or request.factor == PatchRequest().factor:
        return
    own = "the component table's own" if Need.components in needs else "what the budget allows"
    raise ComponentError(
        f"{request.intervention}: expected no factor beside {own}, found {request.factor:g}. Ask "
        "for a number of components, or leave the factor out."
    )


def carry_out(inputs: PatchInputs, key: PatchKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `build_patch`."""
    needs = list_needs(key.request)
    given = {need: READERS[need](bench.artifacts, getattr(inputs, need.value)) for need in needs}
    with use_model(bench.model, bench.execution) as language_model:
        evidence = Evidence(language_model, given)
        build_patch(key.request, evidence, model_id=key.model_id, workspace=workspace)


READERS: dict[Need, Callable[[ArtifactStore, Any], Any]] = {
    Need.decomposition: lambda artifacts, found: open_decomposition(artifacts.open(found)),
    Need.components: lambda artifacts, found: artifacts.read_shards(
        [found], tables.COMPONENTS.file
    ),
    Need.head_states: lambda artifacts, found: artifacts.read_shards(
        [found], tables.HEAD_STATES.file
    ),
    Need.units: lambda artifacts, found: artifacts.read_shards(found, tables.NEURONS.file),
    Need.labelled_texts: ArtifactStore.read_files,
    Need.neutral_texts: ArtifactStore.read_files,
    Need.harmless_texts: lambda artifacts, found: artifacts.read_shards(
        [found], tables.HARMLESS_TEXTS.file
    ),
    Need.fisher: lambda artifacts, found: open_fisher_edit(artifacts.open(found)),
}
