"""Generation: seeded per (prompt, sample), independent of batches, equal to a plain reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.generation import draw_uniforms, generate_continuations, pick_tokens
from eigenshift.models import LanguageModel
from eigenshift.settings import GenerationSettings

SETTINGS = GenerationSettings(n_samples=3, n_tokens=6)


@pytest.fixture
def prompts(neutral_texts: list[str]) -> pa.Table:
    """Nine prompts of different lengths, one of them empty."""
    texts = [*neutral_texts[:8], ""]
    rows = [
        {
            "prompt_id": f"p{place}",
            "part": "evaluation",
            "dataset": "made-up",
            "language": "en",
            "toxicity": None,
            "prompt": text,
        }
        for place, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PROMPTS)


def generate(
    language_model: LanguageModel,
    prompts: pa.Table,
    workspace: Workspace,
    settings: GenerationSettings = SETTINGS,
    **options: Any,
) -> list[dict[str, Any]]:
    """Generate and read back."""
    options = {"stream": "main", "sequences_per_batch": 64, **options}
    generate_continuations(language_model, prompts, settings, workspace=workspace, **options)
    return pq.read_table(workspace.path("continuations.parquet")).to_pylist()


def test_a_continuation_equals_sampling_one_sequence_without_cache_or_padding(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """Independent reference: full forward passes, one sequence at a time."""
    end = tiny_language_model.tokenizer.eos_token_id
    for row in generate(tiny_language_model, prompts, workspace):
        uniforms = draw_uniforms(SETTINGS, "main", row["prompt_id"], row["sample_index"])
        tokens: list[int] = []
        for uniform in uniforms:
            with torch.inference_mode():
                sequence = torch.tensor([row["prompt_token_ids"] + tokens])
                logits = tiny_language_model.model(sequence).logits[0, -1].double().numpy()
            if len(tokens) < SETTINGS.min_tokens:
                logits[end] = -np.inf
            probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            order = np.argsort(-probabilities, kind="stable")
            cumulative = probabilities[order].cumsum()
            n_kept = int((cumulative - probabilities[order] < SETTINGS.top_p).sum())
            target = uniform * cumulative[n_kept - 1]
            token = int(order[min(int((cumulative <= target).sum()), n_kept - 1)])
            if token == end:
                break
            tokens.append(token)
        assert row["token_ids"] == tokens


@pytest.mark.parametrize("sequences_per_batch", [1, 7, 1000])
def test_continuations_do_not_depend_on_the_batch(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    workspace: Workspace,
    sequences_per_batch: int,
) -> None:
    """Batch size and order of the prompts change nothing."""
    expected = generate(tiny_language_model, prompts, workspace)
    turned = prompts.take(list(reversed(range(len(prompts)))))
    found = generate(
        tiny_language_model, turned, workspace, sequences_per_batch=sequences_per_batch
    )
    assert found == expected


def test_streams_and_samples_differ(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """Samples of a prompt, and the A/A arm's stream, have random numbers of their own."""
    main = generate(tiny_language_model, prompts, workspace)
    again = generate(tiny_language_model, prompts, workspace, stream="again")
    assert [row["token_ids"] for row in main] != [row["token_ids"] for row in again]
    first = [row["token_ids"] for row in main if row["prompt_id"] == "p0"]
    assert len({tuple(tokens) for tokens in first}) > 1


def test_an_empty_prompt_is_continued_from_the_start_token(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """No prompt is lost: accounting needs every one."""
    rows = [
        row for row in generate(tiny_language_model, prompts, workspace) if row["prompt_id"] == "p8"
    ]
    assert [row["prompt_token_ids"] for row in rows] == [
        [tiny_language_model.tokenizer.bos_token_id]
    ] * 3


def test_long_prompts_keep_their_end_and_leave_room(
    tiny_language_model: LanguageModel, workspace: Workspace
) -> None:
    """The model's positions are never exceeded, and the words next to the continuation stay."""
    text = "The green garden was open. " * 40
    table = pa.Table.from_pylist(
        [{"prompt_id": "p", "part": "evaluation", "language": "en", "prompt": text}],
        schema=schemas.PROMPTS,
    )
    row = generate(tiny_language_model, table, workspace)[0]
    whole = tiny_language_model.tokenizer(text)["input_ids"]
    assert len(row["prompt_token_ids"]) == 64 - SETTINGS.n_tokens
    assert whole[-len(row["prompt_token_ids"]) :] == row["prompt_token_ids"]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    """Tokens outside are never drawn; inside, shares follow the renormalised probabilities."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniforms = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    logits = probabilities.log().expand(len(uniforms), 4)
    drawn = pick_tokens(logits, uniforms, top_p=0.7, temperature=1.0)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0, 0]), atol=1e-3, rtol=0)


def test_temperature_sharpens() -> None:
    """A low temperature draws the likeliest token nearly always."""
    uniforms = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    logits = torch.tensor([1.0, 0.5, 0.0]).expand(len(uniforms), 3)
    drawn = pick_tokens(logits, uniforms, top_p=1.0, temperature=0.05)
    assert (drawn == 0).float().mean() > 0.99


def test_the_end_is_not_drawn_before_the_least_number_of_tokens(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """An empty continuation cannot be scored, so by default there is at least one token."""
    end = tiny_language_model.tokenizer.eos_token_id
    head = tiny_language_model.head_module
    bias, head.bias = head.bias, torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[end] = 100.0
    try:
        for least, expected in ((0, {0}), (1, {1}), (4, {4})):
            settings = SETTINGS.model_copy(update={"min_tokens": least})
            rows = generate(tiny_language_model, prompts, workspace, settings)
            assert {len(row["token_ids"]) for row in rows} == expected
    finally:
        head.bias = bias
