"""LoRA exports: an adapter PEFT loads, merges and adds up; what it cannot hold is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from eigenshift.base.errors import ModelError
from eigenshift.exporting import ExportOptions, export_patch
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.lora import UNTIED_FOLDER, describe_use, write_lora
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import LinearEdit, LogitEdit, ModelEdit
from eigenshift.patches.patching import compute_parameters, make_patch, patched_model
from tests.support.architectures import (
    ARCHITECTURES,
    MORE,
    StubTokenizer,
    change_linears,
    damp_head,
    list_mlp_layers,
    make_architecture,
    make_random_model,
    save_two_tensors,
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


# Linear layers


def export_edit(
    language_model: LanguageModel, edit: ModelEdit, folder: Path, *, unties: bool = False
) -> dict[str, Any]:
    """Save a base, write the adapter of an edit of it; the adapter's configuration."""
    language_model.model.save_pretrained(folder / "base")
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    base = open_patched_base(folder / "base", patch, "float32")
    (folder / "out").mkdir()
    write_lora(base, folder / "out", model_id="tiny", unties=unties)
    assert (UNTIED_FOLDER in describe_use(base)) == (folder / "out" / UNTIED_FOLDER).exists()
    return json.loads((folder / "out" / "adapter_config.json").read_text())


def assert_adapted(language_model: LanguageModel, edit: ModelEdit, folder: Path) -> None:
    """PEFT gives the patched logits from the adapter and merged, and without it the base's."""
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    before = run(language_model.model)
    with patched_model(language_model, patch):
        expected = run(language_model.model)
    assert not torch.allclose(expected, before, rtol=1e-2)
    untied = folder / "out" / UNTIED_FOLDER
    source = untied if untied.exists() else folder / "base"
    base = AutoModelForCausalLM.from_pretrained(source)
    model = peft.PeftModel.from_pretrained(base, folder / "out").eval()
    scale = float(expected.abs().max())
    torch.testing.assert_close(run(model), expected, atol=1e-5 * scale, rtol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(run(model), before, atol=1e-5 * scale, rtol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(run(merged), expected, atol=1e-5 * scale, rtol=1e-5)


def wrap(model: Any) -> LanguageModel:
    """A model ready to run."""
    return wrap_model(model, StubTokenizer(), model_id="tiny", digest="d")


@pytest.mark.parametrize("has_head", [False, True], ids=["linears", "linears and head"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_of_linear_layers(name: str, has_head: bool, tmp_path: Path) -> None:
    """Every architecture, ranks of 1 to 3, with the head (untied where it has to be) or without."""
    base = wrap(make_architecture(name))
    names = list(list_writers(base.model))
    head = damp_head(base, 0.25).head if has_head else None
    edit = ModelEdit(head, linears=change_linears(base, names).linears)
    config = export_edit(base, edit, tmp_path, unties=has_head)
    assert config["target_modules"] == names + [base.head.name] * has_head
    assert (tmp_path / "out" / UNTIED_FOLDER).exists() == (has_head and base.head.is_tied)
    assert_adapted(base, edit, tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_layers_1_and_11_are_told_apart(name: str, tmp_path: Path) -> None:
    """PEFT matches names by their ends and shortens long lists; each layer gets its own rank."""
    size = {"n_layer": 12} if name == "gpt2" else {"num_hidden_layers": 12}
    base = wrap(make_architecture(name, **size))
    names = [path for path in list_writers(base.model) if ".0." not in path]
    assert len(names) > 20
    edit = change_linears(base, names, ranks=(1, 2, 3, 4, 5))
    config = export_edit(base, edit, tmp_path)
    assert config["alpha_pattern"] == config["rank_pattern"]
    ranks = {path: config["rank_pattern"].get(path, config["r"]) for path in names}
    assert ranks == {path: linear.rank for path, linear in edit.linears.items()}
    assert config["fan_in_fan_out"] == (name == "gpt2")
    assert_adapted(base, edit, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    modules = dict(adapted.get_base_model().named_modules())
    found = {path: module for path, module in modules.items() if hasattr(module, "lora_A")}
    assert {path: module.r["default"] for path, module in found.items()} == ranks
    assert all(module.scaling["default"] == 1.0 for module in found.values())


def test_an_adapter_is_saved_and_loaded_again_by_peft(tmp_path: Path) -> None:
    """What PEFT writes of it is the same adapter, whatever it did to the configuration."""
    base = wrap(make_architecture("gpt2", n_layer=11, tie_word_embeddings=False))
    linears = change_linears(base, list(list_writers(base.model))).linears
    edit = ModelEdit(damp_head(base, 0.25).head, linears=linears)
    export_edit(base, edit, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.PeftModel.from_pretrained(model, tmp_path / "out").save_pretrained(tmp_path / "again")
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "again").rename(tmp_path / "out")
    assert_adapted(base, edit, tmp_path)


def test_a_tied_head_beside_linear_layers_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """As without them; the linear layers alone need no untying."""
    base = wrap(make_architecture("qwen2"))
    linears = change_linears(base, list(list_writers(base.model))).linears
    with pytest.raises(ModelError, match=r"Use --untie .* or --format merged"):
        export_edit(base, ModelEdit(damp_head(base, 0.25).head, linears=linears), tmp_path)


def test_two_tensors_that_a_configuration_calls_tied_take_an_adapter(tmp_path: Path) -> None:
    """The head is its own in the files: nothing to untie, and merging leaves the embedding."""
    save_two_tensors(tmp_path / "base", "qwen2")
    base = wrap(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    edit = damp_head(base, 0.25)
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    opened = open_patched_base(tmp_path / "base", patch, "float32")
    (tmp_path / "out").mkdir()
    write_lora(opened, tmp_path / "out", model_id="tiny", unties=False)
    assert not (tmp_path / "out" / UNTIED_FOLDER).exists()
    assert "calls its head tied" in describe_use(opened)
    assert_adapted(base, edit, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload()
    embedding = base.model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_a_linear_layer_whose_units_are_scaled_is_refused(tmp_path: Path) -> None:
    """The same parameter, but not a product of low rank alone."""
    base = wrap(make_architecture("llama"))
    (name, *_) = list_writers(base.model)
    edit = ModelEdit(
        units=scale_units(base, [name]).units, linears=change_linears(base, [name]).linears
    )
    with pytest.raises(ModelError, match=rf"found one of {name}\. A LoRA holds no bias"):
        export_edit(base, edit, tmp_path)


def test_a_patch_that_adds_nothing_is_refused(tmp_path: Path) -> None:
    """PEFT has no adapter of rank 0; a layer of rank 0 beside others is left out."""
    base = wrap(make_architecture("llama"))
    first, second, *_ = list_writers(base.model)
    nothing = {first: LinearEdit(torch.zeros(16, 0), torch.zeros(16, 0))}
    with pytest.raises(ModelError, match="found one of nothing"):
        export_edit(base, ModelEdit(linears=nothing), tmp_path / "nothing")
    changed = change_linears(base, [second]).linears
    edit = ModelEdit(linears={**nothing, **changed})
    assert export_edit(base, edit, tmp_path)["target_modules"] == [second]
    assert_adapted(base, edit, tmp_path)


def test_what_peft_refuses_is_refused(tmp_path: Path) -> None:
    """Out-projections of state-space mixers; other layers of such a model are taken."""
    base = wrap(make_random_model("FalconH1Config", MORE["FalconH1Config"]))
    names = list(list_writers(base.model))
    with pytest.raises(ModelError, match=r"found model\.layers\.0\.mamba\.out_proj, which it"):
        export_edit(base, change_linears(base, names), tmp_path / "all")
    edit = change_linears(base, [name for name in names if "mamba" not in name])
    export_edit(base, edit, tmp_path)
    assert_adapted(base, edit, tmp_path)
    with pytest.raises(ValueError, match="incompatible"):
        peft.get_peft_model(base.model, peft.LoraConfig(target_modules=["mamba.out_proj"]))


def add_rows(base: LanguageModel) -> LogitEdit:
    """A made-up change of rank 2 of all tokens' rows."""
    generator = torch.Generator().manual_seed(9)
    sizes = (base.head.vocab, base.head.hidden)
    left, right = (torch.randn(n, 2, generator=generator).double() for n in sizes)
    return LogitEdit.add_product(0.1 * left, right)


@pytest.mark.parametrize("has_head", [False, True], ids=["rows", "rows and head"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere"])
def test_an_adapter_of_tokens_own_rows(name: str, has_head: bool, tmp_path: Path) -> None:
    """Alone it is a linear layer's; beside a change of what enters the head ranks add up."""
    base = wrap(make_architecture(name))
    head = damp_head(base, 0.25).head if has_head else None
    edit = ModelEdit(head, logits=add_rows(base))
    config = export_edit(base, edit, tmp_path, unties=True)
    assert config["target_modules"] == [base.head.name]
    assert config["r"] == 2 + (0 if head is None else head.rank)
    assert_adapted(base, edit, tmp_path)


def test_a_constant_change_of_logits_is_no_adapter(tmp_path: Path) -> None:
    """It is a bias: refused by name."""
    model = make_architecture("gptj")
    model.save_pretrained(tmp_path)
    base = wrap(model)
    edit = ModelEdit(logits=replace(add_rows(base), shift=torch.ones(2).double()))
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    with pytest.raises(ModelError, match=r"lm_head.bias.*A LoRA holds no bias"):
        write_lora(
            open_patched_base(tmp_path, patch, "float32"), tmp_path, model_id="tiny", unties=False
        )
