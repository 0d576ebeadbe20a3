"""Values of a GGUF file against what its bytes stand for, in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.fetching.gguf_files import open_gguf
from tests.support.packaged_models import decode_q4_1, decode_q8_0

N_ROWS, N_BLOCKS = 7, 3


def make_blocks(n_floats: int, n_bytes: int) -> np.ndarray:
    """Random blocks: a few half floats of both signs, then any bytes."""
    rng = np.random.default_rng(0)
    floats = rng.normal(size=(N_ROWS, N_BLOCKS, n_floats)).astype(np.float16)
    rest = rng.integers(0, 256, size=(N_ROWS, N_BLOCKS, n_bytes), dtype=np.uint8)
    return np.concatenate([floats.view(np.uint8), rest], axis=2).reshape(N_ROWS, -1)


def write_tensor(path: Path, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> Path:
    """A GGUF file with one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("some.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "n_floats", "n_bytes", "decode"),
    [
        (gguf.GGMLQuantizationType.Q4_1, 2, 16, decode_q4_1),
        (gguf.GGMLQuantizationType.Q8_0, 1, 32, decode_q8_0),
    ],
    ids=["Q4_1", "Q8_0"],
)
def test_quantised_values_are_what_their_bytes_stand_for(
    tmp_path: Path,
    kind: gguf.GGMLQuantizationType,
    n_floats: int,
    n_bytes: int,
    decode: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Scale times step plus offset, worked out in float64, to float32's rounding."""
    blocks = make_blocks(n_floats, n_bytes)
    file = open_gguf(write_tensor(tmp_path / "f.gguf", blocks, kind), "made up")
    ((name, values),) = file.iterate_tensors()
    expected = decode(blocks)
    assert (name, values.dtype, values.shape) == ("some.weight", np.float32, expected.shape)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_plain_values_are_kept_exactly(tmp_path: Path, dtype: type) -> None:
    """Norms are not quantised."""
    given = np.random.default_rng(0).normal(size=64).astype(dtype)
    kinds = {np.float32: gguf.GGMLQuantizationType.F32, np.float16: gguf.GGMLQuantizationType.F16}
    file = open_gguf(write_tensor(tmp_path / "f.gguf", given, kinds[dtype]), "made up")
    ((_, values),) = file.iterate_tensors()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, given.astype(np.float32))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    """The error says which one, and of which file."""
    values = np.zeros(32, np.float32)
    path = write_tensor(tmp_path / "f.gguf", values, gguf.GGMLQuantizationType.F32)
    with pytest.raises(ModelError, match=r"made up: expected a field llama\.nothing"):
        open_gguf(path, "made up").read_field("llama.nothing")


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    """The library's own words, and what to do."""
    (tmp_path / "f.gguf").write_bytes(b"something else, of some length" * 9)
    with pytest.raises(ModelError, match="expected a GGUF file"):
        open_gguf(tmp_path / "f.gguf", "made up")


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install, in pip's words."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SettingsError, match=r"pip install 'eigenshift\[real-model\]'"):
        open_gguf(tmp_path / "f.gguf", "made up")
