"""Quantised trunks: the head's patch is exact, a deep patch stands beside the codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from eigenshift.base.errors import FoldingError, ModelError
from eigenshift.evaluation.reload_check import check_reload
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.checks import check_files
from eigenshift.exporting.lora import describe_use, write_lora
from eigenshift.exporting.merged import write_merged
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.heads import find_head
from eigenshift.model.layers import keep_codes
from eigenshift.model.loading import LanguageModel, forget_models, load_model
from eigenshift.model.writers import holds_values, list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import fold_edit, run_hooked
from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    load_patch,
    make_patch,
    patched_model,
    save_patch,
)
from eigenshift.patches.served_forms import iterate_forms
from eigenshift.settings import BlockFormat, ModelSettings
from eigenshift.store.workspace import Workspace
from tests.support.architectures import change_linears, damp_head, make_architecture

IDS = torch.tensor([[5, 9, 17, 3, 40, 2]])
SIZES = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}  # blocks of 4-bit codes


def make_configuration(name: str) -> Any:
    """A quantiser that runs on the CPU."""
    if name.startswith("bitsandbytes"):
        bits = int(name[-1])
        return BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
        )
    pytest.importorskip("torchao", reason="torchao is not installed (pip install torchao)")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(scope="module", params=["bitsandbytes 8", "bitsandbytes 4", "torchao int8"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Path:
    """A Llama whose trunk is stored in codes."""
    configuration = make_configuration(request.param)
    place = tmp_path_factory.mktemp("quantised")
    full = make_architecture("llama", vocab_size=len(tiny_tokenizer), **SIZES)
    full.save_pretrained(place / "full")
    model = AutoModelForCausalLM.from_pretrained(
        place / "full", quantization_config=configuration, dtype=torch.float32
    )
    model.save_pretrained(place / "base")
    tiny_tokenizer.save_pretrained(place / "base")
    return place / "base"


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LanguageModel]:
    """The same, loaded by its settings."""
    forget_models()
    yield load_model(ModelSettings(id=str(folder)), "cpu")
    forget_models()


def make_deep(model: LanguageModel) -> Patch:
    """A patch of the head and of all writers."""
    names = list(list_writers(model.model, with_quantised=True))
    edit = ModelEdit(damp_head(model, 0.25).head, linears=change_linears(model, names).linears)
    return make_patch(model, edit, model_id="tiny", intervention="deep")


@torch.inference_mode()
def run(model: Any) -> torch.Tensor:
    """Logits of the test's tokens."""
    return model(input_ids=IDS, use_cache=False).logits.clone()


def test_the_head_is_exact_and_its_patch_folds(model: LanguageModel, folder: Path) -> None:
    """The head has the unquantised model's bytes; the trunk holds codes, whatever they say."""
    full = AutoModelForCausalLM.from_pretrained(folder.parent / "full")
    assert torch.equal(model.head_weight, full.lm_head.weight)
    layers = list_writers(model.model, with_quantised=True)
    assert len(layers) == 4
    assert not any(map(holds_values, layers.values()))
    assert list_writers(model.model) == {}
    edit = damp_head(model, 0.25)
    patch = make_patch(model, edit, model_id="tiny", intervention="head")
    assert (patch.description.beside, patch.description.format_version) == ((), 2)
    expected = fold_edit(model, edit)["lm_head.weight"]
    states = dict(iterate_head_states(model, IDS.tolist(), 64))[0]
    with patched_model(model, patch):
        torch.testing.assert_close(run(model.model)[0], states @ expected.T, atol=1e-5, rtol=1e-5)


def decode(layer: Any) -> torch.Tensor:
    """A layer's values, by its own library."""
    weight: Any = layer.weight
    if isinstance(weight, bitsandbytes.nn.Params4bit):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    if isinstance(weight, bitsandbytes.nn.Int8Params):
        scales = layer.state.SCB if weight.SCB is None else weight.SCB  # where a pass leaves them
        return weight.data.float() * scales[:, None] / 127
    return weight.dequantize()


