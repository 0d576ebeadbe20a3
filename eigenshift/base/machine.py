"""What this machine gives a process."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Cores this process may use (a container's or batch system's limit included)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
