"""Singular values and right singular vectors of the output head.

The left vectors are never needed: the patch is W - (1 - factor)(W V_k) V_k^T, and what a component
does to the vocabulary is W v_i. So the eigenvectors of W^T W, accumulated in float64 over blocks
of rows straight from the checkpoint's file, are enough: neither the model nor the head is ever in
memory whole. Writes `decomposition.safetensors`. How far single components can be told apart is
`spectral_gaps.py`.

Squaring the head loses the small singular values: beside sigma_max those below 5e-4 of it are less
precise than 1e-9. Their subspace is still right, so the head restricted to it is decomposed once
more, and so on (docs/decisions/0030-decomposition-in-levels.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import scipy.linalg
from safetensors.numpy import load_file, save_file
from scipy.linalg import blas

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.components.spectral_gaps import UNSTABLE_DEGREES, find_rotations
from eigenshift.model.head_files import (
    EPSILONS,
    VALUES_PER_BLOCK,
    find_stored_head,
)

if TYPE_CHECKING:  # a process that only decomposes does without torch and the store
    from torch import Tensor

    from eigenshift.components.stages import DecompositionInputs, DecompositionKey
    from eigenshift.settings import ModelSettings, Placement
    from eigenshift.stages.stage import Bench
    from eigenshift.store.artifact import Artifact
    from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)

LEVEL_RATIO = 5e-4
"""Singular values down to this share of a level's largest are precise to 1e-9 or better."""
N_POWER_ITERATIONS = 6
OVERSAMPLING = 32
MEAN_SQUARED_SPACING = 0.462
"""E[spacing^2] / (epsilon^2 E[w^2]) where the mantissas are spread evenly in the logarithm."""


class HeadRows(Protocol):
    """A head's weight, whose rows can be gone through again and again."""

    @property
    def shape(self) -> tuple[int, int]:
        """(vocab, hidden)."""
        ...

    @property
    def epsilon(self) -> float:
        """Relative spacing of the numbers the weight is stored in."""
        ...

    def iterate_blocks(self) -> Iterator[FloatArray]:
        """Yield the rows in order as float64, shape (row, hidden); a block is valid until the next.

        Anything that lowers precision on the way is part of the head.
        """
        ...


@dataclass(frozen=True)
class Decomposition:
    """Singular values (component,) in descending order and V, shape (hidden, component).

    Attributes:
        sigma: All of them, or the leading ones only.
        v: Orthonormal columns.
        energy: Squared Frobenius norm of the head; None: of these components only.
        rounding: Standard deviation of the rounding error of one of its entries.
    """

    sigma: FloatArray
    v: FloatArray
    energy: float | None = None
    rounding: float = 0.0

    @property
    def energy_shares(self) -> FloatArray:
        """Each component's share of the head's squared Frobenius norm, shape (component,)."""
        energy: FloatArray = self.sigma**2
        return np.asarray(energy / (self.energy or energy.sum()))

    @property
    def relative_gaps(self) -> FloatArray:
        """Distance to the nearest other sigma / sigma; tiny means an arbitrary rotation."""
        gaps = np.abs(np.diff(self.sigma))
        padded = np.concatenate([[np.inf], gaps, [np.inf]])
        nearest = np.minimum(padded[:-1], padded[1:])
        return np.asarray(nearest / np.maximum(self.sigma, np.finfo(float).tiny))


