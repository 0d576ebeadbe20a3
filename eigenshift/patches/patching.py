"""Build, save, load, apply, stack and undo a patch.

A patch is an edit (`edits.py`) with the model it fits: W' = W - (1 - factor) (W V_k) V_k^T for a
damped head, identical to U diag(sigma') V^T with the chosen singular values multiplied by
`factor`. It holds directions and factors, not weights: a few hundred kilobytes that a load and an
addition undo. Writes `patch.safetensors` and `patch.json`. Tied heads are untied: only the head
changes, never the input embedding (docs/decisions/0003-tied-heads.md). How an edit becomes weights
is `folding.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from eigenshift.base.errors import ComponentError, FoldingError
from eigenshift.model.divided import Held, read_parameter, swap_parameter
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edit_files import list_tensors, read_edit
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import fold_edit, list_beside, run_hooked
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from eigenshift.store.artifact import Artifact
from eigenshift.store.workspace import Workspace

FORMAT_VERSION = 4
"""What is read; a patch is written in the oldest format that holds it."""
FORMAT_OF_LINEARS = 3
FORMAT_OF_HEAD_AND_UNITS = 2


class TensorChange(BaseModel):
    """sha256 of one parameter's dtype, shape and bytes, before and after."""

    model_config = ConfigDict(frozen=True)
    base: str
    patched: str


class PatchDescription(BaseModel):
    """What a patch does and to what; the JSON beside its tensors."""

    model_config = ConfigDict(frozen=True)
    format_version: int = FORMAT_OF_HEAD_AND_UNITS
    intervention: str
    component_indices: tuple[int, ...] = ()
    factor: float | None = None
    """What gains are multiplied by, where it is one number for all."""
    factors: tuple[float, ...] = ()
    """Of each component, in the order of the indices; empty where all have `factor`."""
    parameters: dict[str, float | int | str] = {}
    """Whatever else the intervention was given or chose."""
    model_id: str
    model_digest: str
    base_digest: str
    """Digest of the unpatched parameters: the only ones this patch may be applied to."""
    patched_digest: str
    tensors: dict[str, TensorChange] = {}
    """Parameter of the model -> its digests. Empty if it can only be hooked or changes nothing."""
    obstacle: str | None = None
    """Why it cannot be folded into weights: then it is for comparison only."""
    beside: tuple[str, ...] = ()
    """Quantised linear layers: what is added to them is no part of their codes, but an adapter."""

    @property
    def component_factors(self) -> tuple[float, ...]:
        """What each component's singular value is multiplied by."""
        return self.factors or (self.factor or 0.0,) * len(self.component_indices)


@dataclass(frozen=True)
class Patch:
    """A patch in memory.

    Attributes:
        description: What it fits and what it is.
        edit: What it changes.
        sigma: The head's gain |W v| along each direction, shape (k,); of components these are
            their singular values. Empty if the head is not changed.
    """

    description: PatchDescription
    edit: ModelEdit
    sigma: Tensor

    @property
    def in_weights(self) -> ModelEdit:
        """What is folded into weights."""
        return self.edit.of_linears(self.description.beside, keeps=False)

    @property
    def beside_weights(self) -> ModelEdit:
        """What stands beside quantised layers, as an adapter."""
        return self.edit.of_linears(self.description.beside, keeps=True)


