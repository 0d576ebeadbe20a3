"""Writers: the linear layers of a model's blocks whose outputs are added to the residual stream.

Looks at a model's modules; reads and writes no files. Where activations are read is `taps.py`'s,
what is done to a writer's weight `patches/`'s.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eigenshift.model.layers import list_layers
from eigenshift.model.taps import DOWN_NAMES, FUSED_NAMES, GATE_NAMES, UP_NAMES, ends_with_name

# Beside the MLPs' down projections: what ends an attention, a recurrence, a state-space mixer or an
# expert, as in transformers' model classes. To add an architecture, add its name here.
OUT_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "linear_out", "out_lin")
VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FURTHER_DOWN_NAMES = ("w2", "output_linear")  # LFM2, the shared experts of Granite


def list_writers(model: Any, *, with_quantised: bool = False) -> dict[str, nn.Module]:
    """Find every plain linear layer that writes into the residual stream.

    A norm or a gate may lie between a layer and the stream (Gemma 2, shared experts). Left out are
    experts that are kept in one tensor, and layers that share their weight.

    Args:
        model: The `PreTrainedModel`; may be on the meta device.
        with_quantised: Also linear layers whose weight is codes, for those who do not read it.

    Returns:
        Name of the module -> module, block by block, in a block in the order of its modules.

    Raises:
        ModelError: The model's blocks are not found.
    """
    hidden = model.config.get_text_config().hidden_size
    names = {id(module): name for name, module in model.named_modules()}
    n_uses = Counter(
        id(module.weight)
        for _, module in model.named_modules(remove_duplicate=False)
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    )
    found: dict[str, nn.Module] = {}
    for block in list_layers(model):
        for path, module in block.named_modules():
            features = count_features(module)
            if (
                features is not None
                and features[1] == hidden
                and _is_writer(path)
                and (with_quantised or holds_values(module))
                and n_uses[id(getattr(module, "weight", None))] <= 1
            ):
                found[names[id(module)]] = module
    return found


def holds_values(module: nn.Module) -> bool:
    """Whether a module's weight is its values, in floating point, and not codes.

    A weight of torchao calls itself floating-point and is codes: a subclass of the parameter.
    """
    weight = getattr(module, "weight", None)
    return type(weight) is nn.Parameter and weight.dtype in VALUE_DTYPES


def count_features(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, None of any other module."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.nf
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else None


def _is_writer(path: str) -> bool:
    """Whether a path inside a block is named as what writes, and not as what reads (BERT)."""
    return ends_with_name(path, (*DOWN_NAMES, *OUT_NAMES, *FURTHER_DOWN_NAMES)) and not (
        ends_with_name(path, (*UP_NAMES, *GATE_NAMES, *FUSED_NAMES))
    )
