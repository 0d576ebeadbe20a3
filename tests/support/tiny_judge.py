"""A tiny random causal model as a judge: its tokenizer adds a BOS, and so does its template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BOS = "<|bos|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
N_POSITIONS = 256


def make_judge(folder: Path, source: Path, *, has_template: bool, seed: int = 0) -> Path:
    """Write a seeded two-layer GPT-2 (safetensors) and its tokenizer into a folder.

    Args:
        folder: Receives the files.
        source: Folder whose tokenizer is taken.
        has_template: With a chat template.
        seed: Of the weights.
    """
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens(
        {"bos_token": BOS, "additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]}
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE if has_template else None
    configuration = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=2,
        n_head=4,
        n_embd=32,
        n_positions=N_POSITIONS,
        initializer_range=0.4,  # verdicts differ between texts
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        GPT2LMHeadModel(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
