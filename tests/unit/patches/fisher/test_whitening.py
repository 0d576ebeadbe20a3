"""Whitening against numpy: symmetric roots by eigendecomposition, plain solves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.base.errors import ModelError
from eigenshift.patches.fisher import whitening
from eigenshift.patches.fisher.whitening import (
    DIAGONAL_RIDGE,
    METRIC_RIDGE,
    STEP_RIDGE,
    Metric,
    compress,
    find_triples,
    list_groups,
    solve_steps,
)

Array = np.ndarray[Any, Any]
N_OUT, N_IN = 14, 9


def make_moment(size: int, seed: int) -> Array:
    """Second moments whose eigenvalues span four orders of magnitude."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(size, size)))[0]
    return basis @ np.diag(np.geomspace(10.0, 1e-3, size)) @ basis.T


def add_ridge(moment: Array) -> Array:
    """As the metric does, written out."""
    return moment + METRIC_RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))


def find_inverse_root(moment: Array) -> Array:
    """The symmetric one, by eigendecomposition."""
    values, vectors = np.linalg.eigh(moment)
    return vectors @ np.diag(values**-0.5) @ vectors.T


@pytest.fixture
def moments() -> tuple[Array, Array]:
    """G and A."""
    return make_moment(N_OUT, 1), make_moment(N_IN, 2)


