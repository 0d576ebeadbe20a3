"""Build, save, load and apply a patch of the output head.

W' = W - (1 - factor) (W V_k) V_k^T, identical to U diag(sigma') V^T with the chosen singular values
multiplied by `factor`. A patch is k directions, not weights: a few hundred kilobytes that a load
and an addition undo. Writes `patch.safetensors` (v, sigma) and `patch.json`. Tied heads are untied:
only the head changes, never the input embedding (docs/decisions/0003-tied-heads.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eigenshift.artifacts import Artifact, Workspace
from eigenshift.decomposition import Matrix
from eigenshift.errors import ComponentError
from eigenshift.models import LanguageModel

TENSORS_NAME = "patch.safetensors"
DESCRIPTION_NAME = "patch.json"
ROWS_PER_BLOCK = 8192


class PatchDescription(BaseModel):
    """What a patch does and to what; the JSON beside its tensors."""

    model_config = ConfigDict(frozen=True)
    format_version: int = 1
    intervention: str
    component_indices: tuple[int, ...]
    factor: float
    model_id: str
    model_digest: str
    base_digest: str
    """sha256 of the unpatched head's bytes: the only head this patch may be applied to."""
    patched_digest: str


@dataclass(frozen=True)
class Patch:
    """A patch in memory: v of shape (hidden, k) with orthonormal columns, sigma of shape (k,)."""

    description: PatchDescription
    v: Tensor
    sigma: Tensor


def scale_components(head: Tensor, v: Tensor, factor: float) -> Tensor:
    """Return the head with the singular values of the given directions multiplied by `factor`.

    Args:
        head: Output weight, shape (vocab, hidden), any float dtype or device.
        v: Right singular vectors, shape (hidden, k), orthonormal columns.
        factor: Dimensionless, 0 to 1. At 1 the result equals `head` bit for bit.

    Returns:
        A new tensor with the shape, dtype and device of `head`; computed in float32 or wider, in
        blocks of rows. `head` itself is not modified.

    Raises:
        ComponentError: Shapes do not fit, or the factor is outside 0 to 1.
    """
    if not 0.0 <= factor <= 1.0:
        raise ComponentError(f"factor: expected 0 to 1, found {factor}.")
    if v.ndim != 2 or v.shape[0] != head.shape[1]:
        raise ComponentError(
            f"directions: expected shape ({head.shape[1]}, k) for a head of shape "
            f"{tuple(head.shape)}, found {tuple(v.shape)}. The patch is for another model."
        )
    scaled = head.detach().clone()
    if factor == 1.0:
        return scaled
    width = torch.float64 if head.dtype == torch.float64 else torch.float32
    v = v.to(device=head.device, dtype=width)
    for first in range(0, len(head), ROWS_PER_BLOCK):
        rows = scaled[first : first + ROWS_PER_BLOCK]
        wide = rows.to(width)
        rows.copy_(wide - (1.0 - factor) * (wide @ v) @ v.T)
    return scaled


def digest_tensor(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype}:{tuple(tensor.shape)}:".encode())
    flat = tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1)
    digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def write_patch(
    language_model: LanguageModel,
    v: Matrix,
    sigma: Matrix,
    *,
    model_id: str,
    intervention: str,
    component_indices: Sequence[int],
    factor: float,
    workspace: Workspace,
) -> None:
    """Write a patch that multiplies the head's gain along the given directions by `factor`.

    Args:
        language_model: The unpatched model.
        v: Orthonormal directions, shape (hidden, k).
        sigma: The head's gain |W v| along each, shape (k,).
        model_id: Name for the description.
        intervention: Name for the description.
        component_indices: Which singular components these are, empty if they are none.
        factor: 0 removes, 1 changes nothing.
        workspace: Receives the two files.

    Raises:
        ComponentError: An index is repeated, or the directions are not orthonormal.
    """
    indices = list(component_indices)
    if len(set(indices)) != len(indices):
        raise ComponentError("components: expected distinct indices, found repeated ones.")
    if not np.allclose(v.T @ v, np.eye(v.shape[1]), atol=1e-6):
        raise ComponentError("directions: expected orthonormal columns, found others.")
    weight = language_model.head_module.weight
    directions = torch.from_numpy(np.ascontiguousarray(v))
    description = PatchDescription(
        intervention=intervention,
        component_indices=tuple(indices),
        factor=factor,
        model_id=model_id,
        model_digest=language_model.digest,
        base_digest=digest_tensor(weight),
        patched_digest=digest_tensor(scale_components(weight, directions, factor)),
    )
    save_patch(
        Patch(description, directions, torch.from_numpy(np.ascontiguousarray(sigma))),
        workspace.folder,
    )
    workspace.facts = {
        "intervention": intervention,
        "n_components": v.shape[1],
        "factor": factor,
        "model_digest": description.model_digest,
        "base_digest": description.base_digest,
        "patched_digest": description.patched_digest,
    }


def save_patch(patch: Patch, folder: Path) -> None:
    """Write a patch's two files into a folder."""
    save_file({"v": patch.v.contiguous(), "sigma": patch.sigma}, folder / TENSORS_NAME)
    text = json.dumps(patch.description.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / DESCRIPTION_NAME).write_text(text + "\n", encoding="utf-8")


def load_patch(tensors: Path, description: Path) -> Patch:
    """Read a patch from its two files."""
    found = load_file(tensors)
    document = json.loads(description.read_text(encoding="utf-8"))
    return Patch(PatchDescription.model_validate(document), found["v"], found["sigma"])


def open_patch(artifact: Artifact) -> Patch:
    """Read the patch an artifact holds."""
    return load_patch(artifact.fetch(TENSORS_NAME), artifact.fetch(DESCRIPTION_NAME))


@contextmanager
def patched_head(language_model: LanguageModel, patch: Patch | None) -> Iterator[None]:
    """Run with the patch applied; afterwards the base's own parameter is back, byte for byte.

    Meanwhile the head has a parameter of its own, so a tied input embedding is not touched. With
    `patch=None` nothing changes.

    Raises:
        ComponentError: The patch was made for another head.
    """
    if patch is None:
        yield
        return
    head = language_model.head_module
    base = head.weight
    head.weight = nn.Parameter(compute_patched_weight(base, patch), requires_grad=False)
    try:
        yield
    finally:
        head.weight = base


def apply_patch(language_model: LanguageModel, patch: Patch) -> None:
    """Patch a model for good: its head is untied first if needed, and the config says so.

    Without `tie_word_embeddings: false` a save and reload would silently tie the head again and
    lose the patch.
    """
    head = language_model.head_module
    head.weight = nn.Parameter(compute_patched_weight(head.weight, patch), requires_grad=False)
    untie_head(language_model.model)


def untie_head(model: Any) -> None:
    """Tell a model's configuration that its head is its own, so that saving keeps it."""
    model.config.tie_word_embeddings = False
    text_config = getattr(model.config, "get_text_config", lambda: model.config)()
    text_config.tie_word_embeddings = False
    if hasattr(model, "_tied_weights_keys"):
        model._tied_weights_keys = None
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {}


def compute_patched_weight(weight: Tensor, patch: Patch) -> Tensor:
    """Return W' for this head.

    Raises:
        ComponentError: The head is not the one the patch was made for.
    """
    found = digest_tensor(weight)
    if found != patch.description.base_digest:
        raise ComponentError(
            f"patch for {patch.description.model_id}: expected a head with digest "
            f"{patch.description.base_digest[:12]}, found {found[:12]}. The model was changed, "
            "already patched, or loaded in another dtype; load the base the patch names."
        )
    return scale_components(weight, patch.v, patch.description.factor)
