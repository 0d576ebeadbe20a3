"""Head states: the right position, matched controls."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.head_states import (
    collect_head_states,
    find_band,
    list_nontoxic,
    match_positions,
    permute_labels,
)
from eigenshift.components.stages import HeadStateKey
from eigenshift.model.loading import LanguageModel
from eigenshift.store.workspace import Workspace
from tests.support.keys import make_key

KEY = make_key(HeadStateKey, "components.min_toxic_positions=2", "components.nontoxic_per_toxic=3")


@pytest.fixture
def continuations(tiny_tokenizer: Any, neutral_texts: list[str]) -> pa.Table:
    """Continuations made of neutral texts; the first six prompts' samples 0 will be toxic."""
    rows = []
    for place in range(40):
        text = neutral_texts[place]
        rows.append(
            {
                "prompt_id": f"p{place:02d}",
                "sample_index": 0,
                "language": "en",
                "prompt": "",
                "continuation": text,
                "prompt_token_ids": tiny_tokenizer(neutral_texts[place - 7])["input_ids"][:9],
                "token_ids": tiny_tokenizer(text)["input_ids"][:20],
            }
        )
    return pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS)


@pytest.fixture
def scores(continuations: pa.Table) -> pa.Table:
    """The first six are toxic, the last one is unscored."""
    rows = [
        {
            "prompt_id": prompt_id,
            "sample_index": 0,
            "scorer": "words",
            "toxicity_probability": None if place == 39 else 0.9 if place < 6 else 0.1,
            "status": "unscored" if place == 39 else "scored",
        }
        for place, prompt_id in enumerate(continuations["prompt_id"].to_pylist())
    ]
    return pa.Table.from_pylist(rows, schema=schemas.SCORES)


def make_positions(steps: list[int]) -> pa.Table:
    """One toxic position for each of the first prompts."""
    rows = [
        {"prompt_id": f"p{place:02d}", "sample_index": 0, "step": step, "fall": 0.5}
        for place, step in enumerate(steps)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.TOXIC_POSITIONS)


def collect(
    language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    steps: list[int],
    workspace: Workspace,
    tokens_per_batch: int = 128,
) -> list[dict[str, Any]]:
    """Collect and read back."""
    collect_head_states(
        language_model,
        continuations,
        scores,
        make_positions(steps),
        KEY,
        tokens_per_batch=tokens_per_batch,
        workspace=workspace,
    )
    return pq.read_table(workspace.path("head_states.parquet")).to_pylist()


