"""Exports load in other tools, equal the patched model, and leave nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenshift import exporting, model_files, models
from eigenshift.errors import ModelError, SettingsError
from eigenshift.exporting import ExportOptions, export_patch, merged
from eigenshift.models import LanguageModel, load_model
from eigenshift.patching import compute_parameters, load_patch, patched_model
from eigenshift.runs import write_run
from eigenshift.settings import ModelSettings
from tests.support.small_store import SmallStore, build_small_store

TOKENS = torch.tensor([[5, 9, 17, 3, 40, 2]])


@pytest.fixture(scope="module")
def tied(
    tmp_path_factory: pytest.TempPathFactory, tiny_language_model: LanguageModel
) -> SmallStore:
    """A store about the tiny GPT-2, whose head is tied."""
    return build_small_store(str(tmp_path_factory.mktemp("tied")), tiny_language_model)


@pytest.fixture(scope="module")
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
    models.forget_models()


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, untied_model: LanguageModel) -> SmallStore:
    """A store about the tiny Llama."""
    return build_small_store(str(tmp_path_factory.mktemp("untied")), untied_model)


def compute_patched_logits(language_model: LanguageModel, small: SmallStore) -> torch.Tensor:
    """Logits of the base with the run's patch."""
    patch = load_patch(
        small.find_file("patch-eigenshift", "patch.safetensors"),
        small.find_file("patch-eigenshift", "patch.json"),
    )
    with patched_model(language_model, patch), torch.inference_mode():
        return language_model.model(TOKENS).logits.clone()


def test_patch_export_is_the_patch_itself(
    tied: SmallStore, tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """The exported files load and fit the base's head."""
    out = export_patch(tied.url, None, "patch", tmp_path / "new" / "out")
    patch = load_patch(out / "patch.safetensors", out / "patch.json")
    compute_parameters(tiny_language_model, patch)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "patch.json",
        "patch.safetensors",
    ]


def test_readme_tells_base_run_metrics_limits_and_undo(tied: SmallStore, tmp_path: Path) -> None:
    """Each export says what it is and how to undo it."""
    out = export_patch(tied.url, tied.run_id, "patch", tmp_path / "out")
    text = (out / "README.md").read_text()
    assert tied.record.model_digest in text
    assert tied.run_id in text
    for part in ("| toxicity rate |", "[", "## Limits", "## Load", "## Undo"):
        assert part in text
    assert "held by the gate" not in text


def test_readme_of_a_held_run_says_so(tmp_path: Path, tiny_language_model: LanguageModel) -> None:
    """A patch the gate held is not passed on as if it had been released."""
    small = build_small_store(str(tmp_path / "store"), tiny_language_model)
    small.record.status = "held"
    write_run(small.artifacts.store, small.record)
    out = export_patch(small.url, None, "patch", tmp_path / "out")
    assert "held by the gate" in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_merged_export_gives_the_patched_logits(
    kind: str,
    tied: SmallStore,
    untied: SmallStore,
    tiny_language_model: LanguageModel,
    untied_model: LanguageModel,
    tmp_path: Path,
) -> None:
    """Loaded by plain transformers, the model is the patched one; its embedding is the base's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small, base = (tied, tiny_language_model) if kind == "tied" else (untied, untied_model)
    out = export_patch(small.url, None, "merged", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.inference_mode():
        found = model(TOKENS).logits
        before = base.model(TOKENS).logits
    assert torch.allclose(found, compute_patched_logits(base, small), atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(
        model.get_input_embeddings().weight, base.model.get_input_embeddings().weight
    )
    assert model.config.tie_word_embeddings is False
    assert AutoTokenizer.from_pretrained(out)("The kettle")["input_ids"]
    assert not any(path.suffix in model_files.PICKLE_SUFFIXES for path in out.iterdir())


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


def test_merged_export_that_loads_back_differently_is_removed(
    tied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `tie_word_embeddings: false` the reload check fails and nothing remains."""
    write = merged.write_configuration
    monkeypatch.setattr(
        merged, "write_configuration", lambda *a, **k: write(*a, **{**k, "unties": False})
    )
    with pytest.raises(ModelError, match="load back as it was"):
        export_patch(tied.url, None, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_merged_export_of_a_changed_base_is_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """A base whose files differ from the run's is not patched."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "model"
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_layer=1, n_head=2, n_embd=32)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    model = load_model(ModelSettings(id=str(folder)), "cpu")
    small = build_small_store(str(tmp_path / "store"), model)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for export_format in ("merged", "lora"):
        with pytest.raises(ModelError, match="expected the model of run"):
            export_patch(small.url, None, export_format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    patch = load_patch(
        untied.find_file("patch-eigenshift", "patch.safetensors"),
        untied.find_file("patch-eigenshift", "patch.json"),
    )
    assert torch.allclose(
        weight + b @ a, compute_parameters(untied_model, patch)["lm_head.weight"], atol=1e-5
    )


def test_lora_export_loads_in_peft(
    untied: SmallStore, untied_model: LanguageModel, tmp_path: Path
) -> None:
    """PEFT gives the patched logits from the hand-written adapter."""
    import peft
    from transformers import AutoModelForCausalLM

    out = export_patch(untied.url, None, "lora", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(untied_model.id)
    model = peft.PeftModel.from_pretrained(base, out).eval()
    with torch.inference_mode():
        found = model(TOKENS).logits
    assert torch.allclose(found, compute_patched_logits(untied_model, untied), atol=1e-4)


def test_lora_of_a_tied_head_is_refused_with_the_remedy(tied: SmallStore, tmp_path: Path) -> None:
    """The message names the other format, and nothing is left behind."""
    with pytest.raises(ModelError, match="--format merged"):
        export_patch(tied.url, None, "lora", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_with_content_is_refused(tied: SmallStore, tmp_path: Path) -> None:
    """Existing files are never mixed with an export or overwritten."""
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SettingsError, match="new or empty folder"):
        export_patch(tied.url, None, "patch", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_empty_folder_is_used(tied: SmallStore, tmp_path: Path) -> None:
    """An empty folder becomes the export."""
    out = tmp_path / "out"
    out.mkdir()
    assert export_patch(tied.url, None, "patch", out) == out
    assert (out / "README.md").is_file()


def test_crash_while_writing_leaves_nothing(
    tied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even an interrupt in the middle removes the unfinished folder."""

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_patch(tied.url, None, "patch", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_refresh_runs_with_a_patch_are_exported(tied: SmallStore, tmp_path: Path) -> None:
    """A comparison, a run that failed early, an unknown run or format: each is refused."""
    comparison = tied.add_run("compare", "finished")
    failed = tied.add_run("refresh", "failed")
    failed.artifacts = []
    write_run(tied.artifacts.store, failed)
    for run_id, format_, message in (
        (comparison.run_id, "patch", "expected a refresh or compare"),
        (failed.run_id, "patch", "expected a patch of arm 'eigenshift', found none"),
        ("nothing", "patch", "expected run"),
        (None, "onnx", "expected one of patch, lora, merged"),
    ):
        with pytest.raises(SettingsError, match=message):
            export_patch(tied.url, run_id, format_, tmp_path / "out")
