"""Where the parts of a model go: as told, as it fits, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from eigenshift.base.errors import SettingsError
from eigenshift.model import device_maps
from eigenshift.model.device_maps import (
    Division,
    find_main,
    is_offloaded,
    parse_amount,
    parse_place,
    plan_division,
    show_modules,
    show_place,
)
from eigenshift.settings import Placement

N_LAYERS = 12
SIZES = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LAYER, EMBEDDING, HEAD = 7_808, 6_144, 6_144
"""Bytes in float32, by hand: (16 x 16 x 2 + 16 x 8 x 2 + 3 x 16 x 24 + 2 x 16) x 4; 96 x 16 x 4."""
TOTAL = N_LAYERS * LAYER + EMBEDDING + HEAD + 64


def make_skeleton(*, ties: bool = False) -> Any:
    """A Llama without values."""
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=ties)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with as many as one asks for, as far as maps are concerned."""
    monkeypatch.setattr(device_maps, "resolve_device", lambda name, *_: torch.device(name))


def plan(skeleton: Any = None, **placement: Any) -> Division:
    """Of the untied Llama, unless told otherwise."""
    given = make_skeleton() if skeleton is None else skeleton
    return plan_division(given, Placement(**placement))


def test_a_map_names_every_part_once_and_no_part_within_another() -> None:
    """What is not named goes with '' ; all layers are named where one is elsewhere."""
    division = plan(device_map={"": "cpu", "model.layers.1": "disk"})
    layers = {f"model.layers.{number}": "cpu" for number in range(N_LAYERS)}
    others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    assert division.places == layers | dict.fromkeys(others, "cpu") | {"model.layers.1": "disk"}
    assert division.n_bytes == {"cpu": TOTAL - LAYER, "disk": LAYER}
    assert division.main == "cpu"
    assert not division.is_whole


def test_the_innermost_name_counts() -> None:
    """A block on disk, its norms in memory."""
    division = plan(
        device_map={
            "model": "disk",
            "lm_head": "cpu",
            "model.layers.0.input_layernorm": "cpu",
            "model.layers.1": "cpu",
        }
    )
    assert division.places["model.layers.0.input_layernorm"] == "cpu"
    assert division.places["model.layers.0.mlp"] == "disk"
    assert division.places["model.layers.1"] == "cpu"
    assert "model.layers.0" not in division.places


def test_auto_leaves_a_model_that_fits_whole() -> None:
    """No hooks, no copies: as without a map."""
    division = plan(device_map="auto", max_memory={"cpu": "1MB"})
    assert division.places == {"": "cpu"}
    assert division.is_whole
    assert plan(device_map="auto", device="cpu").is_whole


def test_auto_keeps_the_head_in_memory_and_the_rest_as_far_as_it_fits() -> None:
    """The head comes last and would be on disk; it is taken first."""
    division = plan(device_map="auto", max_memory={"cpu": "60KB"})
    assert division.places["lm_head"] == division.places["model.embed_tokens"] == "cpu"
    assert division.places["model.layers.11"] == "disk"
    assert division.n_bytes["cpu"] <= 60_000
    assert division.n_bytes["cpu"] > 60_000 - 3 * LAYER
    assert sum(division.n_bytes.values()) == TOTAL
    assert division.budgets == {"cpu": 60_000}


def test_auto_keeps_a_tied_embedding_with_the_head() -> None:
    """One tensor is in one place."""
    division = plan(make_skeleton(ties=True), device_map="auto", max_memory={"cpu": "40KB"})
    assert division.places["lm_head"] == division.places["model.embed_tokens"] == "cpu"
    assert sum(division.n_bytes.values()) == TOTAL - HEAD


@pytest.mark.usefixtures("four_gpus")
def test_auto_gives_gpus_even_shares_and_the_head_to_the_last() -> None:
    """Each keeps room for keys and values."""
    division = plan(
        device_map="auto", max_memory={"1": "80KB", "cpu": "1MB", "0": "80KB", "cuda:2": "80KB"}
    )
    assert set(division.places.values()) == {0, 1, 2}
    assert (division.places["model.embed_tokens"], division.places["lm_head"]) == (0, 2)
    assert all(n_bytes < 0.5 * TOTAL for n_bytes in division.n_bytes.values())
    assert division.main == 0


@pytest.mark.usefixtures("four_gpus")
def test_auto_goes_on_to_the_processor_and_to_disk() -> None:
    """GPUs are filled first; the head is on one."""
    division = plan(device_map="auto", max_memory={"0": "50KB", "cpu": "30KB"})
    assert division.places["lm_head"] == 0
    assert set(division.places.values()) == {0, "cpu", "disk"}
    assert division.n_bytes[0] <= 50_000
    assert division.n_bytes["cpu"] <= 30_000
    assert division.is_offloaded("cpu")
    assert division.is_offloaded("disk")
    assert not division.is_offloaded(0)


