"""Decomposition of the head, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenshift.decomposition import decompose_head


def make_head(vocab: int, hidden: int, condition: float, seed: int = 0) -> torch.Tensor:
    """A float64 head with a log spectrum and the given condition number."""
    generator = np.random.default_rng(seed)
    rank = min(vocab, hidden)
    left = np.linalg.qr(generator.normal(size=(vocab, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(hidden, rank)))[0]
    return torch.from_numpy(left * np.geomspace(condition, 1, rank) @ right.T)


@pytest.mark.parametrize("shape", [(500, 64), (64, 64), (40, 64)], ids=["tall", "square", "wide"])
def test_singular_values_and_projectors_equal_numpy(shape: tuple[int, int]) -> None:
    """Singular values to 1e-9 relative; vectors compared by what they span, not by sign."""
    weight = make_head(*shape, condition=100.0)
    found = decompose_head(weight)
    _, sigma, vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-9)
    for k in (1, 5, len(sigma)):
        projector = vt[:k].T @ vt[:k]
        np.testing.assert_allclose(found.v[:, :k] @ found.v[:, :k].T, projector, atol=1e-8)


def test_a_high_condition_number_falls_back_to_a_full_decomposition(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Squaring would lose the small singular values; they stay right, and the log says why."""
    weight = make_head(300, 32, condition=1e9)
    found = decompose_head(weight)
    np.testing.assert_allclose(found.sigma, np.geomspace(1e9, 1, 32), rtol=1e-6)
    assert "full SVD" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_heads_are_decomposed_in_float64(dtype: torch.dtype) -> None:
    """The result is that of the stored values, whatever their precision."""
    weight = make_head(200, 16, condition=10.0).to(dtype)
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(decompose_head(weight).sigma, expected, rtol=1e-9)


def test_energy_and_gaps_describe_the_spectrum() -> None:
    """Shares sum to one; equal singular values have no gap."""
    weight = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    found = decompose_head(weight)
    assert found.energy_shares.sum() == pytest.approx(1.0)
    assert found.energy_shares[0] == pytest.approx(9 / 18)
    np.testing.assert_allclose(found.relative_gaps, [1 / 3, 0, 0, 1], atol=1e-12)