@pytest.fixture
def metric(moments: tuple[Array, Array]) -> Metric:
    """Of these."""
    return Metric.of(*map(torch.from_numpy, moments), METRIC_RIDGE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(
    moments: tuple[Array, Array], value: float
) -> None:
    """No ridge makes them positive definite; the layer is named."""
    outputs, inputs = map(torch.from_numpy, moments)
    outputs[2, 3] = value
    with pytest.raises(ModelError, match="Fisher metric of layer 3: expected finite"):
        Metric.of(outputs, inputs, METRIC_RIDGE, "layer 3")


@pytest.fixture
def gradient() -> Array:
    """M."""
    return np.random.default_rng(3).normal(size=(N_OUT, N_IN))


def test_gains_are_the_singular_values_of_the_symmetrically_whitened_gradient(
    moments: tuple[Array, Array], metric: Metric, gradient: Array
) -> None:
    """Cholesky factors give other whitened matrices, but the same values and the same changes."""
    roots = [find_inverse_root(add_ridge(moment)) for moment in moments]
    u, s, vt = np.linalg.svd(roots[0] @ gradient @ roots[1])
    triples = find_triples(torch.from_numpy(gradient), metric, 6)
    np.testing.assert_allclose(triples.gain.numpy(), s[:6], rtol=1e-10)
    left, right = roots[0] @ u[:, :6], roots[1] @ vt[:6].T
    for place in range(6):
        found = torch.outer(triples.left[:, place], triples.right[:, place]).numpy()
        expected = np.outer(left[:, place], right[:, place])
        np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_directions_are_orthonormal_in_their_metric(
    moments: tuple[Array, Array], metric: Metric, gradient: Array
) -> None:
    """So that each change costs one half, and no two of one matrix overlap."""
    triples = find_triples(torch.from_numpy(gradient), metric, N_IN)
    for directions, moment in zip((triples.left, triples.right), moments, strict=True):
        found = directions.numpy().T @ add_ridge(moment) @ directions.numpy()
        np.testing.assert_allclose(found, np.eye(N_IN), atol=1e-9)


def test_a_gain_is_what_its_change_brings(metric: Metric, gradient: Array) -> None:
    """First derivative along l r^T: l^T M r."""
    triples = find_triples(torch.from_numpy(gradient), metric, 4)
    brings = np.einsum("ok,oi,ik->k", triples.left.numpy(), gradient, triples.right.numpy())
    np.testing.assert_allclose(brings, triples.gain.numpy(), rtol=1e-10)


def test_the_best_change_of_a_cost_is_the_first(
    moments: tuple[Array, Array], metric: Metric, gradient: Array
) -> None:
    """Of many random rank-one changes of cost one half none brings more."""
    best = float(find_triples(torch.from_numpy(gradient), metric, 1).gain[0])
    generator = np.random.default_rng(4)
    for _ in range(200):
        left, right = generator.normal(size=N_OUT), generator.normal(size=N_IN)
        left /= np.sqrt(left @ add_ridge(moments[0]) @ left)
        right /= np.sqrt(right @ add_ridge(moments[1]) @ right)
        assert left @ gradient @ right <= best


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_a_wide_matrix_is_decomposed_at_random_as_exactly(
    monkeypatch: pytest.MonkeyPatch, is_diagonal: bool
) -> None:
    """Of low rank and some noise: values to 1e-6, the changes themselves to 1e-5; as seeded."""
    generator = np.random.default_rng(5)
    factors = [np.linalg.qr(generator.normal(size=(n, 20)))[0] for n in (180, 130)]
    wide = factors[0] @ np.diag(np.geomspace(10, 0.1, 20)) @ factors[1].T
    matrix = torch.from_numpy(wide + 1e-6 * generator.normal(size=wide.shape))
    outputs, inputs = (torch.from_numpy(make_moment(n, n)) for n in wide.shape)
    metric = Metric.of(outputs.diagonal() if is_diagonal else outputs, inputs, METRIC_RIDGE)
    exact = find_triples(matrix, metric, 8)
    monkeypatch.setattr(whitening, "MAX_EXACT", 64)
    drawn = find_triples(matrix, metric, 8, seed=3)
    torch.testing.assert_close(drawn.gain, exact.gain, rtol=1e-6, atol=0)
    for place in range(8):
        found, expected = (
            torch.outer(triples.left[:, place], triples.right[:, place])
            for triples in (drawn, exact)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    again = find_triples(matrix, metric, 8, seed=3)
    assert torch.equal(drawn.left, again.left)
    assert torch.equal(drawn.gain, again.gain)


def test_a_diagonal_is_a_matrix_with_a_ridge_of_its_own(
    moments: tuple[Array, Array], gradient: Array
) -> None:
    """Given as a diagonal, or as the matrix with the larger ridge in it: the same throughout."""
    diagonal, inputs = torch.from_numpy(np.diag(moments[0]).copy()), torch.from_numpy(moments[1])
    short = Metric.of(diagonal, inputs, METRIC_RIDGE)
    more = (DIAGONAL_RIDGE - METRIC_RIDGE) / (1 + METRIC_RIDGE) * diagonal.mean()
    whole = Metric.of(torch.diag(diagonal + more), inputs, METRIC_RIDGE)
    torch.testing.assert_close(torch.diag(short.of_outputs), whole.of_outputs)
    found, expected = (find_triples(torch.from_numpy(gradient), each, 4) for each in (short, whole))
    torch.testing.assert_close(found.gain, expected.gain, rtol=1e-9, atol=0)
    left = found.left * found.gain  # of different sizes, so that it is clear what is kept
    for side in (0, 1):
        weighed, known = (each.weigh(left, found.right)[side] for each in (short, whole))
        torch.testing.assert_close(weighed, known, rtol=1e-9, atol=1e-12)
    kept, other = (compress(left, found.right, 2, each) for each in (short, whole))
    torch.testing.assert_close(kept[0] @ kept[1].T, other[0] @ other[1].T, rtol=1e-9, atol=1e-12)


def test_more_terms_than_a_matrix_has_are_not_made_up(metric: Metric, gradient: Array) -> None:
    """As many as the smaller side."""
    triples = find_triples(torch.from_numpy(gradient), metric, 100)
    assert triples.gain.shape == (N_IN,)
    assert triples.left.shape == (N_OUT, N_IN)


def test_steps_solve_the_damped_system_and_have_length_one() -> None:
    """-(F + ridge)^-1 b by numpy."""
    generator = np.random.default_rng(6)
    rows = generator.normal(size=(30, 5))
    fisher, gains = rows.T @ rows / 30, generator.normal(size=5)
    damped = fisher + STEP_RIDGE * np.trace(fisher) / 5 * np.eye(5)
    expected = -np.linalg.solve(damped, gains)
    found = solve_steps(torch.from_numpy(gains), torch.from_numpy(fisher)).numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-10)
    assert found @ gains < 0  # it lowers what the gains raise


@pytest.fixture
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    """Left (out, 6) and right (in, 6); two terms are nearly the same."""
    generator = torch.Generator().manual_seed(7)
    left, right = (
        torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (N_OUT, N_IN)
    )
    left[:, 5], right[:, 5] = left[:, 4] * (1 + 1e-9), right[:, 4]
    return left, right


@pytest.mark.parametrize("is_weighed", [False, True])
def test_nothing_is_lost_where_no_term_is_dropped(
    sides: tuple[torch.Tensor, torch.Tensor], metric: Metric, is_weighed: bool
) -> None:
    """The same change, in terms that are orthogonal in the metric."""
    left, right = sides
    used = metric if is_weighed else None
    found = compress(left, right, 6, used)
    torch.testing.assert_close(found[0] @ found[1].T, left @ right.T, rtol=1e-9, atol=1e-9)
    inputs = metric.of_inputs @ metric.of_inputs.T if is_weighed else torch.eye(N_IN).double()
    gram = found[1][:, :5].T @ inputs @ found[1][:, :5]
    torch.testing.assert_close(gram, torch.eye(5).double(), rtol=0, atol=1e-8)


def test_terms_that_are_the_same_become_one(sides: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A share of the squared norm decides how many are kept."""
    left, right = sides
    kept, _ = compress(left, right, 6, share=0.999999)
    assert kept.shape == (N_OUT, 5)
    values = np.linalg.svd((left @ right.T).numpy(), compute_uv=False)
    for share in (0.3, 0.6, 0.9):
        expected = int(np.searchsorted(np.cumsum(values**2) / (values**2).sum(), share)) + 1
        assert compress(left, right, 6, share=share)[0].shape[1] == expected


def test_what_is_dropped_costs_least_in_the_metric(
    sides: tuple[torch.Tensor, torch.Tensor], metric: Metric
) -> None:
    """The nearest change of that rank: Eckart and Young, in whitened coordinates."""
    left, right = sides
    kept = compress(left, right, 2, metric)
    roots = metric.of_outputs.T.numpy(), metric.of_inputs.numpy()
    whole, found = (roots[0] @ (a @ b.T).numpy() @ roots[1] for a, b in ((left, right), kept))
    values = np.linalg.svd(whole, compute_uv=False)
    distance = np.linalg.norm(whole - found) ** 2
    assert distance == pytest.approx((values[2:] ** 2).sum(), rel=1e-9)


def test_layers_take_turns_where_they_do_not_fit_together() -> None:
    """In order, each group within the bound but for what is larger alone; all occur once."""
    assert list_groups([3, 3, 3, 10, 1, 2], 6) == [[0, 1], [2], [3], [4, 5]]
    assert list_groups([], 6) == []
    assert list_groups([1, 1], 6) == [[0, 1]]
