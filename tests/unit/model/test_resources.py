"""What work costs: seconds, and memory that has already been given back."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from eigenshift.model.resources import STATUS, measuring, read_resident_bytes

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
