"""Tiny random models of the architectures users bring, built from configuration.

Each differs in what matters to a patch: where the head is, what precedes it, whether it is tied,
has a bias, a multiplier or a soft cap, how the MLP and its norms are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from eigenshift.model.loading import LanguageModel
    from eigenshift.patches.edits import ModelEdit

VOCAB = 96
HIDDEN = 16
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = {key: SMALL[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
GPT = {
    **IDS,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "initializer_range": 0.2,
}
LLAMA = {
    **SMALL,
    "intermediate_size": 24,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "head_dim": 8,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture and what is known of its head.

    Attributes:
        config_class: Of transformers.
        values: Of the configuration.
        is_tied: The head is the input embedding.
        has_bias: The head has a bias.
        preceding: Module whose output enters the head.
        softcap: Of the logits.
        scale: Of the logits.
        width: Of the head's input.
        folds_shift: A bias, or a norm with one before the head, holds a constant shift.
        units: Number of MLP layers per block that unit edits reach.
        writers: Number of linear layers per block that write into the residual stream.
    """

    config_class: str
    values: dict[str, Any] = field(repr=False)
    is_tied: bool
    preceding: str
    has_bias: bool = False
    softcap: float | None = None
    scale: float = 1.0
    width: int = HIDDEN
    folds_shift: bool = False
    units: int = 3
    writers: int = 2


ARCHITECTURES = {
    "gpt2": Architecture("GPT2Config", GPT, True, "transformer.ln_f", folds_shift=True, units=2),
    "gpt_neox": Architecture(
        "GPTNeoXConfig",
        {**SMALL, "intermediate_size": 24},
        False,
        "gpt_neox.final_layer_norm",
        folds_shift=True,
        units=2,
    ),
    "opt": Architecture(
        "OPTConfig",
        {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8, "max_position_embeddings": 64},
        True,
        "model.decoder.project_out",
        width=8,
        units=2,
    ),
    "bloom": Architecture(
        "BloomConfig",
        {**IDS, "hidden_size": HIDDEN, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
        True,
        "transformer.ln_f",
        folds_shift=True,
        units=2,
    ),
    "gptj": Architecture(
        "GPTJConfig",
        {**GPT, "rotary_dim": 4, "tie_word_embeddings": False},
        False,
        "transformer.ln_f",
        has_bias=True,
        folds_shift=True,
        units=2,
    ),
    "falcon": Architecture(
        "FalconConfig",
        {**SMALL, "ffn_hidden_size": 24},
        True,
        "transformer.ln_f",
        folds_shift=True,
        units=2,
    ),
    "mpt": Architecture(
        "MptConfig",
        {
            **IDS,
            "d_model": HIDDEN,
            "n_heads": 2,
            "n_layers": 2,
            "expansion_ratio": 2,
            "max_seq_len": 64,
            "initializer_range": 0.2,
        },
        True,
        "transformer.norm_f",
        units=2,
    ),
    "llama": Architecture(
        "LlamaConfig", {**LLAMA, "tie_word_embeddings": False}, False, "model.norm"
    ),
    "mistral": Architecture(
        "MistralConfig", {**LLAMA, "tie_word_embeddings": False}, False, "model.norm"
    ),
    "mixtral": Architecture(
        "MixtralConfig",
        {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1, "tie_word_embeddings": False},
        False,
        "model.norm",
        units=0,
        writers=1,
    ),
    "qwen2": Architecture(
        "Qwen2Config", {**LLAMA, "tie_word_embeddings": True}, True, "model.norm"
    ),
    "qwen3": Architecture(
        "Qwen3Config", {**LLAMA, "tie_word_embeddings": True}, True, "model.norm"
    ),
    "gemma2": Architecture(
        "Gemma2Config",
        {**LLAMA, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0},
        True,
        "model.norm",
        softcap=5.0,
    ),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        {**LLAMA, "final_logit_softcapping": 5.0, "sliding_window": 8},
        True,
        "model.norm",
        softcap=5.0,
    ),
    "gemma3_vision": Architecture(
        "Gemma3Config",
        {
            "text_config": {**LLAMA, "sliding_window": 8},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 93,
            "eoi_token_index": 94,
            "image_token_index": 95,
        },
        True,
        "model.language_model.norm",
    ),
    "phi": Architecture(
        "PhiConfig",
        {**SMALL, "intermediate_size": 24, "max_position_embeddings": 64},
        False,
        "model.final_layernorm",
        has_bias=True,
        folds_shift=True,
        units=2,
    ),
    "cohere": Architecture(
        "CohereConfig", {**LLAMA, "logit_scale": 0.25}, True, "model.norm", scale=0.25
    ),
    "granite": Architecture(
        "GraniteConfig",
        {**LLAMA, "logits_scaling": 4.0, "tie_word_embeddings": False},
        False,
        "model.norm",
        scale=0.25,
    ),
}


