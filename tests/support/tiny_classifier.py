"""Tiny random text classifiers, built from configuration, with a tokenizer that needs no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_classifier(
    folder: Path,
    tokenizer: Any,
    labels: list[str],
    problem_type: str | None = None,
    seed: int = 0,
) -> Path:
    """Write a seeded one-layer BERT classifier (safetensors) and its tokenizer into a folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    configuration = BertConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,  # scores differ between texts
        pad_token_id=len(tokenizer),
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        problem_type=problem_type,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertForSequenceClassification(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_pad_token(folder)
    return folder


def add_pad_token(folder: Path) -> None:
    """Give the tokenizer of a folder a pad token of its own: the next free id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
