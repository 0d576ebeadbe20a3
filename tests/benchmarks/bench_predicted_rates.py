"""Rates foretold from the base's continuations against generated ones: `make bench`.

    python tests/benchmarks/bench_predicted_rates.py --preset demo --store STORE

STORE holds a finished `eigenshift compare` with that preset. Trials are its patches of the head, at
several strengths each, and its patches of the trunk at their own. All are foretold from the base's
continuations of the evaluation prompts and their scores, then each is generated and scored, with
random numbers of its own. Said are: how the two orders agree (Spearman), how many generated rates
lie in the foretold intervals, and the seconds beside those of generating and scoring one arm.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_least, at_most, publish  # noqa: E402 - started as a file

HEAD_ARMS = (
    *("eigenshift", "random_directions", "top_sigma", "damp", "mean_difference"),
    *("leace", "eigenshift_fisher", "token_suppression"),
)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
N_HEAD_TRIALS = 30
CONFIDENCE = 0.95


def list_trials(store: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Patches of the last comparison: of the head by strength, and of the trunk."""
    from eigenshift.ledger.runs import list_run_ids, read_run
    from eigenshift.patches.patching import open_patch
    from eigenshift.store.artifacts import ArtifactStore

    artifacts = ArtifactStore(store)
    records = [read_run(artifacts.store, run_id) for run_id in list_run_ids(artifacts.store)]
    record = [found for found in records if found.command == "compare"][-1]
    patches = {
        use.label: open_patch(artifacts.open(record.find_artifact("patch", use.label)))
        for use in record.artifacts
        if use.kind == "patch" and use.label and "@" not in use.label
    }
    head = {
        f"{name} x {strength:g}": (patches[name], strength)
        for strength in reversed(STRENGTHS)
        for name in HEAD_ARMS
        if name in patches and not patches[name].edit.changes_trunk
    }
    trunk = {
        name: (patch, 1.0)
        for name, patch in patches.items()
        if patch.edit.changes_trunk and not patch.edit.adaptive
    }
    return dict(list(head.items())[:N_HEAD_TRIALS]), trunk


class Bench:
    """The model, the prompts and the scorer of a preset."""

    def __init__(self, preset: str, store: str, overrides: list[str]) -> None:
        from eigenshift.ledger.runs import list_run_ids, read_run
        from eigenshift.model.loading import load_model
        from eigenshift.settings import load_preset
        from eigenshift.stages import tables
        from eigenshift.store.artifacts import ArtifactStore
        from eigenshift.toxicity.scorers.loading import load_scorer

        self.settings = load_preset(preset, [f"store={store}", *overrides])
        self.model = load_model(self.settings.model, "cpu")
        self.scorer = load_scorer(self.settings.scorer, "cpu", 64)
        artifacts = ArtifactStore(store)
        records = [read_run(artifacts.store, found) for found in list_run_ids(artifacts.store)]
        record = [found for found in records if found.command == "compare"][-1]
        prompts = artifacts.open(record.find_artifact("prompts"))
        files = [
            file.name
            for file in prompts.manifest.files
            if tables.EVALUATION_PROMPTS.matches(file.name)
        ]
        self.prompts = pa.concat_tables([prompts.read_table(name) for name in sorted(files)])

    def generate(self, patch: Any, strength: float, stream: str) -> pa.Table:
        """Continuations of every prompt by one arm."""
        from dataclasses import replace

        from eigenshift.generation.continuations import LoadedArm, generate_continuations
        from eigenshift.stages import tables
        from eigenshift.store.workspace import Workspace

        patch = patch and replace(patch, edit=patch.edit.scale(strength))
        with tempfile.TemporaryDirectory() as folder:
            arms = {"arm": LoadedArm(patch, stream)}
            for _ in generate_continuations(
                self.model,
                self.prompts,
                arms,
                self.settings.generation,
                sequences_per_batch=256,
                workspaces={"arm": Workspace(Path(folder))},
            ):
                pass
            return pq.read_table(Path(folder) / tables.CONTINUATIONS.file)

    def judge(self, continuations: pa.Table) -> Any:
        """Whether each is toxic, shape (text,)."""
        scores = self.scorer.score(continuations["continuation"].to_pylist())
        threshold = self.settings.scorer.toxic_threshold
        return np.array([(score.probability or 0.0) >= threshold for score in scores])


