"""Patches of linear layers: undone to the bytes, saved and loaded, stacked, refused elsewhere."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenshift.base.errors import ComponentError
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    compute_parameters,
    load_patch,
    make_patch,
    patched_model,
    save_patch,
    stack_patches,
    write_patch,
)
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from eigenshift.store.workspace import Workspace
from tests.support.architectures import (
    ARCHITECTURES,
    VOCAB,
    StubTokenizer,
    change_linears,
    damp_head,
    list_mlp_layers,
    make_architecture,
    scale_units,
)

TOKENS = (torch.arange(24).reshape(2, 12) * 5 + 4) % VOCAB
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def wrap(name: str) -> LanguageModel:
    """A model ready to run, shared by the tests: leave it as you found it."""
    return wrap_model(make_architecture(name), StubTokenizer(), model_id=name, digest="d")


def describe(language_model: LanguageModel, edit: ModelEdit, intervention: str = "test") -> Patch:
    """The patch of an edit."""
    return make_patch(language_model, edit, model_id=language_model.id, intervention=intervention)


def change_model(language_model: LanguageModel, seed: int = 0, n_first: int = 0) -> ModelEdit:
    """Change the head, and the writers but for the first few."""
    names = list(list_writers(language_model.model))[n_first:]
    linears = change_linears(language_model, names, seed=seed).linears
    return ModelEdit(damp_head(language_model, 0.25).head, linears=linears)


def save_and_load(patch: Patch, folder: Path) -> Patch:
    """The patch as its files have it."""
    save_patch(patch, folder)
    return load_patch(folder / TENSORS_NAME, folder / DESCRIPTION_NAME)


def digest_all(model: Any) -> dict[str, str]:
    """Digest of every tensor of a model."""
    return {key: digest_tensor(value) for key, value in model.state_dict().items()}


@torch.inference_mode()
def run(model: Any) -> torch.Tensor:
    """Logits of the test's tokens."""
    return model(input_ids=TOKENS, use_cache=False).logits


@EVERY
def test_a_patch_of_linears_is_saved_loaded_and_undone(name: str, tmp_path: Path) -> None:
    """From its files it has the same bits; undone, the base's bytes and tying are back."""
    language_model = wrap(name)
    model = language_model.model
    before = digest_all(model)
    made = describe(language_model, change_model(language_model))
    patch = save_and_load(made, tmp_path)
    assert patch.description == made.description
    assert set(patch.edit.linears) == set(list_writers(model))
    for path, linear in patch.edit.linears.items():
        assert torch.equal(linear.left, made.edit.linears[path].left)
        assert torch.equal(linear.right, made.edit.linears[path].right)
    applied = apply_patch(language_model, patch)
    after = digest_all(model)
    for parameter, change in patch.description.tensors.items():
        assert (before[parameter], after[parameter]) == (change.base, change.patched)
        assert change.base != change.patched
    assert {key for key in before if before[key] != after[key]} == set(patch.description.tensors)
    applied.undo()
    assert digest_all(model) == before
    with patched_model(language_model, patch):
        assert digest_all(model) == after
    assert digest_all(model) == before
    head, embedding = language_model.head_weight, model.get_input_embeddings().weight
    assert (head is embedding) == ARCHITECTURES[name].is_tied


def test_linears_alone_leave_a_tied_head_tied() -> None:
    """Nothing is untied that is not changed."""
    language_model = wrap("qwen2")
    edit = ModelEdit(linears=change_model(language_model).linears)
    applied = apply_patch(language_model, describe(language_model, edit))
    assert language_model.head_weight is language_model.model.get_input_embeddings().weight
    assert language_model.model.config.tie_word_embeddings
    applied.undo()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_stack_of_linears_does_what_its_patches_do_in_turn(name: str, tmp_path: Path) -> None:
    """Products add up, of a layer that both change and of those that one does."""
    language_model = wrap(name)
    patches = [
        describe(language_model, change_model(language_model), "first"),
        describe(language_model, change_model(language_model, seed=1, n_first=2), "second"),
    ]
    stack = save_and_load(stack_patches(language_model, patches), tmp_path)
    assert stack.description.intervention == "first + second"
    ranks = [linear.rank for linear in stack.edit.linears.values()]
    first, second = ({n: e.rank for n, e in p.edit.linears.items()} for p in patches)
    assert ranks == [first[path] + second.get(path, 0) for path in stack.edit.linears]
    found = compute_parameters(language_model, stack)
    one, other = (compute_parameters(language_model, patch) for patch in patches)
    for path in first:
        weight = language_model.model.get_submodule(path).weight
        key = f"{path}.weight"
        expected = one[key] + (other[key] - weight if key in other else 0.0)
        torch.testing.assert_close(found[key], expected, atol=1e-6, rtol=0)
    undo = apply_patch(language_model, patches[0])
    # the second's edit, made for the base, is made again for what the first left
    again = describe(language_model, patches[1].edit)
    with patched_model(language_model, again):
        expected = run(language_model.model)
    undo.undo()
    with patched_model(language_model, stack):
        torch.testing.assert_close(run(language_model.model), expected, atol=1e-4, rtol=1e-4)


