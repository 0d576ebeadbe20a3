"""The grid in closed form equals the patched model, point by point and text by text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from eigenshift.base.errors import ComponentError
from eigenshift.components.calibration import MIN_PROBABILITY, ToxicStates
from eigenshift.components.decomposition import decompose_head
from eigenshift.evaluation import grid as grids
from eigenshift.evaluation.grid import (
    Grid,
    GridPoint,
    list_points,
    measure_grid,
    measure_token_share,
)
from eigenshift.model.encoding import encode_text
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import make_patch, patched_model

RANKINGS = {"descending": tuple(range(24)), "mixed": (5, 17, 2, 30, 11, 8, 1, 29)}
POINTS = (
    *list_points(["descending"], [1, 4, 24], [0.0, 0.5]),
    GridPoint("mixed", 8, 0.0),
    GridPoint("mixed", 3, 0.8),
    GridPoint("descending", 2, 1.0),
)


def make_grid(language_model: LanguageModel) -> Grid:
    """Two rankings of the model's components."""
    return Grid(POINTS, RANKINGS, decompose_head(language_model.head_weight).v)


@pytest.fixture(scope="module")
def soft_capped_model(tiny_tokenizer: Any) -> LanguageModel:
    """A tiny model whose logits are capped by a tanh, so that changes of them do not just add."""
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        final_logit_softcapping=4.0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
    return wrap_model(model, tiny_tokenizer, model_id="soft-capped", digest="none")


@pytest.fixture(params=["plain", "soft-capped"])
def language_model(
    request: pytest.FixtureRequest,
    tiny_language_model: LanguageModel,
    soft_capped_model: LanguageModel,
) -> LanguageModel:
    """Both kinds of head."""
    return tiny_language_model if request.param == "plain" else soft_capped_model


def compute_patched(
    language_model: LanguageModel, grid: Grid, sequence: list[int]
) -> Iterator[Tensor]:
    """Log-probabilities of one unpadded text under the base and then under each point's patch."""

    def run() -> Tensor:
        logits: Tensor = language_model.model(torch.tensor([sequence])).logits[0, :-1]
        return logits.double().log_softmax(-1)

    with torch.inference_mode():
        yield run()
        for point in grid.points:
            v = grid.v[:, list(grid.rankings[point.ranking][: point.n_components])]
            edit = ModelEdit(HeadEdit.scale_directions(v, point.factor))
            patch = make_patch(language_model, edit, model_id="tiny", intervention="grid")
            with patched_model(language_model, patch):
                yield run()


@pytest.mark.parametrize(("cells", "tokens_per_batch"), [(1 << 19, 10_000), (1500, 64)])
def test_every_point_equals_the_patched_model(
    language_model: LanguageModel,
    neutral_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    cells: int,
    tokens_per_batch: int,
) -> None:
    """Likelihood, divergence and changed tokens, in blocks of any size (bar: 1e-4; found: 1e-6)."""
    monkeypatch.setattr(grids, "CELLS_PER_BLOCK", cells)
    monkeypatch.setattr(grids, "CELLS_PER_CHUNK", 10 * cells)
    sequences = [encode_text(language_model, text, 24).token_ids for text in neutral_texts[::6]]
    grid = make_grid(language_model)
    found = measure_grid(language_model, grid, sequences, tokens_per_batch=tokens_per_batch)
    for place, sequence in enumerate(sequences):
        base, *patched = compute_patched(language_model, grid, sequence)
        targets = torch.tensor(sequence[1:])[:, None]
        assert found.n_tokens[place] == len(targets)
        assert found.base_nll[place] == pytest.approx(-float(base.gather(1, targets).sum()), 1e-5)
        for point, log_p in enumerate(patched):
            nll = -float(log_p.gather(1, targets).sum())
            assert found.nll[point, place] == pytest.approx(nll, rel=1e-5)
            kl = float((base.exp() * (base - log_p)).sum())
            assert found.kl_to_base[point, place] == pytest.approx(kl, rel=1e-4, abs=1e-5)
            n_changed = int((log_p.argmax(1) != base.argmax(1)).sum())
            assert found.n_changed_argmax[point, place] == n_changed
    assert found.n_changed_argmax.sum() > 0