def combine_digests(digests: Mapping[str, str]) -> str:
    """One digest for several parameters; of one alone its own."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    text = "".join(f"{name}\0{digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()


def make_patch(
    language_model: LanguageModel,
    edit: ModelEdit,
    *,
    model_id: str,
    intervention: str,
    component_indices: Sequence[int] = (),
    factor: float | None = None,
    factors: Sequence[float] = (),
    parameters: Mapping[str, float | int | str] | None = None,
) -> Patch:
    """Describe an edit of a model; what cannot be folded becomes a patch with an obstacle.

    Args:
        language_model: The unpatched model.
        edit: What changes.
        model_id: Name for the description.
        intervention: Name for the description.
        component_indices: Which singular components these are, empty if they are none.
        factor: 0 removes, 1 changes nothing; None where it is not one number.
        factors: Of each component, in the order of the indices.
        parameters: Whatever else describes the intervention.

    Raises:
        ComponentError: An index is repeated, or the edit is for another model.
    """
    indices = list(component_indices)
    if len(set(indices)) != len(indices):
        raise ComponentError("components: expected distinct indices, found repeated ones.")
    obstacle: str | None = None
    beside = list_beside(language_model.model, edit)
    try:
        folded = fold_edit(language_model, edit.of_linears(beside, keeps=False))
    except FoldingError as error:
        folded, obstacle = {}, str(error)
    changes = {
        name: TensorChange(
            base=digest_tensor(read_parameter(language_model.model, name)),
            patched=digest_tensor(value),
        )
        for name, value in folded.items()
    }
    # a patch that changes no parameter, or is hooked, is known by the head it was made for
    head_digest = "" if changes else digest_tensor(language_model.head_weight)
    description = PatchDescription(
        format_version=FORMAT_VERSION if beside else _find_format(edit),
        intervention=intervention,
        component_indices=tuple(indices),
        factor=factor,
        factors=tuple(factors),
        parameters=dict(parameters or {}),
        model_id=model_id,
        model_digest=language_model.digest,
        base_digest=head_digest or combine_digests({n: c.base for n, c in changes.items()}),
        patched_digest=head_digest or combine_digests({n: c.patched for n, c in changes.items()}),
        tensors=changes,
        obstacle=obstacle,
        beside=beside,
    )
    return Patch(description, edit, _measure_gain(language_model, edit))


def _find_format(edit: ModelEdit) -> int:
    """The oldest format that holds an edit."""
    is_new = edit.linears or edit.logits or edit.adaptive
    return FORMAT_OF_LINEARS if is_new else FORMAT_OF_HEAD_AND_UNITS


def write_patch(patch: Patch, workspace: Workspace) -> None:
    """Write a patch's two files and its facts into a workspace."""
    save_patch(patch, workspace.folder)
    description, head, logits = patch.description, patch.edit.head, patch.edit.logits
    workspace.facts = {
        "intervention": description.intervention,
        "n_components": 0 if head is None else head.rank,
        "n_units": sum(int((unit.scale != 1).sum()) for unit in patch.edit.units.values()),
        "ranks": {name: linear.rank for name, linear in patch.edit.linears.items()},
        "n_tokens": 0 if logits is None else logits.n_tokens,
        "factor": description.factor,
        "factors": list(description.factors),
        "parameters": description.parameters,
        "model_digest": description.model_digest,
        "base_digest": description.base_digest,
        "patched_digest": description.patched_digest,
        "obstacle": description.obstacle,
        **({"beside": list(description.beside)} if description.beside else {}),
    }


def save_patch(patch: Patch, folder: Path) -> None:
    """Write a patch's two files: its edit (`edit_files.py`), with its gains as `sigma`.

    `left` is there where it is not (1 - factor) V_k.
    """
    tensors, head = list_tensors(patch.edit), patch.edit.head
    if head is not None:
        tensors["sigma"] = patch.sigma.contiguous()
        factor = patch.description.factor
        if factor is not None and torch.equal(head.left, (1.0 - factor) * head.right):
            del tensors["left"]
    save_file(tensors, folder / TENSORS_NAME)
    without = set() if patch.description.beside else {"beside"}
    described = patch.description.model_dump(mode="json", exclude=without)
    text = json.dumps(described, indent=2, sort_keys=True)
    (folder / DESCRIPTION_NAME).write_text(text + "\n", encoding="utf-8")


