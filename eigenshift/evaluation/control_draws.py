"""How a choice of components compares with many random ones, in closed form.

One random arm is one draw: with enough prompts two arbitrary choices differ beyond chance, and the
luckier of them is no finding. So as many components are drawn many times over, and what each draw
leaves of the toxic tokens' probability at the cached toxic positions is compared with what the
patch leaves. Nothing is generated. Reads head states and the decomposition; writes
`control_draws.parquet` (`schemas.CONTROL_DRAWS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base import schemas
from eigenshift.components.decomposition import Decomposition, open_decomposition
from eigenshift.components.table import find_toxic_tokens
from eigenshift.evaluation.stages import DrawInputs, DrawKey
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import HeadEdit
from eigenshift.patches.patching import Patch, check_base, open_patch
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

MAX_STATES = 128
"""Toxic positions looked at, evenly over all of them: each costs a row of logits per draw."""


def compare_with_draws(
    language_model: LanguageModel,
    patch: Patch,
    decomposition: Decomposition,
    states: pa.Table,
    *,
    n_draws: int,
    seed: int,
    workspace: Workspace,
) -> None:
    """Measure the patch and random draws of as many components damped as far.

    Args:
        language_model: The unpatched model.
        patch: Of some components, with the factor of each.
        decomposition: Of the model's head.
        states: `schemas.HEAD_STATES` rows, with their real labels.
        n_draws: How many draws, out of all components alike.
        seed: Of the draws.
        workspace: Receives the table; its facts hold the p-value.
    """
    check_base(language_model, patch)
    toxic = states.filter(states["is_toxic"])
    places = np.linspace(0, len(toxic) - 1, min(MAX_STATES, len(toxic))).round().astype(int)
    values = np.stack(toxic.take(places)["state"].to_numpy(zero_copy_only=False))
    chosen = torch.from_numpy(values.astype(np.float32))
    tokens = torch.from_numpy(find_toxic_tokens(states, language_model.head.vocab))
    factors = patch.description.component_factors
    generator = np.random.default_rng(seed)
    base = measure_toxic_tokens(language_model, chosen, tokens, None)
    patched = measure_toxic_tokens(language_model, chosen, tokens, patch.edit.head)
    drawn = []
    for _ in range(n_draws):
        indices = generator.permutation(len(decomposition.sigma))[: len(factors)]
        edit = HeadEdit.scale_directions(decomposition.v[:, indices], factors)
        drawn.append(measure_toxic_tokens(language_model, chosen, tokens, edit))
    rows = [{"draw": place, "toxic_token_probability": value} for place, value in enumerate(drawn)]
    workspace.write_rows(tables.CONTROL_DRAWS.file, rows, schemas.CONTROL_DRAWS)
    workspace.facts = {
        "n_states": len(chosen),
        "n_components": len(factors),
        "factors": list(factors),
        "base": base,
        "patched": patched,
        "best_draw": min(drawn),
        "n_draws": n_draws,
        "n_as_low": sum(value <= patched for value in drawn),
    }


@torch.inference_mode()
def measure_toxic_tokens(
    language_model: LanguageModel, states: Tensor, tokens: Tensor, edit: HeadEdit | None
) -> float:
    """Mean probability that one of the tokens comes next.

    Args:
        language_model: The unpatched model.
        states: What enters the head, shape (position, hidden).
        tokens: Token ids, shape (token,).
        edit: The change of the head, or None.
    """
    head = language_model.head_module
    given = states.to(head.weight)
    changed = given if edit is None else edit.apply_to_states(given)
    logits = language_model.head.compute_logits(changed, head.weight, head.bias)
    probabilities = torch.softmax(logits.float(), dim=-1)
    return float(probabilities[:, tokens.to(probabilities.device)].sum(1).double().mean())


def compute_p_value(facts: Mapping[str, Any]) -> float:
    """Chance that a random draw does as well: (draws as low + 1) / (draws + 1).

    Args:
        facts: Of a `control_draws` artifact.
    """
    return float((facts["n_as_low"] + 1) / (facts["n_draws"] + 1))


def carry_out(inputs: DrawInputs, key: DrawKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `draw_controls`."""
    artifacts = bench.artifacts
    with use_model(bench.model, bench.execution.device) as language_model:
        compare_with_draws(
            language_model,
            open_patch(artifacts.open(inputs.patch)),
            open_decomposition(artifacts.open(inputs.decomposition)),
            artifacts.read_shards([inputs.states], tables.HEAD_STATES.file),
            n_draws=key.n_draws,
            seed=key.seed,
            workspace=workspace,
        )
