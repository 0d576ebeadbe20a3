"""What a large model costs: bytes, seconds and memory per (sample, unit), put together for Jigsaw.

Every part runs in a process of its own, on a layer shaped as one of Llama-2-7B (hidden 4,096, MLP
11,008), with made-up values or random weights:

    extract           two blocks in bfloat16 over texts of the length of Jigsaw's comments
    read              one pass of DuckDB over the activations of a site
    summarise, merge  neuron summaries of ten shards, then statistics of all units
    stability         200 resamples of all units
    layer_mlp         probe, units and clusters of a site of 11,008 units and 5,000 samples
    layer_residual    likewise of 4,096 units and 20,000 samples

Costs that grow with the values are divided by them; those of layers are what they are, because
`statistics.max_probe_samples` bounds the samples. `jigsaw` multiplies. docs/scale.md says what
follows; there is no bar.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import publish  # noqa: E402 - started as a file
from tests.benchmarks.bench_neuron_statistics import (  # noqa: E402
    make_data,
    measure_cpu,
    measure_peak_rss,
)

HIDDEN, INNER, N_LAYERS, N_PARAMETERS_OF_A_BLOCK = 4_096, 11_008, 32, 202_391_552
JIGSAW_SAMPLES, JIGSAW_TOKENS = 159_571, 90
MEMORY_LIMIT = "2GB"
PARTS = ("extract", "read", "summarise", "merge", "stability", "layer_mlp", "layer_residual")
SIZES = {"layer_mlp": (5_000, INNER), "layer_residual": (20_000, HIDDEN)}
"""Samples and units; other parts read the activations of `N_SAMPLES` samples and INNER units."""
N_SAMPLES, N_TEXTS, N_BLOCKS = 10_000, 64, 2
SMALL = 20
"""A small run has so many times fewer samples and units."""


def extract(folder: Path, small: bool) -> dict[str, float]:
    """Extract a shard with two random blocks; how fast, and how large it is stored."""
    import numpy as np
    import pyarrow as pa
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from eigenshift.detection.activations import extract_shard
    from eigenshift.model.loading import wrap_model
    from eigenshift.settings import ActivationSettings
    from eigenshift.store.workspace import Workspace
    from tests.benchmarks.bench_extraction import VOCAB, make_tokenizer

    scale = SMALL if small else 1
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN // scale // 32 * 32,
        intermediate_size=INNER // scale,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=32 if not small else 4,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    language_model = wrap_model(model, make_tokenizer(), model_id="random", digest="random")
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(55), 1.0, N_TEXTS), 4, 512).astype(int)
    texts = [" ".join(f"w{word}" for word in generator.integers(1, VOCAB, n)) for n in lengths]
    samples = pa.table({"sample_id": [f"s{n}" for n in range(N_TEXTS)], "text": texts})
    cpu, started = measure_cpu(), time.perf_counter()
    workspace = Workspace(folder)
    extract_shard(language_model, samples, ActivationSettings(), 2_048, workspace)
    seconds = time.perf_counter() - started
    n_values = N_TEXTS * N_BLOCKS * (config.hidden_size + config.intermediate_size)
    return {
        "n_values": n_values,
        "n_tokens": int(lengths.sum()),
        "cpu_seconds": measure_cpu() - cpu,
        "wall_seconds": seconds,
        "bytes": workspace.path("activations.parquet").stat().st_size,
    }


def prepare(part: str, data: Path, out: Path) -> Callable[[], None]:
    """Import what a part needs and return its work."""
    import pyarrow.parquet as pq

    from eigenshift.detection.labelled_layers import open_labelled_layer
    from eigenshift.detection.layer_statistics import compute_layer_statistics
    from eigenshift.detection.neuron_stability import compute_neuron_stability
    from eigenshift.detection.neuron_statistics import compute_neuron_statistics
    from eigenshift.detection.neuron_summaries import summarise_shard
    from eigenshift.settings import StatisticsSettings
    from eigenshift.stages.tables import NEURON_SUMMARIES
    from eigenshift.store.workspace import Workspace
    from tests.support.activation_shards import MLP_MAX

    shards, samples = sorted(data.glob("shard-*.parquet")), data / "samples.parquet"
    summaries = sorted(data.glob(f"*-summary-of-demo/{NEURON_SUMMARIES.file}"))
    workspace, settings = Workspace(out), StatisticsSettings(max_probe_samples=None)
    common: tuple[Any, ...] = (shards, [samples])
    place: tuple[Any, ...] = ("demo", 0, [MLP_MAX])

    def read() -> None:
        with open_labelled_layer(*common, "demo", 0, MEMORY_LIMIT, out) as labelled:
            labelled.read_units(MLP_MAX.column, 0, 256)

    def summarise() -> None:
        for shard in shards:
            summarise_shard(shard, samples, "demo", [MLP_MAX], workspace)

    def merge() -> None:
        compute_neuron_statistics(summaries, *place, MEMORY_LIMIT, workspace)

    def study_layer() -> None:
        neurons = pq.read_table(data / "neurons.parquet")
        compute_layer_statistics(*common, neurons, *place, settings, workspace, MEMORY_LIMIT)

    def resample() -> None:
        compute_neuron_stability(*common, *place, settings, workspace, MEMORY_LIMIT)

    if part.startswith("layer"):
        compute_neuron_statistics(summaries, *place, MEMORY_LIMIT, Workspace(data))
        return study_layer
    return {"read": read, "summarise": summarise, "merge": merge, "stability": resample}[part]


def run_part(part: str, data: Path, small: bool) -> None:
    """Do one part's work and print what it took."""
    with tempfile.TemporaryDirectory(dir=data) as name:
        if part == "extract":
            found = extract(Path(name), small)
        else:
            work = prepare(part, data, Path(name))
            cpu, started = measure_cpu(), time.perf_counter()
            work()
            found = {
                "cpu_seconds": measure_cpu() - cpu,
                "wall_seconds": time.perf_counter() - started,
            }
    print(json.dumps({**found, "peak_rss_mb": measure_peak_rss()}))


