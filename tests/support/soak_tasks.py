"""Tiny tasks for a long run; module-level, so that workers can import it, and light to import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

SECONDS = 0.02


@task(cache_policy=NO_CACHE, persist_result=False)
def work_a_little(place: int, folder: str) -> tuple[int, int]:
    """Its own place, and the process it ran in, which leaves its number in the folder."""
    process = os.getpid()
    Path(folder, str(process)).touch()
    time.sleep(SECONDS)
    return place, process
