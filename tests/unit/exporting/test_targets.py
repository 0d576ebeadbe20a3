"""What is said of other tools holds: against the converter's name map, and at export."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS
from gguf.tensor_mapping import TensorNameMap
from transformers import CONFIG_MAPPING

from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.exporting import ExportOptions, export_patch, exports
from eigenshift.exporting.targets import (
    HEAD_FATES,
    Fate,
    describe_targets,
    find_fate,
    list_losses,
    require_survival,
)
from eigenshift.model.loading import LanguageModel
from eigenshift.settings import ExportTarget
from tests.support.small_store import SmallStore, build_small_store
from tests.unit.exporting.conftest import add_linear_patch

ARCHITECTURES = {
    "ernie4_5": "ernie4_5",
    "exaone4": "exaone4",
    "falcon_h1": "falcon-h1",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "cohere": "command-r",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "hunyuan_v1_dense": "hunyuan-dense",
    "mistral": "llama",
    "mixtral": "llama",
    "phi": "phi2",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
"""Type in config.json -> GGUF's architecture, where they differ or are hard to tell apart."""
HEAD_KEYS = {"gpt_neox": "embed_out.weight"}


def map_head(model_type: str) -> str | None:
    """Name that GGUF has for a head of its own, None if it has none."""
    name = ARCHITECTURES.get(model_type, model_type)
    (architecture,) = (item for item in MODEL_ARCH if MODEL_ARCH_NAMES[item] == name)
    has_place = MODEL_TENSOR.OUTPUT in MODEL_TENSORS[architecture]
    key = HEAD_KEYS.get(model_type, "lm_head.weight")
    found = TensorNameMap(architecture, 1).get_name(key, try_suffixes=(".weight", ".bias"))
    assert has_place == (found is not None)
    return found


@pytest.mark.parametrize(
    ("model_type", "fate"), HEAD_FATES[ExportTarget.gguf].items(), ids=lambda item: str(item)
)
def test_the_converters_name_map_has_what_is_said(model_type: str, fate: Fate) -> None:
    """A head is kept where it has a name, and is lost or refused where it has none."""
    if fate is Fate.unsupported:
        assert model_type in {"gptj", "opt"}  # names without a converter, or none
        return
    is_kept = fate in (Fate.kept, Fate.unless_padded)
    assert map_head(model_type) == ("output.weight" if is_kept else None)


@pytest.mark.parametrize("target", list(ExportTarget))
def test_every_type_is_one_of_transformers(target: ExportTarget) -> None:
    """A name misspelt would never be met."""
    assert set(HEAD_FATES[target]) <= set(CONFIG_MAPPING)


def test_a_loss_comes_with_its_remedy() -> None:
    """Silently lost and refused are both told; where the head is kept nothing is."""
    assert list(list_losses("llama")) == []
    (gemma2, vllm, sglang) = list_losses("gemma2")
    assert sglang.startswith("SGLang: SGLang skips that tensor")
    assert gemma2.startswith("GGUF (llama.cpp): the public converter leaves that tensor out")
    assert "--model-impl transformers" in vllm
    assert "is the base again" in next(iter(list_losses("gemma")))


def test_a_tool_that_is_named_refuses_what_does_not_arrive() -> None:
    """With the arms that would; an architecture nobody has looked at is refused too."""
    require_survival("llama", ExportTarget.gguf, [])
    require_survival("gemma3_text", ExportTarget.gguf, [])
    with pytest.raises(ModelError, match=r"leaves that tensor out.*export aura or det0 \(--arm\)"):
        require_survival("gemma2", ExportTarget.gguf, ["aura", "det0"])
    with pytest.raises(ModelError, match="--model-impl transformers"):
        require_survival("cohere", ExportTarget.vllm, [])
    with pytest.raises(ModelError, match="does not know that architecture"):
        require_survival("opt", ExportTarget.gguf, [])
    with pytest.raises(ModelError, match="look for the head"):
        require_survival("an_unknown_type", ExportTarget.vllm, [])


def test_the_card_tells_of_every_tool() -> None:
    """Of a head that changed; of one that did not there is nothing to tell."""
    said = describe_targets("cohere", changes_head=True)
    assert "GGUF (llama.cpp): refused; the public converter" in said
    assert "vLLM: lost without a word" in said
    assert "what loads the base loads the patch" in describe_targets("cohere", changes_head=False)
    assert "not known" in describe_targets("an_unknown_type", changes_head=True)


def test_an_export_warns_or_refuses(
    tied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """By the base's architecture: warned of as it is, refused for a tool that is named."""
    monkeypatch.setattr("eigenshift.exporting.exports.logger.propagate", True)
    with caplog.at_level(logging.WARNING):
        export_patch(tied.url, None, "merged", tmp_path / "kept")
    assert "changes the output head; GGUF" not in caplog.text
    assert "changes the output head; SGLang" in caplog.text  # it skips GPT-2's
    assert find_fate(ExportTarget.gguf, "gpt2") is Fate.kept
    monkeypatch.setitem(HEAD_FATES[ExportTarget.gguf], "gpt2", Fate.lost)  # type: ignore[misc]
    out = export_patch(tied.url, None, "merged", tmp_path / "lost")
    assert "this patch changes the output head; GGUF" in caplog.text
    assert "lost without a word" in (out / "README.md").read_text()
    options = ExportOptions(targets=(ExportTarget.gguf,))
    with pytest.raises(ModelError, match="leaves that tensor out"):
        export_patch(tied.url, None, "merged", tmp_path / "refused", options)
    assert not (tmp_path / "refused").exists()
    with pytest.raises(SettingsError, match="expected --format merged or lora"):
        export_patch(tied.url, None, "patch", tmp_path / "refused", options)


def test_arms_that_leave_the_head_alone_are_offered(
    tmp_path: Path, tiny_language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk has its names and shapes in every tool, and such an arm is exported for it."""
    small = build_small_store(str(tmp_path / "store"), tiny_language_model)
    add_linear_patch(small, tiny_language_model, has_head=False)
    monkeypatch.setitem(HEAD_FATES[ExportTarget.gguf], "gpt2", Fate.lost)  # type: ignore[misc]
    options = ExportOptions(targets=(ExportTarget.gguf,))
    with pytest.raises(ModelError, match=r"or export deep \(--arm\)"):
        export_patch(small.url, small.run_id, "merged", tmp_path / "refused", options)
    monkeypatch.setattr(exports, "check_reloaded", lambda *_, **__: None)
    options = ExportOptions(arm="deep", targets=(ExportTarget.gguf,))
    out = export_patch(small.url, small.run_id, "merged", tmp_path / "out", options)
    assert "what loads the base loads the patch" in (out / "README.md").read_text()