def test_linears_cannot_be_stacked_on_scaled_units_of_the_same_layer() -> None:
    """A product that is added after the scaling is not one that is added before."""
    language_model = wrap("llama")
    name = "model.layers.0.mlp.down_proj"
    units = describe(language_model, scale_units(language_model, [name]))
    changed = describe(language_model, change_linears(language_model, [name]))
    with pytest.raises(ComponentError, match=r"other linear layers.*changes model\.layers\.0"):
        stack_patches(language_model, [units, changed])
    elsewhere = change_linears(language_model, ["model.layers.1.mlp.down_proj"])
    stack = stack_patches(language_model, [units, describe(language_model, elsewhere)])
    assert (len(stack.edit.units), len(stack.edit.linears)) == (1, 1)
    with pytest.raises(ComponentError, match="changes units of the trunk"):
        stack_patches(language_model, [changed, units])


def test_a_patch_of_linears_for_other_weights_is_refused() -> None:
    """The same architecture with other values, and one that lacks the layers."""
    patch = describe(wrap("llama"), ModelEdit(linears=change_model(wrap("llama")).linears))
    other = make_architecture("llama")
    torch.nn.init.ones_(other.model.layers[1].self_attn.o_proj.weight)
    changed = wrap_model(other, StubTokenizer(), model_id="llama", digest="d")
    with pytest.raises(ComponentError, match=r"expected model\.layers\.1\.self_attn.* digest"):
        compute_parameters(changed, patch)
    with pytest.raises(ComponentError, match="found no such parameter"):
        apply_patch(wrap("gpt2"), patch)


# Files


def test_only_a_patch_of_linears_is_written_in_the_new_format(tmp_path: Path) -> None:
    """What an earlier version can read it still gets."""
    language_model = wrap("llama")
    old = ModelEdit(
        damp_head(language_model, 0.25).head,
        scale_units(language_model, list_mlp_layers(language_model)).units,
    )
    found = {}
    for kind, edit in (("old", old), ("new", change_model(language_model))):
        (tmp_path / kind).mkdir()
        save_patch(describe(language_model, edit), tmp_path / kind)
        found[kind] = json.loads((tmp_path / kind / DESCRIPTION_NAME).read_text())
    assert (found["old"]["format_version"], found["new"]["format_version"]) == (2, 3)
    assert not any(key.startswith("linears/") for key in load_file(tmp_path / "old" / TENSORS_NAME))
    keys = set(load_file(tmp_path / "new" / TENSORS_NAME))
    assert "linears/model.layers.1.mlp.down_proj/left" in keys
    assert "linears/model.layers.1.mlp.down_proj/right" in keys


def test_a_patch_file_of_the_second_format_still_loads(tmp_path: Path) -> None:
    """Head and units, without a word on linear layers."""
    language_model = wrap("gpt2")
    units = scale_units(language_model, list_mlp_layers(language_model), shift=0.2).units
    patch = describe(language_model, ModelEdit(damp_head(language_model, 0.25).head, units))
    loaded = save_and_load(patch, tmp_path)
    assert loaded.description.format_version == 2
    assert loaded.edit.linears == {}
    with patched_model(language_model, loaded):
        found = {key: digest_tensor(language_model.model.get_parameter(key)) for key in
                 patch.description.tensors}  # fmt: skip
    assert found == {key: change.patched for key, change in patch.description.tensors.items()}


def test_the_facts_of_a_patch_tell_the_rank_of_each_layer(workspace: Workspace) -> None:
    """What audits list."""
    language_model = wrap("llama")
    write_patch(describe(language_model, change_model(language_model)), workspace)
    assert workspace.facts["ranks"] == {
        "model.layers.0.self_attn.o_proj": 1,
        "model.layers.0.mlp.down_proj": 2,
        "model.layers.1.self_attn.o_proj": 3,
        "model.layers.1.mlp.down_proj": 1,
    }
    assert (workspace.facts["n_components"], workspace.facts["n_units"]) == (2, 0)
