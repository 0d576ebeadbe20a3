"""The random control of changes of the head: as dear as ours, about nothing."""

from __future__ import annotations

import math

import torch

from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.budget import make_meter
from eigenshift.patches.interventions.controls import N_RANDOM_TERMS, change_random_directions
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.requests import PatchRequest
from tests.support.plain_loss import measure_loss

BUDGET = 0.05


def test_random_directions_spend_the_budget_and_keep_it(evidence: Evidence) -> None:
    """On the kind of text that suffers most, by the hooked model; the rank is ours."""
    model = evidence.language_model
    outcome = change_random_directions(evidence, PatchRequest(max_perplexity_increase=BUDGET))
    assert outcome.edit.head is not None
    assert outcome.edit.head.rank == N_RANDOM_TERMS
    texts = make_meter(evidence).texts.by_kind
    base = {kind: measure_loss(model.model, found) for kind, found in texts.items()}
    with run_hooked(model, outcome.edit):
        rises = [measure_loss(model.model, found) - base[kind] for kind, found in texts.items()]
    assert 0.9 * math.log1p(BUDGET) <= max(rises) <= math.log1p(BUDGET) + 1e-5


def test_random_directions_are_decided_by_the_seed(evidence: Evidence) -> None:
    """The same draw again; another seed draws another change."""
    edits = [
        change_random_directions(evidence, PatchRequest(seed=seed)).edit.head for seed in (0, 0, 1)
    ]
    first, again, other = (edit.left @ edit.right.T for edit in edits if edit is not None)
    assert torch.equal(first, again)
    cosine = (first * other).sum() / first.norm() / other.norm()
    assert abs(float(cosine)) < 0.5
