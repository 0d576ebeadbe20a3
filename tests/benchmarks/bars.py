"""What all benchmarks share: bars, the machine, and where the result goes.

A benchmark hands over its figures and its bars; they are written to `.benchmarks/<name>.json`
(git-ignored) with the machine and its load, printed as JSON, and followed by one line per bar on
stderr: met or not met. A missed bar is no error: a benchmark measures, it does not test.
`page.py` puts the last figures into docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".benchmarks"


@dataclass(frozen=True)
class Bar:
    """One thing that is promised.

    Attributes:
        what: What is measured, in words, with its unit.
        found: The figure.
        limit: Where the bar is.
        is_floor: Whether the figure must be at least (rather than at most) the limit.
    """

    what: str
    found: float
    limit: float
    is_floor: bool

    @property
    def is_met(self) -> bool:
        """Whether the promise is kept."""
        return self.found >= self.limit if self.is_floor else self.found <= self.limit

    @property
    def bar(self) -> str:
        """The bar in words."""
        return f"at {'least' if self.is_floor else 'most'} {self.limit:g}"


def at_least(what: str, found: float, limit: float) -> Bar:
    """A bar that the figure must reach."""
    return Bar(what, found, limit, is_floor=True)


def at_most(what: str, found: float, limit: float) -> Bar:
    """A bar that the figure must not pass."""
    return Bar(what, found, limit, is_floor=False)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and load: what a figure is worth nothing without."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "n_cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def publish(name: str, document: dict[str, Any], bars: list[Bar], *, is_small: bool) -> None:
    """Write, print and judge a benchmark's result.

    Args:
        name: Of the benchmark and of its file.
        document: Its figures.
        bars: What is promised at full size.
        is_small: Whether it ran at a reduced size, where no bar counts; nothing is written then.
    """
    result = {
        "benchmark": name,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "machine_at_the_end": describe_machine(),
        "is_small": is_small,
        "bars": [
            {"what": bar.what, "bar": bar.bar, "found": bar.found, "is_met": bar.is_met}
            for bar in bars
        ],
        **document,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if not is_small:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{name}{' (small: no bar counts)' if is_small else ''}", file=sys.stderr)
    for bar in bars:
        verdict = "met    " if bar.is_met else "NOT MET"
        print(f"  {verdict}  {bar.what}: {bar.found:g}, bar {bar.bar}", file=sys.stderr)
