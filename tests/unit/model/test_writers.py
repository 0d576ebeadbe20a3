"""Writers: which linear layers of each architecture write into the residual stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eigenshift.model.layers import list_layers
from eigenshift.model.writers import count_features, list_writers
from tests.support.architectures import (
    ARCHITECTURES,
    HIDDEN,
    MORE,
    make_architecture,
    make_random_model,
)

ENDS = {
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "gpt_neox": ["attention.dense", "mlp.dense_4h_to_h"],
    "opt": ["self_attn.out_proj", "fc2"],
    "bloom": ["self_attention.dense", "mlp.dense_4h_to_h"],
    "gptj": ["attn.out_proj", "mlp.fc_out"],
    "mpt": ["attn.out_proj", "ffn.down_proj"],
    "llama": ["self_attn.o_proj", "mlp.down_proj"],
    "mixtral": ["self_attn.o_proj"],
    "phi": ["self_attn.dense", "mlp.fc2"],
}
FUSED_EXPERTS = (
    *("GraniteMoeConfig", "GptOssConfig", "Qwen3MoeConfig", "OlmoeConfig", "MiniMaxConfig"),
)
ONE_PART = ("MambaConfig", "Mamba2Config", "FalconMambaConfig")
NOT_ALL_KNOWN = {"xLSTMConfig": [1, 1], "CTRLConfig": [1, 1]}
"""Their feed-forward part has names of its own, so patches of layers leave it alone."""
NONE_KNOWN = ("RwkvConfig", "ModernBertDecoderConfig")
"""Of these only the head is changed (docs/architectures.md)."""
N_WRITERS = {
    **{name: [2, 2] for name in MORE},
    **{name: [1, 1] for name in (*FUSED_EXPERTS, *ONE_PART)},
    **{name: [0, 0] for name in NONE_KNOWN},
    **NOT_ALL_KNOWN,
    "FalconH1Config": [3, 3],
    "JambaConfig": [2, 1],
    "NemotronHConfig": [1, 1, 1, 1],
    "RecurrentGemmaConfig": [2, 2, 2],
    "Zamba2Config": [1, 3, 1],
}


def count_by_block(model: Any) -> list[int]:
    """Number of writers in each block; there must be none elsewhere."""
    names = list(list_writers(model))
    paths = {id(module): name for name, module in model.named_modules()}
    blocks = [f"{paths[id(block)]}." for block in list_layers(model)]
    counts = [sum(name.startswith(block) for name in names) for block in blocks]
    assert sum(counts) == len(names)
    return counts


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_blocks_writers_are_found(name: str) -> None:
    """As many as known, in order, each a linear layer as wide as the stream."""
    model = make_architecture(name)
    writers = list_writers(model)
    assert count_by_block(model) == [ARCHITECTURES[name].writers] * 2
    for path, module in writers.items():
        assert model.get_submodule(path) is module
        assert count_features(module)[1] == HIDDEN
    found = [path.split(".0.", 1)[1] for path in writers if ".0." in path]
    assert found == ENDS.get(name, found)


@pytest.mark.parametrize("name", MORE)
def test_writers_of_further_architectures(name: str) -> None:
    """Recurrences, state-space mixers and shared experts write too; fused experts are left out."""
    assert count_by_block(make_random_model(name, MORE[name])) == N_WRITERS[name]


def test_writers_change_what_leaves_the_block() -> None:
    """With all of a block's writers at zero the stream passes through it as it was."""
    for name in ("gpt2", "llama", "gptj", "opt"):
        model = make_architecture(name)
        for module in list_writers(model).values():
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        entering: list[torch.Tensor] = []
        leaving: list[torch.Tensor] = []
        block = list_layers(model)[1]
        block.register_forward_pre_hook(
            lambda _, args, kwargs, entering=entering: entering.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        block.register_forward_hook(
            lambda _module, _args, output, leaving=leaving: leaving.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        with torch.inference_mode():
            model(torch.arange(6)[None])
        assert torch.equal(entering[0], leaving[0]), name


def test_shared_and_quantised_layers_are_left_out() -> None:
    """A change of a shared weight would be a change of two layers; codes cannot be changed."""
    model = make_architecture("llama")
    first, second = model.model.layers
    second.self_attn.o_proj.weight = first.self_attn.o_proj.weight
    codes = torch.zeros_like(first.mlp.down_proj.weight, dtype=torch.int8)
    first.mlp.down_proj.weight = nn.Parameter(codes, requires_grad=False)
    assert list(list_writers(model)) == ["model.layers.1.mlp.down_proj"]


def test_a_layer_that_stands_in_two_blocks_is_left_out() -> None:
    """The same module under two names, as models that repeat a block have it."""
    model = make_architecture("llama")
    first, second = model.model.layers
    second.mlp.down_proj = first.mlp.down_proj
    assert count_by_block(model) == [1, 1]


def test_a_layer_is_known_by_its_name_and_width() -> None:
    """A query projection has the stream's width too; an output of another width is not its own."""
    model = make_architecture("llama")
    block = model.model.layers[0]
    assert count_features(block.self_attn.q_proj)[1] == HIDDEN
    block.mlp.down_proj = nn.Linear(24, HIDDEN + 1)
    assert "model.layers.0.mlp.down_proj" not in list_writers(model)


def test_a_model_without_values_has_the_same_writers() -> None:
    """Exports look at models on the meta device."""
    model = make_architecture("gpt2")
    assert list(list_writers(model.to("meta"))) == list(list_writers(make_architecture("gpt2")))
