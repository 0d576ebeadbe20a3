"""What a weight becomes in the block formats of GGUF files: rounded there and back, exactly.

Reads rows of values and gives the values that llama.cpp would compute with. Blocks of 32 are
encoded by the gguf library, which only decodes the K formats (superblocks of 256); those are
encoded here as llama.cpp's reference does without an importance matrix (`ggml-quants.c`,
`quantize_row_q4_K_ref` and its neighbours), in float32 and in its order of summation, so that bytes
are equal. Decoding is the library's for all. Which tensors are rounded is the caller's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eigenshift.base.errors import SettingsError
from eigenshift.settings import BlockFormat

EXTRA = "real-model"
SUPERBLOCK = 256
VALUES_PER_CHUNK = 1 << 20
"""Encoded at once: some dozen arrays of so many float32 values."""
TINY = 1e-15
"""Below this llama.cpp takes a block for zero."""

FALLBACKS = {
    BlockFormat.q4_k: BlockFormat.q5_0,
    BlockFormat.q5_k: BlockFormat.q5_1,
    BlockFormat.q6_k: BlockFormat.q8_0,
}
"""What llama.cpp takes where a row is no multiple of 256 values."""

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def choose_stored(asked: BlockFormat, n_columns: int) -> BlockFormat:
    """The format that llama.cpp stores rows of so many values in when it is asked for one."""
    found = asked
    if asked in FALLBACKS and n_columns % SUPERBLOCK:
        found = FALLBACKS[asked]
    size = SUPERBLOCK if found in FALLBACKS else 32
    return BlockFormat.f16 if n_columns % size else found


def round_rows(values: Tensor, stored: BlockFormat) -> Tensor:
    """The values that are left of a weight.

    Args:
        values: Shape (row, column), any float dtype and device; columns are what a row's blocks
            run along, of a linear layer its inputs.
        stored: As `choose_stored` gives it for these columns.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        SettingsError: The gguf package is not installed.
    """
    library = require_gguf()
    rounded = torch.empty_like(values)
    n_rows = max(1, VALUES_PER_CHUNK // max(1, values.shape[1]))
    for first in range(0, len(values), n_rows):
        rows = slice(first, first + n_rows)
        block = values[rows].detach().float().cpu().numpy()
        decoded = library.dequantize(encode_rows(block, stored), find_type(stored))
        rounded[rows] = torch.from_numpy(np.ascontiguousarray(decoded)).to(rounded)
    return rounded


def encode_rows(values: Floats, stored: BlockFormat) -> npt.NDArray[Any]:
    """A weight's bytes in a GGUF file, shape (row, bytes of a row).

    Args:
        values: Shape (row, column), float32.
        stored: A format whose blocks the columns fill.
    """
    if stored not in FALLBACKS:
        encoded: npt.NDArray[Any] = require_gguf().quantize(values, find_type(stored))
        return encoded
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, SUPERBLOCK)
    if stored is BlockFormat.q6_k:
        packed = _encode_q6_k(blocks)
    else:
        packed = _encode_with_minimum(blocks, n_bits=4 if stored is BlockFormat.q4_k else 5)
    return packed.reshape(len(values), -1)


def find_type(stored: BlockFormat) -> Any:
    """The gguf library's name of a format."""
    return require_gguf().GGMLQuantizationType[name_format(stored)]


def name_format(stored: BlockFormat) -> str:
    """How llama.cpp writes a format: Q4_K."""
    return stored.value.upper()


