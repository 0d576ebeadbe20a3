"""Build the patch of each intervention: ours, its controls and simple baselines.

Reads the decomposition, the component table and the head states; writes a patch (`patching.py`).
All are of the form W (I - (1 - factor) V V^T) with orthonormal V, so they export and are judged
alike.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from eigenshift.artifacts import Workspace
from eigenshift.decomposition import Decomposition, Matrix
from eigenshift.errors import ComponentError
from eigenshift.models import LanguageModel
from eigenshift.patching import write_patch

STEP_VERSION = 1


class Intervention(str, Enum):
    """What a patch takes out of the head."""

    eigenshift = "eigenshift"
    random_components = "random_components"
    top_sigma = "top_sigma"
    mean_difference = "mean_difference"


class PatchRequest(BaseModel):
    """Which patch to build."""

    model_config = ConfigDict(frozen=True)
    intervention: Intervention = Intervention.eigenshift
    n_components: int | None = None
    """None: as many as the component table selects."""
    factor: float = 0.0
    seed: int = 0


def build_patch(
    request: PatchRequest,
    language_model: LanguageModel,
    decomposition: Decomposition,
    components: pa.Table,
    states: pa.Table,
    *,
    model_id: str,
    workspace: Workspace,
) -> None:
    """Write the patch of one intervention.

    Args:
        request: Intervention, number of components and factor.
        language_model: The unpatched model.
        decomposition: Of its head.
        components: `schemas.COMPONENTS` rows.
        states: `schemas.HEAD_STATES` rows.
        model_id: Name for the patch's description.
        workspace: Receives the patch.

    Raises:
        ComponentError: More components are asked for than the head has.
    """
    ranked = [row["component_index"] for row in components.sort_by("rank").to_pylist()]
    selected = [
        row["component_index"]
        for row in components.sort_by("rank").to_pylist()
        if row["is_selected"]
    ]
    n_components = request.n_components or len(selected)
    if n_components > len(ranked):
        raise ComponentError(
            f"{request.intervention.value}: expected at most {len(ranked)} components (the head's "
            f"rank), found {n_components}. Lower the number asked for."
        )
    damped = selected if request.n_components is None else ranked[:n_components]
    choose: dict[Intervention, Callable[[], list[int]]] = {
        Intervention.eigenshift: lambda: damped,
        Intervention.random_components: lambda: choose_random_components(
            len(ranked), damped, request.seed
        ),
        Intervention.top_sigma: lambda: list(range(n_components)),
    }
    if request.intervention is Intervention.mean_difference:
        indices: list[int] = []
        v = find_mean_difference(states)[:, None]
        sigma = _measure_gain(language_model, v)
    else:
        indices = choose[request.intervention]()
        v, sigma = decomposition.v[:, indices], decomposition.sigma[indices]
    write_patch(
        language_model,
        v,
        sigma,
        model_id=model_id,
        intervention=request.intervention.value,
        component_indices=indices,
        factor=request.factor,
        workspace=workspace,
    )


def choose_random_components(n_components: int, damped: list[int], seed: int) -> list[int]:
    """Draw as many components as are damped, from the others first (the control arm)."""
    generator = np.random.default_rng(seed)
    others = [index for index in range(n_components) if index not in set(damped)]
    order = [*generator.permutation(others), *generator.permutation(damped)]
    return [int(index) for index in order[: len(damped)]]


def find_mean_difference(states: pa.Table) -> Matrix:
    """Unit vector from the mean non-toxic to the mean toxic state, shape (hidden,)."""
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    values = np.stack(states["state"].to_numpy(zero_copy_only=False)).astype(np.float64)
    difference = values[is_toxic].mean(0) - values[~is_toxic].mean(0)
    return np.asarray(difference / np.linalg.norm(difference))


def _measure_gain(language_model: LanguageModel, v: Matrix) -> np.ndarray[Any, Any]:
    """|W v| per column: what a singular value is to a singular vector."""
    weight = language_model.head_module.weight.detach().float()
    return np.asarray((weight @ weight.new_tensor(v)).norm(dim=0).double().cpu().numpy())
