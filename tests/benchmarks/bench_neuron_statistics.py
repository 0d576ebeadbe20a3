"""Neuron statistics against the loops they replace: `make bench`, or run this file.

Each variant runs in a process of its own over the same shards (20,000 samples x 3,072 units;
`--small`: 4,000 x 512), so that its CPU seconds and peak memory are its own:

    eigenshift         compute_neuron_statistics: AUROC, average precision, moments, effect size
    sql                sql/neuron_statistics.sql over all units in one query
    sklearn_loop       roc_auc_score and average_precision_score per unit
    scipy_rankdata     scipy.stats.rankdata over the whole matrix: AUROC only

The values are made up: Gaussian, SiLU-like, rectified and dead units. Prints one JSON object; a
ratio above 1 means that EigenShift needs less. No timing here is a promise for another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

VARIANTS = ("eigenshift", "sql", "sklearn_loop", "scipy_rankdata")
ROWS_PER_SHARD = 2_000


def make_data(folder: Path, n_samples: int, n_units: int) -> None:
    """Write float16 shards and samples; a tenth of the samples is toxic."""
    from tests.support.activation_shards import MLP_MAX, write_samples, write_shard

    generator = np.random.default_rng(0)
    is_toxic = generator.random(n_samples) < 0.1
    ids = [f"demo-{index:08x}" for index in generator.permutation(n_samples)]
    kind, effect = generator.random(n_units), generator.normal(0, 0.4, n_units)
    write_samples(folder / "samples.parquet", ids, is_toxic.tolist())
    for first in range(0, n_samples, ROWS_PER_SHARD):
        part = slice(first, first + ROWS_PER_SHARD)
        values = generator.normal(size=(len(ids[part]), n_units)) + effect * is_toxic[part, None]
        silu = values / (1 + np.exp(-1.7 * values))
        values = np.select(
            [kind < 0.45, kind < 0.75, kind < 0.95], [values, silu, np.maximum(values, 0)], 0.0
        )
        write_shard(
            folder / f"shard-{first:06d}.parquet",
            ids[part],
            [{MLP_MAX.column: values.astype(np.float16)}],
        )


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


def run_variant(variant: str, folder: Path) -> None:
    """Compute one variant's statistics and print what it took."""
    from eigenshift.aggregation import compute_neuron_statistics, query_neuron_statistics
    from eigenshift.artifacts import Workspace
    from tests.support.activation_shards import MLP_MAX

    shards, samples = sorted(folder.glob("shard-*.parquet")), [folder / "samples.parquet"]
    if variant == "sklearn_loop":
        from sklearn.metrics import average_precision_score, roc_auc_score
    if variant == "scipy_rankdata":
        from scipy.stats import rankdata
    import pyarrow.parquet as pq

    started, started_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        workspace = Workspace(Path(out))
        if variant == "eigenshift":
            compute_neuron_statistics(shards, samples, "demo", 0, [MLP_MAX], "2GB", workspace)
            aurocs = pq.read_table(workspace.path("neurons.parquet"))["auroc"].to_numpy()
        elif variant == "sql":
            n_units = pq.read_schema(shards[0]).field(MLP_MAX.column).type.list_size
            aurocs = query_neuron_statistics(
                shards, samples, "demo", 0, MLP_MAX, range(n_units), "4GB", workspace.folder
            )["auroc"].to_numpy()
        else:
            values, is_toxic = read_matrix(folder)
            if variant == "sklearn_loop":
                aurocs = np.array([roc_auc_score(is_toxic, unit) for unit in values.T])
                _ = [average_precision_score(is_toxic, unit) for unit in values.T]
            else:
                n_toxic = int(is_toxic.sum())
                sums = rankdata(values, axis=0)[is_toxic].sum(axis=0)
                aurocs = (sums - n_toxic * (n_toxic + 1) / 2) / (n_toxic * (~is_toxic).sum())
    report = {
        "cpu_seconds": round(time.process_time() - started_cpu, 2),
        "wall_seconds": round(time.perf_counter() - started, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "auroc_sum": float(aurocs.sum()),
    }
    print(json.dumps(report))


def main() -> None:
    """Run the variants one after the other and print the comparison."""
    parser = argparse.ArgumentParser(description="Benchmark of the neuron statistics")
    parser.add_argument("--small", action="store_true", help="4,000 samples x 512 units")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(arguments.variant, arguments.folder)
        return
    n_samples, n_units = (4_000, 512) if arguments.small else (20_000, 3_072)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, n_samples, n_units)
        results = {}
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--folder", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[variant] = json.loads(done.stdout)
    ours = results["eigenshift"]
    expected = results["sklearn_loop"]["auroc_sum"]
    document = {
        "n_samples": n_samples,
        "n_units": n_units,
        "n_cores": os.cpu_count(),
        "variants": results,
        "ratios_to_eigenshift": {
            variant: {
                key: round(results[variant][key] / ours[key], 2)
                for key in ("cpu_seconds", "wall_seconds", "peak_rss_mb")
            }
            for variant in VARIANTS[1:]
        },
        "do_all_agree": all(
            abs(result["auroc_sum"] - expected) < 1e-9 * n_units for result in results.values()
        ),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
