"""The choice of components and their table."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.decomposition import Decomposition, decompose_head
from eigenshift.components.table import (
    find_candidates,
    gather_toxic_states,
    take_top,
    write_components,
)
from eigenshift.model.loading import LanguageModel
from eigenshift.settings import ComponentSettings
from eigenshift.stages.tables import COMPONENT_CONTEXTS, COMPONENTS
from eigenshift.store.workspace import Workspace
from tests.support.planted_components import HIDDEN, plant, score


def test_the_automatic_choice_takes_the_planted_components_and_no_others() -> None:
    """The false-discovery and effect-size bounds keep noise out."""
    planted = plant(1)
    scores = score(planted)
    helpful = {index for index in planted.components if scores.logit_gain[index] > 0}
    assert set(find_candidates(scores, ComponentSettings())) == helpful


def test_nothing_toxic_is_not_forced() -> None:
    """Where no component passes, the choice is refused with what was found, not made up."""
    generator = np.random.default_rng(0)
    planted = plant(0)
    noise = dataclasses.replace(
        planted,
        toxic=generator.normal(size=(80, HIDDEN)),
        nontoxic=generator.normal(size=(120, HIDDEN)),
    )
    scores = score(noise)
    with pytest.raises(ComponentError, match="largest effect size"):
        find_candidates(scores, ComponentSettings())


def test_more_components_than_the_head_has_are_refused() -> None:
    """The error names the setting and the rank."""
    with pytest.raises(ComponentError, match=r"components\.n_components"):
        take_top(score(plant(0)), ComponentSettings(), HIDDEN + 1)


def make_states(hidden: int, n_prompts: int = 30) -> pa.Table:
    """Toxic and matched states of some prompts; toxic ones are shifted along one direction."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(120, hidden)).astype(np.float32)
    states[:40] += generator.normal(size=hidden).astype(np.float32)
    rows = [
        {
            "prompt_id": f"p{place % n_prompts:02d}",
            "sample_index": place // n_prompts,
            "step": place % 4,
            "language": "en",
            "is_toxic": place < 40,
            "token_id": 3,
            "context": f"text {place}",
            "next_token": " kettle",
            "state": states[place],
        }
        for place in range(120)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.HEAD_STATES)


def test_words_that_are_as_common_elsewhere_calibrate_nothing(
    tiny_language_model: LanguageModel,
) -> None:
    """A toxic share of nothing cannot be lowered: refused with the counts and what to set."""
    states = make_states(tiny_language_model.head.hidden)  # one token everywhere
    with pytest.raises(ComponentError, match=r"40 toxic and 80 matched.*min_attribution"):
        gather_toxic_states(states, tiny_language_model.head_weight)


