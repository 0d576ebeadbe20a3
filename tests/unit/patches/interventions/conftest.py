"""Evidence with a planted signal, on tiny models of two architectures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.components.decomposition import decompose_head
from eigenshift.model import loading
from eigenshift.model.encoding import encode_text
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel, load_model
from eigenshift.model.taps import list_sites
from eigenshift.model.writers import count_features, list_writers
from eigenshift.patches.edits import HeadEdit, LinearEdit, ModelEdit
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.requests import UNIT_SITES, Need
from eigenshift.settings import ModelSettings

HIDDEN = 32
SELECTED = (3, 1, 8)
"""Components the table selects, most toxic first."""
FACTORS = (0.1, 0.5, 0.25)
"""What the table multiplies them by."""
TOXIC_TOKENS = [5, 9]
"""Generated at the toxic positions, and nowhere else."""


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A two-layer random Llama: gated MLP, RMS norms, no bias anywhere, a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("intervened-llama")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["gpt2", "llama"])
def language_model(
    request: pytest.FixtureRequest, tiny_model_folder: Path, tiny_llama_folder: Path
) -> Iterator[LanguageModel]:
    """Biases and a tied head, or neither."""
    folder = tiny_model_folder if request.param == "gpt2" else tiny_llama_folder
    yield load_model(ModelSettings(id=str(folder)), device="cpu")
    loading.forget_models()


def make_evidence(language_model: LanguageModel, texts: list[str]) -> Evidence:
    """All kinds of evidence, with a signal in the states, the units and the texts."""
    generator = np.random.default_rng(0)
    decomposition = decompose_head(language_model.head_weight)
    return Evidence(
        language_model,
        {
            Need.decomposition: decomposition,
            Need.components: _make_components(),
            Need.head_states: _make_states(generator),
            Need.units: _make_units(language_model, generator),
            Need.labelled_texts: _make_samples(texts),
            Need.neutral_texts: _make_samples(texts),
            Need.harmless_texts: _make_harmless(language_model, texts),
            Need.fisher: _make_fisher_edit(language_model),
        },
    )


def _make_components() -> pa.Table:
    others = [index for index in range(HIDDEN) if index not in SELECTED]
    return pa.table(
        {
            "component_index": [*SELECTED, *others],
            "rank": list(range(HIDDEN)),
            "is_selected": [True] * len(SELECTED) + [False] * len(others),
            "factor": [*FACTORS, *(1.0 for _ in others)],
            "delta": [float(index) for index in [*SELECTED, *others]],
            "effect_size": [float(HIDDEN - rank) for rank in range(HIDDEN)],
        }
    )


def _make_harmless(language_model: LanguageModel, texts: list[str]) -> pa.Table:
    """Texts of both origins; those for the budget calibrate."""
    rows = [
        {
            "text_id": f"h{place:02d}",
            "origin": "labelled" if place % 2 else "continuation",
            "language": "en",
            "use": "budget" if place % 3 else "fisher",
            "token_ids": encode_text(language_model, text, 40).token_ids,
            "n_context": 1,
        }
        for place, text in enumerate(texts[24:48])
    ]
    return pa.Table.from_pylist(rows, schema=schemas.HARMLESS_TEXTS)


def _make_fisher_edit(language_model: LanguageModel) -> ModelEdit:
    """Two terms of the head and three of a writer of the last block, of no meaning."""
    generator = torch.Generator().manual_seed(3)

    def draw(n_rows: int, n_terms: int) -> torch.Tensor:
        return torch.randn(n_rows, n_terms, generator=generator, dtype=torch.float64) / n_rows**0.5

    name, module = list(list_writers(language_model.model).items())[-1]
    features = count_features(module)
    assert features is not None
    head = HeadEdit(0.3 * draw(HIDDEN, 2), draw(HIDDEN, 2), torch.zeros(2, dtype=torch.float64))
    linear = LinearEdit(0.3 * draw(features[1], 3), draw(features[0], 3))
    return ModelEdit(head, {}, {name: linear})


def _make_states(generator: np.random.Generator) -> pa.Table:
    """Forty toxic states moved along one direction, 120 others, correlated dimensions.

    Toxic ones are about to generate one of two tokens that the others never do.
    """
    mixing = generator.normal(size=(HIDDEN, HIDDEN))
    values = generator.normal(size=(160, HIDDEN)) @ mixing + 0.5
    values[:40] += 3.0 * generator.normal(size=HIDDEN)
    return pa.table(
        {
            "prompt_id": [f"p{place % 20:02d}" for place in range(160)],
            "sample_index": [0] * 160,
            "step": list(range(160)),
            "is_toxic": [True] * 40 + [False] * 120,
            "token_id": [*(TOXIC_TOKENS * 20), *(20 + place % 40 for place in range(120))],
            "state": list(values.astype(np.float32)),
        }
    )


def _make_units(language_model: LanguageModel, generator: np.random.Generator) -> pa.Table:
    """AUROCs from 0.2 to 0.95 for every unit; one unit has none."""
    rows = []
    for layer, block in enumerate(list_layers(language_model.model)):
        for site, tap in list_sites(block, layer).items():
            if site in UNIT_SITES:
                rows += [
                    {
                        "language": "all",
                        "layer": layer,
                        "site": site.value,
                        "neuron_index": index,
                    }
                    for index in range(min(HIDDEN, len(tap.module.weight)))
                ]
    for row, auroc in zip(rows, generator.uniform(0.2, 0.95, len(rows)), strict=True):
        row["auroc"] = float(auroc)
    rows[0]["auroc"] = None
    return pa.Table.from_pylist(rows, schema=schemas.NEURONS)


def _make_samples(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "sample_id": [f"s{place:02d}" for place in range(len(texts))],
            "text": texts,
            "is_toxic": [len(text) > 40 for text in texts],
        }
    )


@pytest.fixture
def evidence(language_model: LanguageModel, neutral_texts: list[str]) -> Evidence:
    """All kinds of evidence about the model of the test."""
    return make_evidence(language_model, neutral_texts)
