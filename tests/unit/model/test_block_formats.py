"""GGUF formats: bytes as llama.cpp writes them, values as the gguf library reads them."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from eigenshift.base.errors import SettingsError
from eigenshift.model.block_formats import choose_stored, encode_rows, name_format, round_rows
from eigenshift.settings import BlockFormat

DIGESTS = {
    BlockFormat.q8_0: "5d46c6683a9b40c8e3b5fa3121dfdc9287100dd543220162d12a0faeb21ce512",
    BlockFormat.q6_k: "709ec4eb161f442d04ef648298c881aea5c881653ce6b3809485eb6833660284",
    BlockFormat.q5_k: "127b51d622a47093750cd328a56038886e5baaaf19adfb7a9ce93f0519baa8a0",
    BlockFormat.q5_1: "767c44cd6af1d8c07a2c5ad7103ee6d309ee2ff4bc436153c7ac5db8987b98cc",
    BlockFormat.q5_0: "fa128273a74ba33aaedd39b6c819fabfa8ab02aa877cc42165c12622d90e1634",
    BlockFormat.q4_k: "4c1c100f13793b5ad1ab766055306f51bdbec386290d22efbe9c89032fe46df1",
    BlockFormat.q4_0: "7eb3065c911a0b5ade402c96a464b3e5080d23c0f7ef282349f6f9e684bd36f3",
}
"""sha256 of what llama.cpp's `quantize_row_*_ref` make of the values below: `ggml-quants.c` of
llama-cpp-python 0.3.36, compiled by gcc with -ffp-contract=off."""


def make_values() -> Any:
    """Made-up rows: cubes of evenly spread numbers, zeros, one sign only, one value, extremes."""
    steps = np.arange(12 * 512, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)
    values = ((steps.astype(np.float64) / 2**31 - 1) ** 3).astype(np.float32).reshape(12, 512)
    values[1] = 0
    values[2, :300] = 0
    values[3] = np.abs(values[3])
    values[4] = -np.abs(values[4]) * np.float32(1e-3)
    values[5] = 0.25
    values[6, :256] = 1e-16
    values[7] *= 1000
    values[8, ::7] *= 30
    values[9] = values[9].astype(np.float16)
    return values


@pytest.mark.parametrize(("stored", "digest"), DIGESTS.items(), ids=lambda item: str(item)[:6])
def test_bytes_are_those_of_llama_cpp(stored: BlockFormat, digest: str) -> None:
    """Byte for byte, odd blocks too."""
    encoded = np.ascontiguousarray(encode_rows(make_values(), stored)).view(np.uint8)
    assert hashlib.sha256(encoded.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("stored", BlockFormat)
def test_values_are_what_the_library_decodes(stored: BlockFormat) -> None:
    """In parts of rows as in one, near the values, in the dtype they came in."""
    values = torch.from_numpy(make_values())
    rounded = round_rows(values, stored)
    encoded = encode_rows(values.numpy(), stored)
    expected = gguf.dequantize(encoded, gguf.GGMLQuantizationType[name_format(stored)])
    np.testing.assert_array_equal(rounded.numpy(), expected)
    n_bits = {"f16": 10, "q8": 7, "q6": 5, "q5": 4, "q4": 3}[stored.value.split("_")[0]]
    for row, found in zip(values, rounded, strict=True):
        for block, its_own in zip(row.split(256), found.split(256), strict=True):
            step = (block.max() - block.min()).clamp_min(block.abs().max()) / 2**n_bits
            assert (block - its_own).abs().max() <= 2 * step + 1e-15
    half = round_rows(values.bfloat16(), stored)
    assert half.dtype == torch.bfloat16


def test_a_row_that_does_not_fill_its_blocks_is_stored_as_llama_cpp_does() -> None:
    """256 values for the K formats, else their kin of 32, else float16."""
    assert choose_stored(BlockFormat.q6_k, 4096) is BlockFormat.q6_k
    assert choose_stored(BlockFormat.q6_k, 576) is BlockFormat.q8_0
    assert choose_stored(BlockFormat.q5_k, 576) is BlockFormat.q5_1
    assert choose_stored(BlockFormat.q4_k, 576) is BlockFormat.q5_0
    assert choose_stored(BlockFormat.q4_0, 576) is BlockFormat.q4_0
    assert choose_stored(BlockFormat.q4_k, 40) is BlockFormat.f16
    assert choose_stored(BlockFormat.q8_0, 40) is BlockFormat.f16


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formats are an extra's."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SettingsError, match=r"found none\. Run pip install 'eigenshift\[real-mod"):
        round_rows(torch.ones(1, 32), BlockFormat.q8_0)
