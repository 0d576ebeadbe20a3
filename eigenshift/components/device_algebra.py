"""The two heavy steps of the head's decomposition on a device that torch drives, in float64.

Takes and gives arrays of numpy. On the processor the steps are those of `decomposition.py`, without
torch; what the two find differs by rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from eigenshift.base.arrays import FloatArray

if TYPE_CHECKING:
    from eigenshift.components.decomposition import HeadRows


def accumulate_gram(rows: HeadRows, basis: FloatArray | None, device: str) -> FloatArray:
    """W^T W, or that of W restricted to an orthonormal basis, shape (hidden, hidden) or less."""
    span = None if basis is None else torch.from_numpy(basis).to(device)
    width = rows.shape[1] if span is None else span.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    for block in rows.iterate_blocks():
        # a copy, for the rows come in memory that the next block is read into
        given = torch.from_numpy(np.array(block)).to(device)
        given = given if span is None else given @ span
        gram.addmm_(given.T, given)
    found: FloatArray = gram.cpu().numpy()
    return found


def find_eigenvectors(gram: FloatArray, device: str) -> tuple[FloatArray, FloatArray]:
    """Square roots of the eigenvalues, descending, and the eigenvectors in columns."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(gram).to(device))
    values, vectors = values.clamp_min(0.0).sqrt().flip(0), vectors.flip(1)
    return values.cpu().numpy(), np.ascontiguousarray(vectors.cpu().numpy())
