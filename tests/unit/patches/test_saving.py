"""A patched model as files: it loads as it was, and the one in memory is the base again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eigenshift.base.errors import SettingsError
from eigenshift.components.decomposition import decompose_head
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.patches.saving import save_patched_model
from eigenshift.store import output_folder


@pytest.fixture
def patch(tiny_language_model: LanguageModel) -> Patch:
    """Of the head, which is tied."""
    v = decompose_head(tiny_language_model.head_weight).v
    edit = ModelEdit(HeadEdit.scale_directions(v[:, :4], 0.0))
    return make_patch(tiny_language_model, edit, model_id="tiny", intervention="test")


def test_what_is_written_loads_as_the_patched_model(
    tiny_language_model: LanguageModel, patch: Patch, tmp_path: Path
) -> None:
    """Logits, a head of its own, and the embedding of the base."""
    token_ids = torch.tensor([[5, 9, 70]])
    save_patched_model(tiny_language_model, patch, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        base = tiny_language_model.model(input_ids=token_ids).logits
        with patched_model(tiny_language_model, patch):
            expected = tiny_language_model.model(input_ids=token_ids).logits
        torch.testing.assert_close(loaded(input_ids=token_ids).logits, expected)
    assert not torch.equal(base, expected)
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(
        loaded.get_input_embeddings().weight,
        tiny_language_model.model.get_input_embeddings().weight,
    )
    assert tiny_language_model.model.config.tie_word_embeddings


def test_too_little_space_is_told_before_anything_is_written(
    tiny_language_model: LanguageModel,
    patch: Patch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left, and the model is the base."""

    class Full:
        free = 0

    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(SettingsError, match=r"free space.*TMPDIR"):
        save_patched_model(tiny_language_model, patch, tmp_path)
    assert not list(tmp_path.iterdir())
