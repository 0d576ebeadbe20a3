"""Taps: where inside a model's layers activations are read.

Looks at a model's modules; reads and writes no files. What is done with what is read there is
`detection/pooling.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.model.layers import list_layers
from eigenshift.settings import Site

# Names of the MLP's linear layers inside a block, as in transformers' model classes. To add an
# architecture, add its name here; a dotted name matches the end of the path inside the block.
UP_NAMES = (
    *("up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in", "ffn_up"),
    *("intermediate.dense", "lin1", "wi", "wi_1"),  # BERT, DistilBERT, T5
)
GATE_NAMES = ("gate_proj", "ffn_gate", "wi_0")
FUSED_NAMES = ("gate_up_proj",)  # output = gate, then up
DOWN_NAMES = (
    *("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "ffn_down"),
    *("output.dense", "lin2", "wo"),
)
ATTENTION_NAMES = frozenset(
    {"attn", "attention", "self_attn", "self_attention", "crossattention", "encoder_attn"}
)
EXPERT_NAMES = frozenset({"experts", "router", "block_sparse_moe", "local_experts", "moe"})
EXPERT_CLASSES = ("moe", "moeblock", "experts", "router")  # ends of class names, lower case


@dataclass(frozen=True)
class Tap:
    """Where one site of one layer is read.

    Attributes:
        layer: 0 = first.
        site: What is read.
        module: The module to hook.
        reads_input: Read what enters the module rather than what leaves it.
        part: Which half of a fused output (0 = gate, 1 = up), or None for all of it.
    """

    layer: int
    site: Site
    module: nn.Module
    reads_input: bool = False
    part: int | None = None


def find_taps(model: Any, sites: Sequence[Site], layers: Sequence[int] | None) -> list[Tap]:
    """Find where the asked-for sites of the asked-for layers are read.

    Args:
        model: The `PreTrainedModel`.
        sites: What is read of each layer.
        layers: 0 = first; None means all.

    Raises:
        ModelError: A layer lacks a site; the message lists those it has.
        SettingsError: A layer does not exist.
    """
    blocks = list_layers(model)
    chosen = range(len(blocks)) if layers is None else sorted(set(layers))
    outside = [layer for layer in chosen if layer >= len(blocks)]
    if outside or not chosen:
        raise SettingsError(
            f"activations.layers: expected layers 0 to {len(blocks) - 1}, found "
            f"{', '.join(map(str, outside)) or 'an empty list'}. The model has {len(blocks)} "
            "layers; leave the setting empty for all."
        )
    taps = []
    for layer in chosen:
        found = list_sites(blocks[layer], layer)
        for site in dict.fromkeys(sites):
            if site not in found:
                raise ModelError(_explain_missing_site(model, blocks[layer], layer, site, found))
            taps.append(found[site])
    return taps


def name_sites(model: Any) -> list[str]:
    """Names of the sites the model's first block has."""
    return [site.value for site in list_sites(list_layers(model)[0], 0)]


def list_sites(block: nn.Module, layer: int) -> dict[Site, Tap]:
    """The sites one block has. A block with experts has only its output."""
    found = {Site.residual: Tap(layer, Site.residual, block)}
    if _has_experts(block):
        return found
    up, gate, fused, down = (
        _find_linear(block, names) for names in (UP_NAMES, GATE_NAMES, FUSED_NAMES, DOWN_NAMES)
    )
    if up is not None:
        found[Site.mlp_up] = Tap(layer, Site.mlp_up, up)
    if gate is not None:
        found[Site.mlp_gate] = Tap(layer, Site.mlp_gate, gate)
    if fused is not None:
        found[Site.mlp_gate] = Tap(layer, Site.mlp_gate, fused, part=0)
        found[Site.mlp_up] = Tap(layer, Site.mlp_up, fused, part=1)
    if down is not None:
        found[Site.mlp_down] = Tap(layer, Site.mlp_down, down)
        found[Site.mlp_activation] = Tap(layer, Site.mlp_activation, down, reads_input=True)
    return found


@contextmanager
def hook_taps(taps: Sequence[Tap], read: Callable[[Tap, Any], None]) -> Iterator[None]:
    """Call `read` with what enters or leaves each tapped module."""
    handles = []
    for tap in taps:
        if tap.reads_input:
            handles.append(
                tap.module.register_forward_pre_hook(
                    lambda _module, args, tap=tap: read(tap, args[0])
                )
            )
        else:
            handles.append(
                tap.module.register_forward_hook(
                    lambda _module, _args, output, tap=tap: read(tap, output)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_states(tap: Tap, value: Any, shape: torch.Size) -> Tensor:
    """Return states of shape (batch, position, unit); OPT's come as (batch * position, unit)."""
    states = value[0] if isinstance(value, tuple | list) else value
    if isinstance(states, Tensor):
        if states.ndim == 2 and states.shape[0] == shape.numel():
            states = states.view(*shape, -1)
        if states.ndim == 3 and states.shape[:2] == shape:
            return states if tap.part is None else states.chunk(2, dim=-1)[tap.part]
    found = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    raise ModelError(
        f"layer {tap.layer}, {tap.site.value}: expected states of shape {tuple(shape)} and units, "
        f"found {found}. The model arranges its tokens in a way that is not supported; read "
        "another site."
    )


def ends_with_name(path: str, names: Sequence[str]) -> bool:
    """Whether a module's path inside its block is, or ends with, one of these names."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _find_linear(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The one module outside attention that has one of these names, or None."""
    found = []
    for path, module in block.named_modules():
        if ends_with_name(path, names) and not ATTENTION_NAMES.intersection(path.split(".")):
            found.append(module)
    return found[0] if len(found) == 1 else None


def _has_experts(block: nn.Module) -> bool:
    return any(
        EXPERT_NAMES.intersection(path.split("."))
        or type(module).__name__.lower().endswith(EXPERT_CLASSES)
        for path, module in block.named_modules()
        if path
    )


def _explain_missing_site(
    model: Any, block: nn.Module, layer: int, site: Site, found: Mapping[Site, Tap]
) -> str:
    name = getattr(model.config, "_name_or_path", "") or "model"
    place = f"{name} ({type(model).__name__}), layer {layer}: expected site {site.value}, found"
    remedy = f"Choose from: {', '.join(item.value for item in found)} (activations.sites)."
    if _has_experts(block):
        return f"{place} a mixture of experts. Sites inside experts are not supported. {remedy}"
    return f"{place} none. The layer has no such part, or under an unknown name. {remedy}"
