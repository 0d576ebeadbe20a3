"""How firmly a head's singular vectors are where they are.

Where singular values lie close together, single components are an accident: a head that differs by
no more than the rounding of its stored numbers has others, turned into each other. What is then
well-defined is the subspace of the whole group. First-order perturbation theory gives the expected
angles: v_i is turned towards v_j by (sigma_i u_i^T E v_j + sigma_j u_j^T E v_i) /
(sigma_i^2 - sigma_j^2), for a change E of the head; with independent entries of standard deviation
s that has the variance s^2 (sigma_i^2 + sigma_j^2) / (sigma_i^2 - sigma_j^2)^2. Pure functions of
arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eigenshift.base.arrays import FloatArray, IntArray

UNSTABLE_DEGREES = 10.0
"""A component that rounding turns by more than this says little by itself."""
LINKING_DEGREES = 5.0
"""Neighbours that rounding turns into each other by more than this are one group."""
ROWS_PER_BLOCK = 256


@dataclass(frozen=True)
class Rotations:
    """How far rounding turns each component; arrays of shape (component,).

    Attributes:
        angle: Expected angle between v_i and that of the rounded head, degrees, 0 to 90.
        group: First component of the group of near-degenerate ones it belongs to; its own index
            where it stands alone.
        group_size: Components in the group.
        group_angle: Expected angle of the group's subspace, degrees (from the sum of the squared
            sines of all its principal angles, so never below the largest of them).
    """

    angle: FloatArray
    group: IntArray
    group_size: IntArray
    group_angle: FloatArray

    @property
    def n_unstable(self) -> int:
        """Components that rounding turns by more than `UNSTABLE_DEGREES`."""
        return int((self.angle > UNSTABLE_DEGREES).sum())

    def describe(self) -> dict[str, int | float]:
        """Facts for a manifest."""
        is_grouped = self.group_size > 1
        return {
            "n_unstable": self.n_unstable,
            "n_groups": len(np.unique(self.group[is_grouped])),
            "largest_group": int(self.group_size.max()),
            "max_rounding_angle": float(self.angle.max()),
            "max_group_angle": float(self.group_angle.max()),
        }


def find_rotations(sigma: FloatArray, rounding: float) -> Rotations:
    """Return how far an error of the size of rounding turns the right singular vectors.

    Args:
        sigma: Singular values in descending order, shape (component,).
        rounding: Standard deviation of the error of one entry of the head.
    """
    link = np.tan(np.radians(LINKING_DEGREES))
    is_linked = _square_mixing(sigma[:-1], sigma[1:], rounding) > link**2
    starts = np.concatenate([[True], ~is_linked])
    number = np.cumsum(starts) - 1
    first, size = np.flatnonzero(starts), np.bincount(number)
    own, leaving = np.empty(len(sigma)), np.empty(len(sigma))
    for begin in range(0, len(sigma), ROWS_PER_BLOCK):
        rows = slice(begin, begin + ROWS_PER_BLOCK)
        mixing = _square_mixing(sigma[rows, None], sigma[None, :], rounding)
        mixing[np.arange(len(mixing)), np.arange(begin, begin + len(mixing))] = 0.0
        own[rows] = mixing.sum(1)
        leaving[rows] = np.where(number[rows, None] == number[None, :], 0.0, mixing).sum(1)
    of_group: FloatArray = np.bincount(number, weights=leaving).astype(np.float64)
    return Rotations(_to_degrees(own), first[number], size[number], _to_degrees(of_group)[number])


def _square_mixing(one: FloatArray, other: FloatArray, rounding: float) -> FloatArray:
    """Expected square of the tangent by which one vector is turned towards another."""
    if rounding == 0.0:
        return np.zeros(np.broadcast_shapes(one.shape, other.shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        mixing = (one**2 + other**2) * (rounding / (one**2 - other**2)) ** 2
    return np.where(one == other, np.inf, mixing)


def _to_degrees(squared_tangent: FloatArray) -> FloatArray:
    return np.asarray(np.degrees(np.arctan(np.sqrt(squared_tangent))))
