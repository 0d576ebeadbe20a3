"""Words that no arm saw, and toxicity that is no word at all, on the beds of `bench_real_text.py`.

    python tests/benchmarks/bench_held_out_words.py --data DATA --work WORK

Half of a list of profane words, drawn by hash, is held out: comments that hold one are left out of
the labelled texts, and the scorer that decides gives a continuation with one no score, so none is
evidence for an arm or in its budget. What the arms do about these words is then counted by rule on
continuations of the evaluation prompts (a further scorer: any of these words). A word filter knows
the other half alone.

Toxicity without words is read, not generated: how much less likely an arm finds hateful texts that
hold no profane word (ToxiGen, HateCheck), beyond how much less likely it finds harmless texts of
the same source, nats a token. Prints one JSON object; no text.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import RESULTS
from bench_real_text import LinearScorer, add_sizes, let_in_scorer, make_settings

from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.slices import name_scorer_slice
from eigenshift.ledger.runs import RunRecord, read_run
from eigenshift.model.encoding import encode_text
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.patching import open_patch
from eigenshift.settings import EvaluationSettings, RefreshSettings, parse_settings
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.toxicity.scorers.interface import Score
from eigenshift.toxicity.word_lists import WordList, read_words
from flows.prefect_environment import create_home, prepare_environment

ARMS = (
    "eigenshift_fisher",
    "eigenshift_fisher_deep",
    "token_suppression",
    "linear_act",
    "mean_difference",
)
HELD_OUT, EVERYTHING = "held_out", "everything"
MAX_TEXTS, MAX_TOKENS = 120, 64
"""Texts of each source and label; tokens of each."""


class BlindScorer(LinearScorer):
    """The bed's scorer, which says nothing of a text that holds a held-out word."""

    def __init__(self, path: Path, digest: str, held_out: WordList) -> None:
        super().__init__(path, digest)
        self._held_out = held_out

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Probabilities; none where a held-out word occurs."""
        return [
            Score(None, "held out") if self._held_out.occurs_in(text) else score
            for text, score in zip(texts, super().score(texts), strict=True)
        ]


def split_words(work: Path) -> None:
    """Write one half of the profane words, and the comments that hold none of them."""
    words = read_words(str(work / "profane_words.txt"))
    held = [word for word in words if hashlib.sha256(f"word:{word}".encode()).digest()[0] % 2 == 0]
    (work / "held_out_words.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
    listed = WordList(held)
    with (work / "comments.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not listed.occurs_in(row["comment_text"])]
    with (work / "comments_seen.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def hold_out(settings: RefreshSettings, work: Path, name: str) -> RefreshSettings:
    """The comparison with half of the words held out, at the main budget alone."""
    document = settings.model_dump(mode="json", exclude_unset=True)
    document["store"] = str(work / "stores" / f"{name}-held-out")
    document["sources"][0]["uri"] = str(work / "comments_seen.csv")
    held = str(work / "held_out_words.txt")
    document["scorer"]["words"] = held  # in the fingerprint, and where the hook finds the list
    document["scorer"]["max_unscored_share"] = 0.5  # those with a held-out word have no score
    document["further_scorers"] = [
        {"name": HELD_OUT, "kind": "lexicon", "words": held},
        {"name": EVERYTHING, "kind": "lexicon", "words": str(work / "profane_words.txt")},
    ]
    document["compare"] = {"interventions": list(ARMS), "budgets": []}
    return parse_settings(document, "the benchmark's settings")


def read_arms(settings: RefreshSettings, run_id: str) -> dict[str, Any]:
    """By arm: what is left under each scorer, and ours against the word filter, paired."""
    artifacts = ArtifactStore(settings.store)
    record = read_run(artifacts.store, run_id)
    evaluation = artifacts.open(record.find_artifact("evaluation"))
    wanted = {"all", *(name_scorer_slice(name) for name in (HELD_OUT, EVERYTHING))}
    found: dict[str, Any] = {}
    for row in evaluation.read_table(tables.EVALUATIONS.file).to_pylist():
        if row["metric"] in ("toxicity_rate", "toxicity_reduction") and row["slice"] in wanted:
            values = [row["value"], row["low"], row["high"]]
            arm = found.setdefault(row["arm"], {})
            arm[f"{row['metric']} {row['slice']}"] = [_shorten(value) for value in values]
        elif row["metric"] == "perplexity_change_indomain" and row["slice"] == "all":
            found.setdefault(row["arm"], {})["perplexity_change_indomain"] = _shorten(row["value"])
    pairs = [
        row
        for row in evaluation.read_table(tables.ARM_PAIRS.file).to_pylist()
        if any(row[side].startswith("eigenshift_fisher") for side in ("arm", "other"))
    ]
    return {"arms": found, "pairs": pairs}


def _shorten(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def list_wordless(data: Path, words: WordList) -> dict[str, dict[bool, list[str]]]:
    """Source -> whether hateful -> texts that hold no profane word."""
    toxigen = json.loads(gzip.decompress((data / "other/toxigen/toxiGen.json.gz").read_bytes()))
    pairs = {"toxigen": [(row["text"], row["label"] == "hate") for row in toxigen]}
    with (data / "other/hatecheck/test_suite_cases.csv").open(encoding="utf-8", newline="") as file:
        pairs["hatecheck"] = [
            (row["test_case"], row["label_gold"] == "hateful") for row in csv.DictReader(file)
        ]
    found: dict[str, dict[bool, list[str]]] = {}
    for source, rows in pairs.items():
        kept = sorted(
            {row for row in rows if not words.occurs_in(row[0])},
            key=lambda row: hashlib.sha256(row[0].encode()).digest(),
        )
        found[source] = {
            flag: [text for text, label in kept if label is flag][:MAX_TEXTS]
            for flag in (True, False)
        }
    return found


def measure_wordless(
    settings: RefreshSettings, run_id: str, texts: dict[str, dict[bool, list[str]]]
) -> dict[str, Any]:
    """By arm and source: rise of the loss on hateful texts, on harmless ones, and the difference.

    The word filter's is subtracted from ours text by text, so the last number is paired.
    """
    artifacts = ArtifactStore(settings.store)
    record: RunRecord = read_run(artifacts.store, run_id)
    edits = {"base": ModelEdit()} | {
        arm: open_patch(artifacts.open(record.find_artifact("patch", arm))).edit for arm in ARMS
    }
    with use_model(settings.model, "cpu") as language_model:
        losses = {
            arm: {
                (source, flag): _measure(language_model, edit, found[flag])
                for source, found in texts.items()
                for flag in found
            }
            for arm, edit in edits.items()
        }
    by_arm: dict[str, Any] = {}
    for arm in ARMS:
        for source in texts:
            rises, beyond = (
                {
                    flag: losses[arm][source, flag] - losses[other][source, flag]
                    for flag in (True, False)
                }
                for other in ("base", "token_suppression")
            )
            by_arm.setdefault(arm, {})[source] = {
                "hateful": _summarise(rises[True]),
                "harmless": _summarise(rises[False]),
                "difference": _differ(rises),
                "difference_to_word_filter": _differ(beyond),
            }
    return by_arm


@torch.inference_mode()
def _measure(
    language_model: LanguageModel, edit: ModelEdit, texts: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Mean loss of each text, nats a token."""
    losses = []
    with run_hooked(language_model, edit):
        for text in texts:
            tokens = torch.tensor([encode_text(language_model, text, MAX_TOKENS).token_ids])
            if tokens.shape[1] >= 2:
                logits = language_model.model(input_ids=tokens, use_cache=False).logits[0, :-1]
                losses.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:])))
    return np.array(losses)


