"""Token shifts: closed form against the patched model itself, and kinds of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.evaluation.headlines import find_identity_change
from eigenshift.evaluation.token_shifts import (
    find_token_kinds,
    measure_token_shifts,
)
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, ModelEdit, UnitEdit
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.word_lists import WordList

N_STATES = 40
COMMON, INSULT = 5, 7
"""Tokens generated everywhere, and at toxic positions only."""


CONTINUATIONS = pa.Table.from_pylist(
    [
        {
            "prompt_id": f"p{place}",
            "sample_index": 0,
            "prompt_token_ids": [9, 20 + place, 7],
            "token_ids": [30 + place, 11, 12, 13],
        }
        for place in range(N_STATES)
    ],
    schema=schemas.CONTINUATIONS,
)
"""Of which the states are said to be."""


@pytest.fixture
def states(tiny_language_model: LanguageModel) -> pa.Table:
    """Random states, a quarter of them toxic; half of these generate the insult."""
    generator = np.random.default_rng(0)
    hidden = tiny_language_model.head.hidden
    rows = [
        {
            "prompt_id": f"p{place}",
            "sample_index": 0,
            "step": place % 3,
            "language": "en",
            "is_toxic": place % 4 == 0,
            "token_id": INSULT if place % 8 == 0 else COMMON,
            "state": generator.normal(size=hidden).astype(np.float32),
        }
        for place in range(N_STATES)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.HEAD_STATES)


@pytest.fixture
def patch(tiny_language_model: LanguageModel) -> Patch:
    """Two random directions halved."""
    generator = np.random.default_rng(1)
    v, _ = np.linalg.qr(generator.normal(size=(tiny_language_model.head.hidden, 2)))
    edit = ModelEdit(head=HeadEdit.scale_directions(v, 0.5))
    return make_patch(tiny_language_model, edit, model_id="tiny", intervention="test")


def measure(
    language_model: LanguageModel, patch: Patch, states: pa.Table, workspace: Workspace
) -> list[dict[str, Any]]:
    """Measure and read back."""
    measure_token_shifts(
        language_model,
        patch,
        states,
        CONTINUATIONS,
        [],
        tokens_per_batch=256,
        workspace=workspace,
    )
    rows: list[dict[str, Any]] = pq.read_table(workspace.path("token_shifts.parquet")).to_pylist()
    return rows


def test_probabilities_are_those_of_the_patched_model(
    tiny_language_model: LanguageModel, patch: Patch, states: pa.Table, workspace: Workspace
) -> None:
    """The head's own module on the same states, one at a time, with the patch in force."""
    rows = measure(tiny_language_model, patch, states, workspace)

    def compute(is_toxic: bool) -> np.ndarray[Any, Any]:
        chosen = [row["state"] for row in states.to_pylist() if row["is_toxic"] is is_toxic]
        with torch.no_grad():
            logits = [tiny_language_model.head_module(torch.tensor(state)) for state in chosen]
        return np.mean([torch.softmax(item.double(), 0).numpy() for item in logits], axis=0)

    for positions, is_toxic in (("toxic", True), ("nontoxic", False)):
        base = compute(is_toxic)
        with patched_model(tiny_language_model, patch):
            patched = compute(is_toxic)
        found = {row["token_id"]: row for row in rows if row["positions"] == positions}
        for token_id, row in found.items():
            assert row["mean_probability_base"] == pytest.approx(base[token_id], rel=1e-4)
            assert row["mean_probability_patched"] == pytest.approx(patched[token_id], rel=1e-4)
            assert row["log_ratio"] == pytest.approx(
                np.log(patched[token_id] / base[token_id]), abs=1e-3
            )
        fallen = int(np.argmin(patched - base))
        assert found[fallen]["rank"] == 0


def test_the_kinds_share_the_whole_probability(
    tiny_language_model: LanguageModel, patch: Patch, states: pa.Table, workspace: Workspace
) -> None:
    """What is no insult and no identity word is neutral, before and after."""
    measure(tiny_language_model, patch, states, workspace)
    for masses in workspace.facts["probability"].values():
        for moment in ("base", "patched"):
            assert sum(kind[moment] for kind in masses.values()) == pytest.approx(1.0, abs=1e-5)


def test_enriched_tokens_and_words_of_a_lexicon_are_insults(
    tiny_language_model: LanguageModel, states: pa.Table
) -> None:
    """A token generated everywhere is not, although it also occurs at toxic positions."""
    word = tiny_language_model.tokenizer.decode([300]).strip()
    kinds = find_token_kinds(tiny_language_model, states, [WordList([word])])
    insults = set(np.flatnonzero(kinds.is_insult).tolist())
    assert {INSULT, 300} <= insults
    assert COMMON not in insults
    assert kinds.name(INSULT) == "insult"
    assert kinds.name(COMMON) == "neutral"


def test_a_word_that_is_insult_and_identity_shows_both(
    tiny_language_model: LanguageModel, states: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kind is insult, and it counts among the identity words."""
    word = tiny_language_model.tokenizer.decode([300]).strip()
    terms = WordList([word])
    monkeypatch.setattr("eigenshift.evaluation.token_shifts.load_identity_terms", lambda: terms)
    kinds = find_token_kinds(tiny_language_model, states, [terms])
    assert kinds.is_identity[300]
    assert kinds.name(300) == "insult"
    assert find_token_kinds(tiny_language_model, states, []).name(300) == "identity"


@pytest.mark.parametrize(
    ("base", "patched", "expected"), [(0.2, 0.05, -0.75), (0.1, 0.2, 1.0), (0.0, 0.0, None)]
)
def test_the_change_of_identity_words_is_relative(
    base: float, patched: float, expected: float | None
) -> None:
    """None, not 0, where the vocabulary has no such token."""
    facts = {"probability": {"nontoxic": {"identity": {"base": base, "patched": patched}}}}
    assert find_identity_change(facts) == (None if expected is None else pytest.approx(expected))


def test_a_patch_of_the_trunk_is_measured_on_its_own_states(
    tiny_language_model: LanguageModel, states: pa.Table, workspace: Workspace
) -> None:
    """After: the patched model on the same texts, one at a time; before: the cached states."""
    units = {"transformer.h.0.mlp.c_fc": UnitEdit.scale_units(np.full(128, 0.5))}
    patch = make_patch(
        tiny_language_model, ModelEdit(units=units), model_id="tiny", intervention="units"
    )
    rows = measure(tiny_language_model, patch, states, workspace)
    texts = {row["prompt_id"]: row for row in CONTINUATIONS.to_pylist()}
    found = []
    with torch.inference_mode(), patched_model(tiny_language_model, patch):
        for row in states.to_pylist():
            if row["is_toxic"]:
                text = texts[row["prompt_id"]]
                tokens = [*text["prompt_token_ids"], *text["token_ids"][: row["step"]]]
                logits = tiny_language_model.model(torch.tensor([tokens])).logits[0, -1]
                found.append(torch.softmax(logits.double(), 0).numpy())
    expected = np.mean(found, axis=0)
    toxic = [row for row in rows if row["positions"] == "toxic"]
    assert toxic
    for row in toxic:
        assert row["mean_probability_patched"] == pytest.approx(expected[row["token_id"]], rel=1e-4)
