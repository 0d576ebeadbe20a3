"""Types of the numpy arrays that rooms pass to each other; shapes stand in the docstrings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
"""Statistics and decompositions are computed in float64."""
IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.unsignedinteger[Any]]
"""Values in an order-preserving code."""
LevelCounts = npt.NDArray[np.uint64]
"""Two counts in one number (`detection/counting.py`)."""
ValueArray = npt.NDArray[np.floating[Any]]
"""Stored values of any precision."""
