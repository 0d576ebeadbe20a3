"""Patches: the formula, the round trip, tied heads, undo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenshift.base.errors import ComponentError
from eigenshift.components.decomposition import decompose_head
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, load_model
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    compute_parameters,
    load_patch,
    make_patch,
    patched_model,
    stack_patches,
    write_patch,
)
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from eigenshift.settings import ModelSettings
from eigenshift.store.workspace import Workspace

TOKENS = torch.tensor([[5, 9, 17, 3, 40, 2]])


@pytest.fixture
def patch(tiny_language_model: LanguageModel, workspace: Workspace) -> Patch:
    """A patch that removes three components of the tiny model's head, saved and loaded."""
    write_patch(make_head_patch(tiny_language_model, [1, 4, 9]), workspace)
    return load_patch(workspace.path(TENSORS_NAME), workspace.path(DESCRIPTION_NAME))


def make_head_patch(
    language_model: LanguageModel, indices: list[int], factor: float = 0.0
) -> Patch:
    """A patch that damps some components of a model's head."""
    v = decompose_head(language_model.head_module.weight).v[:, indices]
    return make_patch(
        language_model,
        ModelEdit(HeadEdit.scale_directions(v, factor)),
        model_id="tiny",
        intervention="eigenshift",
        component_indices=indices,
        factor=factor,
    )


@pytest.fixture
def own_model(tiny_model_folder: Path) -> Iterator[LanguageModel]:
    """A copy of the tiny model that a test may change."""
    from eigenshift.model import loading

    loading.forget_models()
    yield load_model(ModelSettings(id=str(tiny_model_folder)), device="cpu")
    loading.forget_models()


def compute_logits(language_model: LanguageModel) -> torch.Tensor:
    """Logits of a fixed sequence, shape (1, position, vocab)."""
    with torch.inference_mode():
        logits: torch.Tensor = language_model.model(TOKENS).logits
    return logits


