"""A divided model is the undivided one: states, values, patches, derivatives, bit by bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eigenshift.detection.pooling import pool_texts
from eigenshift.generation.decoding import HeadBranch, sample_batch
from eigenshift.generation.sampling import draw_keys
from eigenshift.model.divided import (
    find_device,
    is_divided,
    is_offloaded_parameter,
    list_gpus,
    read_parameter,
    swap_parameter,
)
from eigenshift.model.encoding import ReadText
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.gradients import run_backward
from eigenshift.model.heads import digest_tensor
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.taps import find_taps, list_sites
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.labelled_states import list_norms
from eigenshift.patches.patching import apply_patch, make_patch, patched_model
from eigenshift.settings import Pooling, SamplingSettings, SitePooling
from tests.support.architectures import (
    MORE,
    VOCAB,
    StubTokenizer,
    change_linears,
    damp_head,
    list_mlp_layers,
    make_architecture,
    make_random_model,
    scale_units,
)
from tests.support.divided_models import divide

NAMES = ("gpt2", "llama", "gemma2", "mixtral", "opt", "MambaConfig")
"""Tied and not, a soft cap, experts in one tensor, a projection before the head, no attention."""
SEQUENCES = [
    [(3 * place + 7 * number + 4) % (VOCAB - 8) + 3 for place in range(length)]
    for number, length in enumerate((5, 9, 2, 12))
]
CPU = torch.device("cpu")

Pair = tuple[LanguageModel, LanguageModel]


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model, and its copy with the trunk on disk."""
    name = request.param
    made = (
        make_architecture(name)
        if name in ("gpt2", "llama", "gemma2", "mixtral", "opt")
        else (make_random_model(name, MORE[name]))
    )
    whole = wrap_model(made, StubTokenizer(), model_id=name, digest=name)
    return whole, divide(whole, tmp_path_factory.mktemp("offloaded"))


@torch.inference_mode()
def compute_logits(language_model: LanguageModel) -> torch.Tensor:
    """Of all positions of one sequence."""
    tokens = torch.tensor([SEQUENCES[-1]])
    logits: torch.Tensor = language_model.model(input_ids=tokens, use_cache=False).logits
    return logits


def list_trunk(language_model: LanguageModel) -> list[str]:
    """Names of the parameters that are on disk."""
    model = language_model.model
    return [name for name, _ in model.named_parameters() if is_offloaded_parameter(model, name)]


def test_a_trunk_on_disk_leaves_nothing_in_memory_but_the_head(pair: Pair) -> None:
    """Its parameters hold nothing; what they are is read by name, and all else is as it was."""
    whole, divided = pair
    assert is_divided(divided.model)
    assert not is_divided(whole.model)
    assert divided.head == whole.head
    assert divided.head_weight.device == divided.device == divided.entry_device == CPU
    names = list_trunk(divided)
    parameters = dict(whole.model.named_parameters())
    assert len(names) > len(parameters) // 2
    for name, parameter in parameters.items():
        assert torch.equal(read_parameter(divided.model, name), parameter), name
    assert all(divided.model.get_parameter(name).is_meta for name in names)
    assert list_gpus(divided.model) == []


def test_states_and_logits_are_the_undivided_models(pair: Pair) -> None:
    """What enters the head, of padded batches; and what leaves it."""
    whole, divided = pair
    expected = dict(iterate_head_states(whole, SEQUENCES, 24))
    found = dict(iterate_head_states(divided, SEQUENCES, 24))
    for place, states in expected.items():
        assert torch.equal(found[place], states)
    assert torch.equal(compute_logits(divided), compute_logits(whole))


def pool_all(language_model: LanguageModel) -> dict[tuple[int, str], np.ndarray[Any, Any]]:
    """Every site of every layer, every pooling."""
    blocks = list_layers(language_model.model)
    taps = find_taps(language_model.model, list(list_sites(blocks[0], 0)), None)
    sites = sorted({tap.site for tap in taps})
    chosen = [SitePooling(site=site, pooling=pooling) for site in sites for pooling in Pooling]
    texts = [ReadText(tokens, slice(1, len(tokens))) for tokens in SEQUENCES]
    return pool_texts(language_model, taps, texts, chosen, 24)


