"""Weights in safetensors files: where tensors lie, their rows, copies with some of them changed.

Files are read and written with plain reads a block at a time, never mapped or loaded, so that
memory does not grow with the checkpoint. What does not change is copied byte for byte. Which
parameter of a model a tensor is, is `parameter_names.py`'s; the format is specified at
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from eigenshift.base.errors import ModelError
from eigenshift.model.heads import digest_blocks, view_bytes
from eigenshift.model.loaded_files import WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from eigenshift.model.safetensors_header import METADATA_KEY, read_exactly, read_header

FLOAT_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtypes whose values can be changed, safetensors' name -> torch's."""
TYPE_NAMES = {dtype: name for name, dtype in FLOAT_TYPES.items()}
COPY_BYTES = 8 << 20
HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file.

    Attributes:
        path: The file.
        key: Name in it.
        type_name: Dtype as safetensors writes it.
        shape: Its shape.
        first_byte: Where in the file its values begin.
        n_bytes: How many they are.
    """

    path: Path
    key: str
    type_name: str
    shape: tuple[int, ...]
    first_byte: int
    n_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Torch's dtype.

        Raises:
            ModelError: Values of this dtype cannot be changed.
        """
        if self.type_name not in FLOAT_TYPES:
            raise ModelError(
                f"{self.path.name}: expected {self.key} in floating point, found {self.type_name}. "
                "It is probably quantised. Use weights in which it is not."
            )
        return FLOAT_TYPES[self.type_name]

    def read_rows(self, first: int, n_rows: int) -> Tensor:
        """Some rows, shape (row, ...), in the dtype of the file."""
        bytes_per_row = self.n_bytes // max(1, self.shape[0])
        buffer = bytearray(n_rows * bytes_per_row)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.first_byte + first * bytes_per_row)
            read_exactly(file, memoryview(buffer))
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(n_rows, *self.shape[1:])


@dataclass(frozen=True)
class NewTensor:
    """Values to be written.

    Attributes:
        dtype: Of the values.
        shape: Of the tensor.
        make_blocks: Gives the values in order, blocks of rows.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make_blocks: Callable[[], Iterator[Tensor]]

    @property
    def n_bytes(self) -> int:
        """Size of the values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """A model's weight files.

    Attributes:
        folder: Where they are.
        file_names: Names of the safetensors files, sorted.
        tensors: Key -> tensor, of all files.
        index: Content of the index, None where one file holds everything.
    """

    folder: Path
    file_names: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    index: Mapping[str, Any] | None = field(repr=False)

    @property
    def n_bytes(self) -> int:
        """Size of the weight files."""
        return sum((self.folder / name).stat().st_size for name in self.file_names)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a model's weight files (`files.identify_model` checks them)."""
    index = None
    names = [WEIGHTS_NAME]
    if not (folder / WEIGHTS_NAME).is_file():
        index = json.loads((folder / WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    tensors = {key: tensor for name in names for key, tensor in list_tensors(folder / name).items()}
    return Checkpoint(folder, tuple(names), tensors, index)


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Tensors of one file by key, in the order of their bytes."""
    header, start = read_header(path)
    tensors = []
    for key, entry in header.items():
        if key != METADATA_KEY:
            first, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            tensors.append(
                StoredTensor(path, key, entry["dtype"], shape, start + first, end - first)
            )
    return {item.key: item for item in sorted(tensors, key=lambda item: item.first_byte)}


def write_changed_file(
    source: Path | None, target: Path, changed: Mapping[str, NewTensor]
) -> dict[str, str]:
    """Copy a safetensors file, with some tensors replaced or added.

    Args:
        source: File to copy from; None starts an empty one.
        target: File to write.
        changed: Key -> new values; keys the source lacks are added.

    Returns:
        Key -> digest of each changed tensor as written (`heads.digest_tensor`).

    Raises:
        OSError: It cannot be written.
    """
    stored = {} if source is None else list_tensors(source)
    metadata = {} if source is None else read_header(source)[0].get(METADATA_KEY, {})
    items = _order_by_alignment(stored, changed)
    digests: dict[str, str] = {}
    with target.open("wb") as file:
        file.write(_make_header(items, {"format": "pt"} | metadata))
        for key, item in items.items():
            if isinstance(item, StoredTensor):
                _copy_bytes(item, file)
            else:
                digests[key] = _write_blocks(item, file)
    return digests


def _order_by_alignment(
    stored: Mapping[str, StoredTensor], changed: Mapping[str, NewTensor]
) -> dict[str, StoredTensor | NewTensor]:
    """Wide dtypes first, as safetensors writes them, so that every tensor is aligned."""
    items: dict[str, StoredTensor | NewTensor] = {**stored, **changed}
    sizes = {
        key: item.dtype.itemsize if isinstance(item, NewTensor) else _measure_item(item)
        for key, item in items.items()
    }
    return {key: items[key] for key in sorted(items, key=lambda key: -sizes[key])}


def _measure_item(tensor: StoredTensor) -> int:
    """Bytes per value; of packed dtypes the whole bytes."""
    return tensor.n_bytes // max(1, torch.Size(tensor.shape).numel())


def _make_header(
    items: Mapping[str, StoredTensor | NewTensor], metadata: Mapping[str, str]
) -> bytes:
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)}
    first = 0
    for key, item in items.items():
        header[key] = {
            "dtype": item.type_name if isinstance(item, StoredTensor) else TYPE_NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [first, first + item.n_bytes],
        }
        first += item.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _copy_bytes(tensor: StoredTensor, target: BinaryIO) -> None:
    buffer = memoryview(bytearray(min(COPY_BYTES, max(1, tensor.n_bytes))))
    with tensor.path.open("rb", buffering=0) as source:
        source.seek(tensor.first_byte)
        left = tensor.n_bytes
        while left:
            block = buffer[: min(len(buffer), left)]
            read_exactly(source, block)
            target.write(block)
            left -= len(block)


def _write_blocks(tensor: NewTensor, target: BinaryIO) -> str:
    """Write a tensor's values; its digest."""

    def write(block: Tensor) -> Tensor:
        target.write(view_bytes(block))
        return block

    return digest_blocks(tensor.dtype, tensor.shape, map(write, tensor.make_blocks()))
