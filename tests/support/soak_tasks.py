"""Tiny tasks for a long run; module-level, so that workers can import it, and light to import."""

from __future__ import annotations

import os
import time
from pathlib import Path

SECONDS = 0.05


def work_a_little(place: int, folder: str) -> tuple[int, int]:
    """Its own place, and the process it ran in, which leaves both their numbers in the folder."""
    process = os.getpid()
    time.sleep(SECONDS)
    Path(folder, f"{process}-{place}").touch()
    return place, process
