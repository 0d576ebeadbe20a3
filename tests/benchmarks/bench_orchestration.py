"""What orchestration costs: the demo through Prefect against the same calls in a plain loop.

Each variant is a process of its own, started as a person starts it, on a store of its own:

    plain       the same stages as functions in a thread pool (tests/support/plain_refresh.py)
    server      `eigenshift refresh` with a Prefect server running
    embedded    `eigenshift refresh` alone: Prefect's server is started inside

`cold` is the first run (all work), `warm` the second (nothing to do). The fixed part of the
overhead is what a warm run takes longer than a plain warm run; the rest is given in percent of the
plain cold run. `empty` is the floor: a flow that does nothing, in a process of its own too; no
refresh through Prefect can take less.

Bars: a fixed part under 6 s with a server running and 20 s with the embedded one, the rest at most
15% of the plain cold run; a refresh with nothing new, as a command, half of what it took once
(7 s and 11 s on a quiet machine).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import Bar, at_most, publish  # noqa: E402 - started as a file

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
EMPTY = [
    sys.executable,
    "-c",
    "from flows.prefect_environment import create_home, prepare_environment\n"
    "prepare_environment(); create_home()\n"
    "from prefect import flow\n"
    "flow(lambda: None, name='empty')()",
]
HALF_OF_ONCE = {"server": 3.5, "embedded": 5.6}
"""Seconds: half of what a refresh with nothing new took on 2026-11-25."""


def measure(variant: str, store: Path, overrides: list[str], api_url: str | None) -> float:
    """Seconds of one process, from its start to its end."""
    settings = [f"store={store}", *overrides]
    command = PLAIN + settings
    if variant != "plain":
        command = COMMAND + [word for item in settings for word in ("--set", item)]
    return time_command(command, store, api_url if variant == "server" else None)


def time_command(command: list[str], store: Path, api_url: str | None) -> float:
    """Seconds of a command; without a URL Prefect starts a server of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(store.parent / "prefect"),
    }
    environment.pop("PREFECT_API_URL", None)
    if api_url is not None:
        environment["PREFECT_API_URL"] = api_url
    started = time.perf_counter()
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if found.returncode not in (0, 3):
        raise RuntimeError(f"{command}: exit code {found.returncode}\n{found.stderr[-2000:]}")
    return seconds


def main() -> None:
    """Measure all variants, cold and then warm, and publish the comparison."""
    from tests.support.prefect_server import prefect_server_process

    parser = argparse.ArgumentParser(description="Benchmark of what orchestration costs")
    parser.add_argument("--small", action="store_true", help="less work, for a quick look")
    is_small = parser.parse_args().small
    overrides = list(SMALL) if is_small else []
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
            for variant, url in (("server", api_url), ("embedded", None)):
                seconds[variant]["empty"] = time_command(EMPTY, scratch / variant, url)
    overhead = compare(seconds)
    document = {"seconds": seconds, "overhead": overhead}
    publish("orchestration", document, judge(seconds, overhead), is_small=is_small)


def judge(seconds: dict[str, dict[str, float]], overhead: dict[str, dict[str, float]]) -> list[Bar]:
    """The bars, with a server running and with the embedded one."""
    bars = []
    for variant, most_fixed in (("server", 6), ("embedded", 20)):
        floor = seconds[variant]["empty"]
        place = "server running" if variant == "server" else "embedded server"
        found = overhead[variant]
        bars += [
            at_most(f"fixed seconds of overhead, {place}", found["fixed_seconds"], most_fixed),
            at_most(
                f"further overhead in % of the plain run, {place}",
                found["percent_of_plain_cold"],
                15,
            ),
            at_most(
                f"seconds of a refresh with nothing new, {place} (empty flow: {floor:.1f})",
                round(seconds[variant]["warm_again"], 2),
                HALF_OF_ONCE[variant],
            ),
        ]
    return bars


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
