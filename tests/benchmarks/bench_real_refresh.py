"""A whole refresh of the real model, this build against an earlier one, in turn.

    git worktree add ../before COMMIT
    python tests/benchmarks/bench_real_refresh.py --before ../before [--set KEY=VALUE]

Both run the preset `smollm2` with a list of words as judge (an earlier build knows no other that
needs no hub), each in a process and a store of its own. Seconds of the command from start to end,
seconds of work in the statistics stages (from the run's record), and the process's peak memory.
Prefect's server is embedded in both. Needs `make real-model` and the public data (data/README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from bars import RESULTS, ROOT, at_least, at_most, publish

PRESET = ROOT / "eigenshift" / "settings" / "presets" / "smollm2.yaml"
WORK = RESULTS / "real_refresh"
STATISTICS = (
    "compute_neuron_statistics",
    "compute_neuron_stability",
    "compute_layer_statistics",
    "compute_layer_transfers",
)
LATER_FIELDS = ("chat",)
"""Of `model`, unknown to builds before chat models; they study raw text."""


def write_settings(words: Path, *, is_before: bool) -> Path:
    """The preset, judged by words, its paths made whole."""
    document = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    model = document["model"]
    model["id"] = str((PRESET.parent / model["id"]).resolve())
    if is_before:
        for name in LATER_FIELDS:
            model.pop(name, None)
    document.pop("benchmark", None)  # asked by later builds only
    for source in document["sources"]:
        source["uri"] = str((PRESET.parent / source["uri"]).resolve())
        if source["format"] == "paragraphs":  # later builds know it; lines are what both can read
            source["format"] = "sentences"
    document["scorer"] = {"kind": "lexicon", "words": str(words.resolve())}
    document["components"] = {"positions": "occlusion"}
    path = WORK / f"{'before' if is_before else 'now'}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def run(checkout: Path, settings: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Refresh once into an empty store; seconds and peak memory."""
    store = WORK / f"{settings.stem}-store"
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, "-m", "flows", "refresh", "--config", str(settings)]
    for override in (f"store={store}", *overrides):
        command += ["--set", override]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    started = time.perf_counter()
    with (WORK / f"{settings.stem}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) not in (0, 3):  # 3: the gate held the patch
        raise SystemExit(f"{checkout}: the refresh failed; see {log.name}")
    (record,) = [json.loads(path.read_text()) for path in store.glob("runs/*.json")]
    work = {stage["name"]: stage["work_seconds"] for stage in record["stages"]}
    return {
        "seconds": round(seconds, 1),
        "statistics_seconds": round(sum(work.get(name, 0.0) for name in STATISTICS), 1),
        "work_seconds": {name: round(found, 1) for name, found in work.items()},
        "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Run both, compare."""
    parser = argparse.ArgumentParser(description="A refresh of the real model, now and before.")
    parser.add_argument("--before", type=Path, required=True, help="checkout of an earlier build")
    parser.add_argument("--words", type=Path, required=True, help="list of words that judges")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    before = run(options.before, write_settings(options.words, is_before=True), options.overrides)
    now = run(ROOT, write_settings(options.words, is_before=False), options.overrides)
    publish(
        "real-refresh",
        {"before": before, "now": now, "overrides": options.overrides},
        [
            at_least("times as fast, whole refresh", before["seconds"] / now["seconds"], 2.0),
            at_least(
                "times as fast, statistics of units and layers together",
                before["statistics_seconds"] / now["statistics_seconds"],
                5.0,
            ),
            at_most(
                "peak memory over that before",
                now["peak_memory_gib"] / before["peak_memory_gib"],
                1.0,
            ),
        ],
        is_small=bool(options.overrides),
    )


if __name__ == "__main__":
    main()