def test_pooled_activations_are_the_undivided_models(pair: Pair) -> None:
    """Whatever is read."""
    expected, found = map(pool_all, pair)
    assert list(found) == list(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def generate(language_model: LanguageModel) -> list[list[list[int]]]:
    """Continuations by the base, a patched head and moved logits, side by side."""
    settings = SamplingSettings(n_samples=2, n_tokens=6)
    keys = np.stack(
        [draw_keys(0, "main", f"p{row}", sample, 6) for row in range(3) for sample in range(2)]
    )
    filtered = LogitEdit.add_product(
        9.0 * torch.eye(VOCAB, 1).roll(7), torch.ones(language_model.head.hidden, 1)
    )
    edits = [ModelEdit(), damp_head(language_model, 0.2), ModelEdit(logits=filtered)]
    arms = [HeadBranch(edit, keys) for edit in edits]
    return sample_batch(language_model, SEQUENCES[:3], arms, settings)


def test_generation_with_the_same_keys_says_the_same(pair: Pair) -> None:
    """From the cache where there is one."""
    found = [generate(language_model) for language_model in pair]
    assert found[1] == found[0]
    assert found[0][0] != found[0][2]


def make_edits(language_model: LanguageModel) -> dict[str, ModelEdit]:
    """Of the head, of layers that write, of units of MLPs and norms, as far as there are some."""
    writers = list(list_writers(language_model.model))
    edits = {"head": damp_head(language_model, 0.5)}
    if writers:
        edits["linears"] = change_linears(language_model, writers)
    units = list_mlp_layers(language_model)
    if units:
        edits["units"] = scale_units(language_model, units)
        edits["norms"] = scale_units(language_model, list_norms(language_model))
    return edits


def test_patches_have_the_undivided_models_digests_and_logits(pair: Pair) -> None:
    """Folded into weights on disk, in force, stacked on and undone, byte for byte."""
    whole, divided = pair
    base = compute_logits(whole)
    for name, edit in make_edits(whole).items():
        patch = make_patch(whole, edit, model_id="m", intervention=name)
        found = make_patch(divided, edit, model_id="m", intervention=name)
        assert found.description == patch.description
        assert patch.description.tensors
        with patched_model(whole, patch):
            expected = compute_logits(whole)
        assert not torch.equal(expected, base)
        with patched_model(divided, found):
            assert torch.equal(compute_logits(divided), expected)
        assert torch.equal(compute_logits(divided), base)
        applied = apply_patch(divided, found)
        assert torch.equal(compute_logits(divided), expected)
        for parameter, change in patch.description.tensors.items():
            assert digest_tensor(read_parameter(divided.model, parameter)) == change.patched
        applied.undo()
        assert torch.equal(compute_logits(divided), base)
        for parameter, change in patch.description.tensors.items():
            assert digest_tensor(read_parameter(divided.model, parameter)) == change.base


def test_hooked_edits_give_the_undivided_models_logits(pair: Pair) -> None:
    """What enters a layer and what leaves it meet on one device."""
    whole, divided = pair
    for edit in make_edits(whole).values():
        found = []
        for language_model in pair:
            with run_hooked(language_model, edit):
                found.append(compute_logits(language_model))
        assert torch.equal(found[1], found[0])
    assert torch.equal(compute_logits(divided), compute_logits(whole))


def differentiate(
    language_model: LanguageModel,
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """What every writer saw and what came back to it."""
    seen: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def start() -> Any:
        seen.clear()
        return lambda traffic: seen.append((traffic.name, traffic.inputs, traffic.gradients))

    def objective(_: list[int], logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits.float(), -1)[..., 5].sum()

    layers = list_writers(language_model.model)
    run_backward(language_model, SEQUENCES, objective, layers, start, tokens_per_batch=16)
    return seen


def test_derivatives_are_the_undivided_models(pair: Pair) -> None:
    """In the same order."""
    expected, found = map(differentiate, pair)
    assert [name for name, _, _ in found] == [name for name, _, _ in expected]
    for (_, *tensors), (_, *others) in zip(expected, found, strict=True):
        assert all(map(torch.equal, tensors, others))


class Watched(dict[str, torch.Tensor]):
    """Weights that tell which of those they gave are still in memory, matrices only."""

    def __init__(self, weights: Any, given: list[weakref.ref[Any]]) -> None:
        super().__init__()
        self.weights, self.given = weights, given

    def __getitem__(self, name: str) -> torch.Tensor:
        array = self.weights[name].numpy().copy()
        if array.ndim > 1:
            self.given.append(weakref.ref(array))
        return torch.from_numpy(array)


def test_no_weights_from_disk_are_held_for_the_way_back(tmp_path: Path) -> None:
    """Between forward and backward none of them is in memory: a larger model has both."""
    whole = wrap_model(make_architecture("llama"), StubTokenizer(), model_id="m", digest="d")
    divided = divide(whole, tmp_path)
    given: list[weakref.ref[Any]] = []
    for module in divided.model.modules():
        hook = getattr(module, "_hf_hook", None)
        if getattr(hook, "offload", False):
            hook.weights_map = Watched(hook.weights_map, given)
    held: list[tuple[int, int]] = []

    def objective(_: list[int], logits: torch.Tensor) -> torch.Tensor:
        gc.collect()
        held.append((len(given), sum(array() is not None for array in given)))
        return logits.sum()

    layers = list_writers(divided.model)
    run_backward(
        divided, SEQUENCES[:1], objective, layers, lambda: lambda traffic: None, tokens_per_batch=16
    )
    ((n_given, n_held),) = held
    assert n_given >= 2 * len(layers)
    assert n_held == 0
    assert len(given) > n_given  # read again on the way back


def test_two_parameters_of_a_module_are_put_back_in_any_order(tmp_path: Path) -> None:
    """Each is what it was, not what the module was when it was replaced."""
    whole = wrap_model(make_architecture("gpt2"), StubTokenizer(), model_id="m", digest="d")
    model = divide(whole, tmp_path).model
    names = ["transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"]
    assert all(is_offloaded_parameter(model, name) for name in names)
    base = [read_parameter(model, name) for name in names]
    former = {
        name: swap_parameter(model, name, torch.zeros_like(value))
        for name, value in zip(names, base, strict=True)
    }
    assert not any(read_parameter(model, name).any() for name in names)
    again = swap_parameter(model, names[0], torch.ones_like(base[0]))
    swap_parameter(model, names[0], again)
    assert not read_parameter(model, names[0]).any()
    for name in names:
        swap_parameter(model, name, former[name])
    for name, value in zip(names, base, strict=True):
        assert torch.equal(read_parameter(model, name), value)


def test_a_layer_in_memory_is_computed_where_it_is() -> None:
    """An undivided module has no hooks: the device of its weights."""
    assert find_device(nn.Linear(2, 2)) == CPU
    assert find_device(nn.Linear(2, 2, device="meta")).type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "blocks"), [("gpt2", "transformer.h"), ("llama", "model.layers")])
