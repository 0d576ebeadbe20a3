"""What a GPU does, at the shapes of large models, in at most ten minutes: run this file on one.

    python tests/benchmarks/bench_gpu.py --out FOLDER       # FOLDER/gpu.json, also in .benchmarks/
    python tests/benchmarks/page.py                         # docs/benchmarks.md, from .benchmarks/

Random weights and made-up texts; nothing is fetched. Each case is a process of its own and says
what it has found as it goes, so that one that is stopped keeps what it had measured:

    extraction      a 7B-shaped model in bfloat16 reads: the bare trunk, pooling, a whole shard
    generation      the same model continues prompts: one arm, eight arms, transformers' `generate`
    screening       30 edits of its head foretold from the texts of one arm
    neurons         neuron statistics, against sorting the matrix on the device
    decomposition   a head by our method and by torch.linalg.svd, each size a case

`--budget` seconds are for all: a case is stopped when they are spent, and none is begun with less
than `LEAST_SECONDS` left; what was not measured is named in the result and has no figure. Where
torch.linalg.svd was stopped, the ratio is a lower bound and says so. `--small` runs everything in
seconds on any device, at sizes where no figure means anything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import RESULTS, Bar, at_least, at_most, publish  # noqa: E402
from tests.benchmarks.gpu_cases import (  # noqa: E402
    FULL,
    OURS,
    SMALL,
    SVD,
    Sizes,
    list_cases,
    name_shape,
)

NAME = "gpu"
DEFAULT_BUDGET, LEAST_SECONDS = 540.0, 30.0


@dataclass
class CaseResult:
    """What a case told.

    Attributes:
        figures: By key.
        variant: What it was at, or had done, last.
        began_at: When that began, in seconds of `time.time`.
        reason: Why something is missing; None: all is there.
        bound_seconds: Of what was stopped: it takes longer than this.
    """

    figures: dict[str, float] = field(default_factory=dict)
    variant: str | None = None
    began_at: float = 0.0
    reason: str | None = None
    bound_seconds: float | None = None


def run_cases(
    names: Sequence[str],
    run: Callable[[str, float], CaseResult],
    budget: float,
    read_clock: Callable[[], float] = time.monotonic,
) -> dict[str, CaseResult]:
    """Run cases one after the other until the time is spent.

    Args:
        names: Of the cases, in their order.
        run: Runs one, stopping it after so many seconds.
        budget: Seconds for all.
        read_clock: The time, in seconds.
    """
    started, found = read_clock(), {}
    for name in names:
        left = budget - (read_clock() - started)
        if left < LEAST_SECONDS:
            found[name] = CaseResult(reason=f"not begun: the {budget:g} s for all were spent")
        else:
            found[name] = run(name, left)
    return found


def run_in_process(command: Sequence[str], seconds: float) -> CaseResult:
    """Run one case in a process of its own and stop it after so many seconds."""
    found = CaseResult()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stopping = Timer(seconds, process.kill)
        stopping.start()
        for line in process.stdout:
            if not line.startswith('["'):
                continue  # a library's own words
            key, value = json.loads(line)
            if key == "begin":
                found.variant, found.began_at = value, time.time()
            else:
                found.figures[key] = value
        code = process.wait()
        was_stopped = stopping.finished.is_set()
        stopping.cancel()
    if was_stopped and code:
        found.reason = f"stopped when the time was spent, at: {found.variant}"
        found.bound_seconds = time.time() - found.began_at
    elif code:
        found.reason = f"failed with exit code {code}, at: {found.variant}"
    return found


WORDS = {
    "bare_tokens_per_second": "tokens/s of the bare trunk",
    "pooled_tokens_per_second": "tokens/s of reading and pooling two sites",
    "shard_tokens_per_second": "tokens/s of extraction, its shard written",
    "one_arm_tokens_per_second": "tokens/s of one arm",
    "generate_tokens_per_second": "tokens/s of transformers' `generate`",
    "eight_arms_tokens_per_second": "tokens/s of eight arms together",
    "share_equal_to_base": "share of the patches' continuations that are the base's",
    "one_arm_seconds": "seconds of generating one arm",
    "foretelling_seconds": "seconds of foretelling the edits",
    "from_scratch_seconds": "seconds of neuron statistics from scratch, on the CPU",
    "sort_seconds": "seconds of AUROCs alone by a sort on the device",
    "ours_seconds": f"seconds of {OURS}",
    "svd_seconds": f"seconds of {SVD}",
    "largest_difference": "largest difference between the two",
}
"""Figures that are shown, in words; `..._peak_gb` are shown as peaks."""


def tabulate(results: Mapping[str, CaseResult]) -> list[dict[str, Any]]:
    """Figures in words, none made up: what is not there has no row."""
    rows = []
    for case, result in results.items():
        for key, value in result.figures.items():
            if key.endswith("peak_gb"):
                of = key.removesuffix("peak_gb").strip("_").replace("_", " ")
                words = f"peak memory{f' of {of}' if of else ''}, GB"
            elif key in WORDS:
                words = WORDS[key]
            else:
                continue
            rows.append({"what": f"{case}: {words}", "found": float(f"{value:.4g}")})
        if result.bound_seconds is not None and result.variant == SVD:
            what = f"{case}: seconds after which {SVD} was stopped"
            rows.append({"what": what, "found": round(result.bound_seconds, 1)})
    return rows


def judge(results: Mapping[str, CaseResult], sizes: Sizes) -> list[Bar]:
    """The bars whose figures were measured; a bound counts where it is enough."""
    bars = []
    found = results["extraction"].figures
    if {"bare_tokens_per_second", "shard_tokens_per_second"} <= set(found):
        share = found["shard_tokens_per_second"] / found["bare_tokens_per_second"]
        bars.append(at_least("extraction's speed over the bare trunk's", round(share, 3), 0.9))
    found = results["generation"].figures
    if {"one_arm_seconds", "eight_arms_seconds"} <= set(found):
        times = found["eight_arms_seconds"] / found["one_arm_seconds"]
        what = f"8 arms / one arm, {sizes.n_prompts * sizes.n_samples} continuations each"
        bars.append(at_most(what, round(times, 2), 2.5))
    found = results["screening"].figures
    if "foretelling_seconds" in found:
        times = found["foretelling_seconds"] / found["one_arm_seconds"]
        what = (
            f"seconds of foretelling {found['n_foretold']:g} edits over generating one arm of "
            f"{sizes.n_prompts * sizes.n_samples_screened} continuations"
        )
        bars.append(at_most(what, round(times, 2), 1.5))
    for shape in sizes.heads:
        bars += judge_decomposition(name_shape(shape), results)
    return bars


def judge_decomposition(place: str, results: Mapping[str, CaseResult]) -> list[Bar]:
    """Ours against torch.linalg.svd; one that was stopped gives a bound."""
    result = results[f"decomposition {place}"]
    if "ours_seconds" not in result.figures:
        return []
    what = f"times as fast as {SVD} at {place}"
    svd = result.figures.get("svd_seconds")
    if svd is not None:
        times = svd / result.figures["ours_seconds"]
        return [at_least(what, round(times, 2), 10)]
    if result.bound_seconds is None or result.variant != SVD:
        return []
    bar = at_least(
        f"{what}, a lower bound",
        round(result.bound_seconds / result.figures["ours_seconds"], 2),
        10,
    )
    return [bar] if bar.is_met else []  # below, nothing is known


def describe_device(device: Any) -> dict[str, Any]:
    """Name and memory of the device, and the versions that drive it."""
    import torch
    import transformers

    found = {"name": device.type, "torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return found | {"transformers": transformers.__version__}


def main() -> None:
    """Run the cases, or one of them in this process."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="seconds, on any device")
    parser.add_argument("--device", default="cuda", help="as torch names it")
    parser.add_argument("--budget", type=float, default=DEFAULT_BUDGET, help="seconds for all")
    parser.add_argument("--out", type=Path, help="folder that gets a copy of the result")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else FULL
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("bench_gpu: expected a CUDA device, found none. `--small --device cpu` tries it.")
    device = torch.device(arguments.device)
    if arguments.case:
        for found in list_cases(sizes)[arguments.case](device):
            print(json.dumps(found), flush=True)
        return
    command = [sys.executable, __file__, "--device", arguments.device]
    command += ["--small"] if arguments.small else []

    def run(name: str, seconds: float) -> CaseResult:
        return run_in_process([*command, "--case", name], seconds)

    results = run_cases(list(list_cases(sizes)), run, arguments.budget)
    document = {
        "device": describe_device(device),
        "figures": tabulate(results),
        "not_measured": [
            f"{name}: {result.reason}" for name, result in results.items() if result.reason
        ],
        "cases": {name: result.figures for name, result in results.items()},
    }
    publish(NAME, document, judge(results, sizes), is_small=arguments.small)
    if arguments.out and not arguments.small:
        shutil.copy(RESULTS / f"{NAME}.json", arguments.out)


if __name__ == "__main__":
    main()
