"""The reload check passes what is equal and names what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.evaluation.gate import check_reload as judge
from eigenshift.evaluation.reload_check import check_reload
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, load_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import Patch, make_patch
from eigenshift.settings import ModelSettings
from eigenshift.store.workspace import Workspace
from tests.support.architectures import change_linears

PROMPTS = ["The garden was open", "火车在山脚下", "a"]


@pytest.fixture
def patch(tiny_language_model: LanguageModel) -> Patch:
    """One random direction removed."""
    generator = np.random.default_rng(1)
    v, _ = np.linalg.qr(generator.normal(size=(tiny_language_model.head.hidden, 1)))
    edit = ModelEdit(head=HeadEdit.scale_directions(v, 0.0))
    return make_patch(tiny_language_model, edit, model_id="tiny", intervention="test")


def check(folder: Path, patch: Patch, workspace: Workspace) -> dict[str, Any]:
    """Facts of the check on the CPU."""
    check_reload(ModelSettings(id=str(folder)), patch, PROMPTS, "cpu", workspace)
    return workspace.facts


def test_an_exported_model_with_a_tied_head_reloads_as_measured(
    tiny_model_folder: Path, patch: Patch, workspace: Workspace
) -> None:
    """Head, input embedding and logits agree, and the next one to load gets the unpatched base."""
    facts = check(tiny_model_folder, patch, workspace)
    assert facts["differing"] == []
    assert facts["logit_difference"] <= facts["tolerance"]
    assert judge(facts).is_passed
    (change,) = patch.description.tensors.values()
    found = load_model(ModelSettings(id=str(tiny_model_folder)), "cpu")
    assert digest_tensor(found.head_weight) == change.base
    assert found.model.config.tie_word_embeddings


def test_a_model_that_loses_the_patch_on_saving_is_named(
    tiny_model_folder: Path, patch: Patch, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding saved as the head: weights and logits differ, and the gate says so."""
    from transformers import GPT2LMHeadModel

    save = GPT2LMHeadModel.save_pretrained

    def save_tied(model: Any, folder: str) -> None:
        head = model.lm_head.weight
        model.lm_head.weight = torch.nn.Parameter(model.transformer.wte.weight.clone())
        save(model, folder)
        model.lm_head.weight = head

    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", save_tied)
    facts = check(tiny_model_folder, patch, workspace)
    assert facts["differing"] == ["lm_head.weight", "the logits"]
    verdict = judge(facts)
    assert not verdict.is_passed
    assert "lm_head.weight" in verdict.found
    assert verdict.missed_by


def test_a_failing_save_leaves_the_base_unpatched(
    tiny_model_folder: Path, patch: Patch, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk half-way: the error is raised and nobody gets a patched model."""
    from transformers import GPT2LMHeadModel

    def fail(*_: Any) -> None:
        raise OSError("made to fail")

    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="made to fail"):
        check(tiny_model_folder, patch, workspace)
    (change,) = patch.description.tensors.values()
    found = load_model(ModelSettings(id=str(tiny_model_folder)), "cpu")
    assert digest_tensor(found.head_weight) == change.base
    assert torch.equal(found.head_weight, found.model.get_input_embeddings().weight)


def test_a_reloaded_model_in_bfloat16_computes_gelu_as_the_measured_one(
    tiny_model_folder: Path, workspace: Workspace
) -> None:
    """GPT-2's GELU in steps rounds otherwise, which in bfloat16 looked like another model."""
    settings = ModelSettings(id=str(tiny_model_folder), dtype="bfloat16")
    language_model = load_model(settings, "cpu")
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(language_model.head.hidden, 1)))
    edit = ModelEdit(head=HeadEdit.scale_directions(v, 0.0))
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    check_reload(settings, patch, PROMPTS, "cpu", workspace)
    assert workspace.facts["logit_difference"] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("has_head", [False, True])
def test_changed_linear_layers_reload_as_measured(
    tiny_model_folder: Path, workspace: Workspace, dtype: str, has_head: bool
) -> None:
    """Layers of the trunk, with the head or without: then the head stays tied."""
    settings = ModelSettings(id=str(tiny_model_folder), dtype=dtype)
    language_model = load_model(settings, "cpu")
    names = list(list_writers(language_model.model))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(language_model.head.hidden, 1)))
    head = HeadEdit.scale_directions(v, 0.0) if has_head else None
    edit = ModelEdit(head, linears=change_linears(language_model, names).linears)
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    assert len(patch.description.tensors) == len(names) + has_head
    check_reload(settings, patch, PROMPTS, "cpu", workspace)
    facts = workspace.facts
    assert facts["differing"] == []
    assert judge(facts).is_passed
    for name in names:
        weight = load_model(settings, "cpu").model.get_submodule(name).weight
        assert digest_tensor(weight) == patch.description.tensors[f"{name}.weight"].base