def test_blocks_in_memory_and_on_disk_are_computed_on_the_gpu(
    name: str, blocks: str, tmp_path: Path
) -> None:
    """Activations, continuations, derivatives and patches of the model that is whole on it."""
    made = make_architecture(name).to("cuda:0")
    whole = wrap_model(made, StubTokenizer(), model_id=name, digest=name)
    device_map = {"": "0", f"{blocks}.0": "cpu", f"{blocks}.1": "disk"}
    divided = divide(whole, tmp_path, device_map)
    assert divided.device == divided.entry_device == torch.device("cuda:0")
    assert list_gpus(divided.model) == [torch.device("cuda:0")]
    assert any(is_offloaded_parameter(divided.model, key) for key in list_trunk(divided))
    pooled = pool_all(divided)
    for key, array in pool_all(whole).items():
        np.testing.assert_allclose(pooled[key], array, rtol=1e-5, atol=1e-5)
    assert generate(divided) == generate(whole)
    for (_, *tensors), (_, *others) in zip(
        differentiate(whole), differentiate(divided), strict=True
    ):
        for tensor, other in zip(tensors, others, strict=True):
            torch.testing.assert_close(other, tensor, rtol=1e-4, atol=1e-5)
    for edit in make_edits(whole).values():
        patches = [
            make_patch(one, edit, model_id="m", intervention="x") for one in (whole, divided)
        ]
        assert patches[1].description == patches[0].description
