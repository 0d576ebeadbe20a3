"""A joblib file's fitted objects as plain attributes, read in a process of its own.

`joblib_reader.py` is that process: a Python without this package's path, environment or folder,
which unpickles nothing but what it knows and imports no package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from eigenshift.base.errors import ModelError
from eigenshift.fetching import joblib_reader

TIMEOUT_SECONDS = 120.0


def read_joblib(file: Path, place: str, folder: Path) -> Any:
    """Read the objects of a joblib file.

    Args:
        file: The file.
        place: Where it is from, for errors.
        folder: An empty folder, for what the process writes.

    Returns:
        What is in it: an object is a namespace of its attributes, an array a numpy array.

    Raises:
        ModelError: The file is damaged, or names a class that is not known.
    """
    command = (sys.executable, "-I", joblib_reader.__file__, str(file), str(folder))
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _refuse(place, f"nothing after {TIMEOUT_SECONDS:g} seconds") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _refuse(place, lines[-1])
    written = json.loads((folder / joblib_reader.VALUES_NAME).read_text(encoding="utf-8"))
    return _restore(written, lambda name: (folder / name).read_bytes())


def _refuse(place: str, found: str) -> ModelError:
    return ModelError(
        f"{place}: expected fitted objects of scikit-learn in joblib's format, found: {found}. "
        "Fetch the wheel again."
    )


def _restore(value: Any, read: Callable[[str], bytes]) -> Any:
    """Undo `joblib_reader.describe`."""
    if isinstance(value, list):
        return [_restore(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"array", "dtype", "shape"}:
        array = np.frombuffer(read(Path(value["array"]).name), dtype=value["dtype"])
        return array.reshape(value["shape"])
    if value.keys() == {"class", "attributes"}:
        return SimpleNamespace(**_restore(value["attributes"], read))
    return {key: _restore(item, read) for key, item in value.items()}
