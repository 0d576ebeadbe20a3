"""Safetensors files written with some tensors changed: as the library itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eigenshift.base.errors import ModelError
from eigenshift.model.heads import digest_blocks, digest_tensor
from eigenshift.model.weight_files import (
    NewTensor,
    list_tensors,
    open_checkpoint,
    read_header,
    write_changed_file,
)


def make_tensors() -> dict[str, torch.Tensor]:
    """Tensors of many dtypes and shapes, with values of every kind."""
    generator = torch.Generator().manual_seed(0)
    return {
        "wide": torch.randn(5, 3, generator=generator, dtype=torch.float64),
        "single": torch.randn(7, 4, generator=generator),
        "half": torch.randn(3, 3, generator=generator).half(),
        "brain": torch.randn(9, generator=generator).bfloat16(),
        "bits": torch.tensor([True, False, True]),
        "codes": torch.arange(11, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def make_new(tensor: torch.Tensor, rows_per_block: int = 2) -> NewTensor:
    """A tensor to be written in small blocks."""
    return NewTensor(tensor.dtype, tuple(tensor.shape), lambda: iter(tensor.split(rows_per_block)))


def read_bytes(tensor: torch.Tensor) -> bytes:
    """Values, bit by bit."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Same keys, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        assert read_bytes(found[key]) == read_bytes(value), key


def test_a_file_without_changes_has_the_same_tensors(tmp_path: Path) -> None:
    """Every dtype goes through, metadata too."""
    tensors = make_tensors()
    save_file(tensors, tmp_path / "base", metadata={"format": "pt", "note": "kept"})
    assert write_changed_file(tmp_path / "base", tmp_path / "copy", {}) == {}
    assert_same(load_file(tmp_path / "copy"), tensors)
    with safe_open(tmp_path / "copy", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_the_copy_of_a_file_of_one_dtype_is_the_file(tmp_path: Path) -> None:
    """Nothing to reorder: the same bytes behind the header."""
    save_file({"b": torch.ones(3, 2), "a": torch.zeros(4)}, tmp_path / "base")
    write_changed_file(tmp_path / "base", tmp_path / "copy", {})
    (_, first), (_, second) = read_header(tmp_path / "base"), read_header(tmp_path / "copy")
    base, copy = (tmp_path / "base").read_bytes(), (tmp_path / "copy").read_bytes()
    assert base[first:] == copy[second:]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_replaced_and_added_in_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """A new dtype moves what follows; everything stays aligned and readable."""
    tensors = make_tensors()
    save_file(tensors, tmp_path / "base")
    changed = {
        "single": torch.randn(7, 4).to(dtype),
        "new": torch.randn(3, 5).to(dtype),
    }
    digests = write_changed_file(
        tmp_path / "base", tmp_path / "copy", {key: make_new(item) for key, item in changed.items()}
    )
    assert_same(load_file(tmp_path / "copy"), {**tensors, **changed})
    assert digests == {key: digest_tensor(item) for key, item in changed.items()}
    for stored in list_tensors(tmp_path / "copy").values():
        if stored.n_bytes and stored.type_name in ("F64", "F32", "F16", "BF16"):
            assert stored.first_byte % stored.dtype.itemsize == 0, stored.key


def test_a_file_of_its_own(tmp_path: Path) -> None:
    """Without a source only the new tensors are there."""
    head = torch.randn(6, 2)
    write_changed_file(None, tmp_path / "head", {"lm_head.weight": make_new(head)})
    assert_same(load_file(tmp_path / "head"), {"lm_head.weight": head})


def test_rows_are_read_in_place(tmp_path: Path) -> None:
    """Any block of rows, in the file's dtype; a digest over blocks is that of the whole."""
    tensors = make_tensors()
    save_file(tensors, tmp_path / "base")
    stored = list_tensors(tmp_path / "base")
    for key in ("wide", "single", "half", "brain"):
        value = tensors[key]
        assert torch.equal(stored[key].read_rows(1, 2), value[1:3])
        blocks = (stored[key].read_rows(row, 1) for row in range(len(value)))
        assert digest_blocks(value.dtype, value.shape, blocks) == digest_tensor(value)


def test_values_that_are_not_floats_are_not_read_as_such(tmp_path: Path) -> None:
    """A quantised tensor is named, with a remedy."""
    save_file(make_tensors(), tmp_path / "base")
    with pytest.raises(ModelError, match="expected codes in floating point, found U8"):
        list_tensors(tmp_path / "base")["codes"].read_rows(0, 1)


def test_a_file_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    """A short read is an error, never zeros."""
    save_file({"a": torch.ones(1000)}, tmp_path / "base")
    stored = list_tensors(tmp_path / "base")["a"]
    content = (tmp_path / "base").read_bytes()
    (tmp_path / "base").write_bytes(content[:-100])
    with pytest.raises(ModelError, match="found its end within a tensor"):
        stored.read_rows(0, 1000)
    with pytest.raises(ModelError, match="found its end within a tensor"):
        write_changed_file(tmp_path / "base", tmp_path / "copy", {})


def test_a_checkpoint_is_one_file_or_those_of_its_index(tmp_path: Path) -> None:
    """Files the index does not name are not part of it."""
    for name in ("one", "two", "other"):
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    weight_map = {name: f"{name}.safetensors" for name in ("one", "two")}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    several = open_checkpoint(tmp_path)
    assert set(several.tensors) == {"one", "two"}
    sizes = [(tmp_path / name).stat().st_size for name in weight_map.values()]
    assert several.n_bytes == sum(sizes)
    save_file({"all": torch.ones(2)}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == {"all"}
