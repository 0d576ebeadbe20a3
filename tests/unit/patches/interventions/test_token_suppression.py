"""The word filter: exactly the toxic tokens fall, within the budget of every kind of text."""

from __future__ import annotations

import math

import pytest
import torch

from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import compute_logits, run_hooked
from eigenshift.patches.interventions.budget import make_meter
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.interventions.token_suppression import (
    find_common_direction,
    lower_bias,
    lower_rows,
)
from eigenshift.patches.requests import PatchRequest
from tests.support.plain_loss import measure_loss
from tests.unit.patches.interventions.conftest import TOXIC_TOKENS

BOTH = pytest.mark.parametrize("build", [lower_rows, lower_bias])
BUDGET = 0.003


def read_states(evidence: Evidence) -> torch.Tensor:
    """All head states, in their order, (position, hidden)."""
    return torch.tensor([row["state"] for row in evidence.head_states.to_pylist()])


def move_logits(evidence: Evidence, edit: ModelEdit) -> torch.Tensor:
    """By how much each token's logit moves at each head state, (position, vocab)."""
    states = read_states(evidence)
    with torch.inference_mode():
        base, after = (
            compute_logits(evidence.language_model, found, states).double()
            for found in (ModelEdit(), edit)
        )
    return after - base


@BOTH
def test_exactly_the_toxic_tokens_fall(build: object, evidence: Evidence) -> None:
    """Those that toxic positions generate and others do not; all other logits stay."""
    outcome: Outcome = build(evidence, PatchRequest(max_perplexity_increase=BUDGET))  # type: ignore
    moved = move_logits(evidence, outcome.edit)
    fallen = set(torch.nonzero(moved.abs().amax(0) > 1e-6).flatten().tolist())
    assert fallen == set(TOXIC_TOKENS)
    assert outcome.parameters["n_tokens"] == len(TOXIC_TOKENS)
    falls = moved[:, list(TOXIC_TOKENS)]
    strength = outcome.parameters["strength"]
    assert float(falls.mean()) < 0
    if build is lower_bias:
        torch.testing.assert_close(falls, torch.full_like(falls, -strength), rtol=0, atol=1e-4)
        assert outcome.edit.logits is not None
        assert outcome.edit.logits.has_shift
    else:  # by so much where r . h is 1
        amounts = read_states(evidence).double() @ find_common_direction(evidence)
        expected = -strength * amounts[:, None].expand_as(falls)
        torch.testing.assert_close(falls, expected, rtol=0, atol=1e-4)


@BOTH
def test_the_budget_is_kept_on_every_kind_of_text(build: object, evidence: Evidence) -> None:
    """By the hooked model, one text at a time."""
    model = evidence.language_model
    request = PatchRequest(max_perplexity_increase=BUDGET)
    outcome: Outcome = build(evidence, request)  # type: ignore[operator]
    texts = make_meter(evidence).texts.by_kind
    assert set(texts) == {"neutral", "continuation", "labelled"}
    base = {kind: measure_loss(model.model, found) for kind, found in texts.items()}
    with run_hooked(model, outcome.edit):
        rises = {
            kind: measure_loss(model.model, found) - base[kind] for kind, found in texts.items()
        }
    assert max(rises.values()) <= math.log1p(BUDGET) + 1e-5
    told = outcome.parameters["calibration_perplexity_increase"]
    assert told == pytest.approx(math.expm1(max(rises.values())), abs=3e-5)


def test_the_common_direction_is_least_squares(evidence: Evidence) -> None:
    """(r . h - 1)^2 over all states, with a small ridge, against torch's own solver."""
    values = read_states(evidence).double()
    ridge = 1e-3 * (values**2).mean() * len(values)
    rows = torch.cat([values, ridge.sqrt() * torch.eye(values.shape[1]).double()])
    wanted = torch.cat([torch.ones(len(values)), torch.zeros(values.shape[1])]).double()
    expected = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(find_common_direction(evidence), expected, rtol=1e-6, atol=1e-9)
