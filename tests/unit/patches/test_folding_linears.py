"""Changed linear layers on every architecture: folded, hooked and by hand in float64 they agree.

The reference is a copy of the model in float64 whose weights got W + left right^T written out.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eigenshift.base.errors import ComponentError, FoldingError
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import LinearEdit, ModelEdit
from eigenshift.patches.folding import fold_edit, run_hooked
from eigenshift.patches.patching import make_patch, patched_model
from tests.support.architectures import (
    ARCHITECTURES,
    VOCAB,
    StubTokenizer,
    change_linears,
    damp_head,
    make_architecture,
    scale_units,
)

TOKENS = (torch.arange(24).reshape(2, 12) * 3 + 4) % VOCAB
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
TOLERANCE = 1e-5
COARSE_TOLERANCE = 5e-2


@cache
def wrap(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model ready to run, shared by the tests: leave it as you found it."""
    model = make_architecture(name).to(dtype)
    return wrap_model(model, StubTokenizer(), model_id=name, digest="d")


def change_writers(language_model: LanguageModel) -> ModelEdit:
    """Change every layer that writes into the residual stream, with ranks of 1 to 3."""
    return change_linears(language_model, list(list_writers(language_model.model)))


@torch.inference_mode()
def run(model: Any) -> torch.Tensor:
    """Logits of the test's tokens, float64."""
    return model(input_ids=TOKENS, use_cache=False).logits.double()


def run_folded(language_model: LanguageModel, edit: ModelEdit) -> torch.Tensor:
    """Logits with an edit folded into the weights."""
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    assert patch.description.obstacle is None
    with patched_model(language_model, patch):
        return run(language_model.model)


def change_by_hand(language_model: LanguageModel, edit: ModelEdit) -> Any:
    """A copy in float64 with W + left right^T, and outputs scaled and shifted after that."""
    model = deepcopy(language_model.model).double()
    model.config._experts_implementation = "eager"  # grouped products have no float64
    with torch.no_grad():
        for name, linear in edit.linears.items():
            module = model.get_submodule(name)
            product = torch.einsum("ok,ik->oi", linear.left, linear.right)
            module.weight += product.T if isinstance(module, Conv1D) else product
        for name, unit in edit.units.items():
            module = model.get_submodule(name)
            is_transposed = isinstance(module, Conv1D)
            module.weight *= unit.scale if is_transposed else unit.scale[:, None]
            if module.bias is not None:
                module.bias.copy_(module.bias * unit.scale + unit.shift)
    return model


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest logit."""
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@EVERY
def test_folded_linears_equal_the_hooked_ones_and_the_formula(name: str) -> None:
    """W + left right^T in the weights, by hooks and by hand: the same logits, not the base's."""
    language_model = wrap(name)
    edit = change_writers(language_model)
    assert len(edit.linears) == 2 * ARCHITECTURES[name].writers
    expected = run(change_by_hand(language_model, edit))
    with run_hooked(language_model, edit):
        hooked = run(language_model.model)
    folded = run_folded(language_model, edit)
    assert_near(folded, hooked, TOLERANCE)
    assert_near(folded, expected, TOLERANCE)
    assert not torch.allclose(folded, run(language_model.model), rtol=1e-2)


