"""What a patch becomes in GGUF formats, against the formulas by hand."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from eigenshift.base.errors import FoldingError
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import fold_edit
from eigenshift.patches.patching import Patch, make_patch
from eigenshift.patches.served_forms import ServedForm, iterate_forms
from eigenshift.settings import BlockFormat, Form
from tests.support.architectures import (
    StubTokenizer,
    change_linears,
    damp_head,
    make_architecture,
    scale_units,
)
from tests.support.divided_models import divide

LINEAR = "transformer.h.0.mlp.c_proj"


def wrap(name: str) -> LanguageModel:
    """A tiny random model."""
    return wrap_model(make_architecture(name), StubTokenizer(), model_id=name, digest=name)


def build(model: LanguageModel, edit: ModelEdit) -> Patch:
    """The patch of an edit."""
    return make_patch(model, edit, model_id="tiny", intervention="test")


def list_forms(
    model: LanguageModel, edit: ModelEdit, *formats: BlockFormat, is_whole: bool = False
) -> dict[tuple[Form, BlockFormat | None], ServedForm]:
    """All forms by what they are."""
    found = iterate_forms(model, build(model, edit), formats, is_whole=is_whole)
    return {(item.form, item.asked): item for item in found}


def decode(values: torch.Tensor, name: str) -> torch.Tensor:
    """There and back by the library alone."""
    kind = gguf.GGMLQuantizationType[name]
    return torch.from_numpy(gguf.dequantize(gguf.quantize(values.numpy(), kind), kind))


def test_a_head_is_rounded_with_the_patch_in_it_or_without(
    tiny_language_model: LanguageModel,
) -> None:
    """Merged, and as an adapter; the shares follow from the weights."""
    edit = damp_head(tiny_language_model, 0.25)
    name = f"{tiny_language_model.head.name}.weight"
    base = tiny_language_model.head_weight.detach()
    patched = fold_edit(tiny_language_model, edit)[name]
    forms = list_forms(tiny_language_model, edit, BlockFormat.q4_k)
    assert list(forms) == [
        (Form.base, None),
        (Form.merged, None),
        (Form.base, BlockFormat.q4_k),
        (Form.merged, BlockFormat.q4_k),
        (Form.lora, BlockFormat.q4_k),
    ]
    rounded, merged = (decode(values, "Q5_0") for values in (base, patched))
    of_base, of_merged, of_lora = (forms[form, BlockFormat.q4_k] for form in Form)
    assert of_merged.stored == ("Q5_0",)  # rows of this head are too short for Q4_K
    assert torch.equal(of_base.parameters[name], rounded)
    assert torch.equal(of_merged.parameters[name], merged)
    assert torch.equal(of_lora.parameters[name], rounded)
    assert (of_lora.edit, of_merged.edit) == (edit, ModelEdit())
    change = (patched - base).double()
    kept = ((merged - rounded).double() * change).sum() / (change * change).sum()
    assert of_merged.edit_kept == pytest.approx(float(kept), rel=1e-6)
    size = float(change.norm())
    expected = [float((merged - patched).double().norm()), float((rounded - base).double().norm())]
    assert of_merged.rounding_to_edit == pytest.approx(expected[0] / size, rel=1e-6)
    assert of_lora.rounding_to_edit == pytest.approx(expected[1] / size, rel=1e-6)
    assert (of_lora.edit_kept, of_base.edit_kept) == (1.0, None)
    assert not of_merged.changes_trunk(tiny_language_model.head.name)


def test_blocks_of_a_conv1d_run_along_its_inputs(tiny_language_model: LanguageModel) -> None:
    """GPT-2 stores (in, out); the converter turns it."""
    edit = change_linears(tiny_language_model, [LINEAR])
    forms = list_forms(tiny_language_model, edit, BlockFormat.q8_0)
    name = f"{LINEAR}.weight"
    weight = tiny_language_model.model.get_parameter(name).detach()
    expected = decode(weight.T.contiguous(), "Q8_0").T
    found = forms[Form.base, BlockFormat.q8_0]
    assert torch.equal(found.parameters[name], expected)
    assert found.changes_trunk(tiny_language_model.head.name)


def test_what_no_adapter_holds_has_no_such_form() -> None:
    """A shift in the bias stays as it is in a merged export; scaled units likewise."""
    model = wrap("gptj")
    forms = list_forms(model, damp_head(model, 0.25, shift=0.5), BlockFormat.q8_0)
    assert (Form.lora, BlockFormat.q8_0) not in forms
    merged = forms[Form.merged, BlockFormat.q8_0].parameters
    assert torch.equal(merged["lm_head.bias"], forms[Form.merged, None].parameters["lm_head.bias"])
    units = list_forms(model, scale_units(model, ["transformer.h.0.mlp.fc_in"]), BlockFormat.q8_0)
    assert (Form.lora, BlockFormat.q8_0) not in units


def test_a_whole_model_is_rounded_in_all_its_linear_layers(
    tiny_language_model: LanguageModel,
) -> None:
    """And in its embedding; not in its positions, norms and biases."""
    edit = damp_head(tiny_language_model, 0.25)
    forms = list_forms(tiny_language_model, edit, BlockFormat.q8_0, is_whole=True)
    names = set(forms[Form.lora, BlockFormat.q8_0].parameters)
    assert {"lm_head.weight", "transformer.wte.weight", f"{LINEAR}.weight"} <= names
    assert not {name for name in names if "wpe" in name or "ln" in name or "bias" in name}
    embedding = forms[Form.merged, BlockFormat.q8_0].parameters["transformer.wte.weight"]
    base = tiny_language_model.model.get_input_embeddings().weight.detach()
    assert torch.equal(embedding, decode(base, "Q8_0"))
    assert np.array_equal(base, tiny_language_model.head_weight.detach())


def test_what_changes_no_weight_is_refused(tiny_language_model: LanguageModel) -> None:
    """Norms and biases are stored in full precision, and a hooked patch is not stored at all."""
    norm = scale_units(tiny_language_model, ["transformer.ln_f"])
    with pytest.raises(FoldingError, match=r"found transformer\.ln_f\.weight.*GGUF keeps norms"):
        list_forms(tiny_language_model, norm, BlockFormat.q8_0)
    llama = wrap("llama")
    with pytest.raises(FoldingError, match="neither, so a shift"):
        list_forms(llama, damp_head(llama, 0.25, shift=0.5), BlockFormat.q8_0)


def test_forms_of_a_divided_model_are_the_undivided_ones(tmp_path: Path) -> None:
    """Weights on disk are rounded as those in memory."""
    whole = wrap("gpt2")
    edit = change_linears(whole, [LINEAR])
    expected = list_forms(whole, edit, BlockFormat.q8_0, is_whole=True)
    found = list_forms(divide(whole, tmp_path), edit, BlockFormat.q8_0, is_whole=True)
    assert found.keys() == expected.keys()
    for key, form in expected.items():
        other = found[key]
        assert (other.edit_kept, other.stored) == (form.edit_kept, form.stored)
        assert other.parameters.keys() == form.parameters.keys()
        assert all(
            torch.equal(other.parameters[name], form.parameters[name]) for name in form.parameters
        )
