"""A model that is divided over several places: where its parts run, and what their weights are.

accelerate keeps the weights of parts on the processor (where a GPU computes) or on disk outside the
model: their parameters are on the meta device, hold nothing, and are filled in while their module
runs. So weights are read and replaced here, by name. On an undivided model everything here is
what torch itself would do. Which part is where is `device_maps.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OffloadedParameter:
    """A parameter whose value is outside its module, as it was.

    Attributes:
        value: That stood in its place, None: its own.
    """

    value: Tensor | None


Held = nn.Parameter | OffloadedParameter
"""What was there before a parameter was replaced."""


class _Overlay(Mapping[str, Tensor]):
    """Weights of a module, some of them others."""

    def __init__(self, base: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
        self.base, self.changed = base, dict(changed)

    def __getitem__(self, name: str) -> Tensor:
        return self.changed[name] if name in self.changed else self.base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def is_divided(model: Any) -> bool:
    """Whether a model's parts are at several places."""
    return hasattr(model, "_hf_hook")


def find_device(module: nn.Module) -> torch.device:
    """Where a module with weights is computed."""
    for hook in _list_hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            number = isinstance(device, int)
            return torch.device("cuda", device) if number else torch.device(device)
    return next(module.parameters()).device


def find_entry_device(model: Any) -> torch.device:
    """Where tokens enter a model's trunk."""
    return find_device(model.get_input_embeddings())


def list_gpus(model: Any) -> list[torch.device]:
    """The GPUs on which parts of a model are computed."""
    found = {find_device(module) for module in model.modules() if _has_weights(module)}
    return sorted((device for device in found if device.type == "cuda"), key=str)


def read_parameter(model: Any, name: str) -> Tensor:
    """A parameter's value in force, on the device its module is computed on.

    Raises:
        AttributeError: There is none of this name.
    """
    parameter: Tensor = model.get_parameter(name)
    if parameter.device.type != "meta":
        return parameter
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    hook = _find_offloading(module)
    if hook is None:  # a model without values
        return parameter
    value: Tensor = hook.weights_map[attribute]
    return value.to(device=find_device(module), dtype=parameter.dtype)


def swap_parameter(model: Any, name: str, value: Tensor | Held) -> Held:
    """Replace a parameter, on its own module only.

    Args:
        model: Where it is.
        name: Of the parameter.
        value: The new value; or what this function gave, which is put back as it was.

    Returns:
        What was there.
    """
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    former: nn.Parameter = getattr(module, attribute)
    if former.device.type != "meta":
        assert isinstance(value, Tensor)  # noqa: S101 - it was in memory before, too
        given = value if isinstance(value, nn.Parameter) else nn.Parameter(value, False)
        setattr(module, attribute, given)
        return former
    hook = _find_offloading(module)
    weights = hook.weights_map if isinstance(hook.weights_map, _Overlay) else None
    base = hook.weights_map if weights is None else weights.base
    changed = {} if weights is None else dict(weights.changed)
    held = OffloadedParameter(changed.pop(attribute, None))
    new = value.value if isinstance(value, OffloadedParameter) else value
    if new is not None:
        changed[attribute] = new.detach()
    hook.weights_map = _Overlay(base, changed) if changed else base
    return held


def is_offloaded_parameter(model: Any, name: str) -> bool:
    """Whether a parameter's value is outside its module."""
    module_name = name.rpartition(".")[0]
    found: Tensor = model.get_parameter(name)
    is_empty = found.device.type == "meta"
    return is_empty and _find_offloading(model.get_submodule(module_name)) is not None


def strip_hooks(module: nn.Module) -> nn.Module:
    """The same module without what moves inputs and weights, for a call with weights of one's own.

    It shares its parts with the module.
    """
    if not hasattr(module, "_hf_hook"):
        return module
    plain = copy(module)
    for name in ("forward", "_old_forward", "_hf_hook"):
        plain.__dict__.pop(name, None)
    return plain


@contextmanager
def releasing_weights(model: Any) -> Iterator[None]:
    """Keep no offloaded weights for the backward passes of what is run inside.

    Autograd would hold every weight that was filled in until the pass back has gone through it: in
    the end the whole model. Here it keeps their names, and reads them again on the way back.
    """
    running: list[nn.Module] = []

    def enter(module: nn.Module, _args: tuple[Any, ...]) -> None:
        running.append(module)

    def leave(module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        running.remove(module)

    def pack(tensor: Tensor) -> Any:
        for module in reversed(running):
            for name, parameter in module._parameters.items():
                if parameter is not None and _share_memory(parameter, tensor):
                    first = tensor.storage_offset() - parameter.storage_offset()
                    return module, name, tensor.shape, tensor.stride(), first
        return tensor

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        module, name, shape, stride, first = packed
        weight = read_parameter(module, name).contiguous()
        return weight.as_strided(shape, stride, weight.storage_offset() + first)

    offloading = [module for module in model.modules() if _find_offloading(module) is not None]
    if not offloading:
        yield
        return
    handles = [module.register_forward_pre_hook(enter) for module in offloading]
    handles += [module.register_forward_hook(leave) for module in offloading]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if one.device != other.device or one.device.type == "meta":
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _list_hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return []
    return list(getattr(hook, "hooks", [hook]))


def _find_offloading(module: nn.Module) -> Any:
    """The hook that fills a module's weights in, None if they are its own."""
    for hook in _list_hooks(module):
        if getattr(hook, "offload", False) and hook.weights_map is not None:
            return hook
    return None


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
