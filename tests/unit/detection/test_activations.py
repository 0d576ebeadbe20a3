"""What `eigenshift.detection.activations` promises, against one unpadded text at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch import Tensor

from eigenshift.base.errors import ArtifactError, ModelError, SettingsError
from eigenshift.detection.activations import extract_shard
from eigenshift.detection.pooling import pool_texts
from eigenshift.model.encoding import encode_read_texts
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.taps import find_taps
from eigenshift.settings import ActivationSettings, Pooling, Site, SitePooling
from eigenshift.stages.tables import ACTIVATIONS
from eigenshift.store.workspace import Workspace

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "max_position_embeddings": 64,
}
LLAMA = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1}
GATED = tuple(Site)
PLAIN = tuple(site for site in Site if site is not Site.mlp_gate)
Values = dict[tuple[int, str], np.ndarray[Any, Any]]


def choose(*sites: Site, poolings: tuple[Pooling, ...] = tuple(Pooling)) -> tuple[SitePooling, ...]:
    """Every combination of these sites and poolings."""
    return tuple(SitePooling(site=site, pooling=pooling) for site in sites for pooling in poolings)


def read_gpt2(model: Any, layer: int, seen: dict[str, Tensor]) -> dict[Site, Tensor]:
    """Sites of a GPT-2 layer from what went through other modules than those we hook."""
    name = f"transformer.h.{layer}"
    return {
        Site.mlp_activation: seen[f"{name}.mlp.act"],
        Site.mlp_up: seen[f"{name}.mlp.c_fc"],
        Site.mlp_down: seen[f"{name}.mlp"],
    }


def read_llama(model: Any, layer: int, seen: dict[str, Tensor]) -> dict[Site, Tensor]:
    """Sites of a Llama layer; the activation is act(gate) * up."""
    name = f"model.layers.{layer}.mlp"
    gate, up = seen[f"{name}.gate_proj"], seen[f"{name}.up_proj"]
    return {
        Site.mlp_activation: seen[f"{name}.act_fn"] * up,
        Site.mlp_up: up,
        Site.mlp_gate: gate,
        Site.mlp_down: seen[name],
    }


def read_opt(model: Any, layer: int, seen: dict[str, Tensor]) -> dict[Site, Tensor]:
    """Sites of an OPT layer, whose linear layers sit on the block and see flattened tokens."""
    name = f"model.decoder.layers.{layer}"
    return {
        Site.mlp_activation: seen[f"{name}.activation_fn"],
        Site.mlp_up: seen[f"{name}.fc1"],
        Site.mlp_down: seen[f"{name}.fc2"],
    }


Reader = Callable[[Any, int, dict[str, Tensor]], dict[Site, Tensor]]
SHAPES: dict[str, tuple[str, dict[str, Any], tuple[Site, ...], Reader, str]] = {
    "gpt2": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
        PLAIN,
        read_gpt2,
        "transformer.ln_f",
    ),
    "llama": ("LlamaConfig", LLAMA, GATED, read_llama, "model.norm"),
    "opt": (
        "OPTConfig",
        {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16},
        PLAIN,
        read_opt,
        "model.decoder.final_layer_norm",
    ),
}


def make_language_model(tokenizer: Any, class_name: str, **values: Any) -> LanguageModel:
    """A seeded random model with the tiny tokenizer's vocabulary."""
    config = getattr(transformers, class_name)(vocab_size=len(tokenizer), **values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return wrap_model(model, tokenizer, model_id=class_name, digest="d")


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> tuple[str, LanguageModel]:
    """One model per architecture."""
    class_name, values, *_ = SHAPES[request.param]
    return request.param, make_language_model(tiny_tokenizer, class_name, **values)


@pytest.fixture(scope="module")
def references() -> dict[str, Values]:
    """References already computed, by architecture."""
    return {}


@torch.no_grad()
def compute_reference(name: str, language_model: LanguageModel, texts: list[str]) -> Values:
    """One unpadded text at a time through the whole model, every token kept, plain reductions."""
    *_, sites, read, norm_name = SHAPES[name]
    model = language_model.model
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _a, output, path=path: (
                seen.__setitem__(path, output) if isinstance(output, Tensor) else None
            )
        )
        for path, module in model.named_modules()
    ]
    norm = model.get_submodule(norm_name)
    handles.append(
        norm.register_forward_pre_hook(lambda _m, args: seen.__setitem__("final", args[0]))
    )
    rows: dict[tuple[int, str], list[np.ndarray[Any, Any]]] = {}
    for text in texts:
        ids = torch.tensor([language_model.tokenizer(text)["input_ids"]])
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(2):
            # The last of hidden_states is normalised; the layer's own output enters the norm.
            states = {Site.residual: seen["final"] if layer == 1 else hidden[layer + 1]}
            states |= read(model, layer, seen)
            for site in sites:
                tokens = states[site].reshape(ids.shape[1], -1).double()
                for pooling, value in {
                    Pooling.max: tokens.amax(0),
                    Pooling.mean: tokens.sum(0) / len(tokens),
                    Pooling.last: tokens[-1],
                }.items():
                    column = SitePooling(site=site, pooling=pooling).column
                    rows.setdefault((layer, column), []).append(value.numpy())
    for handle in handles:
        handle.remove()
    return {key: np.stack(values) for key, values in rows.items()}


