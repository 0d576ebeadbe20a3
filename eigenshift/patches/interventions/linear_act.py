"""Linear-AcT: transport each unit from toxic to non-toxic texts (Rodriguez et al., ICLR 2025).

Per unit the optimal map between two one-dimensional samples is monotone; its best affine
approximation pairs the sorted values: y = omega a + beta with omega = cov(a, b) / var(a) over
sorted a (toxic) and b (non-toxic). Units are the outputs of the norms inside the blocks, averaged
over a text's tokens, as the paper found best; maps are fitted layer by layer, each on states that
the maps before it have moved. A strength below 1 goes only part of the way, y' = (1 - s) y + s
(omega y + beta). A map has a constant, so it folds into norms with a bias; elsewhere it is
measured with hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.model.batching import plan_batches, run_in_batches
from eigenshift.model.forward import encode_text
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import pad_tokens
from eigenshift.patches.edits import ModelEdit, UnitEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.requests import PatchRequest

N_TEXTS = 96
"""Of each class. The paper uses 32 and reports little gain from more."""
MAX_TOKENS = 64
TOKENS_PER_BATCH = 2_048


def transport_units(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Fit the maps, then take the largest strength in budget."""
    language_model = evidence.language_model
    toxic, nontoxic = choose_texts(evidence.labelled_texts, request.seed)
    sequences = [encode_text(language_model, text, MAX_TOKENS) for text in [*toxic, *nontoxic]]
    maps = fit_maps(language_model, [row or [0] for row in sequences], len(toxic))

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(units={name: weaken(unit, strength) for name, unit in maps.items()})

    outcome = tune_strength(evidence, request, make_edit)
    return Outcome(outcome.edit, parameters={**outcome.parameters, "n_texts": len(toxic)})


def choose_texts(samples: pa.Table, seed: int) -> tuple[list[str], list[str]]:
    """As many toxic as non-toxic texts, in an order that the seed decides.

    Raises:
        ComponentError: A class has fewer than two texts.
    """
    is_toxic = samples["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(np.flatnonzero(kind)) for kind in (is_toxic, ~is_toxic)]
    n_texts = min(N_TEXTS, *(len(places) for places in drawn))
    if n_texts < 2:
        raise ComponentError(
            "linear_act: expected at least 2 labelled texts of each class, found fewer. Add "
            "labelled texts."
        )
    toxic, nontoxic = (samples.take(places[:n_texts])["text"].to_pylist() for places in drawn)
    return toxic, nontoxic


def fit_maps(
    language_model: LanguageModel, sequences: Sequence[Sequence[int]], n_toxic: int
) -> dict[str, UnitEdit]:
    """Fit every norm's map in the order of the layers.

    Args:
        language_model: The unpatched model.
        sequences: Tokens of the toxic texts, then of as many non-toxic ones.
        n_toxic: How many are toxic.

    Returns:
        Name of the module -> its map at full strength.

    Raises:
        ComponentError: The blocks have no norms.
    """
    maps: dict[str, UnitEdit] = {}
    for name in list_norms(language_model):
        with run_hooked(language_model, ModelEdit(units=maps)):
            means = _average_outputs(language_model, name, sequences)
        maps[name] = fit_affine(means[:n_toxic], means[n_toxic:])
    if not maps:
        raise ComponentError(
            f"linear_act: expected norms inside the blocks of {language_model.id}, found none."
        )
    return maps


def list_norms(language_model: LanguageModel) -> list[str]:
    """Names of the norms that are a block's own parts, in order."""
    names = {id(module): name for name, module in language_model.model.named_modules()}
    return [
        names[id(child)]
        for block in list_layers(language_model.model)
        for child in block.children()
        if "norm" in type(child).__name__.lower() and getattr(child, "weight", None) is not None
    ]


def fit_affine(toxic: FloatArray, nontoxic: FloatArray) -> UnitEdit:
    """The least-squares affine map of sorted toxic onto sorted non-toxic values, per unit.

    Args:
        toxic: Shape (text, unit).
        nontoxic: Same shape.
    """
    a, b = np.sort(toxic, axis=0), np.sort(nontoxic, axis=0)
    centred = a - a.mean(0)
    variance = (centred**2).sum(0)
    covariance = (centred * (b - b.mean(0))).sum(0)
    omega = np.divide(covariance, variance, out=np.ones_like(variance), where=variance > 0)
    beta = b.mean(0) - omega * a.mean(0)
    return UnitEdit(torch.from_numpy(omega), torch.from_numpy(beta))


def weaken(unit: UnitEdit, strength: float) -> UnitEdit:
    """Go only part of the way."""
    return UnitEdit(1.0 - strength + strength * unit.scale, strength * unit.shift)


@torch.inference_mode()
def _average_outputs(
    language_model: LanguageModel, name: str, sequences: Sequence[Sequence[int]]
) -> FloatArray:
    """Mean over each sequence's tokens of a module's outputs, shape (sequence, unit)."""
    seen: list[Tensor] = []

    def record(_: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(output.detach())

    def run(batch: list[int]) -> FloatArray:
        rows = [sequences[place] for place in batch]
        token_ids, mask = pad_tokens(rows, language_model.tokenizer.pad_token_id, "right")
        seen.clear()
        language_model.trunk(
            input_ids=token_ids.to(language_model.device),
            attention_mask=mask.to(language_model.device),
            use_cache=False,
        )
        outputs = seen.pop().float().reshape(*token_ids.shape, -1).cpu()
        sums = (outputs * mask[..., None]).double().sum(1)
        return np.asarray(sums / mask.sum(1, keepdim=True))

    key = (language_model.digest, str(language_model.device), "forward pass")
    lengths = [len(row) for row in sequences]
    found: list[FloatArray] = [np.empty(0)] * len(sequences)
    handle = language_model.model.get_submodule(name).register_forward_hook(record)
    try:
        for batch, means in run_in_batches(key, lengths, TOKENS_PER_BATCH, plan_batches, run):
            for place, row in zip(batch, means, strict=True):
                found[place] = row
    finally:
        handle.remove()
    return np.stack(found)
