"""LoRA exports: an adapter PEFT loads, merges and adds up; what it cannot hold is refused."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eigenshift.base.errors import ModelError
from eigenshift.exporting import ExportOptions, export_patch
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.lora import UNTIED_FOLDER, write_lora
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import compute_parameters, make_patch
from tests.support.architectures import (
    StubTokenizer,
    damp_head,
    list_mlp_layers,
    make_architecture,
    scale_units,
)
from tests.support.small_store import SmallStore
from tests.unit.exporting.conftest import TOKENS, compute_patched_logits, open_run_patch


@torch.inference_mode()
def run(model: torch.nn.Module) -> torch.Tensor:
    """Logits of the test's tokens."""
    return model(TOKENS).logits


def test_lora_export_adds_up_to_the_patched_model(
    untied: SmallStore, untied_model: LanguageModel, tmp_path: Path
) -> None:
    """W + B A, with scale lora_alpha / r = 1, is the patched head."""
    out = export_patch(untied.url, None, "lora", tmp_path / "out")
    tensors = load_file(out / "adapter_model.safetensors")
    a = tensors["base_model.model.lm_head.lora_A.weight"]
    b = tensors["base_model.model.lm_head.lora_B.weight"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["lm_head"])
    assert (tuple(a.shape), b.shape[1]) == ((2, 32), 2)
    weight = untied_model.head_module.weight
    patched = compute_parameters(untied_model, open_run_patch(untied))["lm_head.weight"]
    assert torch.allclose(weight + b @ a, patched, atol=1e-5)


def test_lora_export_loads_and_merges_in_peft(
    untied: SmallStore, untied_model: LanguageModel, tmp_path: Path
) -> None:
    """On the base, merged, saved and loaded again: the patched logits each time."""
    out = export_patch(untied.url, None, "lora", tmp_path / "out")
    expected = compute_patched_logits(untied_model, untied)
    base = AutoModelForCausalLM.from_pretrained(untied_model.id)
    model = peft.PeftModel.from_pretrained(base, out).eval()
    torch.testing.assert_close(run(model), expected, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(run(model), run(untied_model.model))
    merged = model.merge_and_unload()
    torch.testing.assert_close(run(merged), expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(run(again), expected, atol=1e-5, rtol=1e-5)


def test_lora_of_a_tied_head_is_refused_with_the_remedy(tied: SmallStore, tmp_path: Path) -> None:
    """The message names what to do, and nothing is left behind."""
    with pytest.raises(ModelError, match=r"Use --untie .* or --format merged"):
        export_patch(tied.url, None, "lora", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_lora_of_a_tied_head_on_the_untied_base(
    tied: SmallStore, tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """`--untie` adds a base whose only difference is a head of its own; merging is then safe."""
    options = ExportOptions(unties=True)
    out = export_patch(tied.url, None, "lora", tmp_path / "out", options)
    base = AutoModelForCausalLM.from_pretrained(out / UNTIED_FOLDER)
    assert base.config.tie_word_embeddings is False
    torch.testing.assert_close(run(base), run(tiny_language_model.model))
    merged = peft.PeftModel.from_pretrained(base, out).merge_and_unload().eval()
    expected = compute_patched_logits(tiny_language_model, tied)
    torch.testing.assert_close(run(merged), expected, atol=1e-5, rtol=1e-5)
    embedding = tiny_language_model.model.get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert (
        f"`{UNTIED_FOLDER}/` is the base with a head of its own" in (out / "README.md").read_text()
    )


@pytest.mark.parametrize("what", ["shift", "units"])
def test_what_a_lora_cannot_hold_is_refused(tmp_path: Path, what: str) -> None:
    """A bias or scaled units are named, and the format that can hold them."""
    model = make_architecture("gptj")
    model.save_pretrained(tmp_path)
    base = wrap_model(model, StubTokenizer(), model_id="tiny", digest="d")
    edit: ModelEdit = damp_head(base, 0.25, shift=0.5)
    if what == "units":
        edit = scale_units(base, list_mlp_layers(base))
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    with pytest.raises(ModelError, match=r"A LoRA holds no bias and no scaled units.*merged"):
        write_lora(
            open_patched_base(tmp_path, patch, "float32"),
            tmp_path,
            model_id="tiny",
            unties=False,
        )
