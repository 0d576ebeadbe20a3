"""Control draws: a planted choice is beyond all draws, an arbitrary one is among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.components.decomposition import Decomposition, decompose_head
from eigenshift.evaluation.control_draws import (
    compare_with_draws,
    compute_p_value,
    measure_toxic_tokens,
)
from eigenshift.evaluation.gate import check_draws
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import make_patch, patched_model
from eigenshift.settings import GateSettings
from eigenshift.store.workspace import Workspace

COMMON = 5
NO_CONTINUATIONS = schemas.CONTINUATIONS.empty_table()
"""A patch of the head needs none."""


@pytest.fixture
def decomposition(tiny_language_model: LanguageModel) -> Decomposition:
    """Of the tiny model's head."""
    return decompose_head(tiny_language_model.head_weight)


@pytest.fixture
def planted(decomposition: Decomposition) -> np.ndarray[Any, Any]:
    """Where toxic states point: along components 3 and 4.

    Each by the sign that makes its largest entry positive: which sign a decomposition gives depends
    on the processor, and another one plants another signal.
    """
    chosen = decomposition.v[:, [3, 4]]
    largest = np.abs(chosen).argmax(axis=0)
    signs = np.sign(chosen[largest, [0, 1]])
    return np.asarray(8.0 * (chosen @ signs))


@pytest.fixture
def insult(tiny_language_model: LanguageModel, planted: np.ndarray[Any, Any]) -> int:
    """The token these two components raise most."""
    weight = tiny_language_model.head_weight.detach().double().numpy()
    return int(np.argmax(weight @ planted))


@pytest.fixture
def states(planted: np.ndarray[Any, Any], insult: int) -> pa.Table:
    """Toxic states generate the insult, the others a common token."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"p{place}",
            "sample_index": 0,
            "step": 0,
            "language": "en",
            "is_toxic": place % 2 == 0,
            "token_id": insult if place % 2 == 0 else COMMON,
            "state": (generator.normal(size=len(planted)) + planted * (place % 2 == 0)).astype(
                np.float32
            ),
        }
        for place in range(60)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.HEAD_STATES)


def compare(
    language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    indices: list[int],
    workspace: Workspace,
    seed: int = 0,
) -> dict[str, Any]:
    """Facts of 199 draws against the removal of these components."""
    edit = ModelEdit(head=HeadEdit.scale_directions(decomposition.v[:, indices], 0.0))
    patch = make_patch(
        language_model,
        edit,
        model_id="tiny",
        intervention="test",
        component_indices=indices,
        factor=0.0,
    )
    compare_with_draws(
        language_model,
        patch,
        decomposition,
        states,
        NO_CONTINUATIONS,
        n_draws=199,
        seed=seed,
        tokens_per_batch=256,
        workspace=workspace,
    )
    return workspace.facts


def test_the_planted_components_beat_every_draw(
    tiny_language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    workspace: Workspace,
) -> None:
    """At most one of 199 draws takes as much from the insult, and the gate passes."""
    facts = compare(tiny_language_model, decomposition, states, [3, 4], workspace)
    assert facts["patched"] < 0.5 * facts["base"]
    assert facts["n_as_low"] <= 1  # the draw of the very same two
    assert compute_p_value(facts) == pytest.approx((facts["n_as_low"] + 1) / 200)
    assert check_draws(facts, GateSettings()).is_passed
    drawn = pq.read_table(workspace.path("control_draws.parquet"))
    assert min(drawn["toxic_token_probability"].to_pylist()) == facts["best_draw"]


def test_an_arbitrary_choice_is_one_of_the_draws_and_held(
    tiny_language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    workspace: Workspace,
) -> None:
    """Components that have nothing to do with it: many draws do as well, and the gate says how."""
    facts = compare(tiny_language_model, decomposition, states, [20, 21], workspace)
    check = check_draws(facts, GateSettings())
    assert not check.is_passed
    assert f"{facts['n_as_low']} of 199 draws" in check.found
    assert check.missed_by == f"{compute_p_value(facts) - 0.01:.3g}"


def test_the_measure_is_the_patched_models_own(
    tiny_language_model: LanguageModel, decomposition: Decomposition, states: pa.Table, insult: int
) -> None:
    """The head's module on the same states, with the patch in force, in float64."""
    edit = HeadEdit.scale_directions(decomposition.v[:, [3, 9]], 0.3)
    patch = make_patch(
        tiny_language_model, ModelEdit(head=edit), model_id="tiny", intervention="test"
    )
    values = torch.tensor(np.stack(states["state"].to_numpy(zero_copy_only=False)))
    tokens = torch.tensor([insult, 11])
    with torch.no_grad(), patched_model(tiny_language_model, patch):
        logits = tiny_language_model.head_module(values).double()
        expected = torch.softmax(logits, 1)[:, tokens].sum(1).mean()
    found = measure_toxic_tokens(tiny_language_model, values, tokens, ModelEdit(edit))
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_draws_depend_on_their_seed_alone(
    tiny_language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    workspace: Workspace,
) -> None:
    """The same seed repeats every number, another one draws others."""
    arguments = (tiny_language_model, decomposition, states, [3, 4], workspace)
    first, again = compare(*arguments), compare(*arguments)
    assert first == again
    assert compare(*arguments, seed=1)["best_draw"] != first["best_draw"]
