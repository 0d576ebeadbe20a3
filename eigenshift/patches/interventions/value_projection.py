"""ProFS: project a toxic subspace out of what the MLPs write (Uppaal et al., ICLR 2025).

"Model editing as a robust and denoised variant of DPO" (arXiv 2405.13967, equations 3 to 5). Per
layer, states are a text's mean over its tokens; their differences between toxic and non-toxic
texts lose the direction that non-toxic texts share (the first right singular vector of their
states: frequent tokens), and the top k right singular vectors V of what is left are projected out
of the MLP's value weights, W' = (I - V V^T) W, in the upper half of the layers. GLOSS (Duan et al.,
arXiv 2601.06226) projects one subspace for all layers out of the same weights.

Ours: labelled texts are no pairs, so toxic and non-toxic ones are paired at random, 256 of each
(the paper: 500 pairs). k is the strength that is tuned to the common budget, and no whole number:
of k = 3.4 the fourth direction is taken out by 0.4. The authors' settings have 2 for GPT-2 medium
and 10 for 7B models, which may leave most of the budget unspent; the search begins at 2. Where the
MLPs' value weights cannot be edited (experts kept in one tensor), the attentions' output weights
are.

The norms of the value vectors (columns of W) are not restored after the projection. That is a
diagonal on the layer's input, of full rank, so it is no edit of low rank; folded it would have a
place only in the up projection of a gated MLP. Rows could be rescaled, but that would undo the
projection, since a rescaled row is no longer orthogonal to V. What is nearest and folds exactly is
the projection as ProFS has it; the patch says how much of the weights' norm is kept
(`least_norm_kept`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.detection.pooling import pool_texts
from eigenshift.model.divided import read_parameter
from eigenshift.model.encoding import ReadText
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel
from eigenshift.model.taps import ATTENTION_NAMES, find_taps
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import LinearEdit, ModelEdit
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.interventions.labelled_states import (
    TOKENS_PER_BATCH,
    choose_texts,
    encode_texts,
)
from eigenshift.patches.requests import PatchRequest
from eigenshift.settings import Pooling, Site, SitePooling

N_TEXTS = 256
FIRST_RANK = 2.0
MAX_RANK = 32
"""Of a layer's toxic subspace."""
STATES = SitePooling(site=Site.residual, pooling=Pooling.mean)


def project_values(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Project as much of each layer's toxic subspace out of its values as is in budget."""
    language_model = evidence.language_model
    toxic, nontoxic = choose_texts(evidence.labelled_texts, request.seed, N_TEXTS)
    bases = find_toxic_bases(
        language_model,
        encode_texts(language_model, toxic),
        encode_texts(language_model, nontoxic),
    )
    full: dict[str, LinearEdit] = {}
    for layer, names in list_values(language_model).items():
        for name in names:
            full[name] = _project_out(language_model, name, bases[layer])

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(linears={name: keep_first(edit, strength) for name, edit in full.items()})

    most = max(edit.rank for edit in full.values())
    outcome = tune_strength(
        evidence, request, make_edit, first=min(FIRST_RANK, most), most=float(most)
    )
    kept = measure_norm_kept(language_model, outcome.edit)
    facts = {"n_texts": len(toxic), "least_norm_kept": kept}
    return Outcome(outcome.edit, parameters={**outcome.parameters, **facts})


def find_toxic_bases(
    language_model: LanguageModel,
    toxic: Sequence[ReadText],
    nontoxic: Sequence[ReadText],
) -> dict[int, Tensor]:
    """An orthonormal basis of each upper layer's toxic subspace, (hidden, rank), float64.

    The rank is `MAX_RANK`, or what there is.

    Args:
        language_model: The unpatched model.
        toxic: Tokens of the toxic texts.
        nontoxic: Of as many others, in the order of the pairs.
    """
    layers = _list_upper_layers(language_model)
    taps = find_taps(language_model.model, [Site.residual], layers)
    pooled = pool_texts(
        language_model, taps, [*toxic, *nontoxic], [STATES], tokens_per_batch=TOKENS_PER_BATCH
    )
    found = {}
    for layer in layers:
        states = pooled[layer, STATES.column].astype(np.float64)
        basis = find_toxic_basis(states[: len(toxic)], states[len(toxic) :])
        found[layer] = torch.from_numpy(np.ascontiguousarray(basis))
    return found


def find_toxic_basis(toxic: FloatArray, nontoxic: FloatArray) -> FloatArray:
    """Top right singular vectors of paired differences without the shared direction.

    Args:
        toxic: States, shape (text, hidden).
        nontoxic: Same shape.

    Returns:
        Orthonormal columns, most toxic first, shape (hidden, rank).
    """
    shared = np.linalg.svd(nontoxic, full_matrices=False)[2][0]
    differences = toxic - nontoxic
    differences = differences - np.outer(differences @ shared, shared)
    return np.asarray(np.linalg.svd(differences, full_matrices=False)[2][:MAX_RANK].T)


def keep_first(edit: LinearEdit, rank: float) -> LinearEdit:
    """The edit's first terms, the last of them in part where the rank is no whole number."""
    n_terms = min(edit.rank, max(1, math.ceil(rank)))
    shares = torch.clamp(rank - torch.arange(n_terms, dtype=torch.float64), 0.0, 1.0)
    return LinearEdit(edit.left[:, :n_terms] * shares, edit.right[:, :n_terms].contiguous())


def measure_norm_kept(language_model: LanguageModel, edit: ModelEdit) -> float:
    """The least of the changed weights' norms, relative to what each was."""
    found = []
    for name, change in edit.linears.items():
        weight = _read_weight(language_model, name)
        product = change.left.to(weight) @ change.right.to(weight).T
        found.append(float((weight + product).norm() / weight.norm()))
    return min(found)


def list_values(language_model: LanguageModel) -> dict[int, list[str]]:
    """Names of the linear layers that end the MLP of each upper layer.

    Raises:
        ComponentError: No upper layer has a weight that writes into the residual stream.
    """
    names = {id(module): name for name, module in language_model.model.named_modules()}
    blocks = list_layers(language_model.model)
    writers = list(list_writers(language_model.model))
    found: dict[int, list[str]] = {}
    for layer in _list_upper_layers(language_model):
        inside = [name for name in writers if name.startswith(f"{names[id(blocks[layer])]}.")]
        values = [name for name in inside if ATTENTION_NAMES.isdisjoint(name.split("."))]
        found[layer] = values or inside
    if not any(found.values()):
        raise ComponentError(
            f"profs: expected linear layers that write into the residual stream of "
            f"{language_model.id}, found none with a floating-point weight of their own. Load the "
            "model unquantised, or leave profs out of compare.interventions."
        )
    return found


def _list_upper_layers(language_model: LanguageModel) -> list[int]:
    n_layers = len(list_layers(language_model.model))
    return list(range(n_layers // 2, n_layers))


def _project_out(language_model: LanguageModel, name: str, basis: Tensor) -> LinearEdit:
    """-V (V^T W)."""
    weight = _read_weight(language_model, name)
    return LinearEdit(-basis, (weight.T @ basis.to(weight)).double().cpu())


def _read_weight(language_model: LanguageModel, name: str) -> Tensor:
    """A linear layer's weight, shape (out, in), float32 or wider."""
    module = language_model.model.get_submodule(name)
    weight = read_parameter(language_model.model, f"{name}.weight").detach()
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return wide.T if isinstance(module, Conv1D) else wide
