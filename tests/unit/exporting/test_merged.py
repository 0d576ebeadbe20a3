"""Merged exports: streamed, untied, in the measured dtype, and found again when loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eigenshift.base.errors import ModelError
from eigenshift.exporting import ExportOptions, export_patch, exports, merged
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.checks import check_files, check_reloaded, measure_patched
from eigenshift.exporting.merged import HEAD_FILE_NAME, write_merged
from eigenshift.model import loaded_files
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, load_model, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.linear_act import list_norms
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.settings import ExportCheck, ModelSettings
from tests.support.architectures import (
    StubTokenizer,
    change_linears,
    damp_head,
    list_mlp_layers,
    make_architecture,
    save_two_tensors,
    scale_units,
)
from tests.support.small_store import SmallStore
from tests.unit.exporting.conftest import TOKENS, compute_patched_logits, open_run_patch

IDS = torch.arange(12)[None]


def make_head_patch(language_model: LanguageModel) -> Patch:
    """A patch of the head's weight."""
    edit = damp_head(language_model, 0.25)
    return make_patch(language_model, edit, model_id="tiny", intervention="test")


def save_base(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, **saving: Any
) -> LanguageModel:
    """Save a tiny model; return it as transformers loads it."""
    make_architecture(name).to(dtype).save_pretrained(folder, **saving)
    return load_base(folder)


def load_base(folder: Path, **loading: Any) -> LanguageModel:
    """A tiny model as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(folder, **loading)
    return wrap_model(model, StubTokenizer(), model_id=folder.name, digest="d")


def export(folder: Path, patch: Patch, out: Path, dtype: str = "auto") -> dict[str, str]:
    """Write a merged export and check its files."""
    out.mkdir()
    base = open_patched_base(folder, patch, dtype)
    written = write_merged(base, out)
    check_files(base, out, written)
    return written


@torch.inference_mode()
def compute_logits(model: Any) -> torch.Tensor:
    """Logits of some tokens."""
    return model(IDS).logits


def read_folder(folder: Path) -> dict[str, bytes]:
    """Name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("check", list(ExportCheck))
