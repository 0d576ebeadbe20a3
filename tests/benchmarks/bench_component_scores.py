"""Scoring a wide head's components against the usual functions: `make bench`.

Made-up activations of 1,000 toxic and 4,000 matched positions from 500 prompts, 4,096 components.
Each pair does the same thing, in one process, in turn, `--rounds` times:

    auroc        compute_auroc; against scipy.stats.rankdata over all positions
    p_values     compute_p_values (by prompt); against scipy.stats.ttest_ind (by position)
    stability    measure_stability by effect size, a bootstrap as two products with counts; against
                 gathering the positions of each replicate and scoring them (`--loop` replicates,
                 scaled up)

Prints one JSON object; seconds are medians of wall time, a ratio above 1 means that EigenShift is
faster. No timing here is a promise for another machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_most, publish  # noqa: E402

N_PROMPTS, PER_PROMPT, N_RESAMPLES, N_TOP = 500, (2, 8), 1_000, 64


def make_activations(n_components: int) -> Any:
    """Positions of prompts in order; a tenth of the components differs between the classes."""
    from eigenshift.components.scores import Activations

    generator = np.random.default_rng(0)
    effect = np.where(generator.random(n_components) < 0.1, generator.normal(size=n_components), 0)
    prompts = [np.repeat(np.arange(N_PROMPTS), count) for count in PER_PROMPT]
    toxic, nontoxic = (generator.normal(size=(len(item), n_components)) for item in prompts)
    return Activations(toxic + effect, nontoxic, *prompts)


def rank_all(activations: Any) -> np.ndarray:
    """AUROC by ranks of all positions."""
    n_toxic, n_nontoxic = len(activations.toxic), len(activations.nontoxic)
    ranks = scipy.stats.rankdata(np.concatenate([activations.toxic, activations.nontoxic]), axis=0)
    return (ranks[:n_toxic].sum(0) - n_toxic * (n_toxic + 1) / 2) / (n_toxic * n_nontoxic)


def gather_replicates(activations: Any, n_replicates: int) -> np.ndarray:
    """Inclusion frequencies of the top by effect size, replicate by replicate."""
    generator = np.random.default_rng(0)
    included = np.zeros(activations.toxic.shape[1])
    for _ in range(n_replicates):
        counts = generator.multinomial(N_PROMPTS, np.full(N_PROMPTS, 1 / N_PROMPTS))
        toxic = activations.toxic[
            np.repeat(np.arange(len(activations.toxic)), counts[activations.toxic_prompts])
        ]
        nontoxic = activations.nontoxic[
            np.repeat(np.arange(len(activations.nontoxic)), counts[activations.nontoxic_prompts])
        ]
        spread = np.sqrt(toxic.var(0, ddof=1) + nontoxic.var(0, ddof=1))
        effect = np.abs(toxic.mean(0) - nontoxic.mean(0)) / spread
        included[np.argpartition(-effect, N_TOP)[:N_TOP]] += 1 / n_replicates
    return included


def measure(work: Callable[[], object], rounds: int) -> float:
    """Median wall time."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Measure the pairs and print the comparison."""
    from eigenshift.components.scores import compute_auroc, compute_p_values
    from eigenshift.components.selection_stability import measure_stability
    from eigenshift.settings import ComponentScore

    parser = argparse.ArgumentParser(description="Benchmark of the component scores")
    parser.add_argument("--small", action="store_true", help="256 components")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of everything")
    parser.add_argument("--loop", type=int, default=20, help="replicates gathered one by one")
    arguments = parser.parse_args()
    n_components = 256 if arguments.small else 4_096
    activations = make_activations(n_components)

    def resample() -> object:
        return measure_stability(
            activations,
            np.eye(n_components),
            np.ones(n_components),
            ComponentScore.effect_size,
            n_top=N_TOP,
            must_raise=False,
            n_resamples=N_RESAMPLES,
            seed=0,
        )

    ours = {
        "auroc": measure(
            lambda: compute_auroc(activations.toxic, activations.nontoxic), arguments.rounds
        ),
        "p_values": measure(lambda: compute_p_values(activations), arguments.rounds),
        "stability": measure(resample, arguments.rounds),
    }
    usual = {
        "auroc": measure(lambda: rank_all(activations), arguments.rounds),
        "p_values": measure(
            lambda: scipy.stats.ttest_ind(activations.toxic, activations.nontoxic, equal_var=False),
            arguments.rounds,
        ),
        "stability": measure(lambda: gather_replicates(activations, arguments.loop), 1)
        * N_RESAMPLES
        / arguments.loop,
    }
    difference = np.abs(
        compute_auroc(activations.toxic, activations.nontoxic) - rank_all(activations)
    )
    document = {
        "n_positions": [len(activations.toxic), len(activations.nontoxic)],
        "n_components": n_components,
        "n_resamples": N_RESAMPLES,
        "rounds": arguments.rounds,
        "seconds": {name: round(value, 3) for name, value in ours.items()},
        "usual_seconds": {name: round(value, 3) for name, value in usual.items()},
        "times_faster": {name: round(usual[name] / ours[name], 2) for name in ours},
        "largest_auroc_difference": float(difference.max()),
    }
    total = sum(ours.values())
    bars = [at_most("seconds for AUROC, p-values and stability together", round(total, 2), 30.0)]
    publish("component-scores", document, bars, is_small=arguments.small)


if __name__ == "__main__":
    main()
