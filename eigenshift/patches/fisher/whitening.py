"""The singular value decomposition in the Fisher metric: rank-one changes by benefit per cost.

Let M be the gradient of a benefit by a matrix W (out, in), A and G the second moments of what
enters it and of the gradient that comes back on harmless text. In the metric A (x) G (K-FAC,
Martens and Grosse, ICML 2015, arXiv 1503.05671) a change l r^T of W costs (l^T G l) (r^T A r) / 2
nats a token, and the singular triples of G^-1/2 M A^-1/2 are the rank-one changes of equal cost
ranked by what they bring. Any roots with R R^T = G give the same triples; Cholesky factors cost
least. Pure linear algebra in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eigenshift.base.errors import ModelError

METRIC_RIDGE = 0.01
"""Added to A and G, relative to their mean diagonal; `ridge.py` finds whether more does better."""
DIAGONAL_RIDGE = 1.0
"""The same for a G of which the diagonal alone is known (docs/decisions/0052)."""
STEP_RIDGE = 0.3
"""Added to the Fisher matrix of the chosen terms, likewise."""
MAX_EXACT = 512
"""Largest smaller side of a matrix whose decomposition is exact; wider ones are randomised."""
OVERSAMPLING = 16
POWER_ITERATIONS = 4


@dataclass(frozen=True)
class Metric:
    """The cost of changing one matrix: Cholesky factors of G and A, lower triangular.

    Attributes:
        of_outputs: Shape (out, out), float64; where G is taken to be diagonal its root, (out,).
        of_inputs: Shape (in, in).
    """

    of_outputs: Tensor
    of_inputs: Tensor

    @classmethod
    def of(cls, outputs: Tensor, inputs: Tensor, ridge: float, place: str = "the head") -> Metric:
        """Of second moments G and A, to which a ridge is added.

        Args:
            outputs: G, shape (out, out), or its diagonal, shape (out,), of as many tokens that all
                directions of them cannot be kept.
            inputs: A, shape (in, in).
            ridge: Relative to the mean diagonal; of a diagonal `DIAGONAL_RIDGE`.
            place: Which layer's, for messages.

        Raises:
            ModelError: A moment is not finite.
        """
        if not all(bool(moment.isfinite().all()) for moment in (outputs, inputs)):
            raise ModelError(
                f"Fisher metric of {place}: expected finite states and derivatives of harmless "
                "text, found NaN or infinity. Some step of the architecture has no derivative at "
                "its states, or the precision is too low. Use model.dtype: float32, or an "
                "intervention of the head alone (patch.intervention: eigenshift_fisher)."
            )
        return cls(*(_find_root(moment, ridge) for moment in (outputs, inputs)))

    def whiten(self, gradient: Tensor) -> Tensor:
        """G^-1/2 M A^-1/2, shape (out, in)."""
        half = _solve(self.of_outputs, gradient.double())
        return _solve(self.of_inputs, half.T).T

    def find_left(self, vectors: Tensor) -> Tensor:
        """Directions that are written, of whitened vectors, shape (out, k)."""
        return _solve_transposed(self.of_outputs, vectors)

    def find_right(self, vectors: Tensor) -> Tensor:
        """Directions that are read, of whitened vectors, shape (in, k)."""
        return _solve_transposed(self.of_inputs, vectors)

    def weigh(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of a change, such that its squared norm is twice its cost."""
        outputs = self.of_outputs
        written = outputs[:, None] * left if outputs.ndim == 1 else outputs.T @ left
        return written, self.of_inputs.T @ right


@dataclass(frozen=True)
class Triples:
    """Rank-one changes left_j right_j^T of one matrix, best first, each of cost 1/2 in its metric.

    Attributes:
        gain: What each brings to first order, shape (k,): benefit per root of cost.
        left: Shape (out, k), float64.
        right: Shape (in, k).
    """

    gain: Tensor
    left: Tensor
    right: Tensor


def find_triples(gradient: Tensor, metric: Metric, n_terms: int, seed: int = 0) -> Triples:
    """The leading singular triples of the whitened gradient.

    Args:
        gradient: M, shape (out, in).
        metric: Of the same matrix.
        n_terms: At most so many.
        seed: Of the randomised decomposition of wide matrices.
    """
    u, s, v = _decompose(gradient, metric, n_terms, seed)
    return Triples(s, metric.find_left(u), metric.find_right(v))