def _summarise(values: np.ndarray[Any, Any]) -> list[float | None]:
    counts = draw_counts(len(values), EvaluationSettings().n_bootstrap, 0)
    estimate = summarise(average(values, counts), 0.95)
    return [_shorten(value) for value in (estimate.value, estimate.low, estimate.high)]


def _differ(rises: dict[bool, np.ndarray[Any, Any]]) -> list[float | None]:
    """Hateful minus harmless, each resampled by itself."""
    draws = [
        average(rises[flag], draw_counts(len(rises[flag]), EvaluationSettings().n_bootstrap, seed))
        for seed, flag in enumerate((True, False))
    ]
    estimate = summarise(draws[0] - draws[1], 0.95)
    return [_shorten(value) for value in (estimate.value, estimate.low, estimate.high)]


def main() -> None:
    """Split, compare, read, print."""
    parser = argparse.ArgumentParser(description="Words no arm saw, and toxicity without words.")
    parser.add_argument("--data", type=Path, required=True, help="folder of public data sets")
    parser.add_argument("--work", type=Path, required=True, help="where bench_real_text built beds")
    add_sizes(parser)
    arguments = parser.parse_args()
    arguments.interventions = ""
    work: Path = arguments.work
    split_words(work)
    held_out = WordList(read_words(str(work / "held_out_words.txt")))
    let_in_scorer(work, lambda path, digest: BlindScorer(path, digest, held_out))
    texts = list_wordless(arguments.data, WordList(read_words(str(work / "profane_words.txt"))))
    prepare_environment()
    create_home()
    from flows.compare import run_compare  # Prefect reads its environment when it is imported

    found: dict[str, Any] = {}
    for draw in map(int, arguments.draws.split(",")):
        for model in arguments.models.split(","):
            started = time.monotonic()
            settings = make_settings(work, model, draw, arguments)
            settings = hold_out(settings, work, f"{model}-{draw}")
            run_id = run_compare(settings).run_id
            found[f"{model} draw {draw}"] = {
                **read_arms(settings, run_id),
                "wordless": measure_wordless(settings, run_id, texts),
                "seconds": round(time.monotonic() - started),
            }
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "held_out_words.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