def measure(part: str, scratch: Path, small: bool) -> dict[str, float]:
    """Run one part in a process of its own over data of its size."""
    n_samples, n_units = SIZES.get(part, (N_SAMPLES, INNER))
    if small:
        n_samples, n_units = n_samples // SMALL, n_units // SMALL
    data = scratch / f"{n_samples}-{n_units}"
    if not data.exists():
        make_data(data, n_samples, n_units)
    command = [sys.executable, __file__, "--part", part, "--data", str(data)]
    command += ["--small"] if small else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    found = {"n_samples": n_samples, "n_units": n_units, "n_values": n_samples * n_units, **found}
    pattern = {"summarise": "*-of-demo/*", "read": "shard-*.parquet"}.get(part)
    if pattern:
        found["bytes"] = sum(path.stat().st_size for path in data.glob(pattern))
    return {key: round(value, 3) for key, value in found.items()}


def extrapolate(parts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Jigsaw's training set through Llama-2-7B, all layers, both sites: hours of CPU and bytes."""
    n_values = JIGSAW_SAMPLES * N_LAYERS * (HIDDEN + INNER)
    n_tokens = JIGSAW_SAMPLES * JIGSAW_TOKENS
    per_value = {name: parts[name]["cpu_seconds"] / parts[name]["n_values"] for name in parts}
    layers = parts["layer_mlp"]["cpu_seconds"] + parts["layer_residual"]["cpu_seconds"]
    gigabytes = {
        name: round(n_values * parts[part]["bytes"] / parts[part]["n_values"] / 1e9, 1)
        for name, part in {"activations": "read", "neuron_summaries": "summarise"}.items()
    }
    extraction = parts["extract"]["cpu_seconds"] / parts["extract"]["n_tokens"] / N_BLOCKS
    hours = {name: per_value[name] * n_values for name in ("summarise", "merge", "stability")}
    hours["extract"] = extraction * N_LAYERS * n_tokens
    # Layers read every row of a site to keep the few; stability reads once per block of units.
    hours["layers"] = layers * N_LAYERS + per_value["read"] * n_values
    passes = {units: count_passes(units, MEMORY_LIMIT) for units in (INNER, HIDDEN)}
    values_of_a_pass = JIGSAW_SAMPLES * N_LAYERS
    hours["stability"] += per_value["read"] * sum(
        values_of_a_pass * units * (n_passes - 1) for units, n_passes in passes.items()
    )
    return {
        "n_values": n_values,
        "petaflop_of_forward_passes": round(
            2 * N_PARAMETERS_OF_A_BLOCK * N_LAYERS * n_tokens / 1e15
        ),
        "cpu_hours": {name: round(seconds / 3_600, 1) for name, seconds in hours.items()},
        "gigabytes": gigabytes,
        "passes_of_stability": passes,
        "shard_in_memory_mb": round(2_000 * N_LAYERS * (HIDDEN + INNER) * 2 / 1e6),
    }


def count_passes(n_units: int, memory_limit: str) -> int:
    """How often stability reads a site at this memory limit."""
    from eigenshift.detection.labelled_layers import parse_memory_limit, split_units
    from eigenshift.detection.neuron_stability import STORED_BYTES

    blocks = split_units(n_units, STORED_BYTES * JIGSAW_SAMPLES, parse_memory_limit(memory_limit))
    return len(list(blocks))


def main() -> None:
    """Measure every part and put them together."""
    parser = argparse.ArgumentParser(description="What a large model costs")
    parser.add_argument("--small", action="store_true", help="see that it works")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.part, arguments.data, arguments.small)
        return
    with tempfile.TemporaryDirectory() as scratch:
        parts = {part: measure(part, Path(scratch), arguments.small) for part in PARTS}
    document = {"parts": parts, "jigsaw_with_llama_2_7b": extrapolate(parts)}
    publish("scale", document, [], is_small=arguments.small)


if __name__ == "__main__":
    main()
