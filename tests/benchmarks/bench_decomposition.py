"""The head's decomposition against numpy's SVD, and its patch against a rebuild: `make bench`.

Heads are made up: dense, with a falling spectrum and a strong mean direction (condition number near
300), in float32, stored as a model stores them. Each variant runs in a process of its own, the
variants in turn, `--rounds` times:

    numpy_svd     numpy.linalg.svd(W, full_matrices=False), W in memory
    decompose     decompose_rows over the safetensors file, reading included
    floor         what no way over W^T W does without: that product and its eigenvectors, by the
                  same library, W in memory as float64
    verify        the digest that proves which tensor is the head (not part of the above)
    rebuild       W' = U diag(sigma') V^T in float32, U at hand
    rank_k        W' by HeadEdit.fold_weight, k = 64

Bars: decompose at most 1.15 times the floor, at least 4.5x (32,000 x 4,096) and 8x (50,257 x 768)
faster than numpy_svd, at most an eighth of its peak memory, singular values to 1e-9 relative
(against numpy in float64); rank_k at least 10x faster than rebuild at 32,000 x 4,096. Peak memory
is that of the process, interpreter and libraries included. Prints one JSON object; seconds are
medians of wall time. No timing here is a promise for another machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import Bar, at_least, at_most, publish  # noqa: E402

VARIANTS = ("numpy_svd", "decompose", "floor", "verify", "rebuild", "rank_k")
LARGE, SMALL_HIDDEN = (32_000, 4_096), (50_257, 768)
QUICK = ((4_000, 512), (6_000, 96))
"""Instead of the two sizes with `--small`: shows that everything works, no more."""
N_DAMPED, FACTOR = 64, 0.0
HEAD_NAME = "lm_head.weight"
MAX_SIGMA_ERROR, MIN_MEMORY_RATIO, MIN_RANK_K_SPEEDUP = 1e-9, 8.0, 10.0
MAX_TIMES_FLOOR = 1.15
MIN_SPEEDUPS = {LARGE: 4.5, SMALL_HIDDEN: 8.0}


def make_head(folder: Path, shape: tuple[int, int]) -> None:
    """Write a head and numpy's singular values of it in float64."""
    from safetensors.numpy import save_file

    hidden = shape[1]
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(shape, dtype=np.float32)
    weight *= np.geomspace(1, 0.1, hidden, dtype=np.float32)
    weight += generator.standard_normal(hidden, dtype=np.float32) / 2
    for _ in range(6):  # reflections turn the axes, so that the singular vectors are dense
        axis = generator.standard_normal(hidden, dtype=np.float32)
        axis /= np.linalg.norm(axis)
        weight -= np.outer(weight @ axis, 2 * axis)
    folder.mkdir()
    save_file({HEAD_NAME: weight}, folder / "model.safetensors")
    sigma = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    np.save(folder / "sigma.npy", sigma)


def open_head(folder: Path) -> Any:
    """The head in the file, found by its shape; `verify` computes the digest."""
    from eigenshift.model.head_files import list_stored_heads

    vocab, hidden = (int(part) for part in folder.name.split("x"))
    head = {"name": "lm_head", "vocab": vocab, "hidden": hidden, "dtype": "float32"}
    (stored,) = list_stored_heads(folder, head)
    return stored


def load_weight(folder: Path) -> np.ndarray:
    """The head in memory."""
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")[HEAD_NAME]


def prepare(variant: str, folder: Path) -> Callable[[], dict[str, object]]:
    """Import and load what a variant is given; return its work, which may return findings."""
    expected = np.load(folder / "sigma.npy")

    def compare(sigma: np.ndarray) -> dict[str, object]:
        return {"sigma_error": float(np.abs(sigma / expected - 1).max())}

    if variant == "numpy_svd":
        weight = load_weight(folder)
        return lambda: compare(np.linalg.svd(weight, full_matrices=False)[1])
    if variant == "decompose":
        from eigenshift.components.decomposition import decompose_rows

        return lambda: compare(decompose_rows(open_head(folder)).sigma)
    if variant == "floor":
        return prepare_floor(load_weight(folder).astype(np.float64), compare)
    if variant == "verify":
        return lambda: {"digest": open_head(folder).compute_digest()[:12]}
    return prepare_patch(variant, folder)


def prepare_floor(
    weight: np.ndarray, compare: Callable[[np.ndarray], dict[str, object]]
) -> Callable[[], dict[str, object]]:
    """The product and the eigenvectors alone."""
    import scipy.linalg
    from scipy.linalg import blas

    def work() -> dict[str, object]:
        gram = blas.dsyrk(1.0, weight.T, lower=1)
        values, _ = scipy.linalg.eigh(
            gram, driver="evr", lower=True, overwrite_a=True, check_finite=False
        )
        return compare(np.sqrt(values[::-1]))

    return work


