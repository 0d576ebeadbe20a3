"""How far rounding turns components, against heads that are really rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenshift.components.decomposition import decompose_head
from eigenshift.components.spectral_gaps import find_rotations


def rotate(weight: torch.Tensor, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Right singular vectors before and after rounding, in columns."""
    return tuple(  # type: ignore[return-value]
        np.linalg.svd(item.double().numpy(), full_matrices=False)[2].T
        for item in (weight, weight.to(dtype))
    )


def make_head(sigma: np.ndarray, seed: int) -> torch.Tensor:
    """A float64 head with the given singular values."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(600, len(sigma))))[0]
    right = np.linalg.qr(generator.normal(size=(len(sigma), len(sigma))))[0]
    return torch.from_numpy(left * sigma @ right.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_expected_angle_is_the_one_rounding_gives(dtype: torch.dtype) -> None:
    """Root mean square over many heads within a fifth of the prediction, component by component."""
    sigma = np.geomspace(8, 1, 40)
    squares = []
    for seed in range(12):
        before, after = rotate(make_head(sigma, seed), dtype)
        squares.append(1 - np.clip(np.sum(before * after, axis=0) ** 2, 0, 1))
    measured = np.degrees(np.sqrt(np.mean(squares, axis=0)))
    rounded = decompose_head(make_head(sigma, 0).to(dtype))
    expected = find_rotations(sigma, rounded.rounding).angle
    assert 0.8 < np.median(measured / expected) < 1.2
    assert (measured / expected > 0.5).all()
    assert (measured / expected < 2.0).all()


def test_close_singular_values_form_a_group_whose_subspace_is_firm() -> None:
    """Its members turn into each other when rounded; what they span does not."""
    sigma = np.array([9.0, 5.0, 5.0001, 4.9999, 2.0, 1.0])
    order = np.argsort(-sigma)
    sigma = sigma[order]
    weight = make_head(sigma, 3)
    found = find_rotations(sigma, decompose_head(weight.to(torch.bfloat16)).rounding)
    assert found.group.tolist() == [0, 1, 1, 1, 4, 5]
    assert found.group_size.tolist() == [1, 3, 3, 3, 1, 1]
    before, after = rotate(weight, torch.bfloat16)
    cosines = np.linalg.svd(before[:, 1:4].T @ after[:, 1:4], compute_uv=False)
    measured = np.degrees(np.arccos(np.clip(cosines.min(), 0, 1)))
    assert (found.angle[1:4] > 10).all()
    assert measured < 2 * found.group_angle[1] < 2.0
    assert found.describe()["n_groups"] == 1
    assert found.describe()["largest_group"] == 3


def test_equal_singular_values_are_arbitrary_and_exact_ones_are_firm() -> None:
    """No gap: 90 degrees. No rounding: no angle."""
    assert find_rotations(np.array([2.0, 2.0, 1.0]), 1e-6).angle[:2] == pytest.approx([90.0, 90.0])
    assert find_rotations(np.array([2.0, 2.0, 1.0]), 0.0).angle.max() == 0.0
