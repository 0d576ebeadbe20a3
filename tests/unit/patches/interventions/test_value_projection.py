"""ProFS: the subspace of the paper, taken out of the upper MLPs' value weights and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from eigenshift.model.loading import wrap_model
from eigenshift.patches.edits import LinearEdit
from eigenshift.patches.folding import fold_edit
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.value_projection import (
    find_toxic_basis,
    keep_first,
    list_values,
    project_values,
)
from eigenshift.patches.requests import PatchRequest
from tests.support.architectures import StubTokenizer, make_architecture

VALUES = {"gpt2": "transformer.h.1.mlp.c_proj", "llama": "model.layers.1.mlp.down_proj"}


def test_planted_directions_are_found_without_what_all_texts_share() -> None:
    """Two directions that only toxic texts vary along, beside a strong common one."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(20, 3)))[0]
    common, planted = axes[:, 0], axes[:, 1:]
    noise = 0.01 * generator.normal(size=(2, 60, 20))
    nontoxic = 5.0 * (1.0 + 0.2 * generator.normal(size=(60, 1))) * common + noise[0]
    toxic = 5.0 * (1.0 + 0.2 * generator.normal(size=(60, 1))) * common + noise[1]
    toxic += generator.normal(size=(60, 2)) @ planted.T + planted.sum(1)
    basis = find_toxic_basis(toxic, nontoxic)[:, :2]
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-10)
    np.testing.assert_allclose(basis @ basis.T, planted @ planted.T, atol=0.02)


def test_a_rank_that_is_no_whole_number_takes_the_last_direction_in_part() -> None:
    """2.25 is two directions and a quarter of the third; a small one is a part of the first."""
    edit = LinearEdit(torch.randn(6, 4).double(), torch.randn(5, 4).double())
    found = keep_first(edit, 2.25)
    assert found.rank == 3
    expected = edit.left[:, :2] @ edit.right[:, :2].T
    expected = expected + 0.25 * torch.outer(edit.left[:, 2], edit.right[:, 2])
    torch.testing.assert_close(found.left @ found.right.T, expected)
    torch.testing.assert_close(
        keep_first(edit, 0.1).left @ keep_first(edit, 0.1).right.T,
        0.1 * torch.outer(edit.left[:, 0], edit.right[:, 0]),
    )
    assert not keep_first(edit, 0.0).left.any()
    assert keep_first(edit, 9.0).rank == 4


def test_the_upper_mlps_no_longer_write_into_the_subspace(evidence: Evidence) -> None:
    """Folded, V^T W' is zero for whole directions, and what is orthogonal to V is as it was."""
    model = evidence.language_model
    outcome = project_values(evidence, PatchRequest(max_perplexity_increase=1e6))
    (name,) = outcome.edit.linears
    assert name in VALUES.values()
    (folded,) = fold_edit(model, outcome.edit).values()
    module = model.model.get_submodule(name)
    before, after = (
        (weight.T if isinstance(module, Conv1D) else weight).double()
        for weight in (module.weight.detach(), folded)
    )
    basis = torch.linalg.qr(outcome.edit.linears[name].left).Q
    assert float((basis.T @ after).abs().max()) < 1e-5 * float(before.abs().max())
    rest = torch.eye(len(basis)).double() - basis @ basis.T
    torch.testing.assert_close(rest @ after, rest @ before, atol=1e-5, rtol=0)
    kept = float(after.norm() / before.norm())
    assert outcome.parameters["least_norm_kept"] == pytest.approx(kept, rel=1e-4)


def test_a_small_budget_leaves_little_of_it(evidence: Evidence) -> None:
    """The rank is tuned: what costs too much is only a part of a few directions."""
    narrow = project_values(evidence, PatchRequest(max_perplexity_increase=1e-4)).parameters
    wide = project_values(evidence, PatchRequest(max_perplexity_increase=1e6)).parameters
    assert 0.0 < narrow["strength"] < wide["strength"]
    assert narrow["calibration_perplexity_increase"] <= 1e-4


def test_experts_in_one_tensor_leave_the_attentions_outputs() -> None:
    """Where no value weight is a linear layer, what writes beside it is edited."""
    model = wrap_model(make_architecture("mixtral"), StubTokenizer(), model_id="m", digest="d")
    assert list_values(model) == {1: ["model.layers.1.self_attn.o_proj"]}
