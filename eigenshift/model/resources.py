"""What a piece of work costs: wall time and memory. Measures this process; reads no data."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
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
        peak_bytes: Largest rise over the start: of the memory allocated on GPUs, else of the
            resident memory of the process (all its threads). None where neither can be read.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def measuring(*devices: torch.device) -> Iterator[Cost]:
    """Measure the work of a block on one or more devices; if some are GPUs, their memory."""
    cost = Cost()
    started = time.perf_counter()
    gpus = [device for device in devices if device.type == "cuda"]
    with _watch_gpus(gpus, cost) if gpus else _watch_process(cost):
        yield cost
    cost.seconds = time.perf_counter() - started


@contextmanager
def _watch_gpus(devices: Sequence[torch.device], cost: Cost) -> Iterator[None]:
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    before = [torch.cuda.memory_allocated(device) for device in devices]
    yield
    peaks = [torch.cuda.max_memory_allocated(device) for device in devices]
    cost.peak_bytes = sum(peaks) - sum(before)


@contextmanager
def _watch_process(cost: Cost) -> Iterator[None]:
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


def measure_free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory a new process could use, a container's limit included; None if unknown."""
    found = []
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
        found.append(int(text.partition("MemAvailable:")[2].split()[0]) * 1024)
    except (OSError, ValueError, IndexError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or its limit is the word "max"
        pass
    return max(0, min(found)) if found else None
