"""Singular values and right singular vectors of the output head.

The left vectors are never needed: the patch is W - (1 - factor)(W V_k) V_k^T, and what a component
does to the vocabulary is W v_i. So the eigenvectors of W^T W, accumulated in float64 over blocks
of rows, are enough (vocab x hidden never exists in float64). Writes `decomposition.safetensors`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from safetensors.numpy import load_file, save_file
from torch import Tensor

from eigenshift.artifacts import Artifact, Workspace

logger = logging.getLogger(__name__)

STEP_VERSION = 1
FILE_NAME = "decomposition.safetensors"
ROWS_PER_BLOCK = 4096
MIN_GRAM_RATIO = 1e-6
"""Below this sigma_min / sigma_max squaring the head loses digits: use a full SVD instead."""

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Decomposition:
    """Singular values (component,) in descending order and V, shape (hidden, component)."""

    sigma: Matrix
    v: Matrix

    @property
    def energy_shares(self) -> Matrix:
        """Each component's share of the head's squared Frobenius norm, shape (component,)."""
        energy: Matrix = self.sigma**2
        return np.asarray(energy / energy.sum())

    @property
    def relative_gaps(self) -> Matrix:
        """Distance to the nearest other sigma / sigma; tiny means an arbitrary rotation."""
        gaps = np.abs(np.diff(self.sigma))
        padded = np.concatenate([[np.inf], gaps, [np.inf]])
        nearest = np.minimum(padded[:-1], padded[1:])
        return np.asarray(nearest / np.maximum(self.sigma, np.finfo(float).tiny))


def decompose_head(weight: Tensor) -> Decomposition:
    """Decompose a head of shape (vocab, hidden), any float dtype, in float64.

    Falls back to a full float64 SVD where the condition number is too high for the Gram matrix.
    """
    n_components = min(weight.shape)
    gram = np.zeros((weight.shape[1], weight.shape[1]))
    for first in range(0, len(weight), ROWS_PER_BLOCK):
        block = weight[first : first + ROWS_PER_BLOCK].detach().cpu().double().numpy()
        gram += block.T @ block
    values, vectors = scipy.linalg.eigh(gram, driver="evr", overwrite_a=True)
    sigma = np.sqrt(np.maximum(values[::-1], 0.0))[:n_components]
    v = np.ascontiguousarray(vectors[:, ::-1][:, :n_components])
    if sigma[-1] < MIN_GRAM_RATIO * sigma[0]:
        logger.warning(
            "head decomposition: smallest/largest singular value %.1e, below %.0e: full SVD",
            sigma[-1] / sigma[0],
            MIN_GRAM_RATIO,
        )
        _, sigma, vt = scipy.linalg.svd(weight.detach().cpu().double().numpy(), full_matrices=False)
        v = np.ascontiguousarray(vt.T)
    return Decomposition(sigma, v)


def write_decomposition(weight: Tensor, workspace: Workspace) -> None:
    """Decompose a head and write the result."""
    decomposition = decompose_head(weight)
    save_file({"sigma": decomposition.sigma, "v": decomposition.v}, workspace.path(FILE_NAME))
    workspace.facts = {
        "n_components": len(decomposition.sigma),
        "sigma_max": float(decomposition.sigma[0]),
        "sigma_min": float(decomposition.sigma[-1]),
        "min_relative_gap": float(decomposition.relative_gaps.min()),
    }


def open_decomposition(artifact: Artifact) -> Decomposition:
    """Read what `write_decomposition` wrote."""
    tensors = load_file(artifact.fetch(FILE_NAME))
    return Decomposition(tensors["sigma"], tensors["v"])