@dataclass(frozen=True)
class TensorRows:
    """A head in memory, any float dtype and device."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(vocab, hidden)."""
        return (self.weight.shape[0], self.weight.shape[1])

    @property
    def epsilon(self) -> float:
        """Relative spacing of its dtype."""
        return EPSILONS[str(self.weight.dtype).removeprefix("torch.")]

    def iterate_blocks(self) -> Iterator[FloatArray]:
        """Yield the rows in order as float64."""
        rows = max(1, VALUES_PER_BLOCK // self.weight.shape[1])
        for first in range(0, len(self.weight), rows):
            yield self.weight[first : first + rows].detach().cpu().double().numpy()


def decompose_head(weight: Tensor) -> Decomposition:
    """Decompose a head in memory, shape (vocab, hidden), any float dtype, in float64."""
    return decompose_rows(TensorRows(weight))


def decompose_rows(rows: HeadRows, device: str | None = None) -> Decomposition:
    """Decompose a head whole and exactly.

    Singular values are precise to 1e-9 relative down to about 1e-7 of the largest, below to
    rounding errors of the largest, as in any other method.

    Args:
        rows: The head.
        device: Where the heavy steps run, by torch; None: on the processor, without it.

    Raises:
        ComponentError: The head has a value that is not finite.
    """
    sigma: list[FloatArray] = []
    v: list[FloatArray] = []
    basis: FloatArray | None = None
    energy = largest = 0.0
    while basis is None or basis.shape[1]:
        gram = _accumulate_gram(rows, basis, device)
        if basis is None:
            energy = _require_finite(gram)
        values, directions = _find_eigenvectors(gram, device)
        del gram
        if basis is not None:
            directions = basis @ directions
        largest = max(largest, values[0])
        is_noise = values[0] <= np.finfo(float).eps * len(directions) * largest
        n_sound = len(values) if is_noise else int((values >= LEVEL_RATIO * values[0]).sum())
        sigma.append(values[:n_sound])
        v.append(directions[:, :n_sound])
        basis = directions[:, n_sound:]
    if len(sigma) > 1:
        logger.info("head decomposition: done in %d levels, for its condition number", len(sigma))
    return _assemble(sigma, v, energy, rows)


def _assemble(
    sigma: list[FloatArray], v: list[FloatArray], energy: float, rows: HeadRows
) -> Decomposition:
    """Levels in one, in descending order, without the null space of a wide head."""
    if len(sigma) == 1:
        values, vectors = sigma[0], v[0]
    else:
        values, vectors = np.concatenate(sigma), np.concatenate(v, axis=1)
        order = np.argsort(-values, kind="stable")
        values, vectors = values[order], vectors[:, order]
    n_components = min(rows.shape)
    rounding = rows.epsilon * np.sqrt(MEAN_SQUARED_SPACING / 12 * energy / np.prod(rows.shape))
    return Decomposition(values[:n_components], vectors[:, :n_components], energy, float(rounding))


def decompose_leading(rows: HeadRows, n_components: int, seed: int) -> Decomposition:
    """Decompose the leading components only, approximately: randomised subspace iteration.

    For heads too wide for the exact method (hidden x hidden must fit into memory there). The flat
    end of a head's spectrum converges slowly: vectors of close singular values stay mixed.

    Args:
        rows: The head.
        n_components: How many.
        seed: Of the random start.

    Raises:
        ComponentError: The head has a value that is not finite.
    """
    width = min(*rows.shape, n_components + OVERSAMPLING)
    basis = np.random.default_rng(seed).standard_normal((rows.shape[1], width))
    for _ in range(N_POWER_ITERATIONS):
        basis = np.linalg.qr(sum(block.T @ (block @ basis) for block in rows.iterate_blocks()))[0]
    energy = sum(float(np.einsum("ij,ij->", block, block)) for block in rows.iterate_blocks())
    gram = _accumulate_gram(rows, basis)
    _require_finite(gram)
    values, directions = _find_eigenvectors(gram)
    kept = min(n_components, *rows.shape)
    return _assemble([values[:kept]], [basis @ directions[:, :kept]], energy, rows)


def _accumulate_gram(
    rows: HeadRows, basis: FloatArray | None, device: str | None = None
) -> FloatArray:
    """W^T W, or that of W restricted to an orthonormal basis; the lower triangle only."""
    if device is not None:
        from eigenshift.components import device_algebra

        return device_algebra.accumulate_gram(rows, basis, device)
    width = rows.shape[1] if basis is None else basis.shape[1]
    gram = np.zeros((width, width), order="F")
    for block in rows.iterate_blocks():
        given = block if basis is None else block @ basis
        gram = blas.dsyrk(1.0, given.T, beta=1.0, c=gram, overwrite_c=1, lower=1)
    return gram


def _find_eigenvectors(
    gram: FloatArray, device: str | None = None
) -> tuple[FloatArray, FloatArray]:
    """Square roots of the eigenvalues, descending, and the eigenvectors in columns."""
    if device is not None:
        from eigenshift.components import device_algebra

        return device_algebra.find_eigenvectors(gram, device)
    values, vectors = scipy.linalg.eigh(
        gram, driver="evr", lower=True, overwrite_a=True, check_finite=False
    )
    return np.sqrt(np.maximum(values[::-1], 0.0)), vectors.T[::-1].copy().T


def _require_finite(gram: FloatArray) -> float:
    """Return the trace: the head's squared Frobenius norm."""
    trace = float(np.trace(gram))
    if not np.isfinite(trace):
        raise ComponentError(
            "output head: expected finite weights, found NaN or infinite ones (or values whose "
            "squares are). The checkpoint is damaged, or its values do not fit into model.dtype. "
            "Fetch it again, or set model.dtype: float32."
        )
    return trace


def write_decomposition(
    settings: ModelSettings,
    head: dict[str, object],
    *,
    device: str | Placement,
    n_leading: int | None,
    seed: int,
    workspace: Workspace,
    gpu: str | None = None,
) -> None:
    """Decompose the head a model runs with and write the result.

    Its rows come from the checkpoint's file if the digest of what is there, rounded to the model's
    dtype, is that of the head in the loaded model; otherwise the model is loaded.

    Args:
        settings: Which model, at which precision.
        head: The head as `description.describe_model` describes it.
        device: Where the model is loaded if it must be.
        n_leading: Decompose only so many components, approximately; None: all, exactly.
        seed: Of the approximation.
        workspace: Receives the file.
        gpu: Where the exact method's heavy steps run, by torch; None: on the processor.
    """
    from eigenshift.components.stages import DECOMPOSITION_NAME
    from eigenshift.model.files import identify_model

    stored = find_stored_head(identify_model(settings).folder, head)
    decompose = _choose_method(n_leading, seed, gpu)
    if stored is not None:
        source, decomposition = f"file {stored.path.name}: {stored.name}", decompose(stored)
    else:
        from eigenshift.model.loading import use_model

        logger.info("head decomposition: no tensor of the files is the head; loading the model")
        with use_model(settings, device) as language_model:
            source, decomposition = "model", decompose(TensorRows(language_model.head_weight))
    tensors = {
        "sigma": decomposition.sigma,
        "v": np.ascontiguousarray(decomposition.v),
        "energy": np.array([decomposition.energy or 0.0]),
        "rounding": np.array([decomposition.rounding]),
    }
    save_file(tensors, workspace.path(DECOMPOSITION_NAME))
    rotations = find_rotations(decomposition.sigma, decomposition.rounding)
    if rotations.n_unstable:
        logger.warning(
            "head decomposition: single components are not firm: n=%d of %d turn by more than "
            "%g degrees when the head is rounded to its stored precision; see groups in the "
            "components view",
            rotations.n_unstable,
            len(decomposition.sigma),
            UNSTABLE_DEGREES,
        )
    workspace.facts = {
        "n_components": len(decomposition.sigma),
        "sigma_max": float(decomposition.sigma[0]),
        "sigma_min": float(decomposition.sigma[-1]),
        "min_relative_gap": float(decomposition.relative_gaps.min()),
        "head_digest": head["digest"],
        "source": source,
        "is_exact": n_leading is None,
        **rotations.describe(),
    }


def _choose_method(
    n_leading: int | None, seed: int, gpu: str | None
) -> Callable[[HeadRows], Decomposition]:
    if n_leading is None:
        return lambda rows: decompose_rows(rows, gpu)
    return lambda rows: decompose_leading(rows, n_leading, seed)


def _find_gpu(device: str) -> str | None:
    """The GPU of the settings; None where they name the processor, or there is none."""
    if device == "cpu":
        return None
    from eigenshift.model.devices import resolve_device

    found = resolve_device(device)
    return None if found.type == "cpu" else str(found)


def open_decomposition(artifact: Artifact) -> Decomposition:
    """Read what `write_decomposition` wrote."""
    from eigenshift.components.stages import DECOMPOSITION_NAME

    tensors = load_file(artifact.fetch(DECOMPOSITION_NAME))
    return Decomposition(
        tensors["sigma"], tensors["v"], float(tensors["energy"][0]), float(tensors["rounding"][0])
    )


def carry_out(
    inputs: DecompositionInputs, key: DecompositionKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `decompose_head`."""
    write_decomposition(
        bench.model,
        bench.artifacts.open(inputs.model).manifest.facts["head"],
        device=bench.execution,
        n_leading=key.n_decomposed,
        seed=key.seed or 0,
        workspace=workspace,
        gpu=_find_gpu(bench.execution.device),
    )
