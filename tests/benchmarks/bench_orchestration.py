"""What orchestration costs: the demo through Prefect against the same calls in a plain loop.

Each variant is a process of its own, started as a person starts it, on a store of its own:

    plain       the same stages as functions in a thread pool (tests/support/plain_refresh.py)
    server      `eigenshift refresh` with a Prefect server running
    embedded    `eigenshift refresh` alone: Prefect's server is started inside

`cold` is the first run (all work), `warm` the second (nothing to do). The fixed part of the
overhead is what a warm run takes longer than a plain warm run; the rest is given in percent of the
plain cold run. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

SMALL = ("prompts.n_selection=40", "prompts.n_evaluation=20", "generation.n_samples=8")
PLAIN = [sys.executable, "-m", "tests.support.plain_refresh"]
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from flows.command_line import main; main(sys.argv[1:])",
    "refresh",
    "--preset",
    "demo",
    "--json",
]


def measure(variant: str, store: Path, overrides: list[str], api_url: str | None) -> float:
    """Seconds of one process, from its start to its end."""
    settings = [f"store={store}", *overrides]
    command = PLAIN + settings
    if variant != "plain":
        command = COMMAND + [word for item in settings for word in ("--set", item)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(store.parent / "prefect"),
    }
    environment.pop("PREFECT_API_URL", None)
    if variant == "server" and api_url is not None:
        environment["PREFECT_API_URL"] = api_url
    started = time.perf_counter()
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if found.returncode not in (0, 3):
        raise RuntimeError(f"{variant}: exit code {found.returncode}\n{found.stderr[-2000:]}")
    return seconds


def main() -> None:
    """Measure all variants, cold and then warm, and print the comparison."""
    from tests.support.prefect_server import prefect_server_process

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less work, for a quick look")
    overrides = list(SMALL) if parser.parse_args().small else []
    seconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "prefect").mkdir()
        with prefect_server_process(scratch / "server") as api_url:
            for variant in ("plain", "server", "embedded"):
                store = scratch / variant
                seconds[variant] = {
                    "cold": measure(variant, store, overrides, api_url),
                    "warm": measure(variant, store, overrides, api_url),
                    "warm_again": measure(variant, store, overrides, api_url),
                }
    print(json.dumps({"seconds": seconds, "overhead": compare(seconds)}, indent=2))


def compare(seconds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Fixed seconds and percent of the plain cold run, per variant."""
    plain = seconds["plain"]
    overhead = {}
    for variant in ("server", "embedded"):
        fixed = seconds[variant]["warm_again"] - plain["warm_again"]
        rest = seconds[variant]["cold"] - plain["cold"] - fixed
        overhead[variant] = {
            "fixed_seconds": round(fixed, 2),
            "percent_of_plain_cold": round(100 * rest / plain["cold"], 1),
            "cold_ratio": round(seconds[variant]["cold"] / plain["cold"], 3),
        }
    return overhead


if __name__ == "__main__":
    main()
