"""Eight arms in one pass against one arm alone: `make bench`.

A random GPT-2 (4 layers x 256, vocabulary 8,000) continues prompts of 8 to 24 tokens by 20 tokens,
with the base alone and with the base and seven patches of its head together, in turns, `--rounds`
times. The patches remove random components, as many as move the mean KL to the base to 0.02 to
0.15 nats (printed), like patches in use. What arms share is the pass through the trunk and what
they have drawn alike, so the gain depends on how many rows one arm alone brings: few rows wait for
weights and for the interpreter; many are bound by arithmetic, of which arms that have parted have
as many times more as they are. Hence several sizes. `floor` is the arithmetic that is left: each
different row through the trunk once and each arm's row through the head, over the same of one arm.
Foretelling by importance needs no more than the base's rows (bench_predicted_rates.py).

Bar: 8 arms take at most 2.5 times as long as one with 4 prompts in a batch (as it was measured
when the bar was set). The other sizes, and 8 arms one after the other, are printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_most, publish  # noqa: E402 - started as a file

SHAPE = {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 8_000, "initializer_range": 0.1}
SIZES = {"4 prompts x 1": (4, 1), "4 x 4": (4, 4), "8 x 8": (8, 8), "10 x 25": (10, 25)}
JUDGED = "4 prompts x 1"
RANKS = (3, 4, 6, 8, 12, 16, 24)
VARIANTS = ("one", "eight", "eight_in_turn")


def make_prompts(n_prompts: int) -> Any:
    """Random words."""
    import numpy as np
    import pyarrow as pa

    generator = np.random.default_rng(0)
    texts = [
        " ".join(f"w{word}" for word in generator.integers(1, 8_000, generator.integers(8, 25)))
        for _ in range(n_prompts)
    ]
    return pa.table(
        {
            "prompt_id": [f"p{place}" for place in range(n_prompts)],
            "language": ["en"] * n_prompts,
            "prompt": texts,
        }
    )


def make_arms(language_model: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """The base and seven patches of the head, and the patches' mean KL to the base."""
    import numpy as np

    from eigenshift.components.decomposition import decompose_head
    from eigenshift.evaluation.grid import Grid, GridPoint, measure_grid
    from eigenshift.generation.continuations import LoadedArm
    from eigenshift.patches.edits import HeadEdit, ModelEdit
    from eigenshift.patches.patching import make_patch

    generator = np.random.default_rng(0)
    v = decompose_head(language_model.head_weight).v
    rankings = {f"k={rank}": generator.permutation(v.shape[1])[:rank].tolist() for rank in RANKS}
    points = tuple(GridPoint(name, len(found), 0.0) for name, found in rankings.items())
    texts = generator.integers(1, 8_000, (20, 40)).tolist()
    grid = Grid(points, rankings, v)
    sums = measure_grid(language_model, grid, texts, tokens_per_batch=2_048)
    divergence = dict(zip(rankings, sums.kl_to_base.sum(1) / sums.n_tokens.sum(), strict=True))
    arms = {"base": LoadedArm(None)}
    for name, found in rankings.items():
        edit = ModelEdit(HeadEdit.scale_directions(v[:, found], 0.0))
        patch = make_patch(language_model, edit, model_id="random", intervention="random")
        arms[name] = LoadedArm(patch)
    return arms, {name: round(float(value), 3) for name, value in divergence.items()}


def generate(language_model: Any, prompts: Any, arms: Mapping[str, Any], n_samples: int) -> float:
    """Seconds of one call, all rows in one batch."""
    from eigenshift.generation.continuations import generate_continuations
    from eigenshift.settings import GenerationSettings
    from eigenshift.store.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        workspaces = {}
        for name in arms:
            (Path(folder) / name).mkdir()
            workspaces[name] = Workspace(Path(folder) / name)
        started = time.perf_counter()
        for _ in generate_continuations(
            language_model,
            prompts,
            arms,
            GenerationSettings(n_samples=n_samples, n_tokens=20, min_tokens=20),
            sequences_per_batch=256,  # as by default
            workspaces=workspaces,
        ):
            pass
        return time.perf_counter() - started


def count_different(language_model: Any, prompts: Any, arms: Mapping[str, Any], n: int) -> float:
    """Mean number of different rows that a step runs through the trunk."""
    from eigenshift.generation import branches

    counts: list[int] = []
    read = branches.CachedBranches.read

    def count(self: Any) -> Any:
        counts.append(self.n_branches)
        return read(self)

    branches.CachedBranches.read = count  # type: ignore[method-assign]
    try:
        generate(language_model, prompts, arms, n)
    finally:
        branches.CachedBranches.read = read  # type: ignore[method-assign]
    return statistics.mean(counts)


def measure_size(
    language_model: Any, arms: Mapping[str, Any], n_prompts: int, n_samples: int, rounds: int
) -> dict[str, float]:
    """Median seconds of the variants, and ratios to one arm."""
    prompts = make_prompts(n_prompts)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_ in range(rounds + 1):
        found = {
            "one": generate(language_model, prompts, {"base": arms["base"]}, n_samples),
            "eight": generate(language_model, prompts, arms, n_samples),
            "eight_in_turn": sum(
                generate(language_model, prompts, {name: arm}, n_samples)
                for name, arm in arms.items()
            ),
        }
        for name, value in found.items():
            if round_:  # the first warms up
                seconds[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    n_rows, head = n_prompts * n_samples, SHAPE["n_embd"] * SHAPE["vocab_size"]
    trunk = 12 * SHAPE["n_layer"] * SHAPE["n_embd"] ** 2  # multiplications for one token
    alone, together = (
        count_different(language_model, prompts, some, n_samples)
        for some in ({"base": arms["base"]}, arms)
    )
    floor = (trunk * together + head * n_rows * len(arms)) / (trunk * alone + head * n_rows)
    return {
        "rows_of_one_arm": n_prompts * n_samples,
        **{name: round(value, 3) for name, value in medians.items()},
        "eight / one": round(medians["eight"] / medians["one"], 2),
        "different rows, eight / one": round(together / alone, 2),
        "floor": round(floor, 2),
        "in turn / together": round(medians["eight_in_turn"] / medians["eight"], 2),
    }


def main() -> None:
    """Measure all sizes and judge one."""
    from tests.benchmarks.bench_fluency_grid import make_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one round, the two smallest sizes")
    options = parser.parse_args()
    rounds = 1 if options.small else options.rounds
    language_model = make_model(SHAPE)
    arms, divergence = make_arms(language_model)
    sizes = dict(list(SIZES.items())[:2]) if options.small else SIZES
    found = {
        name: measure_size(language_model, arms, *size, rounds) for name, size in sizes.items()
    }
    bars = [
        at_most(f"8 arms / one arm, {JUDGED} continuation each", found[JUDGED]["eight / one"], 2.5)
    ]
    publish("generation", {"kl_to_base": divergence, "sizes": found}, bars, is_small=options.small)


if __name__ == "__main__":
    main()