def test_a_factor_of_one_changes_nothing(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """The last point is the base."""
    sequences = [encode_text(tiny_language_model, text, 24).token_ids for text in neutral_texts[:4]]
    found = measure_grid(
        tiny_language_model, make_grid(tiny_language_model), sequences, tokens_per_batch=512
    )
    np.testing.assert_allclose(found.nll[-1], found.base_nll, rtol=1e-6)
    np.testing.assert_allclose(found.kl_to_base[-1], 0.0, atol=1e-5)
    assert found.perplexity_increase[-1] == pytest.approx(0.0, abs=1e-6)


def test_corpus_perplexity_is_weighted_by_tokens(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """A long text counts by its tokens: exp of summed likelihoods over summed tokens."""
    sequences = [encode_text(tiny_language_model, text, 24).token_ids for text in neutral_texts[:5]]
    grid = make_grid(tiny_language_model)
    found = measure_grid(tiny_language_model, grid, sequences, tokens_per_batch=512)
    nll = np.zeros(2)
    for sequence in sequences:
        base, *patched = compute_patched(tiny_language_model, grid, sequence)
        targets = torch.tensor(sequence[1:])[:, None]
        nll -= [float(log_p.gather(1, targets).sum()) for log_p in (base, patched[2])]
    base_perplexity, perplexity = np.exp(nll / found.n_tokens.sum())
    assert found.perplexity_increase[2] == pytest.approx(perplexity / base_perplexity - 1, 1e-4)


def test_the_share_of_watched_tokens_equals_the_patched_model(
    language_model: LanguageModel,
    neutral_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weighted share of their probability that is left; 1 where nothing changes."""
    monkeypatch.setattr(grids, "CELLS_PER_BLOCK", 1500)
    monkeypatch.setattr(grids, "CELLS_PER_CHUNK", 4000)
    sequence = encode_text(language_model, neutral_texts[3], 24).token_ids
    ((_, states),) = iterate_head_states(language_model, [sequence], 512)
    token_ids = torch.tensor([3, 70, 71, 200])
    grid = make_grid(language_model)
    weights = torch.linspace(0.2, 1.0, len(states) - 1)
    toxic = ToxicStates(states[:-1], token_ids, weights)
    found = measure_token_share(language_model, grid, toxic)
    base, *patched = compute_patched(language_model, grid, sequence)
    before, *after = (p.exp()[:, token_ids].sum(1) for p in (base, *patched))
    magnified = weights / before.clamp_min(MIN_PROBABILITY)
    expected = [float((magnified * p).sum() / (magnified * before).sum()) for p in after]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[-1] == pytest.approx(1.0)


def test_states_are_stored_wider_than_the_weights_of_some_models(
    neutral_texts: list[str], tiny_tokenizer: Any
) -> None:
    """In bfloat16 the share of watched tokens is near that of the same model in float32."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64
                )
            )
        language_model = wrap_model(
            model.to(dtype), tiny_tokenizer, model_id="tiny", digest=str(dtype)
        )
        sequence = encode_text(language_model, neutral_texts[3], 24).token_ids
        ((_, states),) = iterate_head_states(language_model, [sequence], 512)
        weights = torch.ones(len(states))
        toxic = ToxicStates(states.float(), torch.tensor([3, 70, 71, 200]), weights)
        found[dtype] = measure_token_share(language_model, make_grid(language_model), toxic)
    np.testing.assert_allclose(found[torch.bfloat16], found[torch.float32], rtol=0.05)


def test_huge_changes_of_logits_do_not_overflow(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """States scaled up until exp would overflow: likelihoods stay finite and right."""
    sequence = encode_text(tiny_language_model, neutral_texts[3], 24).token_ids
    ((_, states),) = iterate_head_states(tiny_language_model, [sequence], 512)
    grid = make_grid(tiny_language_model)
    states = 200.0 * states[:-1]
    token_ids = torch.tensor([3, 70, 71, 200])
    toxic = ToxicStates(states, token_ids, torch.ones(len(states)))
    found = measure_token_share(tiny_language_model, grid, toxic)
    weight = tiny_language_model.head_weight.double()
    removed = torch.from_numpy(grid.v[:, :24])
    changed = states.double() - states.double() @ removed @ removed.T
    before, after = (
        (s @ weight.T).softmax(-1)[:, token_ids].sum(1) for s in (states.double(), changed)
    )
    magnified = 1 / before.clamp_min(MIN_PROBABILITY)
    expected = float((magnified * after).sum() / (magnified * before).sum())
    assert found[4] == pytest.approx(expected, rel=1e-2)
    assert np.isfinite(found).all()


def test_a_point_beyond_its_ranking_is_refused(tiny_language_model: LanguageModel) -> None:
    """It would silently be a smaller one."""
    v = decompose_head(tiny_language_model.head_weight).v
    with pytest.raises(ComponentError, match=r"1 to 8 .* mixed, found 9.*tune\.n_components"):
        Grid((GridPoint("mixed", 9, 0.0),), RANKINGS, v)
