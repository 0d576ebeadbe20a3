"""What work costs: seconds, and memory that has already been given back."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eigenshift.model.resources import (
    STATUS,
    measure_free_memory,
    measuring,
    read_resident_bytes,
)

CPU = torch.device("cpu")


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell resident memory")
def test_memory_that_was_freed_before_the_end_is_seen() -> None:
    """200 MB that live for a moment."""
    with measuring(CPU) as cost:
        block = np.ones(25_000_000)
        time.sleep(0.1)
        del block
        time.sleep(0.05)
    assert cost.peak_bytes is not None
    assert 180e6 < cost.peak_bytes < 400e6
    assert cost.seconds > 0.15


def test_a_system_that_does_not_tell_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not 0: unknown."""
    monkeypatch.setattr("eigenshift.model.resources.read_resident_bytes", lambda: None)
    with measuring(CPU) as cost:
        time.sleep(0.01)
    assert cost.peak_bytes is None
    assert cost.seconds >= 0.01


def test_work_that_fails_leaves_no_thread_behind() -> None:
    """The error comes through."""
    import threading

    with pytest.raises(ValueError, match="made up"), measuring(CPU):
        raise ValueError("made up")
    assert "memory" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell resident memory")
def test_resident_memory_is_that_of_this_process() -> None:
    """Python with torch takes more than 50 MB and less than this machine has."""
    found = read_resident_bytes()
    assert found is not None
    assert 50e6 < found < 64e9


def test_memory_limit_of_a_container_counts(tmp_path: Path) -> None:
    """The smaller of the machine's free memory and the container's rest is reported."""
    for name, text in {
        "proc/meminfo": "MemTotal: 99 kB\nMemAvailable:    4096 kB\n",
        "sys/fs/cgroup/memory.max": "3000000\n",
        "sys/fs/cgroup/memory.current": "1000000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert measure_free_memory(tmp_path) == 2_000_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert measure_free_memory(tmp_path) == 4096 * 1024
