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
    measure_toxic_tokens,
)
from eigenshift.evaluation.gate import check_draws
from eigenshift.evaluation.headlines import compute_p_value
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, LinearEdit, ModelEdit
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


def make_rank_one(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], size: float) -> HeadEdit:
    """H' = h - size * left (right . h)."""
    sides = (torch.from_numpy(np.ascontiguousarray(side[:, None])) for side in (left, right))
    first, second = sides
    return HeadEdit(size * first, second, torch.zeros(1, dtype=torch.float64))


def compare_edit(
    language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    edit: ModelEdit,
    workspace: Workspace,
    continuations: pa.Table = NO_CONTINUATIONS,
) -> dict[str, Any]:
    """Facts of 99 draws against a patch that is about no components."""
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    compare_with_draws(
        language_model,
        patch,
        decomposition,
        states,
        continuations,
        n_draws=99,
        seed=0,
        tokens_per_batch=256,
        workspace=workspace,
    )
    return workspace.facts


def measure_divergence(language_model: LanguageModel, states: pa.Table, edit: ModelEdit) -> float:
    """Mean KL(base || edited) at non-toxic positions, in float64."""
    rows = [row["state"] for row in states.to_pylist() if not row["is_toxic"]]
    values = torch.tensor(np.stack(rows)).double()
    weight = language_model.head_weight.double()
    assert edit.head is not None
    base, after = (
        (entering @ weight.T).log_softmax(1)
        for entering in (values, edit.head.apply_to_states(values))
    )
    return float((base.exp() * (base - after)).sum(1).mean())


def test_a_planted_change_of_directions_beats_every_draw(
    tiny_language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    planted: np.ndarray[Any, Any],
    workspace: Workspace,
) -> None:
    """It takes out what sets toxic states apart: none of 99 random changes does as well."""
    unit = planted / np.linalg.norm(planted)
    edit = ModelEdit(make_rank_one(unit, unit, 0.9))
    facts = compare_edit(tiny_language_model, decomposition, states, edit, workspace)
    assert facts["n_components"] == 0
    assert facts["patched"] < 0.7 * facts["base"]
    assert facts["n_as_low"] == 0
    assert check_draws(facts, GateSettings(max_random_share=0.01)).is_passed


def test_an_arbitrary_change_is_one_of_the_draws(
    tiny_language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    workspace: Workspace,
) -> None:
    """Drawn like them, it does as well as many."""
    chances = []
    for seed in range(4):
        generator = np.random.default_rng(100 + seed)
        hidden = tiny_language_model.head.hidden
        left, right = (
            torch.from_numpy(generator.standard_normal((hidden, 16))) / hidden for _ in range(2)
        )
        edit = ModelEdit(HeadEdit(-4.0 * left, right, torch.zeros(16, dtype=torch.float64)))
        facts = compare_edit(tiny_language_model, decomposition, states, edit, workspace)
        chances.append(compute_p_value(facts))
    assert max(chances) > 0.3
    assert min(chances) > 0.02


def test_draws_diverge_from_the_base_as_the_patch_does(
    tiny_language_model: LanguageModel,
    decomposition: Decomposition,
    states: pa.Table,
    planted: np.ndarray[Any, Any],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the non-toxic positions, never by more, and nearly by as much."""
    from eigenshift.evaluation import control_draws

    drawn: list[ModelEdit] = []
    measure = control_draws.measure_toxic_tokens

    def keep(model: Any, values: Any, tokens: Any, edit: ModelEdit) -> float:
        drawn.append(edit)
        return measure(model, values, tokens, edit)

    monkeypatch.setattr(control_draws, "measure_toxic_tokens", keep)
    unit = planted / np.linalg.norm(planted)
    edit = ModelEdit(make_rank_one(unit, unit, 0.5))
    compare_edit(tiny_language_model, decomposition, states, edit, workspace)
    base, patched, *draws = drawn
    assert (base, patched.head is not None, len(draws)) == (ModelEdit(), True, 99)
    wanted = measure_divergence(tiny_language_model, states, edit)
    found = [measure_divergence(tiny_language_model, states, item) for item in draws]
    assert max(found) <= wanted * (1 + 1e-4)
    assert min(found) >= 0.9 * wanted


def test_a_patch_of_the_trunk_is_compared_by_its_own_states(
    tiny_language_model: LanguageModel, decomposition: Decomposition, workspace: Workspace
) -> None:
    """The patched model, run on the texts one at a time; draws are held against what it left."""
    name = "transformer.h.1.mlp.c_proj"
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.randn(n, 2, generator=generator, dtype=torch.float64) / n**0.5 for n in (32, 128)
    )
    edit = ModelEdit(linears={name: LinearEdit(left, right)})
    texts = [
        {
            "prompt_id": f"p{place}",
            "sample_index": 0,
            "prompt_token_ids": [9, 20 + place],
            "token_ids": [30 + place, 11],
        }
        for place in range(40)
    ]
    model = tiny_language_model.model
    rows = []
    for place, text in enumerate(texts):
        tokens = [*text["prompt_token_ids"], text["token_ids"][0]]
        with torch.inference_mode():
            hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1]
        rows.append(
            {
                "prompt_id": text["prompt_id"],
                "sample_index": 0,
                "step": 1,
                "language": "en",
                "is_toxic": place % 2 == 0,
                "token_id": 70 if place % 2 == 0 else COMMON,
                "state": hidden[0, -1].numpy(),
            }
        )
    states = pa.Table.from_pylist(rows, schema=schemas.HEAD_STATES)
    continuations = pa.Table.from_pylist(texts, schema=schemas.CONTINUATIONS)
    facts = compare_edit(tiny_language_model, decomposition, states, edit, workspace, continuations)
    patch = make_patch(tiny_language_model, edit, model_id="tiny", intervention="test")
    found: dict[bool, list[float]] = {False: [], True: []}
    for is_patched in found:
        with (
            torch.inference_mode(),
            patched_model(tiny_language_model, patch if is_patched else None),
        ):
            for text in texts[::2]:
                tokens = [*text["prompt_token_ids"], text["token_ids"][0]]
                logits = model(torch.tensor([tokens])).logits[0, -1].double()
                found[is_patched].append(float(torch.softmax(logits, 0)[70]))
    assert facts["base"] == pytest.approx(np.mean(found[False]), rel=1e-4)
    assert facts["patched"] == pytest.approx(np.mean(found[True]), rel=1e-4)
    assert facts["patched"] != pytest.approx(facts["base"], rel=0.01)
    assert 0 < facts["best_draw"] < facts["base"]
