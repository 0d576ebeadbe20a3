"""Turn an edit into parameters of a model, or into hooks where its architecture has no room for it.

Reads a model in memory, or only its structure (on the meta device) where the values are streamed
from files; changes nothing. Folding is exact up to rounding: `run_hooked` does the same on states,
and the tests compare the two on every architecture. What a patch file holds and which model it
fits is `patching.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eigenshift.base.errors import ComponentError, FoldingError
from eigenshift.model.divided import is_offloaded_parameter, read_parameter, strip_hooks
from eigenshift.model.loading import LanguageModel
from eigenshift.model.writers import count_features, holds_values
from eigenshift.patches.edits import (
    ROWS_PER_BLOCK,
    AdaptiveEdit,
    HeadEdit,
    LinearEdit,
    LogitEdit,
    ModelEdit,
    UnitEdit,
)

PROBE_TOLERANCE = 1e-4
VALUES_PER_BLOCK = 1 << 21
"""Of a block of rows; 16 MiB while it is float64."""

RowFold = Callable[[Sequence[Tensor], int], Tensor]


@dataclass(frozen=True)
class Fold:
    """How one parameter's new value comes from the base's, a block of rows at a time.

    Attributes:
        reads: Parameters whose rows are read, the changed one first; all have as many rows.
        fold_rows: Blocks of rows of each, and the first row's index -> new rows, of the dtype and
            device of the first block.
    """

    reads: tuple[str, ...]
    fold_rows: RowFold


def fold_edit(language_model: LanguageModel, edit: ModelEdit) -> dict[str, Tensor]:
    """Return the parameters that make a model what the edit says.

    Args:
        language_model: The unpatched model; not modified.
        edit: What changes.

    Returns:
        Name of the parameter -> its new value, same shape and dtype, on its device; on the
        processor if it is offloaded.

    Raises:
        FoldingError: The architecture has no parameter that could hold the change; says why.
        ComponentError: The edit is for a model of other sizes.
    """
    model, head = language_model.model, language_model.head
    folds = plan_folds(model, edit, head_name=head.name, preceding_module=head.preceding_module)
    return {name: _fold_parameter(model, name, fold) for name, fold in folds.items()}


def list_beside(model: Any, edit: ModelEdit) -> tuple[str, ...]:
    """Linear layers of codes that an edit adds a product to: it can only stand beside them.

    Args:
        model: The `PreTrainedModel` as it is loaded; a skeleton has no codes.
        edit: What changes.

    Raises:
        ComponentError: The edit is for another model.
    """
    modules = {name: _find_module(model, name) for name in edit.linears}
    return tuple(
        name
        for name, module in modules.items()
        if not holds_values(module) and count_features(module) is not None
    )


def plan_folds(
    model: Any, edit: ModelEdit, *, head_name: str, preceding_module: str | None
) -> dict[str, Fold]:
    """Find the parameters that can hold an edit, and how each follows from the base's.

    Args:
        model: A `PreTrainedModel`; its values are not read, so it may be on the meta device.
        edit: What changes.
        head_name: Name of the output head's module.
        preceding_module: Name of the module whose output enters the head, if it is one's.

    Returns:
        Name of each parameter that changes -> its fold.

    Raises:
        FoldingError: The architecture has no parameter that could hold the change; says why.
        ComponentError: The edit is for a model of other sizes.
    """
    for name in edit.adaptive:
        raise FoldingError(
            f"{name} ({type(_find_module(model, name)).__name__}): expected a change that is the "
            "same map for every state, found one that depends on the state, so it has no place in "
            "the weights. Measure it with hooks."
        )
    folds: dict[str, Fold] = {}
    for name, linear_edit in edit.linears.items():
        folds[f"{name}.weight"] = _plan_linear(name, _find_module(model, name), linear_edit)
    for name, unit_edit in edit.units.items():
        for parameter, fold in _plan_units(name, _find_module(model, name), unit_edit).items():
            folds[parameter] = _chain(folds[parameter], fold) if parameter in folds else fold
    if edit.head is not None:
        folds |= _plan_head(model, edit.head, head_name, preceding_module)
    if edit.logits is not None:
        logits = edit.logits
        if edit.head is not None:  # it reads h', the weights multiply h
            logits = logits.after(edit.head, has_bias=f"{head_name}.bias" in folds)
        for parameter, fold in _plan_logits(model, logits, head_name).items():
            folds[parameter] = _chain(folds[parameter], fold) if parameter in folds else fold
    return folds


def compute_logits(language_model: LanguageModel, edit: ModelEdit, states: Tensor) -> Tensor:
    """The logits an edited model gives, in float32 or wider, shape (..., vocab).

    Args:
        language_model: The unpatched model, for its head.
        edit: Whose changes of the head are applied; those of the trunk are in the states.
        states: What enters the head before an edit of the head, shape (..., hidden).
    """
    head = language_model.head_module
    entering = states if edit.head is None else edit.head.apply_to_states(states)
    if edit.logits is None:
        return language_model.head.compute_precise_logits(entering, head.weight, head.bias)
    raw = language_model.head.compute_raw_logits(entering, head.weight, head.bias)
    return language_model.head.finish_logits(edit.logits.apply_to_logits(raw, entering))


def iterate_row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (first row, number of rows) of the blocks that folding works in.

    Everywhere the same, so that a parameter folded in memory and one streamed from a file have the
    same bits.
    """
    width = max(1, torch.Size(shape[1:]).numel())
    rows = max(1, min(ROWS_PER_BLOCK, VALUES_PER_BLOCK // width))
    for first in range(0, shape[0], rows):
        yield first, min(rows, shape[0] - first)


@contextmanager
def run_hooked(language_model: LanguageModel, edit: ModelEdit) -> Iterator[None]:
    """Run with the edit applied to states by hooks; no weight is touched."""

    def change_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        assert edit.head is not None  # noqa: S101 - registered only then
        return (edit.head.apply_to_states(args[0]), *args[1:])

    def move_logits(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        assert edit.logits is not None  # noqa: S101 - registered only then
        return edit.logits.apply_to_logits(output, args[0])

    def add_product(linear_edit: LinearEdit) -> Any:
        return lambda _module, args, output: linear_edit.apply_to_outputs(output, args[0])

    def change_output(unit_edit: UnitEdit) -> Any:
        return lambda _module, _args, output: unit_edit.apply_to_outputs(output)

    def move_output(adaptive_edit: AdaptiveEdit) -> Any:
        return lambda _module, _args, output: adaptive_edit.apply_to_outputs(output)

    hooks = [(name, add_product(linear_edit)) for name, linear_edit in edit.linears.items()]
    hooks += [(name, change_output(unit_edit)) for name, unit_edit in edit.units.items()]
    hooks += [(name, move_output(adaptive_edit)) for name, adaptive_edit in edit.adaptive.items()]
    with language_model.lock, ExitStack() as stack:
        for name, hook in hooks:
            module = _find_module(language_model.model, name)
            stack.callback(module.register_forward_hook(hook).remove)
        if edit.head is not None:
            handle = language_model.head_module.register_forward_pre_hook(change_input)
            stack.callback(handle.remove)
        if edit.logits is not None:
            handle = language_model.head_module.register_forward_hook(move_logits)
            stack.callback(handle.remove)
        yield


def _fold_parameter(model: Any, name: str, fold: Fold) -> Tensor:
    folded = _fold_whole([read_parameter(model, read).detach() for read in fold.reads], fold)
    return folded.cpu() if is_offloaded_parameter(model, name) else folded


def _fold_whole(parameters: Sequence[Tensor], fold: Fold) -> Tensor:
    folded = torch.empty_like(parameters[0])
    for first, n_rows in iterate_row_blocks(folded.shape):
        rows = slice(first, first + n_rows)
        folded[rows] = fold.fold_rows([parameter[rows] for parameter in parameters], first)
    return folded


def _plan_head(
    model: Any, edit: HeadEdit, name: str, preceding_module: str | None
) -> dict[str, Fold]:
    """The head's weight, and its bias or that of the norm before it where there is a shift."""
    head = model.get_submodule(name)
    edit.check_width(head.weight)
    weight, bias = f"{name}.weight", f"{name}.bias"
    folds = {weight: Fold((weight,), lambda rows, _: edit.fold_weight(rows[0]))}
    if not edit.has_shift:
        return folds
    if getattr(head, "bias", None) is not None:

        def shift_bias(rows: Sequence[Tensor], _: int) -> Tensor:
            shifted = rows[0].float() + edit.compute_bias_shift(rows[1]).float()
            return shifted.to(rows[0].dtype)

        return folds | {bias: Fold((bias, weight), shift_bias)}
    return folds | _plan_preceding_shift(model, edit, preceding_module)


def _plan_logits(model: Any, edit: LogitEdit, name: str) -> dict[str, Fold]:
    """Rows of the head's weight, and its bias where there is a shift."""
    head = model.get_submodule(name)
    expected = (len(edit.left), len(edit.right))
    if tuple(head.weight.shape) != expected:
        raise ComponentError(
            f"{name}: expected a head of shape {expected}, found {tuple(head.weight.shape)}. The "
            "patch is for another model."
        )
    folds = {f"{name}.weight": _plan_linear(name, head, LinearEdit(edit.left, edit.right))}
    if not edit.has_shift:
        return folds
    if getattr(head, "bias", None) is None:
        raise FoldingError(
            f"{type(model).__name__}: expected a head with a bias, found none, so a constant "
            "change of some tokens' logits has no place in the weights. Measure it with hooks, or "
            "choose its form without a bias."
        )
    return folds | {f"{name}.bias": _plan_rows(f"{name}.bias", None, edit.left @ edit.shift)}


def _plan_preceding_shift(
    model: Any, edit: HeadEdit, preceding_module: str | None
) -> dict[str, Fold]:
    """The shift of a head without a bias, in the bias of the norm before it."""
    place = type(model).__name__
    module = None if preceding_module is None else model.get_submodule(preceding_module)
    bias = getattr(module, "bias", None)
    if not isinstance(bias, nn.Parameter) or bias.shape != (edit.hidden,):
        raise FoldingError(
            f"{place}: expected a head with a bias, or a norm with a bias before it, found "
            "neither, so a shift of the logits has no place in the weights. Measure it with "
            "hooks, or choose an intervention without a shift."
        )
    shift = edit.find_state_shift()
    if shift is None:
        raise FoldingError(
            f"{place}: expected a head with a bias, found none; and the norm before it cannot "
            "carry the shift, since the patch removes directions entirely. Use a factor above 0, "
            "or measure it with hooks."
        )
    return {f"{preceding_module}.bias": _plan_rows(f"{preceding_module}.bias", None, shift)}


def _find_module(model: Any, name: str) -> nn.Module:
    try:
        module: nn.Module = model.get_submodule(name)
    except AttributeError as error:
        raise ComponentError(
            f"{type(model).__name__}: expected a module {name}, found none. The patch is for "
            "another model."
        ) from error
    return module


def _require_float_weight(name: str, module: nn.Module) -> None:
    if not holds_values(module):
        raise FoldingError(
            f"{name} ({type(module).__name__}): expected a module with a floating-point weight, "
            "found none. It is probably quantised. Load the model unquantised."
        )


def _plan_linear(name: str, module: nn.Module, edit: LinearEdit) -> Fold:
    """W' = W + left right^T by rows of the weight as the layer stores it."""
    _require_float_weight(name, module)
    shape = count_features(module)
    if shape != (len(edit.right), len(edit.left)):
        raise ComponentError(
            f"{name}: expected a linear layer of {len(edit.right)} inputs and {len(edit.left)} "
            f"outputs, found {type(module).__name__} of {shape}. The patch is for another model."
        )
    by_row, along = (edit.left, edit.right)
    if isinstance(module, Conv1D):  # stores (in, out)
        by_row, along = along, by_row

    def add(rows: Sequence[Tensor], first: int) -> Tensor:
        block = rows[0]
        width = torch.float64 if block.dtype == torch.float64 else torch.float32
        chosen = by_row[first : first + len(block)].to(device=block.device, dtype=width)
        added = torch.addmm(block.to(width), chosen, along.to(chosen).T)
        return added.to(block.dtype)

    return Fold((f"{name}.weight",), add)


def _chain(first: Fold, second: Fold) -> Fold:
    """Two changes of one parameter, the second of which reads no other."""
    return Fold(first.reads, lambda rows, row: second.fold_rows([first.fold_rows(rows, row)], row))


def _plan_units(name: str, module: nn.Module, edit: UnitEdit) -> dict[str, Fold]:
    _require_float_weight(name, module)
    bias = getattr(module, "bias", None)
    if edit.has_shift and not isinstance(bias, nn.Parameter):
        raise FoldingError(
            f"{name} ({type(module).__name__}): expected a bias to hold a shift, found none. "
            "Measure it with hooks, or choose an intervention that only scales."
        )
    folds = {f"{name}.weight": _plan_scaling(name, module, edit.scale)}
    if isinstance(bias, nn.Parameter):
        folds[f"{name}.bias"] = _plan_rows(f"{name}.bias", edit.scale, edit.shift)
    return folds


def _plan_scaling(name: str, module: nn.Module, scale: Tensor) -> Fold:
    """How a weight is folded so that each output unit is scaled, by the kind of module."""
    parameter = f"{name}.weight"
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, nn.Linear) and len(scale) == module.out_features:
        return _plan_rows(parameter, scale, None)
    if isinstance(module, Conv1D) and len(scale) == module.nf:
        return Fold(
            (parameter,),
            lambda rows, _: (rows[0].double() * scale.to(rows[0].device)).to(rows[0].dtype),
        )
    if weight.shape == scale.shape:
        for offset in (0.0, 1.0):  # a norm's gain is w or, as Gemma has it, 1 + w
            if _is_gain(module, offset):
                return _plan_rows(parameter, scale, offset * (scale - 1.0))
    raise FoldingError(
        f"{name}: expected a linear layer or a norm with {len(scale)} units, found "
        f"{type(module).__name__} with a weight of shape {tuple(weight.shape)}. This kind of "
        "module cannot be folded."
    )


def _plan_rows(parameter: str, scale: Tensor | None, shift: Tensor | None) -> Fold:
    """Scale rows and shift them, one number of each per row."""

    def change(rows: Sequence[Tensor], first: int) -> Tensor:
        block = rows[0]
        wide, place = block.double(), slice(first, first + len(block))
        per_row = (len(block),) + (1,) * (block.ndim - 1)
        if scale is not None:
            wide = wide * scale[place].to(block.device).reshape(per_row)
        if shift is not None:
            wide = wide + shift[place].to(block.device).reshape(per_row)
        return wide.to(block.dtype)

    return Fold((parameter,), change)


@torch.inference_mode()
def _is_gain(module: nn.Module, offset: float) -> bool:
    """Whether a module multiplies each of its units by `offset` + weight, tried on made-up values.

    Its bias aside. The module's own values are not used.
    """
    generator = torch.Generator().manual_seed(0)
    module = strip_hooks(module)
    shapes: Mapping[str, torch.Size] = {
        name: parameter.shape for name, parameter in module.named_parameters()
    }
    values = {name: torch.zeros(shape) for name, shape in shapes.items()}
    units = shapes["weight"]
    states, gains = (torch.randn(n, *units, generator=generator) for n in (4, 2))
    first, second = (
        torch.func.functional_call(module, values | {"weight": gain - offset}, (states,))
        for gain in gains
    )
    difference = (first * gains[1] - second * gains[0]).abs().max()
    return bool(difference <= PROBE_TOLERANCE * first.abs().max().clamp_min(1e-6))
