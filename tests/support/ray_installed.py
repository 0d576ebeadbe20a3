"""Ray is an extra that `make install` leaves out; CI installs it and demands it."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None and not os.environ.get("EIGENSHIFT_REQUIRE_RAY"),
    reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'",
)