def make_samples(texts: list[str]) -> pa.Table:
    """The two columns of the samples table that are read."""
    return pa.table({"sample_id": [f"row-{i:03}" for i in range(len(texts))], "text": texts})


def extract(
    language_model: LanguageModel,
    texts: list[str],
    folder: Path,
    tokens_per_batch: int = 256,
    **settings: Any,
) -> tuple[pa.Table, dict[str, Any]]:
    """Run a shard and read it back."""
    workspace = Workspace(folder)
    extract_shard(
        language_model,
        make_samples(texts),
        ActivationSettings(**settings),
        tokens_per_batch,
        workspace,
    )
    return pq.read_table(folder / ACTIVATIONS.file), workspace.facts


def to_array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column of lists as (row, unit)."""
    return np.stack(column.to_numpy(zero_copy_only=False)).astype(np.float32)


# Numbers


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("tokens_per_batch", [1, 70, 100_000])
def test_batches_give_the_numbers_of_single_texts(
    shape: tuple[str, LanguageModel],
    references: dict[str, Values],
    neutral_texts: list[str],
    tokens_per_batch: int,
    padding_side: Literal["left", "right"],
) -> None:
    """Any batch size and padding side give every site and pooling to 1e-5."""
    name, language_model = shape
    texts = neutral_texts[::2]
    if name not in references:
        references[name] = compute_reference(name, language_model, texts)
    sites = choose(*SHAPES[name][2])
    taps = find_taps(language_model.model, [item.site for item in sites], None)
    read, _ = encode_read_texts(language_model, texts, max_tokens=64)
    found = pool_texts(
        language_model, taps, read, sites, tokens_per_batch, padding_side=padding_side
    )
    assert found.keys() == references[name].keys()
    for key, expected in references[name].items():
        np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize("rows_per_shard", [1, 7, 60])
def test_shards_give_the_numbers_of_the_whole(
    tiny_language_model: LanguageModel,
    neutral_texts: list[str],
    tmp_path: Path,
    rows_per_shard: int,
) -> None:
    """How texts are split into shards does not change a row."""
    whole, _ = extract(tiny_language_model, neutral_texts, tmp_path, precision="float32")
    expected = to_array(whole["mlp_activation_max"])[: len(neutral_texts)]
    found = []
    for first in range(0, len(neutral_texts), rows_per_shard):
        texts = neutral_texts[first : first + rows_per_shard]
        shard, _ = extract(tiny_language_model, texts, tmp_path, precision="float32")
        found.append(to_array(shard["mlp_activation_max"])[: len(texts)])
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-5)


def test_a_fused_projection_is_split(tiny_tokenizer: Any, neutral_texts: list[str]) -> None:
    """In gate_up_proj the gate is the half that goes through the activation function."""
    language_model = make_language_model(tiny_tokenizer, "Phi3Config", **LLAMA)
    sites = choose(Site.mlp_gate, Site.mlp_up, Site.mlp_activation, poolings=(Pooling.last,))
    taps = find_taps(language_model.model, [item.site for item in sites], None)
    texts, _ = encode_read_texts(language_model, neutral_texts[:5], max_tokens=64)
    found = pool_texts(language_model, taps, texts, sites, 256)
    gate, up = (torch.from_numpy(found[1, f"mlp_{part}_last"]) for part in ("gate", "up"))
    expected = torch.nn.functional.silu(gate) * up
    np.testing.assert_allclose(found[1, "mlp_activation_last"], expected, rtol=1e-4, atol=1e-5)


def test_low_precision_models_are_pooled_in_float32(
    tiny_tokenizer: Any, neutral_texts: list[str]
) -> None:
    """The mean over a bfloat16 model's tokens is not itself rounded to bfloat16."""
    language_model = make_language_model(tiny_tokenizer, *SHAPES["llama"][:1], **LLAMA)
    language_model.model.to(torch.bfloat16)
    sites = choose(Site.residual, poolings=(Pooling.mean,))
    taps = find_taps(language_model.model, [item.site for item in sites], None)
    texts, _ = encode_read_texts(language_model, neutral_texts[:5], max_tokens=64)
    means = torch.from_numpy(
        pool_texts(language_model, taps, texts, sites, 256)[1, "residual_mean"]
    )
    assert (means != means.bfloat16().float()).any()


