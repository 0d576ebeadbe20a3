"""Project the subspace of toxic gradients out of the head: W (I - s P).

P spans the leading right singular vectors of the matrix of gradients: at each toxic position, how
the probability of the toxic tokens depends on the state that enters the head. It is iterative
nullspace projection's W (I - P) (Ravfogel et al., ACL 2020, arXiv 2004.07667) with the gradients of
the generator's own objective in the place of a classifier's weights, and the subspace is found as
gradient projection memory finds its own (Saha et al., ICLR 2021, arXiv 2103.09762, section 4: the
fewest singular vectors that hold a share of the energy). Head and first order only: what
`eigenshift_fisher` does without the metric, tokens' own rows, the coupling of what is read and
written, and the rounds. So it says what these bring.

Ours: the share (90%) and the most directions, set once and not for any data; s is tuned to the
common budget. How many directions that takes follows from the calibration states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eigenshift.components.table import gather_toxic_states
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.fisher.toxic_gradients import differentiate_share
from eigenshift.patches.interventions.budget import tune_strength
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.requests import PatchRequest

ENERGY = 0.9
"""Share of the squared gradients that the subspace holds."""
MAX_RANK = 32
POSITIONS_PER_BLOCK = 64


def project_gradients(evidence: Evidence, request: PatchRequest) -> Outcome:
    """Damp the head's gain along the leading toxic gradients as far as is in budget."""
    basis = find_basis(find_gradients(evidence)).numpy()

    def make_edit(strength: float) -> ModelEdit:
        return ModelEdit(HeadEdit.scale_directions(basis, 1.0 - strength))

    outcome = tune_strength(evidence, request, make_edit)
    factor = 1.0 - float(outcome.parameters["strength"])
    parameters = {**outcome.parameters, "rank": basis.shape[1]}
    return Outcome(outcome.edit, factor=factor, parameters=parameters)


@torch.inference_mode()
def find_gradients(evidence: Evidence) -> Tensor:
    """Gradient of the toxic tokens' share by each toxic state, (position, hidden), float64.

    Raises:
        ComponentError: No token sets the toxic positions apart.
    """
    language_model = evidence.language_model
    module = language_model.head_module
    toxic = gather_toxic_states(evidence.head_states, module.weight)
    weight = module.weight.detach().float()
    bias = None if module.bias is None else module.bias.detach().float()
    is_toxic = torch.zeros(len(weight), device=weight.device)
    is_toxic[toxic.token_ids] = 1.0
    found = []
    for first in range(0, len(toxic.states), POSITIONS_PER_BLOCK):
        block = slice(first, first + POSITIONS_PER_BLOCK)
        raw = language_model.head.compute_raw_logits(toxic.states[block], weight, bias)
        by_logit = differentiate_share(language_model.head, raw, is_toxic, toxic.weights[block])
        found.append(by_logit @ weight)
    return torch.cat(found).double().cpu().clone()


def find_basis(gradients: Tensor) -> Tensor:
    """The fewest leading right singular vectors that hold the energy, shape (hidden, k).

    Args:
        gradients: Shape (position, hidden), float64.
    """
    _, s, vt = torch.linalg.svd(gradients, full_matrices=False)
    energy = (s**2).cumsum(0) / (s**2).sum().clamp_min(torch.finfo(s.dtype).tiny)
    rank = min(MAX_RANK, int((energy < ENERGY).sum()) + 1)
    basis: Tensor = vt[:rank].T.contiguous()
    return basis
