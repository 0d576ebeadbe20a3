"""Neuron statistics against what they replace: `make bench`, or run this file.

Each variant runs in a process of its own over the same shards (20,000 samples x 3,072 units;
`--small`: 4,000 x 512), the variants in turn, `--rounds` times, so that CPU seconds and peak memory
are its own and a noisy minute hits all of them:

    summarise         the per-shard summaries of all ten shards: read, pack by unit and class, write
    merge             neurons.parquet from stored summaries: AUROC, average precision, moments, d
    from_scratch      both, one after the other
    sklearn_pool      roc_auc_score per unit in a process pool, as AurA's release does (AUROC only)
    scipy_rankdata    scipy.stats.rankdata over the whole matrix (AUROC only)
    read              the floor: reading the Parquet bytes of the shards once
    sql               sql/neuron_statistics.sql over an eighth of the units in one query

`growth` repeats `summarise` and `merge` with half and a tenth of the samples and of the units. The
values are made up: Gaussian, SiLU-like, rectified and dead units. CPU seconds are the medians of
the rounds, a ratio above 1 means that EigenShift needs less. No timing here is a promise for
another machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import Bar, at_least, at_most, publish  # noqa: E402 - started as a file

N_SHARDS = 10
SQL_SHARE = 8
GROWTH_TOLERANCE = 1.2
VARIANTS = (
    "summarise",
    "merge",
    "from_scratch",
    "sklearn_pool",
    "scipy_rankdata",
    "read",
    "sql",
)


def make_data(folder: Path, n_samples: int, n_units: int) -> None:
    """Write float16 shards, their samples and summaries; a tenth of the samples is toxic."""
    from tests.support.activation_shards import MLP_MAX, summarise, write_samples, write_shard

    folder.mkdir()
    generator = np.random.default_rng(0)
    is_toxic = generator.random(n_samples) < 0.1
    ids = [f"demo-{index:08x}" for index in generator.permutation(n_samples)]
    kind, effect = generator.random(n_units), generator.normal(0, 0.4, n_units)
    samples = write_samples(folder / "samples.parquet", ids, is_toxic.tolist())
    for part in np.array_split(np.arange(n_samples), N_SHARDS):
        rows = slice(part[0], part[-1] + 1)
        values = generator.normal(size=(len(part), n_units)) + effect * is_toxic[rows, None]
        silu = values / (1 + np.exp(-1.7 * values))
        values = np.select(
            [kind < 0.45, kind < 0.75, kind < 0.95], [values, silu, np.maximum(values, 0)], 0.0
        )
        path = folder / f"shard-{part[0]:06d}.parquet"
        write_shard(path, ids[rows], [{MLP_MAX.column: values.astype(np.float16)}])
        summarise(path, samples)


def read_matrix(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (sample, unit) and labels, as a plain script would read them."""
    import pyarrow.parquet as pq

    from tests.support.activation_shards import MLP_MAX

    columns = [
        pq.read_table(path, columns=[MLP_MAX.column])[MLP_MAX.column].combine_chunks()
        for path in sorted(folder.glob("shard-*.parquet"))
    ]
    values = np.concatenate([c.flatten().to_numpy().reshape(len(c), -1) for c in columns])
    samples = pq.read_table(folder / "samples.parquet", columns=["is_toxic"])
    return values, np.array(samples["is_toxic"].to_pylist())