def test_an_empty_text_keeps_its_row(
    tiny_language_model: LanguageModel, neutral_texts: list[str], tmp_path: Path
) -> None:
    """A text without tokens is given one, and its values are finite."""
    table, facts = extract(tiny_language_model, [neutral_texts[0], ""], tmp_path)
    assert table["n_tokens"].to_pylist()[1] == 1
    assert np.isfinite(to_array(table["residual_mean"])).all()
    assert facts["n_nonfinite"] == 0


def test_long_texts_are_truncated_and_counted(
    tiny_language_model: LanguageModel, neutral_texts: list[str], tmp_path: Path
) -> None:
    """A truncated text gives what its first tokens give, up to the model's own positions."""
    texts = [neutral_texts[0], " ".join(neutral_texts)]
    table, facts = extract(tiny_language_model, texts, tmp_path, max_tokens=500)
    assert (facts["n_truncated"], facts["max_tokens"]) == (1, 64)
    assert table["n_tokens"].to_pylist()[1] == 64
    table, facts = extract(tiny_language_model, texts, tmp_path, max_tokens=3)
    assert set(table["n_tokens"].to_pylist()) == {3}
    assert facts["n_tokens"] == 6


def test_values_beyond_float16_are_counted(
    tiny_tokenizer: Any, neutral_texts: list[str], tmp_path: Path
) -> None:
    """They become infinite in float16, are counted, and stay finite in float32."""
    language_model = make_language_model(tiny_tokenizer, *SHAPES["llama"][:1], **LLAMA)
    with torch.no_grad():
        language_model.model.model.layers[1].mlp.down_proj.weight[3] *= 1e6
    sites = choose(Site.mlp_down, poolings=(Pooling.max,))
    table, facts = extract(language_model, neutral_texts[:8], tmp_path, sites=sites)
    values = to_array(table["mlp_down_max"])
    assert facts["n_nonfinite"] == np.isinf(values).sum() > 0
    assert set(np.nonzero(np.isinf(values))[1]) == {3}
    _, facts = extract(
        language_model, neutral_texts[:8], tmp_path, sites=sites, precision="float32"
    )
    assert facts["n_nonfinite"] == 0


