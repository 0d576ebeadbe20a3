"""Continuations of a real model, ours against transformers' own `generate`: `make bench`.

The preset `smollm2`'s sampling, 25 continuations of each of 8 prompts by 20 tokens, the base alone;
both get all 200 rows at once and `generate` its own loop (`num_return_sequences`). In float32 and
in bfloat16, in turn, medians of `--rounds` after one to warm up. Needs the model of
`make real-model`; reads no data, prompts are random tokens.
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

from tests.benchmarks.bars import at_least, publish  # noqa: E402 - started as a file

MODEL = ROOT / ".models" / "smollm2"
N_PROMPTS, N_SAMPLES, N_TOKENS = 8, 25, 20
DTYPES = ("float32", "bfloat16")
SHORTEST, LONGEST = 8, 25


def generate_ours(language_model: Any, prompts: list[list[int]], settings: Any) -> int:
    """Number of tokens drawn by our loop."""
    import numpy as np

    from eigenshift.generation.decoding import HeadBranch, sample_batch
    from eigenshift.generation.sampling import draw_keys
    from eigenshift.patches.edits import ModelEdit

    keys = np.stack(
        [
            draw_keys(0, "main", f"p{prompt}", sample, N_TOKENS)
            for prompt in range(len(prompts))
            for sample in range(N_SAMPLES)
        ]
    )
    (rows,) = sample_batch(language_model, prompts, [HeadBranch(ModelEdit(), keys)], settings)
    return sum(map(len, rows))


def generate_theirs(language_model: Any, prompts: list[list[int]], settings: Any) -> int:
    """Number of tokens drawn by transformers' loop."""
    import torch

    padding = language_model.tokenizer.pad_token_id or 0
    width = max(map(len, prompts))
    rows = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    drawn = language_model.model.generate(
        input_ids=rows,
        attention_mask=mask,
        do_sample=True,
        top_p=settings.top_p,
        top_k=0,
        temperature=settings.temperature,
        max_new_tokens=N_TOKENS,
        min_new_tokens=N_TOKENS,
        num_return_sequences=N_SAMPLES,
        pad_token_id=padding,
    )
    return int(drawn[:, width:].numel())


def measure(dtype: str, rounds: int) -> dict[str, float]:
    """Tokens per second of both, and their ratio."""
    import numpy as np

    from eigenshift.model.loading import forget_models, load_model
    from eigenshift.settings import GenerationSettings, ModelSettings

    forget_models()
    language_model = load_model(ModelSettings(id=str(MODEL), dtype=dtype), "cpu")
    settings = GenerationSettings(n_samples=N_SAMPLES, n_tokens=N_TOKENS, min_tokens=N_TOKENS)
    generator = np.random.default_rng(0)
    lengths = generator.integers(SHORTEST, LONGEST, N_PROMPTS)
    prompts = [generator.integers(100, 40_000, length).tolist() for length in lengths]
    speeds: dict[str, list[float]] = {"ours": [], "generate": []}
    for round_ in range(rounds + 1):
        for name, draw in (("ours", generate_ours), ("generate", generate_theirs)):
            started = time.perf_counter()
            n_tokens = draw(language_model, prompts, settings)
            if round_:  # the first warms up
                speeds[name].append(n_tokens / (time.perf_counter() - started))
    ours, theirs = (statistics.median(found) for found in speeds.values())
    return {
        "ours, tokens a second": round(ours, 1),
        "generate, tokens a second": round(theirs, 1),
        "ratio": round(ours / theirs, 2),
    }


def main() -> None:
    """Measure in each precision and judge both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="one round")
    options = parser.parse_args()
    if not MODEL.exists():
        sys.exit(f"{MODEL}: expected the real model, found nothing. Run `make real-model`.")
    rounds = 1 if options.small else options.rounds
    found = {dtype: measure(dtype, rounds) for dtype in DTYPES}
    bars = [
        at_least(f"tokens a second over those of transformers' generate, {dtype}", ratio, 2)
        for dtype, ratio in ((dtype, found[dtype]["ratio"]) for dtype in DTYPES)
    ]
    publish("real-generation", found, bars, is_small=options.small)


if __name__ == "__main__":
    main()
