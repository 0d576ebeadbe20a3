"""Names that wrappers leave in checkpoints are told from a model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eigenshift.model.wrapped_names import explain_wrapped, find_prefix, unwrap_name

PLAIN = ["model.embed.weight", "model.layers.0.module_list.weight", "lm_head.weight"]


def test_a_models_own_names_are_fine() -> None:
    """Names that only look like a wrapper's are a model's own."""
    assert explain_wrapped(PLAIN) is None
    assert [unwrap_name(name) for name in PLAIN] == PLAIN


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."],
)
def test_every_prefix_is_named_and_stripped(prefix: str) -> None:
    """Also where one wrapper stands around another."""
    wrapped = [prefix + name for name in PLAIN]
    assert [unwrap_name(name) for name in wrapped] == PLAIN
    told = explain_wrapped(wrapped)
    assert told is not None
    marks = ["base_model.model"] if prefix.startswith("base") else prefix.strip(".").split(".")
    assert told.startswith("expected the model's own names for its weights, found 3 of 3")
    assert all(f"'{mark}.'" in told for mark in marks)
    assert f"{wrapped[0]} instead of {PLAIN[0]}" in told


def test_what_torch_itself_writes_is_known() -> None:
    """Names as compiled and as parallel models have them in their own state."""
    inner = nn.Sequential(nn.Linear(2, 2))
    for wrapper in (torch.compile, nn.DataParallel):
        names = list(wrapper(inner).state_dict())
        assert names != list(inner.state_dict())
        assert [unwrap_name(name) for name in names] == list(inner.state_dict())
        assert explain_wrapped(names) is not None


def test_a_compiled_layer_within_a_model_is_found() -> None:
    """Only some names are wrapped where only some layers were compiled."""
    told = explain_wrapped(["model.embed.weight", "model.layers.0._orig_mod.up.weight"])
    assert told is not None
    assert "1 of 2 tensors named with '_orig_mod.' (torch.compile)" in told


def test_a_copy_beside_the_models_own_weights_is_passed_over() -> None:
    """An average that a trainer saved beside the weights changes nothing."""
    assert explain_wrapped([*PLAIN, *(f"module.{name}" for name in PLAIN)]) is None


def test_an_adapter_that_is_not_merged_is_not_to_be_stripped() -> None:
    """Its tensors are parts of layers; other names would not make them whole."""
    names = ["q.base_layer.weight", "q.lora_A.default.weight", "q.lora_B.default.weight"]
    told = explain_wrapped([f"base_model.model.{name}" for name in names])
    assert told is not None
    assert "merge_and_unload" in told
    assert "3 tensors of an adapter" in told


def test_a_common_prefix_is_found_whatever_it_is() -> None:
    """By what is missing and what is left over."""
    absent = ["a.weight", "b.weight", "b.bias"]
    assert find_prefix(absent, ["policy.net.a.weight", "policy.net.b.weight"]) == "policy.net."
    assert find_prefix(absent, ["policy.net.a.weight", "other"]) is None
    assert find_prefix(absent, []) is None
