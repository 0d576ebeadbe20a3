"""What a piece of work costs: wall time and memory. Measures this process; reads no data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
SECONDS_BETWEEN_SAMPLES = 0.005


@dataclass
class Cost:
    """Filled in when the work ends.

    Attributes:
        seconds: Wall time.
        peak_bytes: Largest rise over the start: of the memory allocated on a GPU, else of the
            resident memory of the process (all its threads). None where neither can be read.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def measuring(device: torch.device) -> Iterator[Cost]:
    """Measure the work of a block on a device."""
    cost = Cost()
    started = time.perf_counter()
    watch = _watch_gpu if device.type == "cuda" else _watch_process
    with watch(device, cost):
        yield cost
    cost.seconds = time.perf_counter() - started


@contextmanager
def _watch_gpu(device: torch.device, cost: Cost) -> Iterator[None]:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    cost.peak_bytes = torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _watch_process(_: torch.device, cost: Cost) -> Iterator[None]:
    """Sample the resident memory from a thread of its own."""
    before = read_resident_bytes()
    if before is None:
        yield
        return
    cost.peak_bytes = 0
    is_over = threading.Event()

    def sample() -> None:
        found = read_resident_bytes()
        if found is not None:
            cost.peak_bytes = max(cost.peak_bytes or 0, found - before)

    def watch() -> None:
        while not is_over.wait(SECONDS_BETWEEN_SAMPLES):
            sample()

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield
        sample()
    finally:
        is_over.set()
        thread.join()


def read_resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell."""
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return None