def find_gradients(model: Any, names: list[str]) -> list[torch.Tensor]:
    """How a loss depends on what layers give."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            seen[name] = output if output.requires_grad else output.requires_grad_(True)
            return seen[name]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.enable_grad():
        loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
        found = torch.autograd.grad(loss, [seen[name] for name in names])
    for handle in handles:
        handle.remove()
    return list(found)


def test_gradients_pass_through_the_codes(model: LanguageModel, folder: Path) -> None:
    """As through a model that holds the decoded values, and after it has run, too."""
    names = list(list_writers(model.model, with_quantised=True))
    plain = AutoModelForCausalLM.from_pretrained(folder.parent / "full").eval()
    plain.requires_grad_(False)
    for name, layer in model.model.named_modules():
        if isinstance(layer, nn.Linear) and not holds_values(layer):
            plain.get_submodule(name).weight = nn.Parameter(decode(layer), False)
    run(model.model)
    found, expected = (find_gradients(item, names) for item in (model.model, plain))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 0.05 * other.norm()  # int8 rounds what enters, too


def test_a_deep_patch_stands_beside_the_codes(model: LanguageModel, tmp_path: Path) -> None:
    """It runs as hooks do, its head in the weights; the codes stay, and files hold it all."""
    patch = make_deep(model)
    assert len(patch.description.beside) == 4
    assert set(patch.description.tensors) == {"lm_head.weight"}
    assert patch.description.obstacle is None
    base = run(model.model)
    with run_hooked(model, patch.edit):
        expected = run(model.model)
    assert (expected - base).abs().max() > 0.01
    save_patch(patch, tmp_path)
    again = load_patch(tmp_path / "patch.safetensors", tmp_path / "patch.json")
    assert again.description == patch.description
    assert again.description.format_version == 4
    with patched_model(model, again):
        torch.testing.assert_close(run(model.model), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(run(model.model), base)


def test_it_is_exported_as_a_lora_that_peft_puts_beside_them(
    model: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    """On the quantised base, loaded as a user would."""
    patch = make_deep(model)
    with patched_model(model, patch):
        expected = run(model.model)
    base = open_patched_base(folder, patch, "float32")
    write_lora(base, tmp_path, model_id="tiny", unties=False)
    assert "leave the adapter beside them" in describe_use(base)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    keep_codes(loaded)  # 4-bit layers would round to bfloat16 on some processors
    adapted = peft.PeftModel.from_pretrained(loaded, tmp_path).eval()
    assert len([name for name, _ in adapted.named_modules() if name.endswith("lora_A")]) == 5
    scale = expected.abs().max()
    assert (run(adapted) - expected).abs().max() <= 2e-3 * scale


def test_what_has_to_be_in_the_weights_is_refused(model: LanguageModel) -> None:
    """For good, merged or rounded: the codes cannot hold it, and the adapter is named."""
    patch = make_deep(model)
    with pytest.raises(FoldingError, match=r"beside quantised layers .*--format lora"):
        apply_patch(model, patch)
    with pytest.raises(FoldingError, match="beside quantised layers"):
        next(iterate_forms(model, patch, [BlockFormat.q8_0], is_whole=False))


def test_the_reload_check_runs_it_as_an_adapter(
    model: LanguageModel, folder: Path, workspace: Workspace
) -> None:
    """Base and head come from files again, the rest stands beside."""
    patch = make_deep(model)
    check_reload(ModelSettings(id=str(folder)), patch, ["one two three"], "cpu", workspace)
    assert workspace.facts["differing"] == [], workspace.facts


def test_a_head_of_codes_that_call_themselves_float32_is_refused() -> None:
    """Torchao's weights do: a subclass of the parameter, whose values are not its bytes."""

    class Codes(nn.Parameter):
        """Stands for torchao's."""

    model = make_architecture("llama")
    model.lm_head.weight = Codes(model.lm_head.weight.detach(), requires_grad=False)
    assert model.lm_head.weight.dtype == torch.float32
    with pytest.raises(ModelError, match=r"found Linear with Codes in torch\.float32.*quantised"):
        find_head(model)
    assert not holds_values(model.lm_head)


def test_a_merged_export_of_the_head_keeps_the_codes(
    model: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    """Every other tensor is the base's, byte for byte; transformers loads what was measured."""
    patch = make_patch(model, damp_head(model, 0.25), model_id="tiny", intervention="head")
    base = open_patched_base(folder, patch, "float32")
    check_files(base, tmp_path, write_merged(base, tmp_path))
    with patched_model(model, patch):
        expected = run(model.model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    keep_codes(loaded)
    torch.testing.assert_close(run(loaded), expected, atol=1e-5, rtol=1e-5)


def test_a_quantiser_that_is_not_there_is_named(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """GPTQ needs a package of its own; what to do about it is said."""
    make_architecture("llama", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"weights quantised by gptq .*docs/quantisation\.md"):
        load_model(ModelSettings(id=str(tmp_path)), "cpu")
