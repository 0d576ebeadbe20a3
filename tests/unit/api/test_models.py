"""Models from files and somebody's own objects: taken as they are, given back as they were."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenshift.api.models import identify_weights, load_model
from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.settings import ModelSettings
from tests.support.architectures import StubTokenizer, make_architecture

TOKENS = torch.tensor([[5, 9, 17, 3]])


def load_own(folder: Path) -> tuple[Any, Any]:
    """A model and tokenizer as users load them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_an_object_is_worked_on_where_it_lies(tiny_model_folder: Path) -> None:
    """No copy: the model that is studied is the one that was given, head and all."""
    own, tokenizer = load_own(tiny_model_folder)
    model = load_model(own, tokenizer)
    assert model.model is own
    assert model.language_model.head_weight is own.lm_head.weight
    assert model.language_model.head.is_tied


def test_a_head_of_its_own_is_taken_too() -> None:
    """A Llama whose head is not its input embedding."""
    own = make_architecture("llama", tie_word_embeddings=False)
    assert not load_model(own, StubTokenizer()).language_model.head.is_tied


def test_what_was_changed_is_given_back(tiny_model_folder: Path) -> None:
    """Training mode, gradients, activation functions: so logits are the same bits again."""
    own, tokenizer = load_own(tiny_model_folder)
    own.train()
    own.transformer.wte.weight.requires_grad_(False)
    asked = {name: item.requires_grad for name, item in own.named_parameters()}
    activation = own.transformer.h[0].mlp.act
    before = own.eval()(TOKENS).logits
    own.train()
    model = load_model(own, tokenizer)
    assert not own.training
    assert not any(item.requires_grad for item in own.parameters())
    model.give_back()
    assert own.training
    assert all(module.training for module in own.modules())
    assert {name: item.requires_grad for name, item in own.named_parameters()} == asked
    assert own.transformer.h[0].mlp.act is activation
    assert torch.equal(own.eval()(TOKENS).logits, before)


def test_files_are_loaded_anew_each_time(tiny_model_folder: Path) -> None:
    """Who patches a model patches nobody else's."""
    first, second = (load_model(str(tiny_model_folder), device="cpu") for _ in range(2))
    assert first.model is not second.model
    assert first.language_model.digest == second.language_model.digest


def test_a_model_is_shown_without_the_path_to_it(tiny_model_folder: Path) -> None:
    """Notebooks are handed on."""
    model = load_model(ModelSettings(id=str(tiny_model_folder)), device="cpu")
    assert model.name == tiny_model_folder.name
    assert str(tiny_model_folder.parent) not in model._repr_html_() + repr(model)
    own = load_model(*load_own(tiny_model_folder))
    assert own.name == tiny_model_folder.name


def test_digests_tell_models_apart(tiny_model_folder: Path) -> None:
    """By one value of the head, or by a shape."""
    own, _ = load_own(tiny_model_folder)
    other = deepcopy(own)
    assert identify_weights(own) == identify_weights(other)
    with torch.no_grad():
        other.lm_head.weight[3, 4] += 1
    assert identify_weights(own) != identify_weights(other)


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"device": "cpu"}, {"revision": "main"}])
def test_what_is_of_files_is_refused_beside_an_object(given: dict[str, str]) -> None:
    """It would be ignored."""
    with pytest.raises(SettingsError, match=f"found {next(iter(given))}"):
        load_model(make_architecture("llama"), StubTokenizer(), **given)


def test_wrong_beginnings_are_explained(tiny_model_folder: Path) -> None:
    """No tokenizer, no model, a setting that does not exist, a template that does not."""
    with pytest.raises(SettingsError, match="found no tokenizer"):
        load_model(make_architecture("llama"))
    with pytest.raises(ModelError, match="found a dict"):
        load_model({})
    with pytest.raises(SettingsError, match="beside files"):
        load_model(tiny_model_folder, StubTokenizer())
    with pytest.raises(SettingsError, match="precision"):
        load_model(tiny_model_folder, precision="half")
    with pytest.raises(ModelError, match="chat template"):
        load_model(*load_own(tiny_model_folder), chat="on")
