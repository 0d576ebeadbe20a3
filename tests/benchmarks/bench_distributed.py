"""Extraction on a Dask cluster with two workers of one thread each against one: `make bench`.

A random GPT-2 (6 layers, 384 wide) reads shards of made-up texts through the task that a run
submits, with a Prefect server running. Each number of workers is a process of its own with a store
of its own, in turn, `--rounds` times. The workers are up and have loaded the model before the clock
starts: a first round of shards, not timed, does that.

Bar: two workers at least 1.7x the tokens per second of one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_least, publish  # noqa: E402 - started as a file
from tests.benchmarks.bench_extraction import make_samples, make_tokenizer  # noqa: E402

WORKERS = (1, 2)
N_WARM_UP = 8


def save_model(folder: Path) -> None:
    """A random GPT-2 with its tokenizer, as a user would have it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=384, n_head=6)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def write_shards(store: str, n_shards: int, n_texts: int) -> list[Any]:
    """Samples in shards of the store; returns references to them."""
    import pyarrow.parquet as pq

    from eigenshift.store.artifacts import ArtifactStore
    from eigenshift.store.workspace import Workspace

    samples = make_samples(n_shards * n_texts)

    def work(workspace: Workspace) -> None:
        for place in range(n_shards):
            shard = samples.slice(place * n_texts, n_texts)
            pq.write_table(shard, workspace.path(f"samples-{place:03d}.parquet"))

    artifacts = ArtifactStore(store)
    made = artifacts.produce("samples", step_version=1, settings={}, inputs=[], work=work)
    return artifacts.open(made.reference).refer_to_files("samples-")


def measure(n_workers: int, n_shards: int, n_texts: int, folder: Path) -> dict[str, float]:
    """In a process of its own: extract all shards with so many workers."""
    from prefect import flow

    from eigenshift.detection.stages import EXTRACT_ACTIVATIONS, ActivationKey, ExtractionInputs
    from eigenshift.model.stages import IDENTIFY_MODEL, IdentityInputs, IdentityKey, Weights
    from eigenshift.settings import ActivationSettings, ExecutionSettings, ModelSettings, Runner
    from eigenshift.stages.stage import Place
    from flows.runners import run_tasks
    from tasks.stage import submit_stage

    store = str(folder / "store")
    settings = ModelSettings(id=str(folder.parent / "model"))
    execution = ExecutionSettings(runner=Runner.dask, concurrency=n_workers, device="cpu")
    place = Place(store, settings, execution)
    key = ActivationKey(activations=ActivationSettings(), dtype=settings.dtype)
    shards = write_shards(store, N_WARM_UP + n_shards, n_texts)

    @flow
    def extract() -> dict[str, float]:
        with run_tasks(execution):
            weights = IdentityInputs(weights=Weights(model=settings))
            identity_key = IdentityKey(dtype=settings.dtype)
            identified = submit_stage(IDENTIFY_MODEL, weights, identity_key, place).result()

            def run(chosen: list[Any]) -> int:
                inputs = [
                    ExtractionInputs(model=identified.reference, samples=shard) for shard in chosen
                ]
                running = [submit_stage(EXTRACT_ACTIVATIONS, item, key, place) for item in inputs]
                return sum(future.result().n_tokens for future in running)

            run(shards[:N_WARM_UP])
            started = time.perf_counter()
            n_tokens = run(shards[N_WARM_UP:])
            seconds = time.perf_counter() - started
        return {"seconds": round(seconds, 3), "tokens_per_second": round(n_tokens / seconds, 1)}

    return extract()


def start(n_workers: int, options: argparse.Namespace, folder: Path, api_url: str) -> Any:
    """Run `measure` in a new process."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": api_url,
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "OMP_NUM_THREADS": "1",
    }
    words = ["--measure", str(n_workers), "--folder", str(folder)]
    words += ["--shards", str(options.shards), "--texts", str(options.texts)]
    command = [sys.executable, __file__, *words]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(f"{n_workers} workers:\n{found.stderr[-3000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Measure in turns and publish the ratio."""
    parser = argparse.ArgumentParser(description="Benchmark of extraction on two workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--texts", type=int, default=120, help="per shard")
    parser.add_argument("--small", action="store_true", help="less work, for a quick look")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.shards, options.texts, options.folder)))
        return
    if options.small:
        options.rounds, options.shards, options.texts = 1, 8, 40
    from tests.support.prefect_server import prefect_server_process

    rounds: dict[int, list[Any]] = {n_workers: [] for n_workers in WORKERS}
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch) / "model")
        with prefect_server_process(Path(scratch) / "server") as api_url:
            for place in range(options.rounds):
                for n_workers in WORKERS:
                    folder = Path(scratch) / f"{n_workers}-{place}"
                    folder.mkdir()
                    rounds[n_workers].append(start(n_workers, options, folder, api_url))
    median = {
        n_workers: statistics.median(found["tokens_per_second"] for found in measured)
        for n_workers, measured in rounds.items()
    }
    ratio = round(median[2] / median[1], 3)
    document = {
        "n_shards": options.shards,
        "texts_per_shard": options.texts,
        "rounds": rounds,
        "median_tokens_per_second": median,
        "ratio": ratio,
    }
    bar = at_least("tokens per second of two workers, times those of one", ratio, 1.7)
    publish("distributed", document, [bar], is_small=options.small)


if __name__ == "__main__":
    main()