@settings(deadline=None, max_examples=40)
@given(
    vocab=st.integers(8, 40),
    hidden=st.integers(2, 8),
    n_damped=st.integers(1, 2),
    factor=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_only_the_chosen_singular_values_move(
    vocab: int, hidden: int, n_damped: int, factor: float, seed: int
) -> None:
    """W' equals U diag(sigma') V^T in float64, the independent form of the formula."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(vocab, hidden))
    u, sigma, vt = np.linalg.svd(weight, full_matrices=False)
    chosen = generator.choice(hidden, n_damped, replace=False)
    scaled = sigma.copy()
    scaled[chosen] *= factor
    edit = HeadEdit.scale_directions(vt[chosen].T, factor)
    found = edit.fold_weight(torch.from_numpy(weight))
    np.testing.assert_allclose(found.numpy(), u * scaled @ vt, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factor_one_changes_no_bit(dtype: torch.dtype) -> None:
    """At 1 the head comes back as it was, and as a copy."""
    weight = torch.randn(50, 8).to(dtype)
    found = HeadEdit.scale_directions(np.eye(8)[:, :3], 1.0).fold_weight(weight)
    assert torch.equal(found, weight)
    assert found.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("factor", [-0.1, 1.1])
def test_a_factor_outside_0_to_1_is_refused(factor: float) -> None:
    """Amplifying or flipping a component is not what a patch is for."""
    with pytest.raises(ComponentError, match="factor"):
        HeadEdit.scale_directions(np.eye(4)[:, :1], factor)


def test_a_saved_patch_gives_the_logits_of_the_formula(
    tiny_language_model: LanguageModel, patch: Patch
) -> None:
    """Patch -> save -> load -> logits equal h W'^T with W' = U diag(sigma') V^T in float64."""
    weight = tiny_language_model.head_module.weight.detach().double().numpy()
    u, sigma, vt = np.linalg.svd(weight, full_matrices=False)
    sigma[[1, 4, 9]] = 0.0
    with torch.inference_mode():
        states = tiny_language_model.trunk(TOKENS).last_hidden_state.double().numpy()
    with patched_model(tiny_language_model, patch):
        found = compute_logits(tiny_language_model).numpy()
    np.testing.assert_allclose(found, states @ (u * sigma @ vt).T, atol=1e-4)


def test_leaving_the_patch_restores_the_base_byte_for_byte(
    tiny_language_model: LanguageModel, patch: Patch
) -> None:
    """Undo is exact, even when the work under the patch failed."""
    head = tiny_language_model.head_module
    before, parameter = digest_tensor(head.weight), head.weight

    def fail_under_the_patch() -> None:
        with patched_model(tiny_language_model, patch):
            assert digest_tensor(head.weight) == patch.description.patched_digest
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_under_the_patch()
    assert head.weight is parameter
    assert digest_tensor(head.weight) == before == patch.description.base_digest


def test_a_tied_models_input_embedding_is_untouched(own_model: LanguageModel, patch: Patch) -> None:
    """The head gets a parameter of its own; the embedding keeps its bytes."""
    assert own_model.head.is_tied
    embedding = own_model.model.get_input_embeddings().weight
    before = digest_tensor(embedding)
    apply_patch(own_model, patch)
    assert digest_tensor(own_model.model.get_input_embeddings().weight) == before
    assert digest_tensor(own_model.head_module.weight) == patch.description.patched_digest


def test_a_patched_tied_model_survives_save_and_reload(
    own_model: LanguageModel, patch: Patch, tmp_path: Path
) -> None:
    """Reloaded from disk the head is still the patched one and the embedding the base's."""
    from transformers import AutoModelForCausalLM

    apply_patch(own_model, patch)
    expected = compute_logits(own_model)
    own_model.model.save_pretrained(tmp_path)
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)
    with torch.inference_mode():
        torch.testing.assert_close(reloaded(TOKENS).logits, expected, atol=1e-6, rtol=0)
    assert digest_tensor(reloaded.get_input_embeddings().weight) == digest_tensor(
        own_model.model.get_input_embeddings().weight
    )


def test_a_patch_for_another_head_is_refused(
    tiny_language_model: LanguageModel, patch: Patch
) -> None:
    """A head with other bytes, for instance an already patched one, is told by its digest."""
    with patched_model(tiny_language_model, patch), pytest.raises(ComponentError, match="digest"):
        compute_parameters(tiny_language_model, patch)


def test_directions_that_are_not_orthonormal_are_refused() -> None:
    """The rank-k form only scales singular values if V_k has orthonormal columns."""
    with pytest.raises(ComponentError, match="orthonormal"):
        HeadEdit.scale_directions(np.ones((32, 2)), 0.0)


def test_an_applied_patch_is_undone_to_the_bytes_and_the_tying(
    own_model: LanguageModel, patch: Patch
) -> None:
    """After undo the head is the embedding again and the configuration says so."""
    model, before = own_model.model, own_model.head_weight
    applied = apply_patch(own_model, patch)
    assert not model.config.tie_word_embeddings
    applied.undo()
    assert own_model.head_weight is before is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings
    assert digest_tensor(before) == patch.description.base_digest


def test_patches_applied_one_on_the_other_are_undone_in_turn(own_model: LanguageModel) -> None:
    """A second patch is made on the patched model; undoing both gives the base's bytes."""
    before = digest_tensor(own_model.head_weight)
    first = apply_patch(own_model, make_head_patch(own_model, [2, 3]))
    between = digest_tensor(own_model.head_weight)
    second = apply_patch(own_model, make_head_patch(own_model, [0]))
    second.undo()
    assert digest_tensor(own_model.head_weight) == between
    first.undo()
    assert digest_tensor(own_model.head_weight) == before


def test_a_stack_does_what_its_patches_do_in_turn(own_model: LanguageModel) -> None:
    """Two patches of one base as one patch: the same logits as one after the other."""
    patches = [make_head_patch(own_model, [2, 5]), make_head_patch(own_model, [5, 7], 0.25)]
    stack = stack_patches(own_model, patches)
    weight = own_model.head_weight
    expected = patches[1].edit.head.fold_weight(patches[0].edit.head.fold_weight(weight))
    torch.testing.assert_close(
        compute_parameters(own_model, stack)["lm_head.weight"], expected, atol=1e-6, rtol=0
    )
    with patched_model(own_model, patches[0]), pytest.raises(ComponentError, match="digest"):
        stack_patches(own_model, patches)


def test_a_patch_that_changes_nothing_fits_its_base(own_model: LanguageModel) -> None:
    """An intervention may find nothing to change: its patch runs and is undone like any other."""
    patch = make_patch(own_model, ModelEdit(), model_id="tiny", intervention="none")
    before = compute_logits(own_model)
    with patched_model(own_model, patch):
        assert torch.equal(compute_logits(own_model), before)
    apply_patch(own_model, patch).undo()
    digest = digest_tensor(own_model.head_weight)
    assert (patch.description.base_digest, patch.description.patched_digest) == (digest, digest)


def test_a_patch_file_of_the_first_format_still_loads(
    tiny_language_model: LanguageModel, patch: Patch, workspace: Workspace
) -> None:
    """Format 1 held v, sigma and a factor."""
    path = workspace.path(DESCRIPTION_NAME)
    kept = ("intervention", "component_indices", "factor", "model_id", "model_digest")
    old = {name: value for name, value in json.loads(path.read_text()).items() if name in kept}
    old |= {"format_version": 1, "patched_digest": patch.description.patched_digest}
    path.write_text(json.dumps(old | {"base_digest": patch.description.base_digest}))
    loaded = load_patch(workspace.path(TENSORS_NAME), path)
    with patched_model(tiny_language_model, loaded):
        found = digest_tensor(tiny_language_model.head_weight)
    assert found == patch.description.patched_digest


def test_a_patch_file_of_a_later_format_is_refused(patch: Patch, workspace: Workspace) -> None:
    """What it holds is not known here."""
    path = workspace.path(DESCRIPTION_NAME)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ComponentError, match="later version"):
        load_patch(workspace.path(TENSORS_NAME), path)
