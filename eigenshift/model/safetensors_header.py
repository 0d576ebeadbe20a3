"""Headers of safetensors files: which tensors a file holds and where.

The format is specified at https://huggingface.co/docs/safetensors. Needs no torch, so that a
process which only decomposes a head stays small. Values are read by `weight_files.py` and
`head_files.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eigenshift.base.errors import ModelError

METADATA_KEY = "__metadata__"


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header, and where the values begin.

    Files come from `files.identify_model`, which has the safetensors library check them.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def read_exactly(file: Any, view: memoryview) -> None:
    """Fill a view from a file; one read may return less than was asked for.

    Raises:
        ModelError: The file ends before.
    """
    while view:
        count = file.readinto(view)
        if not count:
            raise ModelError(
                f"{Path(file.name).name}: expected a whole safetensors file, found its end within "
                "a tensor. It was changed or cut short while it was read. Fetch the model again."
            )
        view = view[count:]