def _decompose(
    gradient: Tensor, metric: Metric, n_terms: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading left vectors (out, k), values (k,) and right vectors (in, k), whitened.

    Of a wide matrix by subspace iteration, which whitens what it multiplies: beside the gradient,
    in whatever precision it comes, nothing of its size is made.
    """
    n_terms = min(n_terms, *gradient.shape)
    if min(gradient.shape) <= max(MAX_EXACT, n_terms + OVERSAMPLING):
        u, s, vt = torch.linalg.svd(metric.whiten(gradient), full_matrices=False)
        return u[:, :n_terms], s[:n_terms], vt[:n_terms].T

    def multiply(vectors: Tensor) -> Tensor:
        found = gradient @ metric.find_right(vectors).to(gradient)
        return _solve(metric.of_outputs, found.double())

    def multiply_transposed(vectors: Tensor) -> Tensor:
        found = gradient.T @ metric.find_left(vectors).to(gradient)
        return _solve(metric.of_inputs, found.double())

    generator = torch.Generator(device=gradient.device).manual_seed(seed)
    size = (gradient.shape[1], n_terms + OVERSAMPLING)
    start = torch.randn(size, generator=generator, device=gradient.device, dtype=torch.float64)
    basis = torch.linalg.qr(multiply(start)).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(multiply(torch.linalg.qr(multiply_transposed(basis)).Q)).Q
    v, s, ut = torch.linalg.svd(multiply_transposed(basis), full_matrices=False)
    return (basis @ ut.T)[:, :n_terms], s[:n_terms], v[:, :n_terms]


def solve_steps(gains: Tensor, fisher: Tensor) -> Tensor:
    """How far to go along each term: -(F + ridge)^-1 b, of length 1.

    Args:
        gains: b, derivative of the benefit's opposite along each term, shape (k,).
        fisher: F, exact Fisher matrix in these terms, shape (k, k): it knows what K-FAC does not,
            above all that terms of different layers overlap.
    """
    ridge = STEP_RIDGE * fisher.diagonal().mean()
    damped = fisher + ridge * torch.eye(len(fisher), dtype=fisher.dtype, device=fisher.device)
    steps: Tensor = -torch.linalg.solve(damped, gains.to(fisher))
    steps /= steps.norm()
    return steps


def compress(
    left: Tensor, right: Tensor, n_terms: int, metric: Metric | None = None, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The change left right^T by fewer terms, those that cost most in the metric.

    Args:
        left: Shape (out, m).
        right: Shape (in, m).
        n_terms: Keep at most so many.
        metric: In which a change is measured; None: by its own entries.
        share: Keep no more than hold this share of the squared norm.

    Returns:
        Left (out, k), with the size of each term, and right (in, k) of unit norm in the metric.
    """
    weighted = (left, right) if metric is None else metric.weigh(left, right)
    (q_left, r_left), (q_right, r_right) = (torch.linalg.qr(factor) for factor in weighted)
    u, s, vt = torch.linalg.svd(r_left @ r_right.T)
    energy = (s**2).cumsum(0) / (s**2).sum().clamp_min(torch.finfo(s.dtype).tiny)
    n_needed = int((energy < share * (1.0 - 1e-12)).sum()) + 1
    kept = min(n_terms, n_needed, len(s))
    u, v = q_left @ u[:, :kept] * s[:kept], q_right @ vt[:kept].T
    return (u, v) if metric is None else (metric.find_left(u), metric.find_right(v))


def list_groups(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Places in groups, in order, of at most so much in all; what is larger alone."""
    groups: list[list[int]] = []
    total = 0
    for place, size in enumerate(sizes):
        if groups and total + size <= most:
            groups[-1].append(place)
            total += size
        else:
            groups.append([place])
            total = size
    return groups


def _find_root(moment: Tensor, relative_ridge: float) -> Tensor:
    """Cholesky factor with the ridge; where rounding leaves it indefinite, with a larger one.

    Of a diagonal, shape (n,), its root.
    """
    wide = moment.double()
    if wide.ndim == 1:
        ridge = DIAGONAL_RIDGE * wide.mean().clamp_min(torch.finfo(torch.float32).tiny)
        return (wide + ridge).sqrt()
    identity = torch.eye(len(wide)).to(wide)
    smallest = torch.finfo(torch.float32).tiny
    ridge = relative_ridge * wide.diagonal().abs().mean().clamp_min(smallest)
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(wide + ridge * identity)
    while bool(failed):
        ridge = ridge * 10.0
        root, failed = torch.linalg.cholesky_ex(wide + ridge * identity)
    return root


def _solve(root: Tensor, values: Tensor) -> Tensor:
    if root.ndim == 1:
        return values / root[:, None]
    solved: Tensor = torch.linalg.solve_triangular(root, values, upper=False)
    return solved


def _solve_transposed(root: Tensor, values: Tensor) -> Tensor:
    if root.ndim == 1:
        return values / root[:, None]
    solved: Tensor = torch.linalg.solve_triangular(root.T, values, upper=True)
    return solved