# The table


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_each_layer_is_one_row_group(
    tiny_language_model: LanguageModel, neutral_texts: list[str], tmp_path: Path, precision: str
) -> None:
    """Rows are ordered by layer and then as the samples; a row group holds one layer."""
    table, facts = extract(tiny_language_model, neutral_texts, tmp_path, precision=precision)
    n = len(neutral_texts)
    assert table["layer"].to_pylist() == [0] * n + [1] * n
    assert (
        table["sample_id"].to_pylist() == 2 * make_samples(neutral_texts)["sample_id"].to_pylist()
    )
    metadata = pq.read_metadata(tmp_path / ACTIVATIONS.file)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [n, n]
    assert str(table.schema.field("residual_mean").type.value_type) in {"halffloat", "float"}
    assert facts["n_samples"] == n
    assert facts["n_tokens"] == sum(table["n_tokens"].to_pylist()[:n])


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_duckdb_reads_the_values(
    tiny_language_model: LanguageModel, neutral_texts: list[str], tmp_path: Path, precision: str
) -> None:
    """The encoding is one that DuckDB can read, and it reads the same numbers."""
    table, _ = extract(tiny_language_model, neutral_texts[:4], tmp_path, precision=precision)
    rows = duckdb.sql(
        f"SELECT residual_mean FROM read_parquet('{tmp_path / ACTIVATIONS.file}') WHERE layer = 1"
    ).fetchall()
    expected = to_array(table["residual_mean"])[4:]
    np.testing.assert_array_equal(np.array([row[0] for row in rows], dtype=np.float32), expected)


def test_only_the_asked_for_layers_are_read(
    tiny_language_model: LanguageModel, neutral_texts: list[str], tmp_path: Path
) -> None:
    """`layers` selects layers."""
    table, _ = extract(tiny_language_model, neutral_texts[:3], tmp_path, layers=(1,))
    assert set(table["layer"].to_pylist()) == {1}


def test_no_text_is_logged(
    tiny_language_model: LanguageModel,
    neutral_texts: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not even a text longer than the model's limit."""
    with caplog.at_level(logging.DEBUG):
        extract(tiny_language_model, [" ".join(neutral_texts)], tmp_path)
    assert "garden" not in caplog.text


def test_no_hooks_are_left(
    tiny_language_model: LanguageModel, neutral_texts: list[str], tmp_path: Path
) -> None:
    """After a shard the model is as before."""
    extract(tiny_language_model, neutral_texts[:3], tmp_path)
    for module in tiny_language_model.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# Refusals


def test_a_missing_site_is_named(tiny_language_model: LanguageModel, tmp_path: Path) -> None:
    """GPT-2 has no gate; the error lists the sites it has."""
    with pytest.raises(
        ModelError, match=r"GPT2LMHeadModel.*mlp_gate.*Choose from: residual, mlp_up"
    ):
        extract(tiny_language_model, ["A tree."], tmp_path, sites=choose(Site.mlp_gate))


def test_experts_are_refused_with_a_reason(tiny_tokenizer: Any, tmp_path: Path) -> None:
    """A mixture of experts has its residual stream read, not the inside of its experts."""
    language_model = make_language_model(
        tiny_tokenizer, "MixtralConfig", **LLAMA, num_local_experts=2
    )
    with pytest.raises(ModelError, match="mixture of experts"):
        extract(language_model, ["A tree."], tmp_path)
    table, _ = extract(language_model, ["A tree."], tmp_path, sites=choose(Site.residual))
    assert table.num_rows == 2


def test_a_layer_that_does_not_exist_is_refused(
    tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """The error names the last layer there is."""
    with pytest.raises(SettingsError, match="expected layers 0 to 1, found 2"):
        extract(tiny_language_model, ["A tree."], tmp_path, layers=(0, 2))


def test_an_empty_shard_is_refused(tiny_language_model: LanguageModel, tmp_path: Path) -> None:
    """There is nothing to learn the widths from."""
    with pytest.raises(ArtifactError, match="expected at least one row"):
        extract(tiny_language_model, [], tmp_path)


def test_tokens_unknown_to_the_model_are_refused(
    tiny_tokenizer: Any, neutral_texts: list[str], tmp_path: Path
) -> None:
    """A tokenizer of another model is found out before the model reads beyond its table."""
    config = transformers.LlamaConfig(vocab_size=50, **LLAMA)
    model = transformers.AutoModelForCausalLM.from_config(config)
    language_model = wrap_model(model, tiny_tokenizer, model_id="small", digest="d")
    with pytest.raises(ModelError, match="small: expected token ids below 50"):
        extract(language_model, neutral_texts, tmp_path)