def write(
    language_model: LanguageModel,
    texts: list[str],
    workspace: Workspace,
    decomposition: Decomposition | None = None,
    **settings: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write both tables and read them back."""
    write_components(
        language_model,
        make_states(language_model.head.hidden),
        decomposition or decompose_head(language_model.head_weight),
        pa.table({"sample_id": [f"s{i}" for i in range(60)], "text": texts}),
        schemas.HARMLESS_TEXTS.empty_table(),
        ComponentSettings(n_resamples=50, **settings),
        max_tokens=32,
        tokens_per_batch=256,
        workspace=workspace,
    )
    names = (COMPONENTS.file, COMPONENT_CONTEXTS.file)
    return tuple(pq.read_table(workspace.path(name)).to_pylist() for name in names)  # type: ignore


def test_the_table_orients_components_towards_toxicity(
    tiny_language_model: LanguageModel, neutral_texts: list[str], workspace: Workspace
) -> None:
    """Delta >= 0, ranks are a permutation, and tokens_up are those W v raises on the toxic side."""
    hidden = tiny_language_model.head.hidden
    rows, _ = write(tiny_language_model, neutral_texts, workspace, n_components=4, factor=0.25)
    assert sorted(row["rank"] for row in rows) == list(range(hidden))
    assert [row["factor"] for row in rows if row["is_selected"]] == [0.25] * 4
    assert {row["factor"] for row in rows if not row["is_selected"]} == {1.0}
    assert all(row["delta"] >= 0 for row in rows)
    top = min(rows, key=lambda row: row["rank"])
    v = turn(tiny_language_model, top["component_index"])
    raised = int(np.argmax(tiny_language_model.head_weight.numpy() @ v))
    assert top["tokens_up"][0] == tiny_language_model.tokenizer.decode([raised])


def turn(language_model: LanguageModel, index: int) -> np.ndarray[Any, Any]:
    """A component's vector, turned to its toxic side."""
    table = make_states(language_model.head.hidden)
    states = np.stack(table["state"].to_numpy(zero_copy_only=False))
    v = decompose_head(language_model.head_weight).v[:, index]
    return v * np.sign((states[:40].mean(0) - states[40:].mean(0)) @ v)


def test_contexts_are_where_a_component_is_most_and_least_active(
    tiny_language_model: LanguageModel, neutral_texts: list[str], workspace: Workspace
) -> None:
    """The extremes of v . h over the states, one per prompt, in the table and beside the tokens."""
    rows, contexts = write(tiny_language_model, neutral_texts, workspace, n_components=2)
    index = next(row["component_index"] for row in rows if row["rank"] == 0)
    table = make_states(tiny_language_model.head.hidden).to_pylist()
    v = turn(tiny_language_model, index)
    for direction, column in (("high", "contexts_high"), ("low", "contexts_low")):
        found = [
            row
            for row in contexts
            if (row["component_index"], row["direction"]) == (index, direction)
        ]
        assert [row["rank"] for row in found] == list(range(5))
        assert len({row["prompt_id"] for row in found}) == 5
        values = sorted(
            (float(np.dot(row["state"], v)) for row in table), reverse=direction == "high"
        )
        assert found[0]["activation"] == pytest.approx(values[0])
        assert rows[index][column] == [f"{row['context']}[ kettle]" for row in found]
    shares = {row["is_toxic"] for row in contexts if row["rank"] == 0}
    assert shares == {True, False}


def test_components_beyond_the_explained_have_no_texts(
    tiny_language_model: LanguageModel,
    neutral_texts: list[str],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nulls, not empty lists: they were not looked at."""
    monkeypatch.setattr("eigenshift.components.table.N_EXPLAINED", 3)
    rows, contexts = write(tiny_language_model, neutral_texts, workspace, n_components=2)
    explained = {row["component_index"] for row in rows if row["tokens_up"] is not None}
    assert len(explained) == 3
    assert {row["component_index"] for row in contexts} == explained
    assert all(row["contexts_high"] is None for row in rows if row["tokens_up"] is None)


def test_a_selection_that_splits_a_group_is_named(
    tiny_language_model: LanguageModel,
    neutral_texts: list[str],
    workspace: Workspace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Components that rounding cannot tell apart: damping one of them is an accident."""
    found = decompose_head(tiny_language_model.head_weight)
    with caplog.at_level(logging.WARNING):
        coarse = dataclasses.replace(found, rounding=found.sigma[-1] / 100)
        rows, _ = write(tiny_language_model, neutral_texts, workspace, coarse, n_components=1)
    (selected,) = (row for row in rows if row["is_selected"])
    assert selected["group_size"] > 1
    assert selected["rounding_angle"] > 5.0
    assert workspace.facts["split_groups"] == [selected["group_index"]]
    assert "splits 1 groups" in caplog.text


def test_every_component_has_its_share_of_the_heads_energy_and_an_inclusion_frequency(
    tiny_language_model: LanguageModel, neutral_texts: list[str], workspace: Workspace
) -> None:
    """Shares sum to one, frequencies to the number of components on top."""
    rows, _ = write(tiny_language_model, neutral_texts, workspace, n_components=4)
    assert sum(row["energy_share"] for row in rows) == pytest.approx(1.0)
    assert sum(row["inclusion_frequency"] for row in rows) == pytest.approx(4.0)
    assert 0 < workspace.facts["mean_jaccard"] <= 1