def compute_auroc(arguments: tuple[np.ndarray, np.ndarray]) -> float:
    """One unit's AUROC: the pool's task."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*arguments))


def prepare(variant: str, folder: Path, out: Path) -> Callable[[], np.ndarray | None]:
    """Import what a variant needs and return its work, which gives the AUROCs if it has any."""
    import pandas  # noqa: F401 - pyarrow imports it with the first array it makes
    import pyarrow.parquet as pq
    import sklearn.metrics  # noqa: F401 - inherited by the pool's workers
    from scipy.stats import rankdata

    from eigenshift.detection.counting import pack_keys
    from eigenshift.detection.neuron_statistics import (
        compute_neuron_statistics,
        query_neuron_statistics,
    )
    from eigenshift.detection.neuron_summaries import summarise_shard
    from eigenshift.stages.tables import NEURON_SUMMARIES
    from eigenshift.store.workspace import Workspace
    from tests.support.activation_shards import MLP_MAX

    # numba imports most of itself with the first call of a compiled loop
    pack_keys(np.zeros((1, 1), np.uint16), np.ones(1, np.int64))
    shards, samples = sorted(folder.glob("shard-*.parquet")), folder / "samples.parquet"
    workspace = Workspace(out)

    def summarise_all() -> list[Path]:
        files = []
        for shard in shards:
            (out / shard.stem).mkdir()
            summarise_shard(shard, samples, "demo", [MLP_MAX], Workspace(out / shard.stem))
            files.append(out / shard.stem / NEURON_SUMMARIES.file)
        return files

    def merge(files: list[Path]) -> np.ndarray:
        compute_neuron_statistics(files, "demo", 0, [MLP_MAX], "1GB", workspace)
        return pq.read_table(workspace.path("neurons.parquet"))["auroc"].to_numpy()

    def pool() -> np.ndarray:
        values, is_toxic = read_matrix(folder)
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            tasks = ((is_toxic, unit) for unit in np.ascontiguousarray(values.T))
            return np.array(list(workers.map(compute_auroc, tasks, chunksize=32)))

    def rank() -> np.ndarray:
        values, is_toxic = read_matrix(folder)
        n_toxic = int(is_toxic.sum())
        sums = rankdata(values, axis=0)[is_toxic].sum(axis=0)
        return (sums - n_toxic * (n_toxic + 1) / 2) / (n_toxic * (~is_toxic).sum())

    def query() -> np.ndarray:
        n_units = pq.read_schema(shards[0]).field(MLP_MAX.column).type.list_size
        units = range(n_units // SQL_SHARE)
        return query_neuron_statistics(
            shards, [samples], "demo", 0, MLP_MAX, units, "4GB", workspace.folder
        )["auroc"].to_numpy()

    work: dict[str, Callable[[], np.ndarray | None]] = {
        "summarise": lambda: summarise_all() and None,
        "merge": lambda: merge(sorted(folder.glob(f"*-summary-of-demo/{NEURON_SUMMARIES.file}"))),
        "from_scratch": lambda: merge(summarise_all()),
        "sklearn_pool": pool,
        "scipy_rankdata": rank,
        "read": lambda: read_matrix(folder) and None,
        "sql": query,
    }
    return work[variant]


def run_variant(variant: str, folder: Path) -> None:
    """Do one variant's work and print what it took."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        work = prepare(variant, folder, Path(out))
        before, started = measure_cpu(), time.perf_counter()
        aurocs = work()
        report = {
            "cpu_seconds": round(measure_cpu() - before, 3),
            "wall_seconds": round(time.perf_counter() - started, 3),
            "peak_rss_mb": measure_peak_rss(),
            "aurocs": None if aurocs is None else aurocs.tolist(),
        }
    print(json.dumps(report))


def measure_cpu() -> float:
    """CPU seconds of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure_peak_rss() -> int:
    """Peak memory of this process, MB; getrusage would include what its parent had at the fork."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def start(variant: str, folder: Path) -> dict[str, Any]:
    """Run one variant in a process of its own."""
    command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    """All variants in turn, a few times."""
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            runs[variant].append(start(variant, folder))
    keys = ("cpu_seconds", "wall_seconds", "peak_rss_mb")
    found = {
        variant: {key: statistics.median(run[key] for run in runs[variant]) for key in keys}
        for variant in VARIANTS
    }
    exact = np.array(runs["sklearn_pool"][0]["aurocs"])
    errors = {
        variant: float(np.abs(np.array(of_variant[0]["aurocs"]) - exact[: len(aurocs)]).max())
        for variant, of_variant in runs.items()
        if (aurocs := of_variant[0]["aurocs"]) is not None
    }
    n_bytes = {
        name: sum(path.stat().st_size for path in folder.glob(pattern))
        for name, pattern in {"activations": "shard-*.parquet", "summaries": "*-of-demo/*"}.items()
    }
    return {
        "variants": found,
        "ratios_to_from_scratch": divide(found, "from_scratch"),
        "ratios_to_merge": divide(found, "merge"),
        "sql_all_units_cpu_seconds": found["sql"]["cpu_seconds"] * SQL_SHARE,
        "largest_auroc_error_against_sklearn": errors,
        "bytes": n_bytes,
    }


