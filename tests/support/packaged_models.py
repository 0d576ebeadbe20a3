"""A made-up model in a made-up package: a tiny Llama as quantised GGUF inside a wheel.

Written with the gguf library's own writer, in llama.cpp's order and names; what the values stand
for is worked out here from the bytes, in float64, without that library.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eigenshift.fetching.catalogue import PackagedModel

BLOCK = 32
SPECIAL = ("<|end|>", "<|start|>")
CHAT_TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}{% endfor %}"
MEMBER = "made_up_model/tiny.gguf"
LICENCE = "Use it as you like.\n"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class MadeUpPackage:
    """A package, and what a folder made from it should be.

    Attributes:
        model: Its entry for the catalogue.
        wheel: The file.
        reference: The model as transformers has it, with the values that were quantised.
        tokenizer: The one the file's tokens and merges are from.
    """

    model: PackagedModel
    wheel: Path
    reference: Any
    tokenizer: Tokenizer


def build_package(folder: Path, texts: Sequence[str]) -> MadeUpPackage:
    """Make the model, quantise it, pack it."""
    tokenizer = train_tokenizer(texts)
    reference = make_llama(tokenizer.get_vocab_size())
    path = write_gguf(folder / "tiny.gguf", reference, tokenizer)
    wheel = pack_wheel(folder, path)
    model = PackagedModel(
        name="tiny",
        title="Tiny-Llama-Made-Up",
        origin="https://example.org/someone/tiny",
        makers="Someone",
        quantised_at="https://example.org/someone/tiny-gguf",
        licence="MIT",
        package="made-up-model",
        version="1.0",
        wheel_sha256=digest(wheel),
        gguf_member=MEMBER,
        gguf_sha256=digest(path),
        licence_member="made_up_model-1.0.dist-info/LICENSE",
        precision="4-bit",
        folder_bytes=1_000_000,
    )
    return MadeUpPackage(model, wheel, reference, tokenizer)


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE that takes digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_llama(vocab: int) -> Any:
    """A seeded random Llama of two layers with a tied head; norms are random too."""
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def write_gguf(path: Path, reference: Any, tokenizer: Tokenizer, **changes: str) -> Path:
    """Write a model as llama.cpp's converter would, and put what it became into `reference`.

    Args:
        path: The file.
        reference: The model; its matrices become the values that the file holds.
        tokenizer: Its tokenizer.
        changes: `architecture` or `pre`, if they shall be others.
    """
    config = reference.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokenizer(writer, tokenizer, changes.get("pre", "smollm"))
    n_heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads,
    }
    for name, parameter in reference.named_parameters():
        _add_tensor(writer, _name_in_gguf(name), parameter.data, n_heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pack_wheel(folder: Path, weights: Path) -> Path:
    """Pack a file as a package that pip takes."""
    info = "made_up_model-1.0.dist-info"
    path = folder / "made_up_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(weights, MEMBER)
        archive.writestr(f"{info}/LICENSE", LICENCE)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: made-up-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def digest(path: Path) -> str:
    """sha256, by the standard library alone."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def decode_q4_1(rows: np.ndarray) -> np.ndarray:
    """What Q4_1 bytes stand for: per 32 values a scale, a least value, and 16 bytes of nibbles.

    Args:
        rows: uint8, shape (row, 20 per block).

    Returns:
        float64, shape (row, 32 per block).
    """
    blocks = np.ascontiguousarray(rows).reshape(-1, 20)
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float64).T
    low, high = blocks[:, 4:] & 15, blocks[:, 4:] >> 4
    steps = np.concatenate([low, high], axis=1).astype(np.float64)
    return (scale[:, None] * steps + least[:, None]).reshape(len(rows), -1)


def decode_q8_0(rows: np.ndarray) -> np.ndarray:
    """What Q8_0 bytes stand for: per 32 values a scale and 32 signed bytes.

    Args:
        rows: uint8, shape (row, 34 per block).

    Returns:
        float64, shape (row, 32 per block).
    """
    blocks = np.ascontiguousarray(rows).reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
    return (scale * blocks[:, 2:].view(np.int8)).reshape(len(rows), -1)


def interleave(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of transformers' rotary heads in llama.cpp's order, one by one."""
    width = len(rows) // n_heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(n_heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return rows[order]


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, splitting: str) -> None:
    state = tokenizer.get_vocab()
    tokens = sorted(state, key=state.__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    merges = _read_merges(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def _read_merges(tokenizer: Tokenizer) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _name_in_gguf(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def _add_tensor(writer: Any, name: str, values: torch.Tensor, n_heads: dict[str, int]) -> None:
    """Add one tensor, and change `values` to what was added."""
    plain = values.numpy()
    if values.ndim == 1:
        writer.add_tensor(name, plain)
        return
    is_embedding = name == "token_embd.weight"
    kind = gguf.GGMLQuantizationType.Q8_0 if is_embedding else gguf.GGMLQuantizationType.Q4_1
    packed = gguf.quantize(plain, kind)
    decode = decode_q8_0 if is_embedding else decode_q4_1
    values.copy_(torch.from_numpy(decode(packed)))
    heads = n_heads.get(name.split(".")[-2])
    writer.add_tensor(name, packed if heads is None else interleave(packed, heads), raw_dtype=kind)
