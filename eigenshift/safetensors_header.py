"""Headers of safetensors files: which tensors a file holds and where.

The format is specified at https://huggingface.co/docs/safetensors. Needs no torch, so that a
process which only decomposes a head stays small. Values are read by `weight_files.py` and
`head_files.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METADATA_KEY = "__metadata__"


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header, and where the values begin.

    Files come from `model_files.identify_model`, which has the safetensors library check them.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length
