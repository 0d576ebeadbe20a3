"""CHaRS: clusters are matched by transport, and a state moves as the clusters it is near."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenshift.patches.interventions import cluster_steering as steering
from eigenshift.patches.interventions.cluster_steering import (
    find_clusters,
    find_plan,
    fit_move,
    steer_clusters,
)
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.requests import PatchRequest

UNITS = 12


def draw(centres: np.ndarray, n_each: int, seed: int) -> np.ndarray:
    """States close around some centres."""
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [centre + 0.05 * generator.normal(size=(n_each, UNITS)) for centre in centres]
    )


def make_centres() -> tuple[np.ndarray, np.ndarray]:
    """Two toxic clusters; the first has its like among the non-toxic ones moved, the second not."""
    toxic = np.zeros((2, UNITS))
    toxic[0, 0], toxic[1, 1] = 8.0, 8.0
    nontoxic = toxic.copy()
    nontoxic[0, 2] = 3.0
    return toxic, nontoxic


def test_planted_clusters_are_found() -> None:
    """Centres and shares of three clusters of different sizes."""
    centres = 6.0 * np.eye(3, UNITS)
    states = np.concatenate([draw(centres[[i]], n, i) for i, n in enumerate((10, 20, 30))])
    found, shares = find_clusters(states, 3, seed=1)
    order = np.argsort(shares)
    np.testing.assert_allclose(found[order], centres, atol=0.1)
    np.testing.assert_allclose(shares[order], [1 / 6, 1 / 3, 1 / 2])


def test_states_that_coincide_are_one_cluster() -> None:
    """There is nothing to tell apart."""
    centres, shares = find_clusters(np.ones((5, UNITS)), 4, seed=0)
    assert centres.shape == (1, UNITS)
    assert shares.tolist() == [1.0]


def test_the_plan_has_the_shares_as_its_sums_and_prefers_near_pairs() -> None:
    """Rows sum to p and columns to q."""
    costs = np.array([[0.0, 9.0], [9.0, 0.0], [4.0, 4.0]])
    p, q = np.array([0.3, 0.3, 0.4]), np.array([0.5, 0.5])
    plan = find_plan(costs, p, q)
    np.testing.assert_allclose(plan.sum(1), p, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), q, atol=1e-9)
    assert plan[0, 0] > 3 * plan[0, 1]


def test_a_state_moves_as_its_own_cluster_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the cluster that has to move it goes there; near the other it hardly moves."""
    monkeypatch.setattr(steering, "N_CLUSTERS", 2)
    monkeypatch.setattr(steering, "find_plan", lambda costs, p, q: _match(costs) / 2)
    toxic, nontoxic = make_centres()
    edit = fit_move(draw(toxic, 40, 0), draw(nontoxic, 40, 1), seed=0)
    sharp = edit.__class__(20 * edit.readout, 20 * edit.offset, edit.slope, edit.shift)
    first, second = (torch.from_numpy(draw(toxic[[i]], 5, 2 + i)) for i in (0, 1))
    moved = (sharp.apply_to_outputs(first) - first).mean(0).numpy()
    np.testing.assert_allclose(moved, nontoxic[0] - toxic[0], atol=0.1)
    assert float((sharp.apply_to_outputs(second) - second).norm(dim=1).max()) < 0.2
    # with the bandwidth of the fit shares are soft, and the order is the same
    soft = [float((edit.apply_to_outputs(x) - x).norm(dim=1).mean()) for x in (first, second)]
    assert soft[0] > soft[1]


def test_one_cluster_is_the_difference_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every state is moved alike."""
    monkeypatch.setattr(steering, "N_CLUSTERS", 1)
    toxic, nontoxic = (draw(centres, 20, i) for i, centres in enumerate(make_centres()))
    states = torch.randn(6, UNITS, dtype=torch.float64)
    moved = fit_move(toxic, nontoxic, seed=0).apply_to_outputs(states) - states
    expected = torch.from_numpy(nontoxic.mean(0) - toxic.mean(0)).expand_as(moved)
    torch.testing.assert_close(moved, expected)


def test_the_move_is_the_papers_kernel_weighted_mean_of_shifts() -> None:
    """Sum of P_ij k(x, a_i) (b_j - a_i) over that of p_i k(x, a_i), with one bandwidth."""
    toxic, nontoxic = (draw(centres, 30, i) for i, centres in enumerate(make_centres()))
    edit = fit_move(toxic, nontoxic, seed=3)
    a, p = find_clusters(toxic, steering.N_CLUSTERS, 3)
    b, q = find_clusters(nontoxic, steering.N_CLUSTERS, 3)
    plan = find_plan(((a[:, None] - b) ** 2).sum(-1), p, q)
    bandwidth = np.median(((toxic[:, None] - a) ** 2).sum(-1))
    x = toxic[3]
    kernel = np.exp(-((x - a) ** 2).sum(1) / (2 * bandwidth))
    shifts = b[None] - a[:, None]
    expected = (plan[..., None] * kernel[:, None, None] * shifts).sum((0, 1)) / (p @ kernel)
    found = edit.apply_to_outputs(torch.from_numpy(x)[None])[0].numpy() - x
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_all_norms_are_moved_and_the_strength_is_tuned(evidence: Evidence) -> None:
    """As far as the budget goes."""
    wide = steer_clusters(evidence, PatchRequest(max_perplexity_increase=1e6))
    narrow = steer_clusters(evidence, PatchRequest(max_perplexity_increase=0.001))
    assert len(wide.edit.adaptive) == 4
    assert wide.parameters["strength"] == steering.MAX_STRENGTH
    assert 0.0 < narrow.parameters["strength"] <= wide.parameters["strength"]
    assert narrow.parameters["calibration_perplexity_increase"] <= 0.001


def _match(costs: np.ndarray) -> np.ndarray:
    """Each cluster to the nearest."""
    return (costs == costs.min(1, keepdims=True)).astype(float)
