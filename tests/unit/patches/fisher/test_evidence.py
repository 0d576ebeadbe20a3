"""Toxic texts: the text before each toxic position, and states that are the model's own there."""

from __future__ import annotations

import pytest
import torch

from eigenshift.base.errors import ComponentError
from eigenshift.components.head_states import permute_labels
from eigenshift.patches.fisher.evidence import gather_toxic_texts
from tests.support.fisher_beds import make_bed


def test_texts_end_before_their_last_toxic_token_and_positions_are_theirs() -> None:
    """Run through the model one at a time, they give the states that were recorded."""
    bed = make_bed("llama")
    model, toxic = bed.language_model.model, bed.evidence.toxic
    rows = [row for row in bed.states.to_pylist() if row["is_toxic"]]
    texts = {(row["prompt_id"], row["sample_index"]): row for row in bed.continuations.to_pylist()}
    seen = []
    for sequence, positions, places in zip(
        toxic.sequences, toxic.positions, toxic.rows, strict=True
    ):
        assert positions[-1] == len(sequence) - 1
        with torch.inference_mode():
            found = model(
                input_ids=torch.tensor([list(sequence)]), output_hidden_states=True
            ).hidden_states[-1][0]
        for position, place in zip(positions, places, strict=True):
            row = rows[place]
            text = texts[row["prompt_id"], row["sample_index"]]
            whole = [*text["prompt_token_ids"], *text["token_ids"]]
            assert whole[: position + 1] == list(sequence[: position + 1])
            assert whole[position + 1] == row["token_id"]
            torch.testing.assert_close(
                found[position], toxic.states.states[place], rtol=1e-4, atol=1e-5
            )
            assert float(toxic.states.weights[place]) == pytest.approx(1 / len(places))
        assert len({int(toxic.prompts[place]) for place in places}) == 1
        seen += places
    assert sorted(seen) == list(range(len(rows)))
    assert len(set(toxic.prompts.tolist())) == len({row["prompt_id"] for row in rows})


def test_shuffled_labels_are_shuffled_here_too() -> None:
    """Other positions, of whatever token comes there."""
    bed = make_bed("llama")
    states = permute_labels(bed.states, 0)
    toxic = gather_toxic_texts(bed.language_model, states, bed.continuations)
    assert len(toxic.states.states) == len(bed.evidence.toxic.states.states)
    assert toxic.positions != bed.evidence.toxic.positions


def test_states_without_their_texts_are_refused() -> None:
    """The artifacts are of different runs: how many are missing is told."""
    bed = make_bed("llama")
    n_texts = len(bed.evidence.toxic.sequences)
    with pytest.raises(ComponentError, match=f"all {n_texts} texts"):
        gather_toxic_texts(bed.language_model, bed.states, bed.continuations.slice(0, 20))
