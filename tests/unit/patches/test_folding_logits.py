"""Changed logits of some tokens: folded, hooked and by hand in float64 they agree."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eigenshift.base.errors import ComponentError, FoldingError
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.folding import compute_logits, fold_edit, run_hooked
from eigenshift.patches.patching import (
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
    damp_head,
    make_architecture,
    scale_units,
)

TOKENS = (torch.arange(24).reshape(2, 12) * 3 + 4) % VOCAB
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
CHANGED = (7, 11, 40)
TOLERANCE = 1e-5


@cache
def wrap(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model ready to run, shared by the tests: leave it as you found it."""
    model = make_architecture(name).to(dtype)
    return wrap_model(model, StubTokenizer(), model_id=name, digest="d")


def move_tokens(language_model: LanguageModel, shift: float = 0.0) -> LogitEdit:
    """Move three tokens' logits by two measured values."""
    generator = torch.Generator().manual_seed(0)
    hidden = language_model.head.hidden
    left = torch.zeros(language_model.head.vocab, 2, dtype=torch.float64)
    left[list(CHANGED)] = torch.randn(3, 2, generator=generator, dtype=torch.float64) - 1.0
    right = torch.randn(hidden, 2, generator=generator, dtype=torch.float64) / hidden**0.5
    return LogitEdit(left, right, shift * torch.tensor([1.0, -0.5], dtype=torch.float64))


@torch.inference_mode()
def run(language_model: LanguageModel) -> Tensor:
    """Logits of the test's tokens, float64."""
    return language_model.model(input_ids=TOKENS, use_cache=False).logits.double()


def run_hooks(language_model: LanguageModel, edit: ModelEdit) -> Tensor:
    """Logits with an edit hooked."""
    with run_hooked(language_model, edit):
        return run(language_model)


def run_folded(language_model: LanguageModel, edit: ModelEdit) -> Tensor:
    """Logits with an edit folded."""
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    assert patch.description.obstacle is None
    with patched_model(language_model, patch):
        return run(language_model)


def run_cached(language_model: LanguageModel, edit: ModelEdit) -> Tensor:
    """Logits from the base's own states."""
    found = dict(iterate_head_states(language_model, TOKENS.tolist(), 64))
    states = torch.stack([found[place] for place in range(len(TOKENS))])
    with torch.inference_mode():
        return compute_logits(language_model, edit, states).double()


def run_by_hand(language_model: LanguageModel, edit: LogitEdit) -> Tensor:
    """A model in float64 whose head got W + left right^T, and its bias left shift."""
    model = deepcopy(language_model.model).double()
    model.config._experts_implementation = "eager"  # grouped products have no float64
    head = model.get_submodule(language_model.head.name)
    with torch.no_grad():
        moved = head.weight + torch.einsum("vk,hk->vh", edit.left, edit.right)
        head.weight = torch.nn.Parameter(moved, requires_grad=False)
        if edit.has_shift:
            bias = torch.zeros(len(moved)).double() if head.bias is None else head.bias
            head.bias = torch.nn.Parameter(bias + edit.left @ edit.shift, requires_grad=False)
        return model(input_ids=TOKENS, use_cache=False).logits


def assert_near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Relative to the largest logit."""
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@EVERY
def test_four_ways_give_the_same_logits(name: str) -> None:
    """Folded, hooked, on cached states and by hand; only the tokens of the edit move."""
    language_model = wrap(name)
    logits = move_tokens(language_model)
    edit = ModelEdit(logits=logits)
    expected, base = run_by_hand(language_model, logits), run(language_model)
    assert_near(run_folded(language_model, edit), expected)
    assert_near(run_hooks(language_model, edit), expected)
    assert_near(run_cached(language_model, edit), expected)
    moved = (expected - base).abs().amax((0, 1))
    scale = float(base.abs().max())
    assert float(moved[list(CHANGED)].min()) > 1e-3 * scale
    others = [token for token in range(VOCAB) if token not in CHANGED]
    assert float(moved[others].max()) < 1e-5 * scale


@EVERY
def test_in_bfloat16_weights_are_the_exact_sum_rounded_once(name: str) -> None:
    """Hooks are as near as that precision lets them be."""
    language_model = wrap(name, torch.bfloat16)
    logits = move_tokens(language_model)
    folded = fold_edit(language_model, ModelEdit(logits=logits))
    (value,) = folded.values()
    weight = language_model.head_weight
    assert value.dtype == torch.bfloat16
    exact = weight.double() + torch.einsum("vk,hk->vh", logits.left, logits.right)
    torch.testing.assert_close(value, exact.bfloat16(), rtol=1e-2, atol=1e-6)
    others = [token for token in range(VOCAB) if token not in CHANGED]
    assert torch.equal(value[others], weight[others])
    edit = ModelEdit(logits=logits)
    hooked = run_hooks(language_model, edit)
    assert_near(run_folded(language_model, edit), hooked, 5e-2)
    assert_near(run_cached(language_model, edit), hooked, 5e-2)


@EVERY
def test_a_constant_needs_a_bias_of_the_head(name: str) -> None:
    """With one it folds; without, the patch says so and is hooked."""
    language_model = wrap(name)
    logits = move_tokens(language_model, shift=0.7)
    edit, expected = ModelEdit(logits=logits), run_by_hand(language_model, logits)
    assert_near(run_hooks(language_model, edit), expected)
    assert_near(run_cached(language_model, edit), expected)
    if ARCHITECTURES[name].has_bias:
        assert_near(run_folded(language_model, edit), expected)
        return
    with pytest.raises(FoldingError, match=r"expected a head with a bias, found none"):
        fold_edit(language_model, edit)
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    assert "head with a bias" in (patch.description.obstacle or "")
    with patched_model(language_model, patch):
        assert_near(run(language_model), expected)


@EVERY
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_behind_an_edit_of_the_head_it_reads_what_that_has_changed(name: str, shift: float) -> None:
    """Also where the head's own shift goes into its bias, or into that of the norm before it."""
    language_model = wrap(name)
    head = damp_head(language_model, 0.4, shift).head
    edit = ModelEdit(head, logits=move_tokens(language_model))
    hooked = run_hooks(language_model, edit)
    assert_near(run_cached(language_model, edit), hooked)
    if shift and not ARCHITECTURES[name].folds_shift:
        with pytest.raises(FoldingError):
            fold_edit(language_model, edit)
        return
    assert_near(run_folded(language_model, edit), hooked)


