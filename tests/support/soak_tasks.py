"""Tiny tasks for a long run; module-level, so that workers can import it, and light to import."""

from __future__ import annotations

import os
import time

from prefect import task
from prefect.cache_policies import NO_CACHE

SECONDS = 0.02


@task(cache_policy=NO_CACHE, persist_result=False)
def work_a_little(place: int) -> tuple[int, int]:
    """Its own place, and the process it ran in."""
    time.sleep(SECONDS)
    return place, os.getpid()
