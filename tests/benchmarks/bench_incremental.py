"""What a new file costs: a refresh over twenty labelled files, then over twenty-one.

The demo's first labelled source is cut into 21 files of one shard each. Stage work is the time
tasks spent on artifacts that were not there yet, summed over tasks: of the cold run, of the run
with one more file, and of a run with nothing new. Each run has a process of its own, as a scheduled
one would, so none finds copies of remote files that another fetched. Requests and bytes are
reported per stage; with `--s3` the store is on the S3 server of `.ci/s3_server`.

Bars: one more file costs at most a tenth of the cold stage work, nothing new costs none. What a
refresh with nothing new takes as a command is measured by bench_orchestration.py.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_most, publish  # noqa: E402 - started as a file

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")

N_FILES = 21


def cut_source(uri: str, folder: Path) -> list[Path]:
    """Cut a CSV into files of equal length; returns them."""
    with Path(uri).open(newline="", encoding="utf-8") as handle:
        header, *rows = list(csv.reader(handle))
    size = len(rows) // N_FILES
    paths = []
    for place in range(N_FILES):
        path = folder / f"part-{place:02d}.csv"
        with path.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([header, *rows[place * size : (place + 1) * size]])
        paths.append(path)
    return paths


def run(overrides: list[str]) -> dict[str, Any]:
    """One refresh: stage work and traffic."""
    from eigenshift.ledger.runs import read_run
    from eigenshift.settings import load_preset
    from eigenshift.store.artifacts import ArtifactStore
    from flows.refresh import run_refresh

    settings = load_preset("demo", overrides)
    started = time.perf_counter()
    outcome = run_refresh(settings)
    seconds = time.perf_counter() - started
    record = read_run(ArtifactStore(settings.store).store, outcome.run_id)
    work: dict[str, float] = defaultdict(float)
    for use in record.artifacts:
        if not use.was_cached:
            work[use.stage] += use.elapsed_seconds
    return {
        "seconds": round(seconds, 2),
        "stage_work_seconds": round(sum(work.values()), 2),
        "by_stage": {stage: round(value, 2) for stage, value in work.items()},
        "traffic": {stage.name: stage.traffic.model_dump() for stage in record.stages},
    }


def run_alone(overrides: list[str]) -> dict[str, Any]:
    """`run` in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (overrides,))


def main() -> None:
    """Run cold, with one more file, and with nothing new; publish the comparison."""
    from eigenshift.settings import load_preset
    from tests.support.prefect_server import prefect_server_process
    from tests.support.s3_server import s3_server_process

    parser = argparse.ArgumentParser(description="Benchmark of a source that grows")
    parser.add_argument("--s3", action="store_true", help="on the S3 server of .ci/s3_server")
    on_s3 = parser.parse_args().s3
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = str(scratch / "store")
        if on_s3:
            server = stack.enter_context(s3_server_process(scratch / "s3"))
            os.environ.update(server.environment)
            server.make_bucket("bench")
            store = "s3://bench/store"
        server_folder = scratch / "prefect"
        os.environ["PREFECT_API_URL"] = stack.enter_context(prefect_server_process(server_folder))
        folder = scratch / "growing"
        folder.mkdir()
        *first, last = cut_source(load_preset("demo").sources[0].uri, folder)
        late = scratch / last.name
        last.rename(late)
        overrides = [f"sources.0.uri={folder}/*.csv", "sources.0.max_rows=null", f"store={store}"]
        found = {"cold": run_alone(overrides)}
        late.rename(last)
        found["one_more_file"] = run_alone(overrides)
        found["nothing_new"] = run_alone(overrides)
    cold = found["cold"]["stage_work_seconds"]
    ratios = {
        name: round(found[name]["stage_work_seconds"] / cold, 4)
        for name in ("one_more_file", "nothing_new")
    }
    publish(
        "incremental-s3" if on_s3 else "incremental",
        {"files": len(first) + 1, "runs": found, "ratios_to_cold": ratios},
        [
            at_most("stage work of one new file in 21, over cold", ratios["one_more_file"], 0.1),
            at_most("stage work with nothing new, over cold", ratios["nothing_new"], 0),
        ],
        is_small=False,
    )


if __name__ == "__main__":
    main()