def test_auto_refuses_a_head_that_does_not_fit() -> None:
    """With the bytes and the place."""
    with pytest.raises(SettingsError, match=r"room for the output head on cpu \(6144 bytes"):
        plan(device_map="auto", max_memory={"cpu": "5KB"})


def test_an_encoder_has_no_head_to_keep() -> None:
    """All of it may be on disk."""
    config = transformers.BertConfig(
        **{key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_attention_heads")},
        num_hidden_layers=3,
        intermediate_size=24,
    )
    with torch.device("meta"):
        skeleton = transformers.AutoModel.from_config(config)
    placement = Placement(device_map={"": "cpu", "encoder": "disk"})
    division = plan_division(skeleton, placement, is_causal=False)
    assert division.places["encoder"] == "disk"
    assert division.places["embeddings"] == "cpu"


def test_an_unknown_module_is_refused_with_those_like_it() -> None:
    """Accelerate warns and goes on."""
    with pytest.raises(SettingsError, match=r"found 'model\.layer\.3'.*model\.layers\.3"):
        plan(device_map={"": "cpu", "model.layer.3": "disk"})


def test_a_map_that_leaves_modules_out_is_refused() -> None:
    """With how many tensors, and some of their names."""
    with pytest.raises(SettingsError, match=r"found none for 2 tensors, e\.g\. .*model\.norm"):
        plan(device_map={"model.layers": "disk", "model.embed_tokens": "cpu"})


def test_an_offloaded_head_is_refused() -> None:
    """Patches are products with it."""
    with pytest.raises(SettingsError, match=r"head lm_head on a device that computes \(cpu\)"):
        plan(device_map={"": "disk", "model.embed_tokens": "cpu"})


@pytest.mark.usefixtures("four_gpus")
def test_beside_a_gpu_the_processor_only_keeps() -> None:
    """Its modules are computed on the GPU: no place for a head."""
    with pytest.raises(SettingsError, match=r"computes \(cuda:1\), found it on cpu"):
        plan(device_map={"": 1, "lm_head": "cpu"})


def test_a_tied_embedding_elsewhere_is_refused() -> None:
    """They share memory."""
    with pytest.raises(SettingsError, match=r"lm_head\.weight and model\.embed_tokens\.weight"):
        plan(make_skeleton(ties=True), device_map={"": "disk", "lm_head": "cpu"})


@pytest.mark.usefixtures("four_gpus")
def test_a_block_on_two_gpus_is_refused() -> None:
    """What goes through it is added to what goes past it; parts in memory or on disk are fine."""
    torn = {"": 0, "model.layers.3.mlp": 1}
    with pytest.raises(SettingsError, match=r"all of model\.layers\.3 .* found cuda:0, cuda:1"):
        plan(device_map=torn)
    kept = plan(device_map={"": 0, "model.layers.3.mlp": "disk", "model.layers.4.mlp": "cpu"})
    assert kept.main == 0
    with pytest.raises(SettingsError, match=r"all of model\.layers\.3 "):
        plan(device_map={"": 0, "model.layers.3": 1, "model.layers.3.mlp": "disk"})


def test_without_accelerate_a_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra to install."""
    monkeypatch.setattr(device_maps, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'eigenshift\[device-map\]'"):
        plan(device_map="auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_by_the_setting() -> None:
    """Not by execution.device."""
    with pytest.raises(SettingsError, match=r"^execution\.device_map: .*cuda:3"):
        plan(device_map={"": "cpu", "model.layers.1": 3})
    with pytest.raises(SettingsError, match=r"^execution\.max_memory: .*cuda:3"):
        plan(device_map="auto", max_memory={3: "1GB"})


@pytest.mark.usefixtures("four_gpus")
def test_places_and_amounts_are_read_as_people_write_them() -> None:
    """A number is a GPU; decimal and binary units differ."""
    assert [parse_place(text) for text in ("2", "cuda:1", "cuda", "cpu", "disk")] == [
        *(2, 1, 0),
        *("cpu", "disk"),
    ]
    assert [show_place(place) for place in (2, "cpu")] == ["cuda:2", "cpu"]
    assert parse_amount("1.5GiB") == 3 << 29
    assert parse_amount("20 GB") == 20 * 10**9


def test_the_first_gpu_computes_what_is_kept_elsewhere() -> None:
    """Without one the processor does."""
    assert find_main(["disk", 3, 1, "cpu"]) == 1
    assert find_main(["disk", "cpu"]) == find_main(["disk"]) == "cpu"
    assert [is_offloaded(place, "cpu") for place in ("cpu", "disk")] == [False, True]


def test_layers_that_follow_one_another_are_shown_as_a_range() -> None:
    """As a person would say it."""
    names = ["model.embed", *(f"model.layers.{n}" for n in (0, 1, 2, 5)), "lm_head", "h.0"]
    assert show_modules(names) == ("model.embed, model.layers.0 to 2, model.layers.5, lm_head, h.0")
    assert show_modules([""]) == "all"