def prepare_patch(variant: str, folder: Path) -> Callable[[], dict[str, object]]:
    """The two ways to a patched head, and how far each is from the exact one on some rows."""
    import torch

    from eigenshift.components.decomposition import decompose_rows
    from eigenshift.patches.edits import HeadEdit

    weight, found = torch.from_numpy(load_weight(folder)), decompose_rows(open_head(folder))
    sigma, v = torch.from_numpy(found.sigma), torch.from_numpy(found.v)
    rows = slice(0, 64)
    damped = v[:, :N_DAMPED]
    exact = weight[rows].double() @ (
        torch.eye(len(v), dtype=torch.float64) - (1 - FACTOR) * damped @ damped.T
    )
    scaled = sigma.clone()
    scaled[:N_DAMPED] *= FACTOR
    vt, scaled = v.T.float().contiguous(), scaled.float()
    u = (weight @ vt.T) / sigma.float()

    def rebuild() -> torch.Tensor:
        return (u * scaled) @ vt

    def update() -> torch.Tensor:
        return HeadEdit.scale_directions(damped.numpy(), FACTOR).fold_weight(weight)

    work = rebuild if variant == "rebuild" else update

    def measure() -> dict[str, object]:
        error = (work()[rows].double() - exact).norm() / exact.norm()
        return {"relative_error": float(error)}

    return measure


def run_variant(variant: str, folder: Path) -> None:
    """Do one variant's work and print what it took."""
    work = prepare(variant, folder)
    cpu, started = time.process_time(), time.perf_counter()
    findings = work()
    report = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_mb": measure_peak_rss(),
        **findings,
    }
    print(json.dumps(report))


def measure_peak_rss() -> float:
    """Peak memory of this process, MB; getrusage would include what its parent had at the fork."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """All variants in turn, a few times; medians."""
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        variant: {
            key: statistics.median(run[key] for run in of)
            for key, value in of[0].items()
            if isinstance(value, float)
        }
        for variant, of in runs.items()
    }


def compare(shape: tuple[int, int], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ratios of one size."""
    svd, ours = found["numpy_svd"], found["decompose"]
    rank_k = found["rebuild"]["seconds"] / found["rank_k"]["seconds"]
    return {
        "shape": shape,
        "variants": found,
        "times_faster_than_numpy_svd": round(svd["seconds"] / ours["seconds"], 2),
        "times_the_floor": round(ours["seconds"] / found["floor"]["seconds"], 2),
        "times_less_memory_than_numpy_svd": round(svd["peak_rss_mb"] / ours["peak_rss_mb"], 2),
        "sigma_error": ours["sigma_error"],
        "rank_k_times_faster_than_rebuild": round(rank_k, 2),
    }


def list_bars(size: dict[str, Any]) -> list[Bar]:
    """What is promised at a size."""
    shape, ratios = tuple(size["shape"]), size
    place = f"{shape[0]:,} x {shape[1]:,}"
    bars = [
        at_least(
            f"times faster than numpy.linalg.svd at {place}",
            ratios["times_faster_than_numpy_svd"],
            MIN_SPEEDUPS.get(shape, 1.0),
        ),
        at_most(
            f"seconds over those of the product W^T W and its eigenvectors at {place}",
            ratios["times_the_floor"],
            MAX_TIMES_FLOOR if shape in MIN_SPEEDUPS else 10.0,
        ),
        at_least(
            f"times less peak memory than numpy.linalg.svd at {place}",
            ratios["times_less_memory_than_numpy_svd"],
            MIN_MEMORY_RATIO,
        ),
        at_most(
            f"largest relative error of a singular value at {place}",
            ratios["sigma_error"],
            MAX_SIGMA_ERROR,
        ),
    ]
    if shape == LARGE:
        found = ratios["rank_k_times_faster_than_rebuild"]
        what = f"times faster than U S' V^T: rank-{N_DAMPED} update at {place}"
        bars.append(at_least(what, found, MIN_RANK_K_SPEEDUP))
    return bars


def main() -> None:
    """Run the variants one after the other at both sizes and print the comparison."""
    parser = argparse.ArgumentParser(description="Benchmark of the head's decomposition")
    parser.add_argument("--small", action="store_true", help="small heads, without bars on speed")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every variant")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(arguments.variant, arguments.folder)
        return
    sizes = []
    for shape in QUICK if arguments.small else (SMALL_HIDDEN, LARGE):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / f"{shape[0]}x{shape[1]}"
            make_head(folder, shape)
            sizes.append(compare(shape, measure(folder, arguments.rounds)))
    bars = [bar for size in sizes for bar in list_bars(size)]
    document = {"rounds": arguments.rounds, "sizes": sizes}
    publish("decomposition", document, bars, is_small=arguments.small)


if __name__ == "__main__":
    main()
