"""Encoders and encoder-decoders as detectors, against their own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from eigenshift.base.errors import ModelError
from eigenshift.detection.activations import extract_shard
from eigenshift.model.description import describe_model
from eigenshift.model.encoding import encode_read_texts
from eigenshift.model.files import identify_model
from eigenshift.model.kinds import ModelKind
from eigenshift.model.loading import (
    LanguageModel,
    TextModel,
    find_kind,
    forget_models,
    load_model,
    load_text_model,
)
from eigenshift.model.tokens import limit_tokens
from eigenshift.settings import ActivationSettings, ModelSettings, Pooling, Site, SitePooling
from eigenshift.store.workspace import Workspace

WIDTH, INNER, N_LAYERS = 16, 24, 2
PLAIN = (Site.residual, Site.mlp_up, Site.mlp_activation, Site.mlp_down)
BERT = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
BART = {
    "d_model": WIDTH,
    "encoder_layers": N_LAYERS,
    "decoder_layers": N_LAYERS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": 2 * INNER,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 40,
    "init_std": 0.3,
}
T5 = {"d_model": WIDTH, "d_ff": INNER, "d_kv": 8, "num_layers": N_LAYERS, "num_heads": 2}

Places = Callable[[int], dict[Site, tuple[str, str]]]
"""Module path and whether its input or output is the site, for a layer of the encoder."""


def place_bert(layer: int) -> dict[Site, tuple[str, str]]:
    """BERT and RoBERTa; the activation is read where it leaves the activation function."""
    block = f"encoder.layer.{layer}"
    return {
        Site.mlp_up: (f"{block}.intermediate.dense", "output"),
        Site.mlp_activation: (f"{block}.intermediate.intermediate_act_fn", "output"),
        Site.mlp_down: (f"{block}.output.dropout", "input"),
    }


def place_distilbert(layer: int) -> dict[Site, tuple[str, str]]:
    """DistilBERT."""
    block = f"transformer.layer.{layer}.ffn"
    return {
        Site.mlp_up: (f"{block}.lin1", "output"),
        Site.mlp_activation: (f"{block}.activation", "output"),
        Site.mlp_down: (f"{block}.dropout", "input"),
    }


def place_bart(layer: int) -> dict[Site, tuple[str, str]]:
    """BART's encoder."""
    block = f"layers.{layer}"
    return {
        Site.mlp_up: (f"{block}.fc1", "output"),
        Site.mlp_activation: (f"{block}.activation_fn", "output"),
        Site.mlp_down: (f"{block}.fc2", "output"),
    }


def place_t5(layer: int) -> dict[Site, tuple[str, str]]:
    """T5's encoder with its plain feed-forward part."""
    block = f"block.{layer}.layer.1"
    return {
        Site.mlp_up: (f"{block}.DenseReluDense.wi", "output"),
        Site.mlp_activation: (f"{block}.DenseReluDense.act", "output"),
        Site.mlp_down: (f"{block}.dropout", "input"),
    }


