"""The output head's weight straight from its safetensors file, a block of rows at a time.

A head is read without loading the model: the file's header says where its bytes lie. What is read
is what the model runs with: values are rounded to the dtype the model is loaded in, and a digest
over them must equal the one taken from the loaded model, whatever the tensor is called (a tied
head is stored under the embedding's name, or under both). Needs numpy only, so that a process
which decomposes a head holds little else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eigenshift.base.arrays import AnyArray, FloatArray
from eigenshift.model.safetensors_header import METADATA_KEY, read_exactly, read_header

VALUES_PER_BLOCK = 1 << 21
"""16 MiB in float64."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Of heads that can be read from a file, safetensors' name -> torch's."""
RAW_TYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""How numpy holds each; bfloat16, which it does not know, as its bits."""
EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number."""


@dataclass(frozen=True)
class StoredHead:
    """A head's weight in a safetensors file.

    Attributes:
        path: The file.
        name: Of the tensor in it.
        stored_dtype: Torch's name of the dtype in the file.
        dtype: Of the model that runs with it.
        shape: (vocab, hidden).
        first_byte: Where in the file the weight begins.
    """

    path: Path
    name: str
    stored_dtype: str
    dtype: str
    shape: tuple[int, int]
    first_byte: int

    @property
    def epsilon(self) -> float:
        """Relative spacing of the coarser of the two dtypes: how precisely the head is known."""
        return max(EPSILONS[self.stored_dtype], EPSILONS[self.dtype])

    def iterate_blocks(self) -> Iterator[FloatArray]:
        """Yield the rows in order as float64, shape (row, hidden); each block reuses the memory."""
        rows = _count_rows(self.shape)
        buffer = np.empty((rows, self.shape[1]))
        for raw in self._iterate_raw(rows):
            block = buffer[: len(raw)]
            np.copyto(block, widen(raw, self.dtype))
            yield block

    def compute_digest(self) -> str:
        """Digest of the weight as the model holds it (`heads.digest_tensor`)."""
        digest = hashlib.sha256(f"torch.{self.dtype}:{self.shape}:".encode())
        for raw in self._iterate_raw(_count_rows(self.shape)):
            digest.update(np.ascontiguousarray(raw).data)
        return digest.hexdigest()

    def _iterate_raw(self, rows_per_block: int) -> Iterator[AnyArray]:
        """Blocks in the model's dtype; memory is reused where nothing has to be converted."""
        vocab, hidden = self.shape
        buffer = np.empty((rows_per_block, hidden), RAW_TYPES[self.stored_dtype])
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.first_byte)
            for first in range(0, vocab, rows_per_block):
                block = buffer[: min(rows_per_block, vocab - first)]
                read_exactly(file, memoryview(block.data).cast("B"))
                yield convert(block, self.stored_dtype, self.dtype)


def list_stored_heads(folder: Path, head: Mapping[str, Any]) -> list[StoredHead]:
    """Tensors of a checkpoint that may be the head, the likeliest first; only headers are read.

    Args:
        folder: With the model's safetensors files.
        head: The head as `description.describe_model` describes it.

    Returns:
        Those of the head's shape in a dtype that can be read, its own name before others.
    """
    shape = (int(head["vocab"]), int(head["hidden"]))
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        header, start = read_header(path)
        for name, entry in header.items():
            if name == METADATA_KEY or entry["dtype"] not in DTYPES:
                continue
            if tuple(entry["shape"]) == shape:
                first_byte = start + entry["data_offsets"][0]
                dtypes = (DTYPES[entry["dtype"]], head["dtype"])
                found.append(StoredHead(path, name, *dtypes, shape, first_byte))
    own_name = f"{head['name']}.weight"
    return sorted(found, key=lambda item: (not item.name.endswith(own_name), item.name))


def find_stored_head(folder: Path, head: Mapping[str, Any]) -> StoredHead | None:
    """The tensor of a checkpoint that is the head the model runs with, None if there is none.

    Args:
        folder: With the model's safetensors files.
        head: The head as `description.describe_model` describes it, its digest included.
    """
    for stored in list_stored_heads(folder, head):
        if stored.compute_digest() == head["digest"]:
            return stored
    return None


def convert(raw: AnyArray, stored_dtype: str, dtype: str) -> AnyArray:
    """Round values to another dtype as torch does; bfloat16 goes in and out as its bits."""
    if stored_dtype == dtype:
        return raw
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # beyond float16 is infinite, in torch too
            return widen(raw, stored_dtype).astype(RAW_TYPES[dtype])
    with np.errstate(over="ignore"):
        single = widen(raw, stored_dtype).astype("<f4")
    bits = single.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # half to even
    rounded[np.isnan(single)] = 0x7FC0
    converted: AnyArray = rounded.astype("<u2")
    return converted


def widen(raw: AnyArray, dtype: str) -> AnyArray:
    """Values of a block as numbers: bfloat16 bits become float32, all else stays as it is."""
    if dtype != "bfloat16":
        return raw
    values: AnyArray = (raw.astype("<u4") << 16).view("<f4")
    return values


def _count_rows(shape: tuple[int, int]) -> int:
    return max(1, min(shape[0], VALUES_PER_BLOCK // shape[1]))