def load_patch(tensors: Path, description: Path) -> Patch:
    """Read a patch from its two files, of this format or the one before it.

    Raises:
        ComponentError: The files are of a later format.
    """
    found = load_file(tensors)
    described = PatchDescription.model_validate_json(description.read_text(encoding="utf-8"))
    if described.format_version > FORMAT_VERSION:
        raise ComponentError(
            f"{description}: expected patch format {FORMAT_VERSION} or lower, found "
            f"{described.format_version}. The patch was made by a later version; upgrade."
        )
    edit = read_edit(found, described.factor or 0.0)
    return Patch(described, edit, found.get("sigma", torch.empty(0)))


def open_patch(artifact: Artifact) -> Patch:
    """Read the patch an artifact holds."""
    return load_patch(artifact.fetch(TENSORS_NAME), artifact.fetch(DESCRIPTION_NAME))


@contextmanager
def patched_model(language_model: LanguageModel, patch: Patch | None) -> Iterator[None]:
    """Run with the patch applied; afterwards the base's own parameters are back, byte for byte.

    Meanwhile what changed has parameters of its own, so a tied input embedding is not touched. A
    patch that cannot be folded is hooked. With `patch=None` nothing changes.

    Raises:
        ComponentError: The patch was made for another model.
    """
    if patch is None:
        yield
    elif patch.description.obstacle is not None:
        check_base(language_model, patch)
        with run_hooked(language_model, patch.edit):
            yield
    else:
        beside = patch.beside_weights
        hooked = run_hooked(language_model, beside) if beside.linears else nullcontext()
        with replaced_parameters(language_model, compute_parameters(language_model, patch)), hooked:
            yield


@contextmanager
def replaced_parameters(
    language_model: LanguageModel, values: Mapping[str, Tensor]
) -> Iterator[None]:
    """Run with other parameters; afterwards the model's own are back, byte for byte.

    Meanwhile each has a parameter of its own, so a tied input embedding is not touched by the head.

    Args:
        language_model: The model.
        values: Name of the parameter -> its value, shape and dtype as the model has them.
    """
    base = _swap_parameters(language_model.model, values)
    try:
        yield
    finally:
        _swap_parameters(language_model.model, base)


@dataclass
class AppliedPatch:
    """A patch in force on a model, with what is needed to undo it."""

    language_model: LanguageModel
    base: dict[str, Held]
    configuration: dict[str, Any]

    def undo(self) -> None:
        """Put the base's own parameters and configuration back, byte for byte."""
        _swap_parameters(self.language_model.model, self.base)
        _restore_tying(self.language_model.model, self.configuration)
        self.base = {}


def apply_patch(language_model: LanguageModel, patch: Patch) -> AppliedPatch:
    """Patch a model for good: its head is untied first if needed, and the config says so.

    Without `tie_word_embeddings: false` the head would be tied again, and the patch lost, by
    `tie_weights`, `resize_token_embeddings` and by tools that trust the setting (transformers 5
    itself keeps two different tensors when it loads them, and warns). Patches stack: one made on a
    patched model is applied after the other.

    Returns:
        What `undo` needs; it holds the former parameters in memory.

    Raises:
        ComponentError: The patch was made for another model.
        FoldingError: It has no place in the weights.
    """
    require_in_weights(patch)
    model = language_model.model
    base = _swap_parameters(model, compute_parameters(language_model, patch))
    configuration = _read_tying(model)
    if f"{language_model.head.name}.weight" in base:
        untie_head(model)
    return AppliedPatch(language_model, base, configuration)


def require_in_weights(patch: Patch) -> None:
    """Refuse a patch that is not in the weights alone.

    Raises:
        FoldingError: It is not; says why.
    """
    description = patch.description
    if description.obstacle is not None:
        raise FoldingError(description.obstacle)
    if description.beside:
        raise FoldingError(
            f"patch for {description.model_id}: expected one that is in the weights alone, found "
            f"one beside quantised layers ({description.beside[0]}, {len(description.beside)} in "
            "all), whose codes cannot hold it. Use it as a LoRA (`eigenshift export --format lora`)"
            ", or patch the model unquantised."
        )