LIKE_LLAMA = (
    "ApertusConfig",
    "ArceeConfig",
    "Cohere2Config",
    "DogeConfig",
    "Ernie4_5Config",
    "Exaone4Config",
    "GemmaConfig",
    "Glm4Config",
    "GlmConfig",
    "HeliumConfig",
    "HunYuanDenseV1Config",
    "Ministral3Config",
    "NanoChatConfig",
    "NemotronConfig",
    "Olmo2Config",
    "Olmo3Config",
    "OlmoConfig",
    "PersimmonConfig",
    "Phi3Config",
    "SeedOssConfig",
    "SmolLM3Config",
    "StableLmConfig",
    "Starcoder2Config",
)
EXPERTS = {**LLAMA, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
STATE_HEADS = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
LINEAR_HEADS = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LIKE_LLAMA, LLAMA),
    "GraniteMoeConfig": {**LLAMA, "num_local_experts": 2},
    "GptOssConfig": {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Qwen3MoeConfig": EXPERTS,
    "OlmoeConfig": {**LLAMA, "num_experts": 2, "num_experts_per_tok": 1},
    "Qwen3NextConfig": {**EXPERTS, **LINEAR_HEADS, "shared_expert_intermediate_size": 8},
    "MiniMaxConfig": {
        **LLAMA,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
    },
    "DiffLlamaConfig": {**LLAMA, "num_key_value_heads": 2},
    "Gemma3nTextConfig": {
        **LLAMA,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": None,
    },
    "Llama4TextConfig": {
        **LLAMA,
        "num_local_experts": 2,
        "intermediate_size_mlp": 24,
        "attention_chunk_size": 8,
    },
    "DeepseekV3Config": {
        **LLAMA,
        "num_key_value_heads": 2,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "FalconH1Config": {
        **LLAMA,
        "lm_head_multiplier": 0.3,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "RecurrentGemmaConfig": {
        **LLAMA,
        "num_hidden_layers": 3,
        "lru_width": 16,
        "attention_window_size": 8,
    },
    "MambaConfig": {**SMALL, "state_size": 4},
    "Mamba2Config": {
        **SMALL,
        "state_size": 8,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "FalconMambaConfig": {**SMALL, "state_size": 4},
    "JambaConfig": {
        **LLAMA,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "BambaConfig": {**LLAMA, **STATE_HEADS, "mamba_expand": 2, "attn_layer_indices": [1]},
    "Zamba2Config": {
        **LLAMA,
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "chunk_size": 8,
    },
    "NemotronHConfig": {
        **LLAMA,
        "num_hidden_layers": 4,
        "hybrid_override_pattern": "M-*-",
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "GraniteMoeHybridConfig": {
        **LLAMA,
        **STATE_HEADS,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 8,
        "layer_types": ["mamba", "attention"],
    },
    "Lfm2Config": {**LLAMA, "full_attn_idxs": [1], "conv_L_cache": 3, "block_multiple_of": 8},
    "xLSTMConfig": {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2},
    "RwkvConfig": {
        **SMALL,
        "attention_hidden_size": HIDDEN,
        "intermediate_size": 24,
        "context_length": 64,
    },
    "GPTBigCodeConfig": GPT,
    "OpenAIGPTConfig": GPT,
    "GPTNeoConfig": {
        **SMALL,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global"], 2]],
        "max_position_embeddings": 64,
    },
    "GPTNeoXJapaneseConfig": {**SMALL, "intermediate_multiple_size": 2},
    "CodeGenConfig": {**GPT, "n_head": 4, "rotary_dim": 4},
    "CTRLConfig": {**GPT, "dff": 24},
    "ModernBertDecoderConfig": {
        **SMALL,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "ReformerConfig": {
        **IDS,
        "hidden_size": HIDDEN,
        "is_decoder": True,
        "attention_head_size": 8,
        "num_attention_heads": 2,
        "feed_forward_size": 24,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 8],
        "max_position_embeddings": 64,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
    },
    "BioGptConfig": {**SMALL, "intermediate_size": 24},
    "XGLMConfig": {
        **IDS,
        "d_model": 16,
        "num_layers": 2,
        "attention_heads": 2,
        "ffn_dim": 24,
    },
}
"""Further architectures, of which one round trip is tried: class of configuration -> values."""


TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "patch_size": 14,
}
QWEN_IDS = {
    "image_token_id": 92,
    "video_token_id": 93,
    "vision_start_token_id": 94,
    "vision_end_token_id": 95,
}
ROTATED_IN_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
WRAPPERS: dict[str, dict[str, Any]] = {
    "Qwen2VLConfig": {
        "text_config": {**LLAMA, "rope_parameters": ROTATED_IN_SECTIONS},
        "vision_config": {
            **{"depth": 2, "embed_dim": 16, "hidden_size": HIDDEN, "num_heads": 2},
            **{"mlp_ratio": 2, "patch_size": 14},
        },
        **QWEN_IDS,
        "tie_word_embeddings": True,
    },
    "Qwen2_5_VLConfig": {
        "text_config": {**LLAMA, "rope_parameters": ROTATED_IN_SECTIONS},
        "vision_config": {**QWEN_TOWER, "fullatt_block_indexes": [1]},
        **QWEN_IDS,
        "tie_word_embeddings": False,
    },
    "Qwen3VLConfig": {
        "text_config": {**LLAMA, "rope_parameters": ROTATED_IN_SECTIONS},
        "vision_config": {
            **QWEN_TOWER,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **QWEN_IDS,
        "tie_word_embeddings": True,
    },
    "Mistral3Config": {
        "text_config": {"model_type": "mistral", **LLAMA},
        "vision_config": {"model_type": "pixtral", **TOWER},
        "image_token_index": 95,
        "tie_word_embeddings": False,
    },
    "InternVLConfig": {
        "text_config": {"model_type": "qwen2", **LLAMA},
        "vision_config": {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 95,
        "tie_word_embeddings": False,
    },
    "Idefics3Config": {
        "text_config": {"model_type": "llama", **LLAMA},
        "vision_config": TOWER,
        "image_token_id": 95,
        "tie_word_embeddings": False,
    },
    "LlavaConfig": {
        "text_config": {"model_type": "llama", **LLAMA},
        "vision_config": {"model_type": "clip_vision_model", **TOWER},
        "image_token_index": 95,
        "tie_word_embeddings": False,
    },
    "PaliGemmaConfig": {
        "text_config": {"model_type": "gemma", **LLAMA},
        "vision_config": {"model_type": "siglip_vision_model", **TOWER, "projection_dim": HIDDEN},
        "image_token_index": 95,
        "projection_dim": HIDDEN,
        "hidden_size": HIDDEN,
        "tie_word_embeddings": True,
    },
    "Qwen3_5Config": {
        "text_config": {
            **LLAMA,
            **LINEAR_HEADS,
            "rope_parameters": {**ROTATED_IN_SECTIONS, "partial_rotary_factor": 1.0},
        },
        "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16},
        **QWEN_IDS,
        "tie_word_embeddings": True,
    },
    "Llama4Config": {
        "text_config": {
            **LLAMA,
            "num_local_experts": 2,
            "intermediate_size_mlp": 24,
            "attention_chunk_size": 8,
        },
        "vision_config": {
            **TOWER,
            "vision_output_dim": HIDDEN,
            "projector_input_dim": HIDDEN,
            "projector_output_dim": HIDDEN,
        },
        "image_token_index": 95,
        "tie_word_embeddings": False,
    },
    "SmolVLMConfig": {
        "text_config": {"model_type": "llama", **LLAMA},
        "vision_config": TOWER,
        "image_token_id": 95,
        "tie_word_embeddings": True,
    },
}
"""Wrappers around a language model and a vision tower that has as many layers and is as wide."""

OTHERS: dict[str, dict[str, Any]] = {
    "BertConfig": {**SMALL, "intermediate_size": 24, "max_position_embeddings": 64},
    "T5Config": {**IDS, "d_model": HIDDEN, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "XLNetConfig": {**IDS, "d_model": HIDDEN, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "ViTConfig": TOWER,
}
"""What does not generate text token by token: refused with a reason."""


class StubTokenizer:
    """The little of a tokenizer that `models.wrap_model` looks at."""

    pad_token_id = 0

    def __len__(self) -> int:
        return VOCAB


def make_architecture(name: str, **changes: Any) -> Any:
    """A seeded random model; biases and norms are random too, so that none goes unnoticed."""
    chosen = ARCHITECTURES[name]
    return make_random_model(chosen.config_class, {**chosen.values, **changes})


def make_random_model(config_class: str, values: dict[str, Any]) -> Any:
    """As `make_architecture`, of any configuration; a wrapper with its tower."""
    import torch
    import transformers
    from torch import nn

    from eigenshift.model.classes import choose_auto_class, find_class

    config = getattr(transformers, config_class)(**values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto_class: Any = choose_auto_class(config)
        if config_class in WRAPPERS:
            auto_class = transformers.AutoModelForImageTextToText
        if config_class in OTHERS and find_class(config, is_causal=True) is None:
            auto_class = transformers.AutoModel
        model = auto_class.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model.eval()


def damp_head(language_model: LanguageModel, factor: float, shift: float = 0.0) -> ModelEdit:
    """Damp two components of a model's head, around a value that is not zero if `shift` is not."""
    import numpy as np

    from eigenshift.components.decomposition import decompose_head
    from eigenshift.patches.edits import HeadEdit, ModelEdit

    v = decompose_head(language_model.head_weight.double()).v[:, [0, 3]]
    return ModelEdit(HeadEdit.scale_directions(v, factor, target=np.array([shift, -shift])))


def scale_units(language_model: LanguageModel, names: list[str], shift: float = 0.0) -> ModelEdit:
    """Scale (and shift) the output units of some modules by made-up numbers."""
    import torch

    from eigenshift.patches.edits import ModelEdit, UnitEdit

    generator = torch.Generator().manual_seed(0)
    edits = {}
    for name in names:
        module = language_model.model.get_submodule(name)
        is_transposed = type(module).__name__ == "Conv1D"
        n_units = module.weight.shape[1 if is_transposed else 0]
        scale = torch.rand(n_units, generator=generator, dtype=torch.float64) + 0.5
        offset = shift * torch.randn(n_units, generator=generator, dtype=torch.float64)
        edits[name] = UnitEdit(scale, offset)
    return ModelEdit(units=edits)


def change_linears(
    language_model: LanguageModel,
    names: list[str],
    ranks: tuple[int, ...] = (1, 2, 3),
    seed: int = 0,
) -> ModelEdit:
    """Add made-up products to the weights of some linear layers, their ranks in turn."""
    import torch

    from eigenshift.model.writers import count_features
    from eigenshift.patches.edits import LinearEdit, ModelEdit

    generator = torch.Generator().manual_seed(seed)
    edits = {}
    for number, name in enumerate(names):
        features = count_features(language_model.model.get_submodule(name))
        assert features is not None
        rank = ranks[number % len(ranks)]
        right, left = (
            torch.randn(n, rank, generator=generator, dtype=torch.float64) / n**0.5
            for n in features
        )
        edits[name] = LinearEdit(left, right)
    return ModelEdit(linears=edits)


def list_mlp_layers(language_model: LanguageModel) -> list[str]:
    """Names of the MLPs' linear layers, as unit scaling finds them."""
    from eigenshift.model.layers import list_layers
    from eigenshift.model.taps import list_sites
    from eigenshift.settings import Site

    names = {id(module): name for name, module in language_model.model.named_modules()}
    sites = (Site.mlp_up, Site.mlp_gate, Site.mlp_down)
    return [
        names[id(taps[site].module)]
        for layer, block in enumerate(list_layers(language_model.model))
        for taps in [list_sites(block, layer)]
        for site in sites
        if site in taps
    ]


def save_two_tensors(folder: Path, name: str) -> None:
    """Save a model whose configuration calls its head tied and whose files hold two tensors."""
    import json

    from safetensors.torch import load_file, save_file

    model = make_architecture(name)
    model.save_pretrained(folder)
    path, config = folder / "model.safetensors", folder / "config.json"
    head = {"lm_head.weight": model.lm_head.weight.detach().flip(0).contiguous()}
    save_file(load_file(path) | head, path, metadata={"format": "pt"})
    document = json.loads(config.read_text()) | {"tie_word_embeddings": True}
    config.write_text(json.dumps(document))