def main() -> None:
    """Foretell, generate, compare."""
    from scipy.stats import spearmanr

    from eigenshift.evaluation.bootstrap import draw_counts
    from eigenshift.evaluation.likelihood_ratios import DrawnText, measure_log_ratios
    from eigenshift.evaluation.predicted_rates import choose_texts, predict_rate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--store", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--small", action="store_true", help="four trials of the head, none else")
    options = parser.parse_args()
    bench = Bench(options.preset, options.store, options.overrides)
    head, trunk = list_trials(options.store)
    if options.small:
        head, trunk = dict(list(head.items())[:4]), {}

    started = time.perf_counter()
    base = bench.generate(None, 1.0, "base")
    is_toxic = bench.judge(base)
    one_evaluation = time.perf_counter() - started

    ids = {name: place for place, name in enumerate(bench.prompts["prompt_id"].to_pylist())}
    prompt_of = np.array([ids[name] for name in base["prompt_id"].to_pylist()])
    sample = choose_texts(is_toxic, prompt_of, len(ids), seed=0)
    tokens = zip(base["prompt_token_ids"].to_pylist(), base["token_ids"].to_pylist(), strict=True)
    drawn = [DrawnText(*pair) for pair in tokens]
    texts = [drawn[place] for place in sample.places]
    counts = draw_counts(len(ids), 1000, 0)

    def foretell(trials: dict[str, Any]) -> tuple[list[Any], float]:
        began = time.perf_counter()
        ratios = measure_log_ratios(
            bench.model,
            texts,
            [patch.edit.scale(strength) for patch, strength in trials.values()],
            bench.settings.generation,
            tokens_per_batch=8192,
        )
        found = [
            predict_rate(of_edit, is_toxic[sample.places], sample, counts, CONFIDENCE)
            for of_edit in ratios
        ]
        return found, time.perf_counter() - began

    foretold, head_seconds = foretell(head)
    of_trunk, trunk_seconds = foretell(trunk) if trunk else ([], 0.0)
    rows, generating = [], 0.0
    for (name, (patch, strength)), rate in zip(
        [*head.items(), *trunk.items()], [*foretold, *of_trunk], strict=True
    ):
        began = time.perf_counter()
        generated = bench.generate(patch, strength, f"trial {name}")
        if name in trunk:
            generating += time.perf_counter() - began
        rows.append(
            {
                "trial": name,
                "foretold": round(rate.value or 0.0, 4),
                "low": round(rate.low or 0.0, 4),
                "high": round(rate.high or 0.0, 4),
                "n_effective": round(rate.n_effective, 1),
                "covered": round(rate.covered, 3),
                "is_reliable": bool(rate.is_reliable),
                "generated": round(float(bench.judge(generated).mean()), 4),
            }
        )
    judged = [row for row in rows if row["is_reliable"]]
    of_head = [row for row in rows if row["trial"] in head]
    inside = [row["low"] <= row["generated"] <= row["high"] for row in judged]
    order = spearmanr(
        [row["foretold"] for row in of_head], [row["generated"] for row in of_head]
    ).statistic
    document = {
        "preset": options.preset,
        "base_rate": round(float(is_toxic.mean()), 4),
        "n_texts": len(base),
        "n_weighed": len(texts),
        "one_evaluation_seconds": round(one_evaluation, 1),
        "trials": rows,
    }
    bars = [
        at_least("Spearman, trials of the head, foretold and generated rates", float(order), 0.9),
        at_least("share of generated rates in the 95% intervals", float(np.mean(inside)), 0.9),
        at_most(
            f"seconds of foretelling {len(head)} trials over those of one evaluation",
            head_seconds / one_evaluation,
            1.5,
        ),
    ]
    if trunk:
        bars.append(
            at_most(
                "seconds of foretelling a trial of the trunk over those of generating it",
                trunk_seconds / generating,
                0.25,
            )
        )
    publish(f"predicted-rates-{options.preset}", document, bars, is_small=options.small)


if __name__ == "__main__":
    main()
