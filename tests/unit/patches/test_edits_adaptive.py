"""Changes that depend on the state: a formula, hooked, stored, and never folded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eigenshift.base.errors import ComponentError, FoldingError
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import AdaptiveEdit, ModelEdit
from eigenshift.patches.folding import fold_edit, run_hooked
from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    load_patch,
    make_patch,
    patched_model,
    save_patch,
    stack_patches,
)
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from tests.support.architectures import VOCAB, StubTokenizer, damp_head, make_architecture

TOKENS = (torch.arange(24).reshape(2, 12) * 5 + 4) % VOCAB
UNITS = 16
NORMS = {
    "gpt2": "transformer.h.1.ln_2",
    "opt": "model.decoder.layers.1.final_layer_norm",
    "llama": "model.layers.1.post_attention_layernorm",
    "gemma2": "model.layers.1.post_feedforward_layernorm",
}


def make_edit(n_moves: int = 3, seed: int = 0) -> AdaptiveEdit:
    """Made-up moves."""
    generator = torch.Generator().manual_seed(seed)
    readout, slope, shift = (
        torch.randn(UNITS, n_moves, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    offset = torch.randn(n_moves, generator=generator, dtype=torch.float64)
    return AdaptiveEdit(readout, offset, slope, shift)


def wrap(name: str) -> LanguageModel:
    """A tiny model of an architecture."""
    return wrap_model(make_architecture(name), StubTokenizer(), model_id=name, digest="d")


@torch.inference_mode()
def run(language_model: LanguageModel) -> torch.Tensor:
    """Logits of the test's tokens."""
    return language_model.model(input_ids=TOKENS, use_cache=False).logits.clone()


def describe(language_model: LanguageModel, edit: ModelEdit) -> Patch:
    """The patch of an edit."""
    return make_patch(language_model, edit, model_id="tiny", intervention="test")


def test_each_state_takes_each_move_by_its_share() -> None:
    """The formula, written out state by state and move by move."""
    edit = make_edit()
    states = torch.randn(2, 5, UNITS, dtype=torch.float64)
    found = edit.apply_to_outputs(states)
    for batch, position in ((0, 0), (1, 4)):
        y = states[batch, position]
        odds = (edit.readout.T @ y + edit.offset).exp()
        expected = y.clone()
        for move in range(3):
            share = odds[move] / odds.sum()
            expected += share * (edit.slope[:, move] * y + edit.shift[:, move])
        torch.testing.assert_close(found[batch, position], expected)


def test_strength_scales_the_moves_and_not_what_decides_between_them() -> None:
    """The change is proportional to the strength; at 0 the states keep their bits."""
    edit, states = make_edit(), torch.randn(7, UNITS)
    change = edit.apply_to_outputs(states) - states
    half = ModelEdit(adaptive={"norm": edit}).scale(0.5).adaptive["norm"]
    torch.testing.assert_close(half.apply_to_outputs(states) - states, change / 2)
    assert torch.equal(edit.scale_moves(0.0).apply_to_outputs(states), states)


def test_low_precision_comes_back_as_it_was() -> None:
    """What decides is computed in float32, or a softmax of large numbers would be noise."""
    states = torch.randn(4, UNITS).bfloat16()
    found = make_edit().apply_to_outputs(states)
    assert found.dtype == torch.bfloat16
    exact = make_edit().apply_to_outputs(states.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NORMS)
def test_it_is_hooked_and_never_folded(name: str) -> None:
    """The patch says why and changes no parameter; run with it, the logits are the hooked ones."""
    language_model = wrap(name)
    edit = ModelEdit(adaptive={NORMS[name]: make_edit()})
    with pytest.raises(FoldingError, match="depends on the state"):
        fold_edit(language_model, edit)
    patch = describe(language_model, edit)
    assert "no place in the weights" in str(patch.description.obstacle)
    assert patch.description.tensors == {}
    base = run(language_model)
    before = {key: digest_tensor(value) for key, value in language_model.model.named_parameters()}
    with run_hooked(language_model, edit):
        hooked = run(language_model)
    with patched_model(language_model, patch):
        assert torch.equal(run(language_model), hooked)
    assert not torch.allclose(hooked, base, rtol=1e-2)
    assert torch.equal(run(language_model), base)
    after = {key: digest_tensor(value) for key, value in language_model.model.named_parameters()}
    assert before == after
    with pytest.raises(FoldingError, match="depends on the state"):
        apply_patch(language_model, patch)


def test_its_hook_changes_what_the_module_gives() -> None:
    """The module's output under the hook is the formula of its output without."""
    language_model = wrap("llama")
    edit, seen = make_edit(), []
    module = language_model.model.get_submodule(NORMS["llama"])
    base_handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    run(language_model)
    base_handle.remove()
    with run_hooked(language_model, ModelEdit(adaptive={NORMS["llama"]: edit})):
        handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
        run(language_model)
        handle.remove()
    torch.testing.assert_close(seen[1], edit.apply_to_outputs(seen[0]))


def test_a_patch_file_holds_it(tmp_path: Path) -> None:
    """Of format 3; saved and loaded it has the same bits, beside a change of the head."""
    language_model = wrap("llama")
    whole = ModelEdit(
        damp_head(language_model, 0.25).head,
        adaptive={NORMS["llama"]: make_edit(), "model.norm": make_edit(2, seed=1)},
    )
    made = describe(language_model, whole)
    save_patch(made, tmp_path)
    loaded = load_patch(tmp_path / TENSORS_NAME, tmp_path / DESCRIPTION_NAME)
    assert loaded.description == made.description
    assert loaded.description.format_version == 3
    assert set(loaded.edit.adaptive) == set(whole.adaptive)
    for name, edit in whole.adaptive.items():
        for part in ("readout", "offset", "slope", "shift"):
            assert torch.equal(getattr(loaded.edit.adaptive[name], part), getattr(edit, part))
    assert loaded.edit.changes_trunk
    assert set(loaded.edit.of_trunk.adaptive) == set(whole.adaptive)


def test_it_is_not_stacked() -> None:
    """Neither as the first patch nor as the second."""
    language_model = wrap("llama")
    moved = describe(language_model, ModelEdit(adaptive={NORMS["llama"]: make_edit()}))
    damped = describe(language_model, damp_head(language_model, 0.5))
    for patches in ([moved, damped], [damped, moved]):
        with pytest.raises(ComponentError, match="cannot be stacked"):
            stack_patches(language_model, patches)
