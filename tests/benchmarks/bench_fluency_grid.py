"""A grid of 30 points in closed form against one evaluation of the model: `make bench`.

Random GPT-2s read random tokens, 32 texts of 128 (16 of the large one). In turns, `--rounds` times:

    model   the model's loss on the texts once, as the peers' budget is measured (measure_loss)
    grid    likelihood, KL and changed argmax tokens of 6 numbers of components x 5 factors

Bars: the grid takes at most 4 times as long as the model at 4 layers x 256 with a vocabulary of
8,000, and at most 2 times at 12 x 768 with 50,257. Seconds are medians of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_most, publish  # noqa: E402 - started as a file

SHAPES = {
    "4x256, 8000 tokens": ({"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 8_000}, 32, 4),
    "12x768, 50257 tokens": ({}, 16, 2),
}
"""GPT-2 configuration, number of texts, bar."""
N_COMPONENTS, FACTORS = (1, 2, 4, 8, 16, 32), (0.0, 0.2, 0.4, 0.6, 0.8)
N_TOKENS = 128
TOKENS_PER_BATCH = 2_048


def make_model(shape: dict[str, int]) -> Any:
    """A random GPT-2 that reads token ids."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from eigenshift.model.loading import wrap_model
    from tests.benchmarks.bench_extraction import make_tokenizer

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**shape))
    tokenizer = make_tokenizer(model.config.vocab_size)
    return wrap_model(model, tokenizer, model_id="random", digest="random")


def measure_shape(shape: dict[str, int], n_texts: int, rounds: int) -> dict[str, Any]:
    """Median seconds of both, and their ratio."""
    import numpy as np

    from eigenshift.components.decomposition import decompose_head
    from eigenshift.evaluation.grid import Grid, list_points, measure_grid
    from eigenshift.patches.interventions.budget import measure_loss

    language_model = make_model(shape)
    generator = np.random.default_rng(0)
    vocab = language_model.head.vocab
    texts = [generator.integers(1, vocab, N_TOKENS).tolist() for _ in range(n_texts)]
    decomposition = decompose_head(language_model.head_weight)
    ranking = tuple(range(max(N_COMPONENTS)))
    points = list_points(["sigma"], N_COMPONENTS, FACTORS)
    grid = Grid(points, {"sigma": ranking}, decomposition.v)
    seconds: dict[str, list[float]] = {"model": [], "grid": []}
    for round_ in range(rounds + 1):
        started = time.perf_counter()
        measure_loss(language_model, texts)
        between = time.perf_counter()
        measure_grid(language_model, grid, texts, tokens_per_batch=TOKENS_PER_BATCH)
        if round_:  # the first warms up
            seconds["model"].append(between - started)
            seconds["grid"].append(time.perf_counter() - between)
    medians = {name: round(statistics.median(found), 3) for name, found in seconds.items()}
    ratio = round(statistics.median(seconds["grid"]) / statistics.median(seconds["model"]), 2)
    return {"n_points": len(points), "n_tokens": n_texts * N_TOKENS, **medians, "ratio": ratio}


def main() -> None:
    """Measure all shapes and judge them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="fewer texts and rounds")
    options = parser.parse_args()
    rounds = 1 if options.small else options.rounds
    found, bars = {}, []
    for name, (shape, n_texts, bar) in SHAPES.items():
        found[name] = measure_shape(shape, 4 if options.small else n_texts, rounds)
        bars.append(at_most(f"30 grid points / one evaluation, {name}", found[name]["ratio"], bar))
    publish("fluency_grid", {"shapes": found}, bars, is_small=options.small)


if __name__ == "__main__":
    main()
