"""Patches: applied, undone to the bit, saved, loaded, and given to transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eigenshift.api.models import Model, load_model
from eigenshift.api.patches import ModelPatch, load_patch
from eigenshift.api.study import Study
from eigenshift.base.errors import ComponentError
from eigenshift.patching import apply_patch
from eigenshift.patching import load_patch as load_exported

TOKENS = torch.tensor([[5, 9, 17, 3, 40, 2], [7, 7, 30, 11, 4, 1]])


def ask(model: Model) -> torch.Tensor:
    """Logits as the model gives them to anybody."""
    with torch.inference_mode():
        logits: torch.Tensor = model.model(input_ids=TOKENS).logits
    return logits


@pytest.fixture(scope="module")
def patch(study: Study) -> ModelPatch:
    """Three components of the tied head, taken out."""
    return study.build_patch("eigenshift", n_components=3)


@pytest.mark.parametrize("method", ["eigenshift", "damp", "chars"])
def test_undone_the_model_gives_the_same_bits(study: Study, model: Model, method: str) -> None:
    """Of the head, of units in the trunk, and of hooks alone; the head is tied again."""
    choices = {} if method == "chars" else {"n_components": 3}
    built = study.build_patch(method, max_perplexity_increase=0.2, **choices)
    before = ask(model)
    embedding = model.model.get_input_embeddings().weight.clone()
    applied = built.apply()
    assert not torch.equal(ask(model), before)
    assert torch.equal(model.model.get_input_embeddings().weight, embedding)
    applied.undo()
    applied.undo()
    assert torch.equal(ask(model), before)
    assert model.model.lm_head.weight is model.model.get_input_embeddings().weight
    assert model.model.config.tie_word_embeddings


def test_a_block_undoes_what_it_did_whatever_happens(patch: ModelPatch, model: Model) -> None:
    """Also when it ends with an error."""
    before = ask(model)

    def ask_and_fail() -> None:
        with patch.apply():
            assert not torch.equal(ask(model), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask_and_fail()
    assert torch.equal(ask(model), before)


def test_a_patched_model_is_not_patched_again(patch: ModelPatch, model: Model) -> None:
    """The second would undo to the first."""
    before = ask(model)
    with patch.apply(), pytest.raises(ComponentError, match="already patched"):
        patch.apply()
    assert torch.equal(ask(model), before)


def test_an_own_model_patched_is_the_exported_patch_loaded(
    study: Study, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Bit by bit: a user's object, the saved patch on files loaded elsewhere, the saved model."""
    own = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    user = load_model(own, AutoTokenizer.from_pretrained(tiny_model_folder))
    built = study.build_patch("eigenshift_fisher", max_perplexity_increase=0.2)
    built.save(tmp_path / "patch")
    with load_patch(user, tmp_path / "patch").apply():
        patched = ask(user)
    elsewhere = load_model(tiny_model_folder, device="cpu")
    exported = load_exported(tmp_path / "patch/patch.safetensors", tmp_path / "patch/patch.json")
    apply_patch(elsewhere.language_model, exported)
    assert torch.equal(ask(elsewhere), patched)
    assert not torch.equal(ask(user), patched)
    load_patch(user, tmp_path / "patch").save_model(tmp_path / "model")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        torch.testing.assert_close(saved(input_ids=TOKENS).logits, patched, rtol=0, atol=1e-5)
    assert not saved.config.tie_word_embeddings


def test_a_patch_of_another_model_is_refused(
    patch: ModelPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """By the bytes of what it changes."""
    other = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    patch.save(tmp_path)
    with pytest.raises(ComponentError, match=r"expected lm_head\.weight with digest"):
        load_patch(load_model(other, AutoTokenizer.from_pretrained(tiny_model_folder)), tmp_path)


def test_a_patch_says_what_it_changes(patch: ModelPatch) -> None:
    """Method, components, factor, parameters; no path."""
    assert patch.name == "eigenshift"
    shown = patch._repr_html_()
    assert "lm_head.weight" in shown
    assert "components" in shown