def stack_patches(language_model: LanguageModel, patches: Sequence[Patch]) -> Patch:
    """The one patch of the base that does what all of these do, one after the other.

    Args:
        language_model: The unpatched base; every patch was made for it.
        patches: At least one, in the order they are applied.

    Raises:
        ComponentError: One was made for another base, or changes the trunk after the first.
    """
    for patch in patches:
        check_base(language_model, patch)
    edit = patches[0].edit
    for patch in patches[1:]:
        edit = edit.then(patch.edit)
    names = [patch.description.intervention for patch in patches]
    return make_patch(
        language_model,
        edit,
        model_id=patches[0].description.model_id,
        intervention=" + ".join(names),
    )


def compute_parameters(language_model: LanguageModel, patch: Patch) -> dict[str, Tensor]:
    """Name -> patched value of each parameter that changes; quantised layers do not.

    Raises:
        ComponentError: The patch was made for another model.
        FoldingError: It has no place in the weights.
    """
    check_base(language_model, patch)
    return fold_edit(language_model, patch.in_weights)


def check_base(language_model: LanguageModel, *patches: Patch) -> None:
    """Refuse a model that is not the one the patches were made for.

    Args:
        language_model: What they are to change.
        patches: Any number; a parameter that several of them change is read once.

    Raises:
        ComponentError: A parameter a patch changes has other bytes.
    """
    head_name = f"{language_model.head.name}.weight"
    digests: dict[str, str] = {}
    for description in (patch.description for patch in patches):
        # format 1, hooked and idle patches name no parameters: they are known by the head's digest
        expected = {name: change.base for name, change in description.tensors.items()}
        for name, digest in (expected or {head_name: description.base_digest}).items():
            if name not in digests:
                digests[name] = _digest_parameter(language_model.model, name)
            if digests[name] != digest:
                raise ComponentError(
                    f"patch for {description.model_id}: expected {name} with digest "
                    f"{digest[:12]}, found {digests[name][:17]}. The model was changed, already "
                    "patched, or loaded in another dtype; load the base the patch names."
                )


def _digest_parameter(model: Any, name: str) -> str:
    try:
        return digest_tensor(read_parameter(model, name))
    except AttributeError:
        return "no such parameter"


def untie_head(model: Any) -> None:
    """Tell a model's configuration that its head is its own, so that saving keeps it."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    if hasattr(model, "_tied_weights_keys"):
        model._tied_weights_keys = None
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {}


def _read_tying(model: Any) -> dict[str, Any]:
    found = {
        name: getattr(model, name)
        for name in ("_tied_weights_keys", "all_tied_weights_keys")
        if hasattr(model, name)
    }
    return found | {"tie_word_embeddings": model.config.get_text_config().tie_word_embeddings}


def _restore_tying(model: Any, found: Mapping[str, Any]) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = found["tie_word_embeddings"]
    for name in ("_tied_weights_keys", "all_tied_weights_keys"):
        if name in found:
            setattr(model, name, found[name])


def _swap_parameters(model: Any, values: Mapping[str, Tensor | Held]) -> dict[str, Held]:
    """Set parameters, each on its own module only; return those that were there."""
    return {name: swap_parameter(model, name, value) for name, value in values.items()}


def _measure_gain(language_model: LanguageModel, edit: ModelEdit) -> Tensor:
    """|W v| per direction: what a singular value is to a singular vector."""
    if edit.head is None:
        return torch.empty(0, dtype=torch.float64)
    weight = language_model.head_weight.detach().float()
    directions = edit.head.right.to(weight)
    gains: Tensor = (weight @ directions).norm(dim=0) / directions.norm(dim=0).clamp_min(1e-30)
    return gains.double().cpu()
