"""Turn an edit into parameters of a model, or into hooks where its architecture has no room for it.

Reads a model in memory; changes nothing. Folding is exact up to rounding: `run_hooked` does the
same on states, and the tests compare the two on every architecture. What a patch file holds and
which model it fits is `patching.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eigenshift.edits import HeadEdit, ModelEdit, UnitEdit
from eigenshift.errors import FoldingError
from eigenshift.models import LanguageModel

PROBE_TOLERANCE = 1e-4


def fold_edit(language_model: LanguageModel, edit: ModelEdit) -> dict[str, Tensor]:
    """Return the parameters that make a model what the edit says.

    Args:
        language_model: The unpatched model; not modified.
        edit: What changes.

    Returns:
        Name of the parameter -> its new value, same shape, dtype and device.

    Raises:
        FoldingError: The architecture has no parameter that could hold the change; says why.
        ComponentError: The edit is for a model of other sizes.
    """
    folded: dict[str, Tensor] = {}
    for name, unit_edit in edit.units.items():
        module = language_model.model.get_submodule(name)
        for attribute, value in _fold_units(name, module, unit_edit).items():
            folded[f"{name}.{attribute}"] = value
    if edit.head is not None:
        folded |= _fold_head(language_model, edit.head)
    return folded


@contextmanager
def run_hooked(language_model: LanguageModel, edit: ModelEdit) -> Iterator[None]:
    """Run with the edit applied to states by hooks; no weight is touched."""

    def change_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        assert edit.head is not None  # noqa: S101 - registered only then
        return (edit.head.apply_to_states(args[0]), *args[1:])

    def change_output(unit_edit: UnitEdit) -> Any:
        return lambda _module, _args, output: unit_edit.apply_to_outputs(output)

    with language_model.lock, ExitStack() as stack:
        for name, unit_edit in edit.units.items():
            module = language_model.model.get_submodule(name)
            stack.callback(module.register_forward_hook(change_output(unit_edit)).remove)
        if edit.head is not None:
            handle = language_model.head_module.register_forward_pre_hook(change_input)
            stack.callback(handle.remove)
        yield


def _fold_head(language_model: LanguageModel, edit: HeadEdit) -> dict[str, Tensor]:
    """The head's weight, and its bias or that of the norm before it where there is a shift."""
    head, name = language_model.head_module, language_model.head.name
    folded = {f"{name}.weight": edit.fold_weight(head.weight)}
    if not edit.has_shift:
        return folded
    bias: Tensor | None = getattr(head, "bias", None)
    if bias is not None:
        shifted = bias.detach().float() + edit.compute_bias_shift(head.weight).float()
        folded[f"{name}.bias"] = shifted.to(bias.dtype)
        return folded
    preceding = language_model.head.preceding_module
    module = None if preceding is None else language_model.model.get_submodule(preceding)
    bias = getattr(module, "bias", None)
    if not isinstance(bias, nn.Parameter) or bias.shape != (edit.hidden,):
        raise FoldingError(
            f"{language_model.id}: expected a head with a bias, or a norm with a bias before it, "
            "found neither, so a shift of the logits has no place in the weights. Measure it with "
            "hooks, or choose an intervention without a shift."
        )
    shift = edit.find_state_shift()
    if shift is None:
        raise FoldingError(
            f"{language_model.id}: expected a head with a bias, found none; and the norm before "
            "it cannot carry the shift, since the patch removes directions entirely. Use a factor "
            "above 0, or measure it with hooks."
        )
    folded[f"{preceding}.bias"] = (bias.detach().float() + shift.to(bias).float()).to(bias.dtype)
    return folded


def _fold_units(name: str, module: nn.Module, edit: UnitEdit) -> dict[str, Tensor]:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise FoldingError(
            f"{name} ({type(module).__name__}): expected a module with a floating-point weight, "
            "found none. It is probably quantised. Load the model unquantised."
        )
    if edit.has_shift and not isinstance(bias, nn.Parameter):
        raise FoldingError(
            f"{name} ({type(module).__name__}): expected a bias to hold a shift, found none. "
            "Measure it with hooks, or choose an intervention that only scales."
        )
    scale, shift = edit.scale.to(weight.device), edit.shift.to(weight.device)
    folded: dict[str, Tensor] = {"weight": _scale_weight(name, module, weight.detach(), scale)}
    if isinstance(bias, nn.Parameter):
        folded["bias"] = (bias.detach().double() * scale + shift).to(bias.dtype)
    return folded


def _scale_weight(name: str, module: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight with each output unit scaled, by the kind of module."""
    wide = weight.double()
    if isinstance(module, nn.Linear):
        return (wide * scale[:, None]).to(weight.dtype)
    if isinstance(module, Conv1D):
        return (wide * scale).to(weight.dtype)
    if weight.shape == scale.shape:  # a norm: gain w or, as Gemma has it, 1 + w
        for folded in (wide * scale, (1 + wide) * scale - 1):
            if _gives_scaled_outputs(module, folded.to(weight.dtype), scale):
                return folded.to(weight.dtype)
    raise FoldingError(
        f"{name}: expected a linear layer or a norm with {len(scale)} units, found "
        f"{type(module).__name__} with a weight of shape {tuple(weight.shape)}. This kind of "
        "module cannot be folded."
    )


@torch.inference_mode()
def _gives_scaled_outputs(module: nn.Module, folded: Tensor, scale: Tensor) -> bool:
    """Whether a norm with this weight gives its former outputs scaled (the bias aside)."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, len(scale), generator=generator).to(folded)
    bias = getattr(module, "bias", None)
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    if isinstance(bias, nn.Parameter):
        parameters["bias"] = torch.zeros_like(bias)
    before = torch.func.functional_call(module, parameters, (states,)).double()
    after = torch.func.functional_call(module, parameters | {"weight": folded}, (states,)).double()
    difference = (after - before * scale).abs().max()
    tolerance = PROBE_TOLERANCE if folded.dtype == torch.float32 else 2e-2
    return bool(difference <= tolerance * before.abs().max().clamp_min(1e-6))
