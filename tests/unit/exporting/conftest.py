"""Stores about a tied and an untied tiny model, and what their patches give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from eigenshift.model import loading
from eigenshift.model.loading import LanguageModel, load_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import (
    Patch,
    load_patch,
    make_patch,
    patched_model,
    write_patch,
)
from eigenshift.settings import ModelSettings
from tests.support.architectures import change_linears, damp_head
from tests.support.small_store import SmallStore, build_small_store

TOKENS = torch.tensor([[5, 9, 17, 3, 40, 2]])


@pytest.fixture(scope="package")
def tied(
    tmp_path_factory: pytest.TempPathFactory, tiny_language_model: LanguageModel
) -> SmallStore:
    """A store about the tiny GPT-2, whose head is tied."""
    return build_small_store(str(tmp_path_factory.mktemp("tied")), tiny_language_model)


@pytest.fixture(scope="package")
def untied_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Iterator[LanguageModel]:
    """A tiny random Llama with a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    yield load_model(ModelSettings(id=str(folder)), device="cpu")
    loading.forget_models()


@pytest.fixture(scope="package")
def untied(tmp_path_factory: pytest.TempPathFactory, untied_model: LanguageModel) -> SmallStore:
    """A store about the tiny Llama."""
    return build_small_store(str(tmp_path_factory.mktemp("untied")), untied_model)


def open_run_patch(small: SmallStore) -> Patch:
    """The run's patch."""
    return load_patch(
        small.find_file("patch-eigenshift", "patch.safetensors"),
        small.find_file("patch-eigenshift", "patch.json"),
    )


def compute_patched_logits(language_model: LanguageModel, small: SmallStore) -> torch.Tensor:
    """Logits of the base with the run's patch."""
    with patched_model(language_model, open_run_patch(small)), torch.inference_mode():
        return language_model.model(TOKENS).logits.clone()


def add_linear_patch(small: SmallStore, language_model: LanguageModel, *, has_head: bool) -> Patch:
    """Give a store's run another patch, arm "deep", of every writer and maybe the head."""
    names = list(list_writers(language_model.model))
    head = damp_head(language_model, 0.25).head if has_head else None
    patch = make_patch(
        language_model,
        ModelEdit(head, linears=change_linears(language_model, names).linears),
        model_id="tiny",
        intervention="deep",
    )
    small.add_artifact(small.record, "patch", lambda w: write_patch(patch, w), label="deep")
    return patch