def divide(found: dict[str, dict[str, float]], ours: str) -> dict[str, dict[str, float]]:
    """What the others take for each unit of what ours takes."""
    return {
        variant: {
            key: round(found[variant][key] / found[ours][key], 2)
            for key in ("cpu_seconds", "peak_rss_mb")
        }
        for variant in ("sklearn_pool", "scipy_rankdata", "read")
    }


def measure_growth(
    folder: Path, n_samples: int, n_units: int, full: dict[str, float], rounds: int
) -> list[dict[str, Any]]:
    """CPU seconds of both steps over a tenfold range of samples and of units.

    `times_of_expected` is what the full size takes over what this size foretells: linear in units,
    n log n in samples.
    """
    sizes = [(n_samples, n_units // 10), (n_samples, n_units // 2)]
    sizes += [(n_samples // 10, n_units), (n_samples // 2, n_units)]
    rows: list[dict[str, Any]] = []
    for samples, units in sizes:
        place = folder / f"{samples}-{units}"
        make_data(place, samples, units)
        cpu = {
            name: statistics.median(start(name, place)["cpu_seconds"] for _ in range(rounds))
            for name in full
        }
        foretold = n_units / units * n_samples * math.log(n_samples) / samples / math.log(samples)
        rows.append(
            {
                "n_samples": samples,
                "n_units": units,
                "cpu_seconds": cpu,
                "times_of_expected": round(sum(full.values()) / (sum(cpu.values()) * foretold), 2),
            }
        )
    return rows


def judge(document: dict[str, Any]) -> list[Bar]:
    """The bars: CPU, memory, exactness and growth."""
    scratch, merge = document["ratios_to_from_scratch"], document["ratios_to_merge"]
    peaks = {name: found["peak_rss_mb"] for name, found in document["variants"].items()}
    errors = document["largest_auroc_error_against_sklearn"]
    growth = document["growth"]
    return [
        at_least(
            "CPU of the per-unit scikit-learn loop over ours from scratch",
            scratch["sklearn_pool"]["cpu_seconds"],
            12,
        ),
        at_least(
            "CPU of scipy's rankdata over ours from scratch",
            scratch["scipy_rankdata"]["cpu_seconds"],
            8,
        ),
        at_least(
            "CPU of scipy's rankdata over merging stored summaries",
            merge["scipy_rankdata"]["cpu_seconds"],
            25,
        ),
        at_most(
            "peak memory from scratch over that of rankdata",
            round(peaks["from_scratch"] / peaks["scipy_rankdata"], 2),
            1,
        ),
        at_most(
            "largest difference of an AUROC from scikit-learn's",
            max(errors["from_scratch"], errors["merge"]),
            1e-9,
        ),
        at_most(
            "CPU at ten times the units over ten times the CPU",
            growth[0]["times_of_expected"],
            GROWTH_TOLERANCE,
        ),
        at_most(
            "CPU at ten times the samples over what n log n foretells",
            growth[2]["times_of_expected"],
            GROWTH_TOLERANCE,
        ),
    ]


def main() -> None:
    """Run the variants one after the other and publish the comparison."""
    parser = argparse.ArgumentParser(description="Benchmark of the neuron statistics")
    parser.add_argument("--small", action="store_true", help="4,000 samples x 512 units")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every variant")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(arguments.variant, arguments.folder)
        return
    n_samples, n_units = (4_000, 512) if arguments.small else (20_000, 3_072)
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name) / "data", n_samples, n_units)
        found = compare(Path(name) / "data", arguments.rounds)
        full = {step: found["variants"][step]["cpu_seconds"] for step in ("summarise", "merge")}
        document = {
            "n_samples": n_samples,
            "n_units": n_units,
            "rounds": arguments.rounds,
            **found,
            "growth": measure_growth(Path(name), n_samples, n_units, full, arguments.rounds),
        }
    publish("neuron-statistics", document, judge(document), is_small=arguments.small)


if __name__ == "__main__":
    main()
