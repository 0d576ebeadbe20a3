"""Continuations of models with a cache, with another kind of it, with none, with one that is wrong.

The reference runs each sequence alone, whole, at every step: no batch, no padding, no cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenshift.generation.branches import (
    CachedBranches,
    WholeBranches,
    find_cache_name,
    start_branches,
)
from eigenshift.generation.decoding import HeadBranch, sample_batch
from eigenshift.generation.sampling import Keys, draw_keys, pick_tokens, spread_noise
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.settings import SamplingSettings
from tests.support.architectures import (
    ARCHITECTURES,
    MORE,
    StubTokenizer,
    damp_head,
    make_random_model,
)

STATES = ("MambaConfig", "Mamba2Config", "FalconMambaConfig")
NO_CACHE = ("OpenAIGPTConfig", "RecurrentGemmaConfig", "RwkvConfig")
CACHE_NAMES: dict[str, str | None] = {
    "LlamaConfig": "past_key_values",
    "FalconH1Config": "past_key_values",
    **dict.fromkeys(STATES, "cache_params"),
    **dict.fromkeys(NO_CACHE, None),
    "MiniMaxConfig": None,  # its cache does not follow where branches split
}
PROMPTS = [[7, 8], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], [30], [40, 41, 42, 43, 44]]
SETTINGS = SamplingSettings(n_samples=3, n_tokens=5, min_tokens=5, top_p=0.95, seed=3)


def wrap(name: str) -> LanguageModel:
    """A random model, by the name of its configuration."""
    llama = {"LlamaConfig": ARCHITECTURES["llama"].values}
    model = make_random_model(name, {**MORE, **llama}[name])
    return wrap_model(model, StubTokenizer(), model_id=name, digest="d")


def draw_all_keys() -> Keys:
    """Random numbers of each (prompt, sample)."""
    import numpy as np

    return np.stack(
        [
            draw_keys(SETTINGS.seed, "main", str(prompt), sample, SETTINGS.n_tokens)
            for prompt in range(len(PROMPTS))
            for sample in range(SETTINGS.n_samples)
        ]
    )


@torch.inference_mode()
def continue_alone(
    language_model: LanguageModel, edit: ModelEdit, tokens: list[int], keys: Any
) -> list[int]:
    """One continuation, the whole sequence alone at each step, with the edit as hooks."""
    tokens = list(tokens)
    n_prompt = len(tokens)
    for step in range(SETTINGS.n_tokens):
        with run_hooked(language_model, edit):
            outputs = language_model.model(input_ids=torch.tensor([tokens]), use_cache=False)
        logits = outputs.logits[:, -1].clone()
        logits[:, 2] = -torch.inf  # the end, which is not drawn before the least number of tokens
        noise = spread_noise(keys[step : step + 1], language_model.vocab, torch.device("cpu"))
        tokens.append(int(pick_tokens(logits, noise, SETTINGS.top_p, SETTINGS.temperature)))
    return tokens[n_prompt:]


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_continuations_equal_each_sequence_alone(name: str) -> None:
    """Prompts of several lengths in one batch, two arms; branches split and go on."""
    language_model = wrap(name)
    keys, edits = draw_all_keys(), [ModelEdit(), damp_head(language_model, 0.25)]
    found = sample_batch(
        language_model, PROMPTS, [HeadBranch(edit, keys) for edit in edits], SETTINGS
    )
    for arm, edit in zip(found, edits, strict=True):
        for row, tokens in enumerate(arm):
            prompt = PROMPTS[row // SETTINGS.n_samples]
            assert tokens == continue_alone(language_model, edit, prompt, keys[row])
    assert found[0] != found[1]
    assert len({tuple(tokens) for tokens in found[0]}) == len(found[0])


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_how_a_model_is_read_on_is_found_by_a_probe(name: str) -> None:
    """By the cache it returns, under either name, or whole where it returns none."""
    language_model = wrap(name)
    assert find_cache_name(language_model) == CACHE_NAMES[name]
    kind = WholeBranches if CACHE_NAMES[name] is None else CachedBranches
    assert isinstance(start_branches(language_model, PROMPTS), kind)


def test_a_cache_that_padding_spoils_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ignores the mask gives other continuations beside longer prompts."""
    language_model = wrap("LlamaConfig")
    forward = type(language_model.model).forward

    def forget_the_mask(self: Any, *args: Any, attention_mask: Any = None, **given: Any) -> Any:
        return forward(self, *args, **given)

    monkeypatch.setattr(type(language_model.model), "forward", forget_the_mask)
    assert find_cache_name(language_model) is None
    keys = draw_all_keys()
    (found,) = sample_batch(language_model, PROMPTS, [HeadBranch(ModelEdit(), keys)], SETTINGS)
    for row, tokens in enumerate(found):
        prompt = PROMPTS[row // SETTINGS.n_samples]
        assert tokens == continue_alone(language_model, ModelEdit(), prompt, keys[row])


def test_a_cache_that_is_not_shared_out_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where branches split the cache has to follow them."""
    from transformers import DynamicCache

    language_model = wrap("LlamaConfig")
    monkeypatch.setattr(
        DynamicCache,
        "reorder_cache",
        lambda self, parents: self.batch_select_indices(parents.flip(0)),
    )
    assert find_cache_name(language_model) is None


def test_the_probe_runs_once_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is remembered as long as the model lives."""
    language_model = wrap("LlamaConfig")
    assert find_cache_name(language_model) == "past_key_values"
    monkeypatch.setattr(type(language_model.model), "forward", None)
    assert find_cache_name(language_model) == "past_key_values"