MODELS: dict[str, tuple[str, dict[str, Any], str, Places]] = {
    "bert": ("BertConfig", BERT, "BertForMaskedLM", place_bert),
    "roberta": ("RobertaConfig", {**BERT, "pad_token_id": 1}, "RobertaForMaskedLM", place_bert),
    "distilbert": (
        "DistilBertConfig",
        {
            "dim": WIDTH,
            "hidden_dim": INNER,
            "n_layers": N_LAYERS,
            "n_heads": 2,
            "max_position_embeddings": 40,
            "initializer_range": 0.3,
        },
        "DistilBertForSequenceClassification",
        place_distilbert,
    ),
    "bart": ("BartConfig", BART, "BartForConditionalGeneration", place_bart),
    "t5": ("T5Config", T5, "T5ForConditionalGeneration", place_t5),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(
    request: pytest.FixtureRequest, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A folder with each model, saved with a head of its own task, and the tiny tokenizer."""
    config_class, values, model_class, _ = MODELS[request.param]
    config = getattr(transformers, config_class)(vocab_size=len(tiny_tokenizer), **values)
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, model_class)(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return request.param, folder


@pytest.fixture
def text_model(saved: tuple[str, Path]) -> TextModel:
    """The model as a run loads it."""
    forget_models()
    return load_text_model(ModelSettings(id=str(saved[1])), device="cpu")


def read_alone(name: str, text_model: TextModel, text: str) -> dict[tuple[int, Site], np.ndarray]:
    """States of one unpadded text, from hooks on modules other than extraction's."""
    (read,), _ = encode_read_texts(text_model, [text], 40)
    token_ids = [read.token_ids]
    seen: dict[tuple[int, Site], np.ndarray] = {}
    handles = []
    for layer in range(N_LAYERS):
        for site, (path, side) in MODELS[name][3](layer).items():
            module = text_model.model.get_submodule(path)
            handles.append(
                module.register_forward_hook(
                    lambda _, args, output, key=(layer, site), side=side: seen.update(
                        {key: (args[0] if side == "input" else output)[0].numpy()}
                    )
                )
            )
    with torch.inference_mode():
        output = text_model.model(torch.tensor(token_ids), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    for layer in range(N_LAYERS - 1):  # a last hidden state has gone through a final norm in T5
        seen[layer, Site.residual] = output.hidden_states[layer + 1][0].numpy()
    return seen


def test_batches_give_the_states_of_single_texts(
    saved: tuple[str, Path], text_model: TextModel, neutral_texts: list[str], tmp_path: Path
) -> None:
    """Every site and pooling, padded in batches, equals the model's own pass over each text."""
    texts = [
        text[:length] for text, length in zip(neutral_texts, (60, 9, 33, 21, 48), strict=False)
    ]
    sites = tuple(SitePooling(site=site, pooling=how) for site in PLAIN for how in Pooling)
    settings = ActivationSettings(sites=sites, precision="float32", max_tokens=40)
    samples = pa.table({"sample_id": [str(number) for number in range(len(texts))], "text": texts})
    workspace = Workspace(tmp_path)
    extract_shard(text_model, samples, settings, 100_000, workspace)
    rows = pq.read_table(workspace.path("activations.parquet")).to_pylist()
    assert len(rows) == N_LAYERS * len(texts)
    for number, text in enumerate(texts):
        for (layer, site), states in read_alone(saved[0], text_model, text).items():
            row = rows[layer * len(texts) + number]
            pooled = {"max": states.max(axis=0), "mean": states.mean(axis=0), "last": states[-1]}
            for how, expected in pooled.items():
                np.testing.assert_allclose(
                    row[f"{site.value}_{how}"], expected, atol=1e-5, err_msg=f"{layer} {site} {how}"
                )


def test_later_tokens_are_seen(text_model: TextModel) -> None:
    """An encoder's states of a token depend on what follows it."""
    token_ids = torch.tensor([[5, 6, 7, 8]])
    other = torch.tensor([[5, 6, 7, 9]])
    with torch.inference_mode():
        one, two = (text_model.model(ids).last_hidden_state[0, 0] for ids in (token_ids, other))
    assert not torch.allclose(one, two, atol=1e-4)


def test_kind_and_description(saved: tuple[str, Path], text_model: TextModel) -> None:
    """The record says what it is; there is no head, and the layers are the encoder's."""
    kind = ModelKind.encoder_decoder if saved[0] in ("bart", "t5") else ModelKind.encoder
    assert text_model.kind is kind
    assert not isinstance(text_model, LanguageModel)
    facts = describe_model(text_model, identify_model(ModelSettings(id=str(saved[1]))))
    assert (facts["kind"], facts["head"], facts["n_layers"]) == (kind.name, None, N_LAYERS)


def test_it_is_not_taken_for_a_model_that_generates(saved: tuple[str, Path]) -> None:
    """What needs a head refuses it, with what it is and what to do."""
    with pytest.raises(ModelError, match=r"found an encoder.*eigenshift detect"):
        load_model(ModelSettings(id=str(saved[1])), device="cpu")


def test_texts_as_long_as_the_positions_can_be_read(
    text_model: TextModel, neutral_texts: list[str]
) -> None:
    """The limit leaves out positions that are the padding's, as RoBERTa counts them."""
    limit = limit_tokens(text_model.model, 1000)
    expected = {"bert": 40, "distilbert": 40, "roberta": 38, "bart": 40, "t5": 1000}
    assert limit == expected[text_model.model.config.model_type]
    (read,), n_truncated = encode_read_texts(text_model, [" ".join(neutral_texts)], min(limit, 200))
    assert n_truncated == 1
    with torch.inference_mode():
        text_model.model(torch.tensor([read.token_ids]))


def test_a_gated_feed_forward_part_has_both_halves(tiny_tokenizer: Any) -> None:
    """T5 1.1: the gate is the half that goes through the activation."""
    from eigenshift.model.layers import list_layers
    from eigenshift.model.taps import list_sites

    config = transformers.T5Config(
        vocab_size=len(tiny_tokenizer), feed_forward_proj="gated-gelu", **T5
    )
    encoder = transformers.T5EncoderModel(config).get_encoder()
    block = list_layers(encoder)[0]
    sites = list_sites(block, 0)
    feed_forward = block.get_submodule("layer.1.DenseReluDense")
    assert sites[Site.mlp_gate].module is feed_forward.wi_0
    assert sites[Site.mlp_up].module is feed_forward.wi_1


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (transformers.GPT2Config(), ModelKind.causal),
        (transformers.LlamaConfig(), ModelKind.causal),
        (transformers.BertConfig(), ModelKind.encoder),
        (transformers.BertConfig(is_decoder=True), ModelKind.causal),
        (transformers.BartConfig(), ModelKind.encoder_decoder),
    ],
)
def test_kinds_are_told_by_configuration(config: Any, kind: ModelKind) -> None:
    """A BERT made to decode is a causal model; one made to read is not."""
    assert find_kind(config) is kind
