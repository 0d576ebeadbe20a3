"""Weights and configuration of a Llama-shaped GGUF file as transformers names and orders them.

llama.cpp writes the rows of each query and key head with the two halves of the rotary embedding
interleaved; transformers rotates one half against the other. Everything else differs in name only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eigenshift.base.arrays import ValueArray
from eigenshift.base.errors import ModelError
from eigenshift.fetching.gguf_files import GgufFile

ARCHITECTURE = "llama"
HEAD = "lm_head.weight"
OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_weights(file: GgufFile) -> dict[str, ValueArray]:
    """All parameters by transformers' names, float32; a tied head has no entry.

    Raises:
        ModelError: The file is of another architecture, or holds a tensor that no place is known
            for.
    """
    _check_architecture(file)
    n_heads = {
        "attn_q": int(file.read_field("llama.attention.head_count")),
        "attn_k": int(file.read_field("llama.attention.head_count_kv")),
    }
    weights = {}
    for name, values in file.iterate_tensors():
        kind = name.split(".")[-2]
        if kind in n_heads:
            values = order_rotary_rows(values, n_heads[kind])
        weights[_translate(name, file.place)] = np.ascontiguousarray(values)
    return weights


def order_rotary_rows(rows: ValueArray, n_heads: int) -> ValueArray:
    """Put the rows of query or key heads from llama.cpp's order into transformers'.

    Args:
        rows: Shape (head * width, hidden); in each head row 2 i is the first and row 2 i + 1 the
            second coordinate of rotated pair i.
        n_heads: How many heads.

    Returns:
        The same shape; in each head all first coordinates, then all second ones.
    """
    pairs = rows.reshape(n_heads, -1, 2, rows.shape[-1])
    ordered: ValueArray = pairs.swapaxes(1, 2).reshape(rows.shape)
    return ordered


def describe_config(file: GgufFile, *, is_tied: bool) -> dict[str, Any]:
    """The content of config.json; the same on every machine, so that the model's digest is too.

    Raises:
        ModelError: A field is missing.
    """
    theta = float(file.read_field("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(file.read_field("tokenizer.ggml.tokens")),
        "hidden_size": file.read_field("llama.embedding_length"),
        "intermediate_size": file.read_field("llama.feed_forward_length"),
        "num_hidden_layers": file.read_field("llama.block_count"),
        "num_attention_heads": file.read_field("llama.attention.head_count"),
        "num_key_value_heads": file.read_field("llama.attention.head_count_kv"),
        "max_position_embeddings": file.read_field("llama.context_length"),
        "rms_norm_eps": _shorten(file.read_field("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,  # where readers before transformers 5 look
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": is_tied,
        "bos_token_id": file.read_field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.read_field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.read_field("tokenizer.ggml.padding_token_id"),
    }


def _check_architecture(file: GgufFile) -> None:
    found = file.read_field("general.architecture")
    if found != ARCHITECTURE:
        raise ModelError(
            f"{file.place}: expected architecture {ARCHITECTURE!r}, found {found!r}, whose layout "
            "is not known here. Choose another model."
        )


def _translate(name: str, place: str) -> str:
    """The name of a tensor in transformers."""
    parts = name.split(".")
    match parts:
        case ["blk", layer, kind, "weight"] if kind in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"
        case [kind, "weight"] if kind in OUTER_NAMES:
            return f"{OUTER_NAMES[kind]}.weight"
    raise ModelError(
        f"{place}: expected tensors of a plain Llama, found {name!r}, for which no place is known. "
        "Choose another model."
    )


def _shorten(value: float) -> float:
    """The shortest decimal that is the float32 that was stored: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