@EVERY
def test_folded_linears_and_head_in_bfloat16(name: str) -> None:
    """In low precision the folded weight is the exact sum, rounded once."""
    language_model = wrap(name, torch.bfloat16)
    edit = change_writers(language_model)
    folded = fold_edit(language_model, edit)
    reference = change_by_hand(language_model, edit)
    assert set(folded) == {f"{path}.weight" for path in edit.linears}
    for parameter, value in folded.items():
        assert value.dtype == torch.bfloat16
        exact = reference.get_parameter(parameter)
        torch.testing.assert_close(value, exact.bfloat16(), rtol=1e-2, atol=1e-6)
    whole = ModelEdit(damp_head(language_model, 0.25).head, {}, edit.linears)
    with run_hooked(language_model, whole):
        hooked = run(language_model.model)
    assert_near(run_folded(language_model, whole), hooked, COARSE_TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_a_linear_and_a_unit_edit_of_one_module(name: str) -> None:
    """The product is added first, then the sum and the bias are scaled."""
    language_model = wrap(name)
    edit = change_writers(language_model)
    names = list(edit.linears)
    has_bias = getattr(language_model.model.get_submodule(names[0]), "bias", None) is not None
    units = scale_units(language_model, names[:2], shift=0.3 if has_bias else 0.0).units
    both = ModelEdit(damp_head(language_model, 0.5).head, units, edit.linears)
    with run_hooked(language_model, both):
        hooked = run(language_model.model)
    assert_near(run_folded(language_model, both), hooked, TOLERANCE)
    trunk = both.of_trunk
    expected = run(change_by_hand(language_model, trunk))
    assert_near(run_folded(language_model, trunk), expected, TOLERANCE)


def test_a_product_of_zeros_changes_no_bit() -> None:
    """A layer that is listed and not changed keeps its bytes."""
    for dtype in (torch.float32, torch.bfloat16):
        language_model = wrap("gpt2", dtype)
        name = "transformer.h.1.mlp.c_proj"
        edit = ModelEdit(linears={name: LinearEdit(torch.zeros(16, 2), torch.ones(64, 2))})
        (value,) = fold_edit(language_model, edit).values()
        assert torch.equal(value, language_model.model.get_submodule(name).weight)


def test_a_layer_the_model_lacks_is_refused() -> None:
    """A patch of another architecture, folded or hooked."""
    edit = change_writers(wrap("llama"))
    with pytest.raises(ComponentError, match=r"expected a module model\.layers\.0.*another model"):
        fold_edit(wrap("gpt2"), edit)
    with pytest.raises(ComponentError, match="another model"), run_hooked(wrap("gpt2"), edit):
        pass
    assert not any(module._forward_hooks for module in wrap("gpt2").model.modules())


@pytest.mark.parametrize(
    ("name", "layer"),
    [("gpt2", "transformer.h.0.mlp.c_proj"), ("llama", "model.layers.0.mlp.down_proj")],
)
def test_a_layer_of_other_sizes_is_refused(name: str, layer: str) -> None:
    """Also one whose inputs and outputs are the other way round."""
    edit = change_linears(wrap(name), [layer]).linears[layer]
    turned = ModelEdit(linears={layer: LinearEdit(edit.right, edit.left)})
    with pytest.raises(ComponentError, match=r"expected a linear layer of 16 inputs and \d\d out"):
        fold_edit(wrap(name), turned)


def test_a_module_that_is_no_linear_layer_is_refused() -> None:
    """A norm has a weight, but no inputs and outputs."""
    edit = ModelEdit(linears={"model.norm": LinearEdit(torch.zeros(16, 1), torch.zeros(16, 1))})
    with pytest.raises(ComponentError, match=r"model\.norm: .* found LlamaRMSNorm of None"):
        fold_edit(wrap("llama"), edit)


def test_a_product_stands_beside_a_layer_without_a_float_weight() -> None:
    """Codes cannot be changed in place; the patch says beside which layer it runs."""
    model = make_architecture("llama")
    language_model = wrap_model(model, StubTokenizer(), model_id="llama", digest="d")
    name = "model.layers.0.mlp.down_proj"
    edit = change_linears(language_model, [name])
    module = model.get_submodule(name)
    expected = run_folded(language_model, edit)

    class Coded(nn.Linear):
        """Stands for a quantised layer: integer codes, and one step for all."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ (self.weight * self.step).T

    coded = Coded(24, 16, bias=False)
    step = module.weight.detach().abs().max() / 2**30
    codes = (module.weight.detach().double() / step).round().to(torch.int32)
    coded.weight, coded.step = nn.Parameter(codes, requires_grad=False), step
    model.set_submodule(name, coded)
    with pytest.raises(FoldingError, match=r"probably quantised\. Load the model unquantised"):
        fold_edit(language_model, edit)
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    assert (patch.description.beside, patch.description.obstacle) == ((name,), None)
    with patched_model(language_model, patch):
        assert_near(run(model), expected, TOLERANCE)