def test_a_state_is_what_enters_the_head_before_the_token(
    tiny_language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """Equal to the trunk's last hidden state on exactly the tokens that came before."""
    by_id = {row["prompt_id"]: row for row in continuations.to_pylist()}
    rows = collect(tiny_language_model, continuations, scores, [0, 2, 5, 5], workspace)
    for row in rows:
        source = by_id[row["prompt_id"]]
        tokens = source["prompt_token_ids"] + source["token_ids"][: row["step"]]
        with torch.inference_mode():
            states = tiny_language_model.trunk(torch.tensor([tokens])).last_hidden_state
        np.testing.assert_allclose(row["state"], states[0, -1].numpy(), atol=1e-5)
        assert row["token_id"] == source["token_ids"][row["step"]]


def test_controls_have_the_same_steps_and_come_from_nontoxic_continuations(
    tiny_language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """Three per toxic position at each step; toxic and unscored continuations give none."""
    rows = collect(tiny_language_model, continuations, scores, [0, 0, 0], workspace)
    controls = [row for row in rows if not row["is_toxic"]]
    assert Counter(row["step"] for row in controls) == {0: 9}
    assert {row["prompt_id"] for row in controls}.isdisjoint({f"p{i:02d}" for i in (*range(6), 39)})


def test_states_do_not_depend_on_the_batch(
    tiny_language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """Same positions, same states, whatever the token budget."""
    one = collect(tiny_language_model, continuations, scores, [1, 3, 4], workspace, 1)
    many = collect(tiny_language_model, continuations, scores, [1, 3, 4], workspace, 10_000)
    assert [row["prompt_id"] for row in one] == [row["prompt_id"] for row in many]
    np.testing.assert_allclose(
        [row["state"] for row in one], [row["state"] for row in many], atol=1e-5
    )


def test_too_few_toxic_positions_stop_with_a_remedy(
    tiny_language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """Components are not chosen from next to nothing."""
    with pytest.raises(ComponentError, match=r"prompts\.n_selection"):
        collect(tiny_language_model, continuations, scores, [1], workspace)


def test_words_outside_labelled_spans_are_controls_of_the_same_text(
    tiny_language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """A marked text is marked whole; by any other source it gives no controls."""
    toxic = [((f"p{place:02d}", 0), 2) for place in range(3)]
    marked = KEY.model_copy(update={"is_marked": True})
    found = list_nontoxic(scores, toxic, marked)
    assert {("p00", 0), ("p01", 0), ("p02", 0)} <= set(found)
    assert ("p03", 0) not in found  # toxic, and nothing is marked in it
    assert set(list_nontoxic(scores, toxic, KEY)) == {
        (f"p{place:02d}", 0) for place in range(6, 39)
    }
    rows = {(row["prompt_id"], 0): row for row in continuations.to_pylist()}
    matched, _ = match_positions(
        tiny_language_model.tokenizer, rows, toxic, [key for key, _ in toxic], marked
    )
    assert not set(matched) & set(toxic)


def test_a_harmless_continuation_with_a_toxic_position_gives_no_controls(scores: pa.Table) -> None:
    """A lexicon finds words in texts the classifier lets pass."""
    assert ("p20", 0) not in list_nontoxic(scores, [(("p20", 0), 1)], KEY)


def test_late_steps_are_matched_by_band() -> None:
    """Early steps by themselves, later ones with those within a quarter."""
    assert [find_band(step) for step in range(32)] == list(range(32))
    assert find_band(100) == find_band(112) != find_band(140)
    bands = [find_band(step) for step in range(2000)]
    assert bands == sorted(bands)
    assert bands[-1] < 60


def test_a_context_ends_before_the_step(
    tiny_language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    workspace: Workspace,
) -> None:
    """The text before, at most its last tokens, and the token that follows."""
    by_id = {row["prompt_id"]: row for row in continuations.to_pylist()}
    decode = tiny_language_model.tokenizer.decode
    for row in collect(tiny_language_model, continuations, scores, [0, 2, 5, 5], workspace):
        source = by_id[row["prompt_id"]]
        before = source["prompt_token_ids"] + source["token_ids"][: row["step"]]
        assert row["context"] == decode(before[-24:], skip_special_tokens=True)
        assert row["next_token"] == decode([source["token_ids"][row["step"]]])


def test_permuted_labels_keep_their_numbers_in_every_step_and_language() -> None:
    """The control is matched like the real labels, and depends on its seed alone."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "step": int(generator.integers(0, 4)),
            "language": "en" if place % 2 else "zh",
            "is_toxic": bool(generator.random() < 0.3),
            "token_id": place,
        }
        for place in range(400)
    ]
    states = pa.Table.from_pylist(rows, schema=schemas.HEAD_STATES)
    permuted = permute_labels(states, 0)

    def count(table: pa.Table) -> Counter[tuple[Any, ...]]:
        return Counter((row["language"], row["step"], row["is_toxic"]) for row in table.to_pylist())

    assert count(permuted) == count(states)
    assert permuted["token_id"] == states["token_id"]
    n_moved = sum(
        one["is_toxic"] != other["is_toxic"]
        for one, other in zip(permuted.to_pylist(), rows, strict=True)
    )
    assert 100 < n_moved < 220
    assert permuted == permute_labels(states, 0)
    assert permuted != permute_labels(states, 1)