def test_merged_export_gives_the_patched_logits(
    kind: str,
    check: ExportCheck,
    tied: SmallStore,
    untied: SmallStore,
    tiny_language_model: LanguageModel,
    untied_model: LanguageModel,
    tmp_path: Path,
) -> None:
    """Loaded by plain transformers, the model is the patched one; its embedding is the base's."""
    small, base = (tied, tiny_language_model) if kind == "tied" else (untied, untied_model)
    options = ExportOptions(check=check)
    out = export_patch(small.url, None, "merged", tmp_path / "out", options)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.inference_mode():
        found = model(TOKENS).logits
        before = base.model(TOKENS).logits
    assert torch.allclose(found, compute_patched_logits(base, small), atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(
        model.get_input_embeddings().weight, base.model.get_input_embeddings().weight
    )
    assert model.config.tie_word_embeddings is False
    assert AutoTokenizer.from_pretrained(out)("The kettle")["input_ids"]
    assert not any(path.suffix in loaded_files.PICKLE_SUFFIXES for path in out.iterdir())
    assert "| bit for bit |" in (out / "README.md").read_text()


def test_merged_export_does_not_change_models_in_use(
    tied: SmallStore, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """A model this process holds, or loads next, is the base."""
    settings = ModelSettings(id=str(tiny_model_folder))
    before = load_model(settings, "cpu").head_module.weight.clone()
    held = load_model(settings, "cpu")
    export_patch(tied.url, None, "merged", tmp_path / "out")
    assert torch.equal(held.head_module.weight, before)
    assert torch.equal(load_model(settings, "cpu").head_module.weight, before)


# Files


def test_only_the_shard_with_the_head_is_written_anew(tmp_path: Path) -> None:
    """All other shards, the index and the configuration are the base's, byte for byte."""
    base = save_base(tmp_path / "base", "llama", max_shard_size="10KB")
    export(tmp_path / "base", make_head_patch(base), tmp_path / "out")
    before, after = read_folder(tmp_path / "base"), read_folder(tmp_path / "out")
    index = json.loads(before["model.safetensors.index.json"])
    assert len(set(index["weight_map"].values())) > 2
    assert set(before) == set(after)
    changed = {name for name in before if before[name] != after[name]} - {"config.json"}
    assert changed <= {index["weight_map"]["lm_head.weight"], "model.safetensors.index.json"}
    assert json.loads(after["model.safetensors.index.json"]) == index
    assert json.loads(after["config.json"]) == json.loads(before["config.json"])


def test_a_tied_checkpoint_of_several_files_gets_one_more(tmp_path: Path) -> None:
    """Every shard is copied; the head is in a file of its own and in the index with its size."""
    base = save_base(tmp_path / "base", "gpt2", max_shard_size="10KB")
    patch = make_head_patch(base)
    written = export(tmp_path / "base", patch, tmp_path / "out")
    before, after = read_folder(tmp_path / "base"), read_folder(tmp_path / "out")
    shards = [name for name in before if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert all(before[name] == after[name] for name in shards)
    assert set(after) - set(before) == {HEAD_FILE_NAME}
    old, new = (json.loads(files["model.safetensors.index.json"]) for files in (before, after))
    assert new["weight_map"] == {**old["weight_map"], "lm_head.weight": HEAD_FILE_NAME}
    n_values = base.head.vocab * base.head.hidden
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"] + 4 * n_values
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert digest_tensor(model.lm_head.weight) == written["lm_head.weight"]
    with patched_model(base, patch):
        torch.testing.assert_close(compute_logits(model), compute_logits(base.model))


@pytest.mark.parametrize("has_head", [False, True], ids=["linears", "linears and head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "mixtral"])
def test_only_shards_with_changed_layers_are_written_anew(
    tmp_path: Path, name: str, dtype: torch.dtype, has_head: bool
) -> None:
    """Some shards hold a changed layer, Linear or Conv1D; all others are the base's bytes."""
    base = save_base(tmp_path / "base", name, dtype, max_shard_size="6KB")
    chosen = list(list_writers(base.model))[-2:]
    head = damp_head(base, 0.25).head if has_head else None
    edit = ModelEdit(head, linears=change_linears(base, chosen).linears)
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    written = export(tmp_path / "base", patch, tmp_path / "out")
    assert written == {key: item.patched for key, item in patch.description.tensors.items()}
    before, after = read_folder(tmp_path / "base"), read_folder(tmp_path / "out")
    index = json.loads(before["model.safetensors.index.json"])
    changed = {key: index["weight_map"][key] for key in written if key in index["weight_map"]}
    assert set(written) - set(changed) <= {"lm_head.weight"}  # where it is tied
    shards = {file for file in before if file.endswith(".safetensors")}
    touched = {file for file in shards if before[file] != after[file]}
    assert touched == set(changed.values())
    assert 0 < len(touched) < len(shards)
    added = {HEAD_FILE_NAME} if has_head and base.head.is_tied else set()
    assert set(after) - set(before) == added
    if not added:
        same = ("model.safetensors.index.json", "config.json")
        assert all(json.loads(before[file]) == json.loads(after[file]) for file in same)
    unties = has_head and base.head.is_tied
    check_reloaded(tmp_path / "out", measure_patched(base, patch), written, unties=unties)


def test_a_checkpoint_without_the_models_prefix(tmp_path: Path) -> None:
    """Keys are the files' own; transformers adds the prefix on loading."""
    base = save_base(tmp_path / "base", "gpt2")
    path = tmp_path / "base" / "model.safetensors"
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    layers = list_mlp_layers(base)
    units = scale_units(base, layers).units
    edit = type(damp_head(base, 0.25))(damp_head(base, 0.25).head, units)
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    export(tmp_path / "base", patch, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {*tensors, "lm_head.weight"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with patched_model(base, patch):
        torch.testing.assert_close(compute_logits(model), compute_logits(base.model))


def test_a_tied_head_that_is_stored_all_the_same_is_replaced(tmp_path: Path) -> None:
    """Some tied checkpoints hold the head beside the embedding; only the head changes."""
    base = save_base(tmp_path / "base", "gpt2")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    export(tmp_path / "base", make_head_patch(base), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(tensors)
    assert [key for key in found if not torch.equal(found[key], tensors[key])] == ["lm_head.weight"]


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma2"])
def test_two_tensors_that_a_configuration_calls_tied_stay_two(tmp_path: Path, name: str) -> None:
    """As transformers 5 has it, which ties them when told to; load and export say the same."""
    save_two_tensors(tmp_path / "base", name)
    base = load_base(tmp_path / "base")
    assert base.model.config.tie_word_embeddings is True
    assert base.head.is_tied is False
    patch = make_head_patch(base)
    opened = open_patched_base(tmp_path / "base", patch, "auto")
    assert (opened.says_tied, opened.is_tied, opened.unties) == (True, False, True)
    assert "calls the head tied" in merged.describe_use(opened, ["lm_head"], tmp_path / "base")
    export(tmp_path / "base", patch, tmp_path / "out")
    before, after = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "out")
    )
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["lm_head.weight"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings is False
    with patched_model(base, patch):
        torch.testing.assert_close(compute_logits(model), compute_logits(base.model))
    model.tie_weights()  # now the export may be resized too
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    base.model.tie_weights()
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight


def test_a_configuration_that_calls_two_tensors_tied_is_put_right_by_any_patch(
    tmp_path: Path,
) -> None:
    """Also where the head is not changed: what trusts the setting would tie it."""
    save_two_tensors(tmp_path / "base", "qwen2")
    base = load_base(tmp_path / "base")
    edit = scale_units(base, list_mlp_layers(base))
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    export(tmp_path / "base", patch, tmp_path / "out")
    whole = tmp_path / "whole"
    merged.write_merged_in_memory(base, patch, tmp_path / "base", whole)
    for folder in (tmp_path / "out", whole):
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
        found = load_file(folder / "model.safetensors")
        assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_two_tensors_that_are_equal_in_the_measured_dtype_are_one(tmp_path: Path) -> None:
    """What has been loaded is compared: bfloat16 may make one of two."""
    save_base(tmp_path / "base", "qwen2")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].bfloat16().float()
    save_file(tensors, path, metadata={"format": "pt"})
    for dtype, is_tied in (("float32", False), ("bfloat16", True)):
        base = load_base(tmp_path / "base", dtype=getattr(torch, dtype))
        assert base.head.is_tied is is_tied
        opened = open_patched_base(tmp_path / "base", make_head_patch(base), dtype)
        assert opened.is_tied is is_tied


def test_the_code_of_an_author_is_not_named_by_an_export(tmp_path: Path) -> None:
    """What was measured is transformers' own class; the card says so."""
    base = save_base(tmp_path / "base", "llama")
    path = tmp_path / "base" / "config.json"
    code = {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    patch = make_head_patch(base)
    export(tmp_path / "base", patch, tmp_path / "out")
    whole = tmp_path / "whole"
    loaded = load_base(tmp_path / "base", trust_remote_code=False)
    merged.write_merged_in_memory(loaded, patch, tmp_path / "base", whole)
    for folder in (tmp_path / "out", whole):
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
    opened = open_patched_base(tmp_path / "base", patch, "auto")
    assert "auto_map" in merged.describe_use(opened, [], tmp_path / "base")


def test_head_bias_and_norm_shift_are_exported(tmp_path: Path) -> None:
    """A constant shift goes into the bias of the head (GPT-J) or of the norm before it (BLOOM)."""
    for name, parameter in (("gptj", "lm_head.bias"), ("bloom", "transformer.ln_f.bias")):
        base = save_base(tmp_path / name, name)
        edit = damp_head(base, 0.25, shift=0.7)
        patch = make_patch(base, edit, model_id="tiny", intervention="test")
        written = export(tmp_path / name, patch, tmp_path / f"{name}-out")
        assert set(written) == {"lm_head.weight", parameter}
        assert written[parameter] == patch.description.tensors[parameter].patched
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-out")
        with patched_model(base, patch):
            torch.testing.assert_close(compute_logits(model), compute_logits(base.model))


@pytest.mark.parametrize(("name", "shift"), [("gpt2", 0.3), ("gemma2", 0.0)])
def test_norms_inside_the_trunk_are_exported(tmp_path: Path, name: str, shift: float) -> None:
    """What Linear-AcT changes: gain and bias of each block's norms, gains of 1 + w alike."""
    base = save_base(tmp_path / "base", name)
    edit = scale_units(base, list_norms(base), shift=shift)
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    written = export(tmp_path / "base", patch, tmp_path / "out")
    assert len(written) == len(edit.units) * (2 if shift else 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with run_hooked(base, edit):
        torch.testing.assert_close(compute_logits(model), compute_logits(base.model))


def test_units_alone_leave_a_tied_head_tied(tmp_path: Path) -> None:
    """Only what the patch changes changes."""
    base = save_base(tmp_path / "base", "qwen2")
    edit = scale_units(base, list_mlp_layers(base))
    patch = make_patch(base, edit, model_id="tiny", intervention="test")
    export(tmp_path / "base", patch, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    config = (tmp_path / "out" / "config.json").read_bytes()
    assert config == (tmp_path / "base" / "config.json").read_bytes()


def test_licences_and_tokenizers_go_along(tmp_path: Path) -> None:
    """A licence that has to be passed on is."""
    base = save_base(tmp_path / "base", "llama")
    (tmp_path / "base" / "additional_chat_templates").mkdir()
    names = ("tokenizer.5.0.0.json", "processor_config.json", "additional_chat_templates/rag.jinja")
    for name in ("LICENSE.txt", "NOTICE", "tokenizer.json", "pytorch_model.bin", *names):
        (tmp_path / "base" / name).write_text(name)
    export(tmp_path / "base", make_head_patch(base), tmp_path / "out")
    kept = ("LICENSE.txt", "NOTICE", "tokenizer.json", *names)
    assert [name for name in kept if not (tmp_path / "out" / name).is_file()] == []
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


# Precision


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measured", ["float32", "bfloat16", "float16", "auto"])
def test_changed_tensors_have_the_measured_dtype(
    tmp_path: Path, stored: torch.dtype, measured: str
) -> None:
    """Loaded by default the export is what was measured, whatever the checkpoint's own dtype."""
    make_architecture("llama").to(stored).save_pretrained(tmp_path / "base", max_shard_size="10KB")
    dtype = "auto" if measured == "auto" else getattr(torch, measured)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    base = wrap_model(model, StubTokenizer(), model_id="tiny", digest="d")
    patch = make_head_patch(base)
    written = export(tmp_path / "base", patch, tmp_path / "out", measured)
    assert written["lm_head.weight"] == patch.description.patched_digest
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.lm_head.weight.dtype == base.head.dtype
    with patched_model(base, patch):
        assert torch.equal(compute_logits(found), compute_logits(base.model))


# What cannot be streamed, and what comes back changed


def test_a_parameter_stored_in_parts_falls_back_to_memory(
    tied: SmallStore, untied: SmallStore, untied_model: LanguageModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Then transformers loads and saves the model; log and card say so."""
    monkeypatch.setattr("eigenshift.exporting.base_files.match_parameters", lambda *_: {})
    monkeypatch.setattr("eigenshift.exporting.exports.logger.propagate", True)
    for small, kind in ((tied, "tied"), (untied, "untied")):
        out = export_patch(small.url, None, "merged", tmp_path / kind)
        assert "export is not streamed" in caplog.text
        assert "transformers wrote all files anew" in (out / "README.md").read_text()
        assert AutoModelForCausalLM.from_pretrained(out).config.tie_word_embeddings is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    with torch.inference_mode():
        found = model(TOKENS).logits
    torch.testing.assert_close(found, compute_patched_logits(untied_model, untied))


def test_merged_experts_are_not_taken_for_stored_tensors(tmp_path: Path) -> None:
    """Mixtral's experts are one tensor each in the files and one for all in the model."""
    from eigenshift.model.parameter_names import build_skeleton, match_parameters
    from eigenshift.model.weight_files import open_checkpoint

    save_base(tmp_path, "mixtral")
    keys = match_parameters(build_skeleton(tmp_path), open_checkpoint(tmp_path).tensors)
    assert not any("experts" in name for name in keys)
    assert keys["lm_head.weight"] == "lm_head.weight"
    assert keys["model.layers.0.mlp.gate.weight"].endswith("block_sparse_moe.gate.weight")


def test_an_export_that_loads_back_differently_is_removed(
    tied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `tie_word_embeddings: false` both checks fail and nothing remains."""
    write = merged.write_configuration
    monkeypatch.setattr(
        merged, "write_configuration", lambda *a, **k: write(*a, **{**k, "unties": False})
    )
    for check in (ExportCheck.full, ExportCheck.files):
        options = ExportOptions(check=check)
        with pytest.raises(ModelError, match=r"load back as it was.*tie_word_embeddings"):
            export_patch(tied.url, None, "merged", tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [ExportCheck.full, ExportCheck.files])
@pytest.mark.parametrize("key", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_bit_lost_on_the_way_is_found(
    untied: SmallStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: ExportCheck,
    key: str,
) -> None:
    """One flipped bit in a changed or a copied tensor: refused by either check."""
    write = merged.write_checkpoint

    def write_badly(checkpoint: Any, changed: Any, folder: Path) -> Any:
        digests = write(checkpoint, changed, folder)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors[key].view(torch.uint8)[5, 3] ^= 4
        save_file(tensors, path, metadata={"format": "pt"})
        return digests

    monkeypatch.setattr(merged, "write_checkpoint", write_badly)
    with pytest.raises(ModelError, match="load back as it was"):
        export_patch(untied.url, None, "merged", tmp_path / "out", ExportOptions(check=check))
    assert list(tmp_path.iterdir()) == []


def test_big_models_are_checked_by_their_files(
    untied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit nothing is loaded, unless a full check is asked for."""
    monkeypatch.setattr(exports, "FULL_CHECK_BYTES", 10)
    monkeypatch.setattr(exports, "load_model", None)
    out = export_patch(untied.url, None, "merged", tmp_path / "out")
    assert (out / "model.safetensors").is_file()
    with pytest.raises(TypeError):
        export_patch(
            untied.url, None, "merged", tmp_path / "full", ExportOptions(check=ExportCheck.full)
        )


def test_the_runs_patch_is_left_alone(untied: SmallStore, tmp_path: Path) -> None:
    """Exporting changes nothing in the store."""
    before = open_run_patch(untied).description
    export_patch(untied.url, None, "merged", tmp_path / "out")
    assert open_run_patch(untied).description == before
