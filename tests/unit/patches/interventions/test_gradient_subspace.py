"""The subspace of toxic gradients: against automatic differentiation, and as it is removed."""

from __future__ import annotations

import torch

from eigenshift.components.table import gather_toxic_states
from eigenshift.patches.interventions.gradient_subspace import (
    find_basis,
    find_gradients,
    project_gradients,
)
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.requests import PatchRequest


def test_gradients_are_those_of_automatic_differentiation(evidence: Evidence) -> None:
    """Of each toxic position's weighted share of toxic tokens, p / p of the base."""
    model = evidence.language_model
    toxic = gather_toxic_states(evidence.head_states, model.head_weight)
    states = toxic.states.double().requires_grad_()
    logits = states @ model.head_weight.detach().double().T
    share = torch.softmax(logits, 1)[:, toxic.token_ids].sum(1)
    base = share.detach().clamp_min(0.02)  # as rare ones are not magnified further
    (toxic.weights.double() * share / base).sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(find_gradients(evidence), states.grad, atol=1e-6, rtol=1e-4)


def test_a_planted_subspace_is_found() -> None:
    """Gradients along two directions and a little noise: these two."""
    generator = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(24, 2, generator=generator).double()).Q
    amounts = torch.randn(200, 2, generator=generator).double()
    noise = 0.01 * torch.randn(200, 24, generator=generator).double()
    basis = find_basis(amounts @ planted.T + noise)
    assert basis.shape == (24, 2)
    torch.testing.assert_close(basis @ basis.T, planted @ planted.T, atol=0.02, rtol=0)


def test_full_strength_removes_the_subspace_from_the_head(evidence: Evidence) -> None:
    """W (I - P): what is orthogonal to the gradients gives the logits it gave."""
    outcome = project_gradients(evidence, PatchRequest(max_perplexity_increase=1e6))
    assert outcome.factor == 0.0
    head = outcome.edit.head
    assert head is not None
    assert head.rank == outcome.parameters["rank"]
    weight = evidence.language_model.head_weight.detach().double()
    folded = head.fold_weight(weight)
    assert float((folded @ head.right).abs().max()) < 1e-10
    rest = torch.eye(len(head.right)).double() - head.right @ head.right.T
    torch.testing.assert_close(folded, weight @ rest)
