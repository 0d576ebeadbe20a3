"""Methods against each other on real text: `eigenshift compare` on two beds, two draws of prompts.

    python tests/benchmarks/bench_real_text.py --data DATA --work WORK [--train-seconds 1500]

DATA is the folder of public data sets (data/README.md), WORK any folder outside the repository:
beds are built there once (`real_text_beds.py`), and each comparison is a store of its own, so a
second start goes on where the first one stopped. Prints one JSON object: toxicity, costs and paired
differences of every arm by model, draw and operating point; no text.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import real_text_beds as beds
from bars import RESULTS

from eigenshift.ledger.runs import read_run
from eigenshift.reporting.outcomes import ArmComparison
from eigenshift.settings import PlainScorerSettings, RefreshSettings, ScorerKind, parse_settings
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.toxicity.scorers import loading
from eigenshift.toxicity.scorers.interface import Score
from flows.prefect_environment import create_home, prepare_environment

OURS = ("eigenshift_fisher", "eigenshift_fisher_deep")
BUDGETS = (0.05, 0.01)
SCORER_NAME = "tfidf"


class LinearScorer:
    """The bed's own scorer under the interface of the product's."""

    name = SCORER_NAME

    def __init__(self, path: Path, digest: str) -> None:
        self.digest = digest
        self._classifier = pickle.loads(path.read_bytes())  # noqa: S301 - made by this benchmark

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Probabilities; blank texts have none."""
        found = self._classifier.predict_proba(list(texts))[:, 1] if texts else []
        return [
            Score(float(value)) if text.strip() else Score(None, "blank text")
            for text, value in zip(texts, found, strict=True)
        ]


def let_in_scorer(
    work: Path, make_scorer: Callable[[Path, str], LinearScorer] = LinearScorer
) -> None:
    """Have settings of kind lexicon and this name load the bed's scorer."""
    load_plain = loading._load_plain

    def load(settings: PlainScorerSettings, digest: str, device: str, n_texts: int) -> Any:
        if settings.kind is ScorerKind.lexicon and settings.name == SCORER_NAME:
            return make_scorer(work / "scorer.pkl", digest)
        return load_plain(settings, digest, device, n_texts)

    loading._load_plain = load


def make_settings(
    work: Path, model: str, draw: int, arguments: argparse.Namespace
) -> RefreshSettings:
    """A comparison on one bed and one draw of prompts, at both budgets and at equal KL."""
    source = {"language": "en"}
    document: dict[str, Any] = {
        "store": str(work / "stores" / f"{model}-{draw}"),
        "model": {"id": str(work / model), "name": model},
        "sources": [
            {"name": "comments", "format": "jigsaw", "uri": str(work / "comments.csv"), **source},
            {
                "name": "rtp",
                "format": "real_toxicity_prompts",
                "uri": str(work / "prompts.jsonl"),
                **source,
            },
            {"name": "wiki", "format": "sentences", "uri": str(work / "neutral.csv"), **source},
        ],
        "prompts": {
            "n_selection": arguments.n_selection,
            "n_evaluation": arguments.n_evaluation,
            "seed": draw,
        },
        "generation": {"n_samples": arguments.n_samples, "max_prompt_tokens": 48},
        "scorer": {"name": SCORER_NAME, "kind": "lexicon", "words": str(work / "scorer.pkl")},
        "further_scorers": [
            {"name": "words", "kind": "lexicon", "words": str(work / "profane_words.txt")}
        ],
        "components": {"positions": "occlusion", "seed": draw, "factor_steps": 4},
        "compare": {"budgets": [BUDGETS[1]], "divergence": 0.01},
        "tune": {"factors": [0.0]},
        "evaluation": {"max_tokens": 64, "max_texts": 700},
        "execution": {"show_text": False},
    }
    if arguments.interventions:
        document["compare"]["interventions"] = arguments.interventions.split(",")
    return parse_settings(document, "the benchmark's settings")


def describe(comparison: ArmComparison, store: str) -> dict[str, Any]:
    """Numbers of every arm, and our arms' paired differences to all others."""
    arms = {
        row["arm"]: {
            name: None if row[name] is None else round(row[name], 5)
            for name in (
                *("toxicity_rate", "toxicity_reduction"),
                *("toxicity_reduction_low", "toxicity_reduction_high"),
                *("perplexity_change", "perplexity_change_indomain", "kl_to_base", "distinct_2"),
            )
        }
        | {"is_hooked_only": row["is_hooked_only"]}
        for row in comparison.arms
    }
    for row in comparison.evaluations:
        if row["metric"] == "toxicity_reduction" and row["slice"] == "scorer=words":
            arms[row["arm"]]["reduction_by_words"] = row["value"]
    artifacts = ArtifactStore(store)
    record = read_run(artifacts.store, comparison.run_id)
    evaluation = artifacts.open(record.find_artifact("evaluation"))
    pairs = evaluation.read_table(tables.ARM_PAIRS.file).to_pylist()
    ours = [
        row
        for row in pairs
        if row["slice"] == "all" and any(row[side].startswith(OURS) for side in ("arm", "other"))
    ]
    return {"arms": arms, "pairs": ours}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Which cells are run, and how large they are."""
    parser.add_argument("--models", default=",".join(beds.MODELS))
    parser.add_argument("--draws", default="0,1")
    parser.add_argument("--n-selection", type=int, default=150)
    parser.add_argument("--n-evaluation", type=int, default=200)
    parser.add_argument("--n-samples", type=int, default=10)


def main() -> None:
    """Build what is missing, compare, print."""
    parser = argparse.ArgumentParser(description="Methods against each other on real text.")
    parser.add_argument("--data", type=Path, required=True, help="folder of public data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for beds and stores")
    parser.add_argument("--train-seconds", type=float, default=1500.0, help="of both models")
    add_sizes(parser)
    parser.add_argument("--interventions", default="", help="beside eigenshift; default: all")
    arguments = parser.parse_args()
    work: Path = arguments.work
    if not (work / "prompts.jsonl").exists():
        beds.write_sources(arguments.data, work)
    if not (work / "scorer.pkl").exists():
        print(json.dumps(beds.train_scorer(arguments.data, work)))
    if not all((work / name / "config.json").exists() for name in beds.MODELS):
        print(json.dumps(beds.train_models(arguments.data, work, arguments.train_seconds)))
    let_in_scorer(work)
    prepare_environment()
    create_home()
    from flows.compare import run_compare  # Prefect reads its environment when it is imported

    found: dict[str, Any] = {}
    for draw in map(int, arguments.draws.split(",")):
        for model in arguments.models.split(","):
            started = time.monotonic()
            settings = make_settings(work, model, draw, arguments)
            comparison = run_compare(settings)
            found[f"{model} draw {draw}"] = describe(comparison, settings.store) | {
                "seconds": round(time.monotonic() - started)
            }
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "real_text.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