@pytest.mark.parametrize("name", ["gpt2", "phi"])
def test_with_units_of_the_trunk(name: str) -> None:
    """States are the changed trunk's."""
    language_model = wrap(name)
    prefix = "transformer.h.1.mlp.c_proj" if name == "gpt2" else "model.layers.1.mlp.fc2"
    units = scale_units(language_model, [prefix], shift=0.2).units
    edit = ModelEdit(None, units, logits=move_tokens(language_model))
    assert_near(run_folded(language_model, edit), run_hooks(language_model, edit))


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gemma2"])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_patch_is_saved_loaded_and_undone(name: str, shift: float, tmp_path: Path) -> None:
    """In the newest format; a tied embedding stays; the facts tell how many tokens move."""
    language_model = wrap(name)
    edit = ModelEdit(logits=move_tokens(language_model, shift))
    made = make_patch(language_model, edit, model_id="tiny", intervention="test")
    save_patch(made, tmp_path)
    patch = load_patch(tmp_path / TENSORS_NAME, tmp_path / DESCRIPTION_NAME)
    assert patch.description == made.description
    assert patch.description.format_version == 3
    assert (patch.edit.head, patch.edit.logits is None) == (None, False)
    before = run(language_model)
    with patched_model(language_model, made):
        expected = run(language_model)
    with patched_model(language_model, patch):
        assert torch.equal(run(language_model), expected)
    assert torch.equal(run(language_model), before)
    write_patch(patch, Workspace(tmp_path))
    workspace = Workspace(tmp_path)
    write_patch(patch, workspace)
    assert workspace.facts["n_tokens"] == len(CHANGED)
    assert workspace.facts["n_components"] == 0


def test_two_of_them_are_stacked_and_one_after_a_change_of_the_head() -> None:
    """What is added adds up; after a change of the head the changed state is read."""
    language_model = wrap("llama")
    moved = ModelEdit(logits=move_tokens(language_model))
    head = damp_head(language_model, 0.5).head
    assert head is not None
    assert moved.logits is not None
    patches = {
        name: make_patch(language_model, edit, model_id="tiny", intervention="test")
        for name, edit in (("moved", moved), ("damped", ModelEdit(head)))
    }
    states = torch.randn(5, language_model.head.hidden, generator=torch.Generator().manual_seed(3))
    raw = states @ language_model.head_weight.float().T
    twice = stack_patches(language_model, [patches["moved"]] * 2)
    expected = moved.logits.apply_to_logits(moved.logits.apply_to_logits(raw, states), states)
    torch.testing.assert_close(compute_logits(language_model, twice.edit, states), expected)
    after = stack_patches(language_model, [patches["damped"], patches["moved"]])
    turned = head.apply_to_states(states)
    expected = moved.logits.apply_to_logits(turned @ language_model.head_weight.float().T, turned)
    torch.testing.assert_close(compute_logits(language_model, after.edit, states), expected)


def test_a_change_of_the_head_after_it_is_refused() -> None:
    """It has read what the other would change; the remedy is the other order."""
    language_model = wrap("llama")
    patches = [
        make_patch(language_model, edit, model_id="tiny", intervention="test")
        for edit in (
            ModelEdit(logits=move_tokens(language_model)),
            ModelEdit(damp_head(language_model, 0.5).head),
        )
    ]
    with pytest.raises(ComponentError, match=r"what enters the head, .*Apply that one first"):
        stack_patches(language_model, patches)


@pytest.mark.parametrize(("vocab", "hidden"), [(VOCAB + 1, 16), (VOCAB, 8)])
def test_a_head_of_other_sizes_is_refused(vocab: int, hidden: int) -> None:
    """The patch is for another model."""
    sides = (torch.ones(n, 1, dtype=torch.float64) for n in (vocab, hidden))
    edit = ModelEdit(logits=LogitEdit(*sides, torch.zeros(1, dtype=torch.float64)))
    with pytest.raises(ComponentError, match=r"expected a head of shape .*another model"):
        fold_edit(wrap("llama"), edit)


def test_zeros_change_no_bit() -> None:
    """Tokens that are listed and not moved keep their bytes."""
    language_model = wrap("llama", torch.bfloat16)
    zeros = torch.zeros(VOCAB, 1, dtype=torch.float64)
    right = torch.ones(16, 1, dtype=torch.float64)
    edit = ModelEdit(logits=LogitEdit(zeros, right, torch.zeros(1, dtype=torch.float64)))
    (value,) = fold_edit(language_model, edit).values()
    assert torch.equal(value, language_model.head_weight)
    assert edit.changes_head
    assert not edit.changes_trunk
