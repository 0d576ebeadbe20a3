"""Adapters for vLLM and SGLang: what they would not load is refused, the rest is as PEFT's."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from eigenshift.base.errors import ModelError
from eigenshift.exporting import ExportOptions, export_patch
from eigenshift.exporting.adapter_targets import (
    VLLM_PLACES,
    choose_max_rank,
    describe_serving,
    require_adapter,
)
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.lora import write_lora
from eigenshift.model.loading import LanguageModel
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import make_patch
from eigenshift.settings import ExportTarget
from tests.support.architectures import change_linears, damp_head
from tests.support.small_store import SmallStore
from tests.unit.exporting.conftest import TOKENS

VLLM, SGLANG = ExportTarget.vllm, ExportTarget.sglang
ON_LAYER = {"model.layers.0.mlp.down_proj": 8}
ON_BOTH = {**ON_LAYER, "lm_head": 12}


def test_every_type_is_one_of_transformers() -> None:
    """A name misspelt would never be met."""
    assert set(VLLM_PLACES) <= set(CONFIG_MAPPING)


def test_the_bound_to_start_vllm_with() -> None:
    """The least it knows that is no smaller."""
    assert [choose_max_rank(rank) for rank in (1, 2, 16, 17, 512, 513)] == [1, 8, 16, 32, 512, None]


def test_what_loads_is_taken() -> None:
    """Llama has both places, Qwen2 only layers; SGLang goes by the modules' names."""
    require_adapter(VLLM, "llama", ON_BOTH, "lm_head", 32_000)
    require_adapter(VLLM, "qwen2", ON_LAYER, "lm_head", 151_936)
    require_adapter(SGLANG, "qwen2", ON_BOTH, "lm_head", 151_936)


@pytest.mark.parametrize(
    ("target", "model_type", "ranks", "vocab", "reason"),
    [
        (VLLM, "qwen2", ON_BOTH, 100, "on linear layers, not on the head"),
        (VLLM, "gpt2", {"transformer.h.0.mlp.c_proj": 2}, 100, "takes no adapters"),
        (VLLM, "an_unknown_type", ON_LAYER, 100, "is not known"),
        (VLLM, "llama", ON_BOTH, 262_144, "at most 258048 tokens, here 262144"),
        (VLLM, "llama", {"lm_head": 513}, 100, "largest rank is 512, here 513"),
        (SGLANG, "gpt2", {"transformer.h.0.mlp.c_proj": 2}, 100, "no adapter on transformer.h.0"),
        (ExportTarget.gguf, "llama", ON_BOTH, 100, "adapters in GGUF were not looked into"),
    ],
)
def test_what_does_not_load_is_refused_with_its_reason(
    target: ExportTarget, model_type: str, ranks: dict[str, int], vocab: int, reason: str
) -> None:
    """And the way out is named."""
    with pytest.raises(ModelError, match=rf"{reason}.*Use --format merged"):
        require_adapter(target, model_type, ranks, "lm_head", vocab)


def test_modules_of_one_rank_are_the_same_adapter(
    untied_model: LanguageModel, tmp_path: Path
) -> None:
    """SGLang reads one rank: the others are filled with zeros; PEFT gives the same logits."""
    names = list(list_writers(untied_model.model))[:3]
    linears = change_linears(untied_model, names).linears
    edit = ModelEdit(damp_head(untied_model, 0.25).head, linears=linears)
    patch = make_patch(untied_model, edit, model_id="tiny", intervention="test")
    base = open_patched_base(Path(untied_model.id), patch, "float32")
    logits = []
    for targets in ((), (VLLM, SGLANG)):
        out = tmp_path / f"out-{len(targets)}"
        out.mkdir()
        rank = write_lora(base, out, model_id="tiny", unties=False, targets=targets)
        config = json.loads((out / "adapter_config.json").read_text())
        assert rank == config["r"] == 3
        assert bool(config["rank_pattern"]) is not bool(targets)
        found = AutoModelForCausalLM.from_pretrained(untied_model.id)
        adapted = peft.PeftModel.from_pretrained(found, out).eval()
        with torch.inference_mode():
            logits.append(adapted(TOKENS).logits)
    assert {len(tensor) for key, tensor in load_file(out / "adapter_model.safetensors").items()
            if "lora_A" in key} == {3}  # fmt: skip
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_the_card_says_how_it_is_served(untied: SmallStore, tmp_path: Path) -> None:
    """With the bound on the rank; without a target it says what was not checked."""
    options = ExportOptions(targets=(VLLM, SGLANG))
    card = (
        export_patch(untied.url, None, "lora", tmp_path / "out", options) / "README.md"
    ).read_text()
    assert "--enable-lora --max-lora-rank 8" in card
    assert "sglang.launch_server" in card
    assert "--target vllm" in describe_serving((), 2, "base")


def test_an_export_for_a_server_that_would_not_load_it_leaves_nothing(
    tied: SmallStore, tmp_path: Path
) -> None:
    """GPT-2 has no adapters in vLLM."""
    options = ExportOptions(unties=True, targets=(VLLM,))
    with pytest.raises(ModelError, match="takes no adapters"):
        export_patch(tied.url, None, "lora", tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []
