"""How a patch compares with many random ones, in closed form.

One random arm is one draw: with enough prompts two arbitrary choices differ beyond chance, and the
luckier of them is no finding. So many are drawn, and what each draw leaves of the toxic tokens'
probability at the cached toxic positions is compared with what the patch leaves. Against a patch of
singular components as many others are drawn, damped as far; against any other, changes of the head
along random directions that diverge from the base as much at the non-toxic positions. Nothing is
generated. Reads head states and the decomposition; writes `control_draws.parquet`
(`schemas.CONTROL_DRAWS`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base import schemas
from eigenshift.components.decomposition import Decomposition, open_decomposition
from eigenshift.components.head_states import compute_states_again
from eigenshift.components.scores import read_states
from eigenshift.components.table import find_toxic_tokens
from eigenshift.evaluation.stages import DrawInputs, DrawKey
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.folding import compute_logits, run_hooked
from eigenshift.patches.patching import Patch, check_base, open_patch
from eigenshift.patches.strength import find_strongest
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

MAX_TERMS = 16
"""Rank of a random change."""
MIN_DIVERGENCE = 1e-6
MAX_STATES = 128
"""Toxic positions looked at, evenly over all of them: each costs a row of logits per draw."""


@dataclass(frozen=True)
class _Positions:
    """What enters the head at toxic and at non-toxic positions, by the base and by the patch."""

    toxic: Tensor
    nontoxic: Tensor
    own_toxic: Tensor
    own_nontoxic: Tensor


def compare_with_draws(
    language_model: LanguageModel,
    patch: Patch,
    decomposition: Decomposition,
    states: pa.Table,
    continuations: pa.Table,
    *,
    n_draws: int,
    seed: int,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Measure the patch and random draws.

    Args:
        language_model: The unpatched model.
        patch: Of some components with the factor of each, or any other.
        decomposition: Of the model's head.
        states: `schemas.HEAD_STATES` rows, with their real labels.
        continuations: `schemas.CONTINUATIONS` rows that they are of.
        n_draws: How many draws.
        seed: Of the draws.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives the table; its facts hold the p-value.
    """
    check_base(language_model, patch)
    positions = _choose_positions(language_model, patch, states, continuations, tokens_per_batch)
    tokens = torch.from_numpy(find_toxic_tokens(states, language_model.head.vocab))
    base = measure_toxic_tokens(language_model, positions.toxic, tokens, ModelEdit())
    patched = measure_toxic_tokens(language_model, positions.own_toxic, tokens, patch.edit)
    generator = np.random.default_rng(seed)
    draw = _draw_directions(language_model, patch, positions, generator)
    if patch.description.component_indices:
        draw = _draw_components(patch, decomposition, generator)
    drawn = [
        measure_toxic_tokens(language_model, positions.toxic, tokens, draw())
        for _ in range(n_draws)
    ]
    rows = [{"draw": place, "toxic_token_probability": value} for place, value in enumerate(drawn)]
    workspace.write_rows(tables.CONTROL_DRAWS.file, rows, schemas.CONTROL_DRAWS)
    workspace.facts = {
        "n_states": len(positions.toxic),
        "n_components": len(patch.description.component_indices),
        "base": base,
        "patched": patched,
        "best_draw": min(drawn),
        "n_draws": n_draws,
        "n_as_low": sum(value <= patched for value in drawn),
    }


def _choose_positions(
    language_model: LanguageModel,
    patch: Patch,
    states: pa.Table,
    continuations: pa.Table,
    tokens_per_batch: int,
) -> _Positions:
    parts = []
    for is_toxic in (True, False):
        found = states.filter(pa.compute.equal(states["is_toxic"], is_toxic))
        places = np.linspace(0, len(found) - 1, min(MAX_STATES, len(found))).round().astype(int)
        parts.append(found.take(places))
    cached = [torch.from_numpy(read_states(part).astype(np.float32)) for part in parts]
    own = cached
    if patch.edit.changes_trunk:
        with run_hooked(language_model, patch.edit.of_trunk):
            own = [
                torch.from_numpy(
                    compute_states_again(language_model, part, continuations, tokens_per_batch)
                )
                for part in parts
            ]
    return _Positions(*cached, *own)


def _draw_components(
    patch: Patch, decomposition: Decomposition, generator: np.random.Generator
) -> Callable[[], ModelEdit]:
    """As many components out of all alike, each damped as far as one of the patch's."""
    factors = patch.description.component_factors

    def draw() -> ModelEdit:
        indices = generator.permutation(len(decomposition.sigma))[: len(factors)]
        return ModelEdit(HeadEdit.scale_directions(decomposition.v[:, indices], factors))

    return draw


def _draw_directions(
    language_model: LanguageModel,
    patch: Patch,
    positions: _Positions,
    generator: np.random.Generator,
) -> Callable[[], ModelEdit]:
    """Random changes of the head that diverge from the base as the patch does."""
    hidden = language_model.head.hidden
    n_terms = min(MAX_TERMS, hidden)
    base = _find_log_probabilities(language_model, positions.nontoxic, ModelEdit())
    found = _find_log_probabilities(language_model, positions.own_nontoxic, patch.edit)
    wanted = float((base.exp() * (base - found)).sum(1).double().mean())

    def make_edit(left: Tensor, right: Tensor, strength: float) -> ModelEdit:
        return ModelEdit(HeadEdit.add_product(strength * left, right))

    def draw() -> ModelEdit:
        left, right = (
            torch.from_numpy(generator.standard_normal((hidden, n_terms))) / hidden
            for _ in range(2)
        )

        def measure(strength: float) -> float:
            edit = make_edit(left, right, strength)
            after = _find_log_probabilities(language_model, positions.nontoxic, edit)
            return float((base.exp() * (base - after)).sum(1).double().mean())

        strength, _ = find_strongest(measure, max(wanted, MIN_DIVERGENCE), first=1.0)
        return make_edit(left, right, strength)

    return draw


@torch.inference_mode()
def measure_toxic_tokens(
    language_model: LanguageModel, states: Tensor, tokens: Tensor, edit: ModelEdit
) -> float:
    """Mean probability that one of the tokens comes next.

    Args:
        language_model: The unpatched model.
        states: What enters the head before an edit of the head, shape (position, hidden).
        tokens: Token ids, shape (token,).
        edit: Whose changes of the head are applied.
    """
    probabilities = _find_log_probabilities(language_model, states, edit).exp()
    return float(probabilities[:, tokens.to(probabilities.device)].sum(1).double().mean())


@torch.inference_mode()
def _find_log_probabilities(
    language_model: LanguageModel, states: Tensor, edit: ModelEdit
) -> Tensor:
    given = states.to(language_model.head_weight)
    return torch.log_softmax(compute_logits(language_model, edit, given).float(), dim=-1)


def carry_out(inputs: DrawInputs, key: DrawKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `draw_controls`."""
    artifacts = bench.artifacts
    with use_model(bench.model, bench.execution) as language_model:
        compare_with_draws(
            language_model,
            open_patch(artifacts.open(inputs.patch)),
            open_decomposition(artifacts.open(inputs.decomposition)),
            artifacts.read_shards([inputs.states], tables.HEAD_STATES.file),
            artifacts.read_shards(inputs.continuations, tables.CONTINUATIONS.file),
            n_draws=key.n_draws,
            seed=key.seed,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )
