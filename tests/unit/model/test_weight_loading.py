"""A divided model from its files: the same model, nothing written that need not be, all freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from eigenshift.base.errors import ModelError
from eigenshift.detection.pooling import pool_texts
from eigenshift.evaluation.reload_check import check_reload
from eigenshift.model.description import describe_model
from eigenshift.model.divided import is_divided, is_offloaded_parameter, read_parameter
from eigenshift.model.encoding import ReadText
from eigenshift.model.files import identify_model
from eigenshift.model.loading import (
    MAX_LOADED_MODELS,
    TextModel,
    forget_models,
    load_model,
    load_text_model,
)
from eigenshift.model.taps import find_taps
from eigenshift.model.weight_loading import KEPT, describe_places
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import make_patch
from eigenshift.settings import ModelSettings, Placement, Pooling, Site, SitePooling
from eigenshift.store.workspace import Workspace
from tests.support.architectures import (
    MORE,
    change_linears,
    damp_head,
    make_architecture,
    make_random_model,
)
from tests.support.divided_models import map_trunk_to_disk

TOKENS = [[5, 9, 13, 17, 21], [7, 3, 40]]


@pytest.fixture(autouse=True)
def _nothing_loaded() -> Iterator[None]:
    """Each test begins and ends without a model in the process."""
    forget_models()
    yield
    forget_models()


def put_on_disk(model: Any, **more: Any) -> Placement:
    """All but the head."""
    return Placement(device="cpu", device_map=map_trunk_to_disk(model), **more)


@torch.inference_mode()
def compute_logits(language_model: TextModel) -> list[torch.Tensor]:
    """Of each sequence by itself."""
    return [language_model.model(input_ids=torch.tensor([tokens])).logits for tokens in TOKENS]


def list_kept(text_model: TextModel) -> list[str]:
    """Names of the files that were written for it."""
    return sorted(path.name for path in Path(getattr(text_model.model, KEPT).name).iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trunk_on_disk_is_read_from_the_models_own_files(
    tiny_model_folder: Path, dtype: Any
) -> None:
    """In the precision of the settings; described, and so known, as the undivided one."""
    settings = ModelSettings(id=str(tiny_model_folder), dtype=dtype)
    identity = identify_model(settings)
    whole = load_model(settings, "cpu")
    expected, description = compute_logits(whole), describe_model(whole, identity)
    divided = load_model(settings, put_on_disk(whole.model))
    assert is_divided(divided.model)
    assert not is_divided(whole.model)
    assert is_offloaded_parameter(divided.model, "transformer.h.0.mlp.c_fc.weight")
    assert list_kept(divided) == []
    assert describe_model(divided, identity) == description
    for found, logits in zip(compute_logits(divided), expected, strict=True):
        assert torch.equal(found, logits)


def test_experts_that_are_put_together_on_loading_are_written_and_removed(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Into a folder of the model's own, inside the one that is named, as long as it lives."""
    make_architecture("mixtral").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    settings = ModelSettings(id=str(tmp_path / "model"))
    whole = load_model(settings, "cpu")
    expected = compute_logits(whole)
    place = tmp_path / "some" / "place"
    divided = load_model(settings, put_on_disk(whole.model, offload_folder=str(place)))
    assert list_kept(divided)
    assert all("experts" in name for name in list_kept(divided))
    assert len(list(place.iterdir())) == 1
    for found, logits in zip(compute_logits(divided), expected, strict=True):
        assert torch.equal(found, logits)
    del divided
    forget_models()
    assert list(place.iterdir()) == []


def test_a_divided_model_that_is_dropped_is_freed(tiny_model_folder: Path) -> None:
    """At once, though its modules hold themselves; so there is room for the next one."""
    settings = ModelSettings(id=str(tiny_model_folder))
    placement = put_on_disk(load_model(settings, "cpu").model)
    gc.collect()
    gc.disable()
    try:
        freed = [
            weakref.ref(load_model(settings, placement).head_weight),
            weakref.ref(load_model(settings, placement).model),
        ]
        forget_models()
        assert [found() for found in freed] == [None, None]
        freed = [weakref.ref(load_model(settings, placement).model)]
        assert MAX_LOADED_MODELS == 1
        load_model(settings, "cpu")
        assert freed[0]() is None
    finally:
        gc.enable()


def test_another_placement_is_another_model_in_memory(tiny_model_folder: Path) -> None:
    """The same one is not loaded twice."""
    settings = ModelSettings(id=str(tiny_model_folder))
    whole = load_model(settings, "cpu")
    assert load_model(settings, Placement(device="cpu")) is whole
    assert load_model(settings, Placement(device="cpu", device_map="auto")) is not whole
    placement = put_on_disk(whole.model)
    assert load_model(settings, placement) is load_model(settings, placement)