def require_gguf() -> Any:
    """The gguf library.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise SettingsError(
            "rounding: expected the gguf package, which knows the formats, found none. Run "
            f"pip install 'eigenshift[{EXTRA}]'."
        ) from error
    return gguf


def _encode_with_minimum(blocks: Floats, *, n_bits: int) -> Bytes:
    """Q4_K and Q5_K: 8 blocks of 32, each with a scale and a minimum of 6 bits.

    Args:
        blocks: Shape (superblock, 256).
        n_bits: Of a code.
    """
    n_levels = (1 << n_bits) - 1
    first, n_steps = (-1.0, 20) if n_bits == 4 else (-0.5, 15)
    values = np.ascontiguousarray(blocks.reshape(-1, 32).T)  # (value, block)
    scale, minimum, codes = _fit_with_minimum(values, n_levels, first, n_steps)
    scales, minima = scale.reshape(-1, 8), minimum.reshape(-1, 8)
    step, low = scales.max(1).clip(0), minima.max(1).clip(0)  # of a superblock
    scale_codes = _round(scales * _divide(63, step)[:, None]).astype(np.uint8).clip(max=63)
    low_codes = _round(minima * _divide(63, low)[:, None]).astype(np.uint8).clip(max=63)
    half_step, half_low = (step / 63).astype(np.float16), (low / 63).astype(np.float16)
    gain = (half_step.astype(np.float32)[:, None] * scale_codes).ravel()
    offset = (half_low.astype(np.float32)[:, None] * low_codes).ravel()
    is_used = gain != 0
    fitted = _round((values + offset) / np.where(is_used, gain, np.float32(1))).clip(0, n_levels)
    codes = np.where(is_used, fitted, codes).astype(np.uint8).T.reshape(-1, 4, 2, 32)
    parts = [
        half_step.view(np.uint8).reshape(-1, 2),
        half_low.view(np.uint8).reshape(-1, 2),
        _pack_six_bits(scale_codes, low_codes),
    ]
    if n_bits == 5:
        places = np.arange(8, dtype=np.uint8).reshape(4, 2, 1)
        parts.append(np.bitwise_or.reduce((codes >> 4) << places, axis=(1, 2)))
    parts.append(((codes[:, :, 0] & 15) | ((codes[:, :, 1] & 15) << 4)).reshape(-1, 128))
    return np.concatenate(parts, axis=1)


def _fit_with_minimum(
    values: Floats, n_levels: int, first: float, n_steps: int
) -> tuple[Floats, Floats, Floats]:
    """Scale, minus the minimum, and codes of each block: the best of some steps by weighted error.

    Args:
        values: Shape (value, block).
        n_levels: The largest code.
        first: Where the search of scales begins, in codes; each of its steps is 0.1.
        n_steps: How many there are.
    """
    weights = np.sqrt((values * values).sum(0) / len(values)) + np.abs(values)
    weighted = weights * values
    sum_w, sum_x = weights.sum(0), weighted.sum(0)
    low, high = values.min(0).clip(max=0), values.max(0)
    is_flat = high == low
    width = np.where(is_flat, 1, high - low).astype(np.float32)
    inverse = np.float32(n_levels) / width
    codes = _round(inverse * (values - low)).clip(0, n_levels)
    scale, minimum = np.float32(1) / inverse, low
    best = _sum_errors(scale, codes, minimum, values, weights)
    for step in range(n_steps + 1):
        inverse = (np.float32(first) + np.float32(0.1) * step + n_levels) / width
        tried = _round(inverse * (values - minimum)).clip(0, n_levels)
        by_code = weights * tried
        sum_l, sum_l2 = by_code.sum(0), (by_code * tried).sum(0)
        sum_xl = (by_code * values).sum(0)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        is_fit = determinant > 0
        safe = np.where(is_fit, determinant, 1)
        its_scale = (sum_w * sum_xl - sum_x * sum_l) / safe
        its_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / safe
        is_positive = its_minimum > 0
        its_scale = np.where(is_positive, _divide(sum_xl, sum_l2), its_scale)
        its_minimum = np.where(is_positive, 0, its_minimum).astype(np.float32)
        error = _sum_errors(its_scale, tried, its_minimum, values, weights)
        is_better = is_fit & (error < best)
        best = np.where(is_better, error, best)
        scale = np.where(is_better, its_scale, scale)
        minimum = np.where(is_better, its_minimum, minimum)
        codes = np.where(is_better, tried, codes)
        width = np.where(is_flat, 1, high - minimum)  # the search goes on from what is best so far
    codes = np.where(is_flat, 0, codes)
    return np.where(is_flat, 0, scale).astype(np.float32), -np.where(is_flat, low, minimum), codes


def _sum_errors(
    scale: Floats, codes: Floats, minimum: Floats, values: Floats, weights: Floats
) -> Floats:
    difference = scale * codes + minimum - values
    found: Floats = (weights * (difference * difference)).sum(0)
    return found


def _pack_six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """8 scales and 8 minima of 6 bits in 12 bytes, shape (superblock, 12)."""
    packed = np.empty((len(scales), 12), np.uint8)
    packed[:, :4] = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    packed[:, 4:8] = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    packed[:, 8:] = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return packed


def _encode_q6_k(blocks: Floats) -> Bytes:
    """Q6_K: 16 blocks of 16, each with a scale of 8 bits.

    Args:
        blocks: Shape (superblock, 256).
    """
    values = np.ascontiguousarray(blocks.reshape(-1, 16).T)  # (value, block)
    scale, codes = _fit_symmetric(values, 32)
    scales = scale.reshape(-1, 16)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(1)[:, None], 1)[:, 0]
    is_zero = np.abs(largest) < TINY
    inverse = _divide(-128, np.where(is_zero, 0, largest))
    half = _divide(1, inverse).astype(np.float16)
    scale_codes = _round(scales * inverse[:, None]).clip(max=127).astype(np.int8)
    gain = (half.astype(np.float32)[:, None] * scale_codes).ravel()
    is_used = gain != 0
    divisor = np.where(is_used, gain, np.float32(1)).astype(np.float32)
    fitted = _round((values / divisor).astype(np.float32)).clip(-32, 31) + 32
    codes = np.where(is_used, fitted, codes).astype(np.uint8).T.reshape(-1, 2, 4, 32)
    codes[is_zero] = 0
    low, high = codes & 15, codes >> 4
    places = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    parts = [
        (low[:, :, :2] | (low[:, :, 2:] << 4)).reshape(-1, 128),
        np.bitwise_or.reduce(high << places, axis=2).reshape(-1, 64),
        scale_codes.view(np.uint8),
        half.view(np.uint8).reshape(-1, 2),
    ]
    return np.concatenate(parts, axis=1)


def _fit_symmetric(values: Floats, n_levels: int) -> tuple[Floats, Floats]:
    """Scale and codes, from 0 on, of each block: the best of 19 scales by squared weights.

    Args:
        values: Shape (value, block).
        n_levels: Codes stand for -n_levels to n_levels - 1 times the scale.
    """
    extreme = np.take_along_axis(values, np.abs(values).argmax(0)[None], 0)[0]
    is_zero = np.abs(extreme) < TINY
    extreme = np.where(is_zero, 1, extreme).astype(np.float32)
    weighted = values * values * values

    def try_scale(inverse: Floats) -> tuple[Floats, Floats, Floats]:
        tried = _round(inverse * values).clip(-n_levels, n_levels - 1)
        return tried, (weighted * tried).sum(0), (values * values * tried * tried).sum(0)

    codes, sum_lx, sum_l2 = try_scale(np.float32(-n_levels) / extreme)
    scale = _divide(sum_lx, sum_l2)
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        tried, sum_lx, sum_l2 = try_scale(-(n_levels + np.float32(0.1) * step) / extreme)
        is_better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = np.where(is_better, tried, codes)
        scale = np.where(is_better, _divide(sum_lx, sum_l2), scale)
        best = np.where(is_better, scale * sum_lx, best)
    return np.where(is_zero, 0, scale).astype(np.float32), np.where(is_zero, 0, codes + n_levels)


def _round(values: Floats) -> Floats:
    """To the nearest integer, halves to even, as adding 12582912 does in float32."""
    return np.rint(values)


def _divide(above: Floats | float, below: Floats) -> Floats:
    """A quotient, 0 where it has none."""
    is_fine = below != 0
    return np.where(is_fine, np.float32(above) / np.where(is_fine, below, 1), 0).astype(np.float32)
