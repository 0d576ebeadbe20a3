"""A model's trunk and its layers, whatever the architecture calls them.

Looks at modules; `taps.py` finds what is inside a layer, `heads.py` what comes after the last.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eigenshift.base.errors import ModelError


def get_trunk(model: Any) -> nn.Module:
    """Return a model without its output head; a bare trunk is returned as it is."""
    has_own_head = model.base_model is model and model.get_output_embeddings() is not None
    trunk: nn.Module = model.get_decoder() if has_own_head else model.base_model
    return trunk


def list_layers(model: Any) -> list[nn.Module]:
    """Return a model's blocks, first to last.

    They are the entries of the `ModuleList` that has as many as the configuration has hidden
    layers, of a model with towers for images or sound in its language model; where several do
    (experts), blocks of one class go before mixed ones, then the list with most weights is taken.
    Works on heads-and-all models and on trunks.

    Raises:
        ModelError: No module list has that many entries.
    """
    text_config = model.config.get_text_config()
    n_layers = text_config.num_hidden_layers
    language_model = model if text_config is model.config else model.get_decoder()
    found: list[nn.ModuleList] = [
        module
        for module in language_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__}: expected a list of {n_layers} layers (num_hidden_layers), "
            "found none. The model shares or nests its layers in a way that is not supported. "
            "Choose another model."
        )
    return list(sorted(found, key=_rank_blocks)[-1])


def _rank_blocks(blocks: nn.ModuleList) -> tuple[bool, int]:
    is_uniform = len({type(block) for block in blocks}) == 1
    return is_uniform, sum(parameter.numel() for parameter in blocks.parameters())


def fuse_activations(model: nn.Module) -> None:
    """Replace GELU written out in steps (GPT-2's) by torch's own, in place.

    The same function in one pass over the values; results differ by rounding (measured: 6e-7).
    """
    # imported where a model is loaded: a second of the start of every command otherwise
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (FastGELUActivation, NewGELUActivation)):
                setattr(module, name, nn.GELU(approximate="tanh"))


def keep_codes(model: nn.Module) -> None:
    """Keep bitsandbytes from rewriting 4-bit weights at their first use on the CPU, in place.

    On processors with AVX512-BF16 it packs codes and rounds scales to bfloat16, for speed.
    Gradients then pass the layer by without an error, and what is saved afterwards is another
    model.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