def test_auto_on_a_machine_where_a_model_fits_divides_nothing(tiny_model_folder: Path) -> None:
    """As without a map; with little memory most is on disk."""
    settings = ModelSettings(id=str(tiny_model_folder))
    found = load_model(settings, Placement(device="cpu", device_map="auto"))
    assert not is_divided(found.model)
    n_bytes = sum(parameter.nbytes for parameter in found.model.parameters())
    budget = {"cpu": f"{int(0.8 * n_bytes / 1000)}KB"}
    found = load_model(settings, Placement(device_map="auto", max_memory=budget))
    assert is_divided(found.model)
    assert not found.head_weight.is_meta


@pytest.mark.parametrize("has_trunk", [False, True])
def test_the_reload_check_of_a_divided_model_passes(
    tiny_model_folder: Path, workspace: Workspace, has_trunk: bool
) -> None:
    """Saved, loaded back to the same places, equal; and the base is unpatched for the next."""
    settings = ModelSettings(id=str(tiny_model_folder))
    whole = load_model(settings, "cpu")
    linears = change_linears(whole, list(list_writers(whole.model))).linears
    edit = ModelEdit(damp_head(whole, 0.5).head, linears=linears if has_trunk else {})
    patch = make_patch(whole, edit, model_id="tiny", intervention="test")
    placement = put_on_disk(whole.model)
    expected = compute_logits(whole)
    check_reload(settings, patch, ["The garden was open", "a"], placement, workspace)
    assert workspace.facts["differing"] == []
    assert workspace.facts["logit_difference"] == 0.0
    for found, logits in zip(
        compute_logits(load_model(settings, placement)), expected, strict=True
    ):
        assert torch.equal(found, logits)


@pytest.mark.parametrize("name", ["BertConfig", "T5Config"])
def test_encoders_are_divided_too(tmp_path: Path, tiny_tokenizer: Any, name: str) -> None:
    """What they detect is the same; of an encoder-decoder the encoder is left, with its files."""
    config = getattr(transformers, name)(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    settings = ModelSettings(id=str(tmp_path))
    placement = Placement(device="cpu", device_map={"": "cpu", "encoder": "disk"})
    values = []
    for given in ("cpu", placement):
        text_model = load_text_model(settings, given)
        taps = find_taps(text_model.model, [Site.residual], None)
        texts = [ReadText(tokens, slice(0, len(tokens))) for tokens in TOKENS]
        sites = [SitePooling(site=Site.residual, pooling=pooling) for pooling in Pooling]
        values.append(pool_texts(text_model, taps, texts, sites, 64))
    assert is_divided(text_model.model) or name == "T5Config"
    assert Path(getattr(text_model.model, KEPT).name).is_dir()
    assert any(
        is_offloaded_parameter(text_model.model, parameter)
        for parameter, _ in text_model.model.named_parameters()
    )
    for key, array in values[0].items():
        np.testing.assert_array_equal(values[1][key], array)


def test_code_that_asks_a_weight_for_its_device_is_refused_with_what_to_keep(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Llama 4 asks its embedding; kept in memory it runs."""
    model = make_random_model("Llama4TextConfig", MORE["Llama4TextConfig"])
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    settings = ModelSettings(id=str(tmp_path))
    expected = compute_logits(load_model(settings, "cpu"))
    placement = put_on_disk(model)
    with pytest.raises(ModelError, match=r"Keep model\.embed_tokens where the head is"):
        load_model(settings, placement)
    kept = {**map_trunk_to_disk(model), "model.embed_tokens": "cpu"}
    divided = load_model(settings, Placement(device="cpu", device_map=kept))
    for found, logits in zip(compute_logits(divided), expected, strict=True):
        assert torch.equal(found, logits)


def test_places_are_told_in_a_line() -> None:
    """For the log and for doctor."""
    places = {"wte": 0, "h.0": 0, "h.1": "disk", "h.2": "disk", "lm_head": 0}
    assert describe_places(places) == "cuda:0: wte, h.0, lm_head; disk: h.1 to 2"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_gpu_and_in_memory_is_the_one_on_the_gpu(
    tiny_model_folder: Path, workspace: Workspace
) -> None:
    """Blocks kept by the processor and on disk, computed on the GPU: the same logits and patch."""
    settings = ModelSettings(id=str(tiny_model_folder))
    tokens = torch.tensor([TOKENS[0]], device="cuda:0")
    whole = load_model(settings, "cuda:0")
    patch = make_patch(whole, damp_head(whole, 0.5), model_id="tiny", intervention="test")
    with torch.inference_mode():
        expected = whole.model(input_ids=tokens).logits
    device_map = {"": "0", "transformer.h.0": "cpu", "transformer.h.1": "disk"}
    placement = Placement(device="cuda:0", device_map=device_map)
    divided = load_model(settings, placement)
    assert is_divided(divided.model)
    assert divided.device == torch.device("cuda:0")
    with torch.inference_mode():
        found = divided.model(input_ids=tokens).logits
    assert found.device == divided.device
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(read_parameter(divided.model, name), parameter)
    check_reload(settings, patch, ["The garden was open"], placement, workspace)
    assert workspace.facts["differing"] == []
