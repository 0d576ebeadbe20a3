"""Wrappers around a language model and a vision tower: loaded, studied, patched, exported whole.

Tiny random ones; the tower has as many layers as the language model, so that a mix-up shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenshift.base.errors import ModelError
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.checks import check_files, check_reloaded, measure_patched
from eigenshift.exporting.lora import write_lora
from eigenshift.exporting.merged import write_merged
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel, forget_models, load_model, load_text_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.settings import ModelSettings
from tests.support.architectures import (
    WRAPPERS,
    change_linears,
    damp_head,
    list_mlp_layers,
    make_random_model,
    scale_units,
)

CAUSAL = tuple(name for name in WRAPPERS if name != "PaliGemmaConfig")
TOWER_PARTS = ("vision", "visual", "projector", "connector")
N_TOKENS = 320
TOKENS = (torch.arange(24).reshape(2, 12) * 3 + 4) % 90


def save(name: str, tokenizer: Any, folder: Path, **changes: Any) -> Path:
    """A random wrapper and the tiny tokenizer in a folder."""
    values = WRAPPERS[name] | changes
    text = values["text_config"] | {"vocab_size": N_TOKENS}
    make_random_model(name, values | {"text_config": text}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> LanguageModel:
    """As a run loads it; nobody else has it."""
    forget_models()
    found = load_model(ModelSettings(id=str(folder)), "cpu")
    forget_models()
    return found


def describe(language_model: LanguageModel) -> Patch:
    """A patch of the head, of MLP units and of layers that write into the residual stream."""
    units = scale_units(language_model, list_mlp_layers(language_model)).units
    linears = change_linears(language_model, list(list_writers(language_model.model))).linears
    edit = ModelEdit(damp_head(language_model, 0.25).head, units, linears)
    return make_patch(language_model, edit, model_id=language_model.id, intervention="test")


@torch.inference_mode()
def run(model: Any) -> torch.Tensor:
    """Logits of the test's tokens."""
    logits: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return logits.double()


@pytest.mark.parametrize("name", CAUSAL)
def test_a_wrapper_keeps_its_tower(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """The merged export loads by the wrapper's class: patched logits, the tower byte for byte."""
    from transformers import AutoModelForImageTextToText

    (tmp_path / "out").mkdir()
    folder = save(name, tiny_tokenizer, tmp_path / "base")
    (folder / "preprocessor_config.json").write_text('{"made": "up"}')
    language_model = load(folder)
    patch = describe(language_model)
    names = {id(module): key for key, module in language_model.model.named_modules()}
    for block in list_layers(language_model.model):
        assert not any(part in names[id(block)] for part in TOWER_PARTS)
    base = open_patched_base(folder, patch, "float32")
    written = write_merged(base, tmp_path / "out")
    assert written == {key: item.patched for key, item in patch.description.tensors.items()}
    check_files(base, tmp_path / "out", written)
    measured = measure_patched(language_model, patch)
    check_reloaded(tmp_path / "out", measured, written, unties=base.is_tied)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    tower = [key for key in before if any(part in key for part in TOWER_PARTS)]
    assert len(tower) > 10
    assert all(torch.equal(before[key], after[key]) for key in tower)
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert type(exported) is type(language_model.model)
    with patched_model(language_model, patch):
        expected = run(language_model.model)
    torch.testing.assert_close(run(exported), expected, rtol=1e-5, atol=1e-4)
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"made": "up"}'


def test_an_exported_wrapper_still_sees(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """What it says about an image is what the base with the patch says."""
    from transformers import AutoModelForImageTextToText

    (tmp_path / "out").mkdir()
    folder = save("LlavaConfig", tiny_tokenizer, tmp_path / "base")
    language_model = load(folder)
    patch = describe(language_model)
    write_merged(open_patched_base(folder, patch, "float32"), tmp_path / "out")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[5, 95, 95, 95, 95, 17, 18]])
    with torch.inference_mode(), patched_model(language_model, patch):
        expected = language_model.model(input_ids=tokens, pixel_values=pixels).logits
        found = exported(input_ids=tokens, pixel_values=pixels).logits
        other = exported(input_ids=tokens, pixel_values=-pixels).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(found, other, rtol=1e-3)


def test_a_flat_configuration_is_untied_too(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Qwen2.5-VL's own files have no `text_config`: all stands at the top."""
    (tmp_path / "out").mkdir()
    folder = save("Qwen2_5_VLConfig", tiny_tokenizer, tmp_path / "base", tie_word_embeddings=True)
    document = json.loads((folder / "config.json").read_text())
    text = document.pop("text_config")
    text.pop("model_type")
    (folder / "config.json").write_text(json.dumps(text | document))
    language_model = load(folder)
    assert language_model.head.is_tied
    patch = describe(language_model)
    base = open_patched_base(folder, patch, "float32")
    written = write_merged(base, tmp_path / "out")
    measured = measure_patched(language_model, patch)
    check_reloaded(tmp_path / "out", measured, written, unties=True)


def test_a_lora_of_a_wrapper(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """PEFT puts it on the language model's layers, by their full names."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    (tmp_path / "out").mkdir()
    folder = save("Mistral3Config", tiny_tokenizer, tmp_path / "base")
    language_model = load(folder)
    linears = change_linears(language_model, list(list_writers(language_model.model))).linears
    edit = ModelEdit(damp_head(language_model, 0.25).head, linears=linears)
    patch = make_patch(language_model, edit, model_id="m", intervention="test")
    base = open_patched_base(folder, patch, "float32")
    write_lora(base, tmp_path / "out", model_id="m", unties=False)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    with patched_model(language_model, patch):
        expected = run(language_model.model)
    torch.testing.assert_close(run(adapted), expected, rtol=1e-5, atol=1e-4)


def test_a_wrapper_that_reads_its_prompt_both_ways_is_refused(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """PaliGemma: what is studied here needs states that do not know later tokens."""
    folder = save("PaliGemmaConfig", tiny_tokenizer, tmp_path / "base")
    with pytest.raises(ModelError, match="whose earlier states depend on later tokens"):
        load(folder)


def test_a_vision_model_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """It has neither a causal class nor one for images and text."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**sizes, intermediate_size=8, image_size=8, patch_size=4)).save_pretrained(
        tmp_path
    )
    tiny_tokenizer.save_pretrained(tmp_path)
    forget_models()
    with pytest.raises(ModelError, match="neither for text nor for images and text"):
        load_text_model(ModelSettings(id=str(tmp_path)), "cpu")
