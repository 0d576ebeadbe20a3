"""A small store with one artifact of every kind, made through `ArtifactStore.produce`.

All texts are made up and neutral; "toxic" is only a number here. With a language model the patches
are real; without one they have the right form and no torch is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from eigenshift.base import schemas
from eigenshift.base.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM
from eigenshift.benchmarks.comparison import compare_answers
from eigenshift.benchmarks.stages import AnswerComparisonKey
from eigenshift.evaluation.comparison import ArmEvidence, compare_arms
from eigenshift.evaluation.gate import check_gate, summarise_metrics
from eigenshift.ledger.releases import promote_patch
from eigenshift.ledger.runs import (
    ArtifactUse,
    RunRecord,
    StageSummary,
    finish_run,
    start_run,
    write_run,
)
from eigenshift.pipeline import BY_KIND
from eigenshift.settings import EvaluationSettings, RefreshSettings, parse_settings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference, FileReference
from eigenshift.store.workspace import Workspace

if TYPE_CHECKING:
    from eigenshift.model.loading import LanguageModel

N_PROMPTS = 8
N_SAMPLES = 3
N_COMPONENTS = 32
SELECTED = (1, 4)
HEAD_DIGEST = "d" * 64
LEVELS = {BASE_ARM: 0.45, AGAIN_ARM: 0.45, RANDOM_ARM: 0.44, PATCHED_ARM: 0.1}
"""Mean toxicity probability of each arm's continuations."""

TRIALS = [
    {
        "score": score,
        "n_components": len(indices),
        "factor": factor,
        "component_indices": indices,
        "component_factors": [factor] * len(indices),
        "stage": "screened" if reduction is None else "confirmed",
        "perplexity_increase": cost,
        "kl_to_base": cost,
        "changed_argmax_share": cost,
        "toxic_token_share": left,
        "toxicity_rate": None if reduction is None else 0.4 * (1 - reduction),
        "reduction": reduction,
        "is_in_budget": cost <= 0.05,
        "is_on_front": reduction is not None,
        "is_best": reduction == 0.5,
    }
    for score, indices, factor, cost, left, reduction in (
        ("automatic", [1, 4], 0.0, 0.04, 0.3, 0.5),
        ("effect_size", [1], 0.0, 0.02, 0.6, 0.25),
        ("effect_size", [1], 0.5, 0.03, 0.8, None),
    )
]
"""What a search found, as `confirm_trials` writes it."""

COMPARED_ARMS = [
    {
        "arm": arm,
        "intervention": intervention,
        "budget": budget,
        "divergence": divergence,
        "toxicity_rate": 0.4 * (1 - (reduction or 0.0)),
        "toxicity_reduction": reduction,
        "toxicity_reduction_low": None if reduction is None else reduction - 0.1,
        "toxicity_reduction_high": None if reduction is None else reduction + 0.1,
        "perplexity_change": 0.04,
        "perplexity_change_indomain": 0.02,
        "kl_to_base": 0.02,
        "is_hooked_only": False,
    }
    for arm, intervention, budget, divergence, reduction in (
        (BASE_ARM, None, None, None, None),
        (PATCHED_ARM, PATCHED_ARM, 0.05, None, 0.5),
        ("leace", "leace", 0.05, None, 0.3),
        ("leace@kl0.02", "leace", 0.05, 0.02, 0.2),
    )
]
"""What a comparison found, as `tabulate_arms` writes it."""


BENCHMARK_MARKS = {
    BASE_ARM: {"sums": [1, 1, 1, 1], "places": [1, 1, 0, 0]},
    PATCHED_ARM: {"sums": [1, 1, 1, 0], "places": [1, 0, 1, 0]},
}
"""Arm -> task -> what each answer was worth."""

QUALITY = [
    {
        "scorer": "fake",
        "basis": basis,
        "subject": subject,
        "language": "all",
        "n": 40,
        "n_toxic": 20,
        "n_unscored": 0,
        "auroc": None if subject == "negation" else 0.95,
        "auroc_low": None if subject == "negation" else 0.9,
        "auroc_high": None if subject == "negation" else 0.99,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.1,
        "accuracy_high": accuracy + 0.05,
        "recall": 0.875,
        "false_alarm_share": 0.125,
    }
    for basis, subject, accuracy in (
        ("labelled", "all", 0.9),
        ("functional", "all", 0.75),
        ("functional", "negation", 0.25),
        ("functional", "spelling", 0.5),
    )
]
"""How well the scorer does, as `measure_scorers` writes it."""


@dataclass
class SmallStore:
    """A store and what is in it, by name."""

    url: str
    artifacts: ArtifactStore
    record: RunRecord
    references: dict[str, ArtifactReference] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The refresh run."""
        return self.record.run_id

    def find_file(self, name: str, file: str) -> Path:
        """Local path of one file of an artifact (local stores only)."""
        return self.artifacts.open(self.references[name]).fetch(file)

    def copy_to(self, folder: Path) -> SmallStore:
        """A copy a test may damage (local stores only); quicker than making another."""
        shutil.copytree(self.url, folder)
        record = self.record.model_copy(deep=True)
        return SmallStore(str(folder), ArtifactStore(str(folder)), record, self.references)

    def add_artifact(
        self,
        record: RunRecord,
        kind: str,
        work: Callable[[Workspace], None],
        label: str | None = None,
        inputs: Sequence[ArtifactReference] = (),
    ) -> ArtifactReference:
        """Add an artifact that a run of this store made, of its model and more inputs."""
        made = self.artifacts.produce(
            kind,
            step_version=BY_KIND[kind].version,
            settings={},
            inputs=[self.references["model"], *inputs],
            work=work,
        )
        fingerprint = made.reference.fingerprint
        use = ArtifactUse(
            stage=f"make_{kind}",
            kind=kind,
            fingerprint=fingerprint,
            was_cached=made.was_cached,
            elapsed_seconds=0.01,
            label=label,
        )
        record.artifacts.append(use)
        write_run(self.artifacts.store, record)
        return made.reference

    def add_run(self, command: str = "refresh", status: str = "promoted") -> RunRecord:
        """Add a run that found every artifact already there."""
        record = start_run(command, parse_settings(self.record.settings, "test"))
        record.artifacts = [
            use.model_copy(update={"was_cached": True}) for use in self.record.artifacts
        ]
        record.model_digest = self.record.model_digest
        finish_run(record, status)  # type: ignore[arg-type]
        write_run(self.artifacts.store, record)
        return record

    def add_treated_run(self, intervention: str, basis: str = "components") -> RunRecord:
        """Add a refresh that judged the patch of another intervention.

        Args:
            intervention: Names the patch.
            basis: Kind of what it is made of: `components`, those of the first run, or
                `fisher_components`, of which there are those of another budget too.
        """
        record = self.add_run()
        record.judged = intervention
        made = [self.references[basis]] if basis in self.references else []
        if basis == "fisher_components":
            for n_terms, label in ((2, "head 0.01"), (3, "head 0.05")):
                rows = list_terms(n_terms)
                made = [
                    self.add_artifact(
                        record,
                        "fisher_components",
                        lambda w, rows=rows: w.write_rows(
                            "fisher_components.parquet", rows, schemas.FISHER_COMPONENTS
                        ),
                        label,
                        # Each of its own, as the budget is in the settings of a real one.
                        [ArtifactReference(kind="source", fingerprint=label)],
                    )
                ]

        def write(workspace: Workspace) -> None:
            workspace.facts = {"intervention": intervention, "n_components": 3}

        self.add_artifact(record, "patch", write, intervention, made)
        return record

    def add_search(self) -> RunRecord:
        """Add a finished `tune`: what it shares with the refresh, and its trials."""
        record = self.add_run("tune", "finished")
        record.artifacts = [
            use
            for use in record.artifacts
            if use.kind in ("samples", "prompts", "model", "decomposition", "components")
        ]
        self.add_artifact(
            record, "trials", lambda w: w.write_rows("trials.parquet", TRIALS, schemas.TRIALS)
        )
        return record

    def add_benchmark(self, record: RunRecord | None = None) -> RunRecord:
        """Add benchmark results: to a run, or as a `benchmark` of the refresh's judged patch.

        Two tasks of four questions. The base gets 4 and 2 of them right; the patch loses one of
        each and gains one of the second.
        """
        judged = self.record.judged
        if record is None:
            record = start_run("benchmark", parse_settings(self.record.settings, "test"))
            record.judged = judged
            record.artifacts = [
                use.model_copy(update={"was_cached": True})
                for use in self.record.artifacts
                if use.kind == "model" or (use.kind, use.label) == ("patch", judged)
            ]
            finish_run(record, "finished")
        answers = {}
        for arm, marks in BENCHMARK_MARKS.items():
            rows = [
                {
                    "task": task,
                    "metric": "acc",
                    "filter": "none",
                    "is_main": True,
                    "question_index": index,
                    "question_hash": f"{task}-{index}",
                    "prompt_hash": f"{task}-{index}",
                    "value": float(mark),
                }
                for task, found in marks.items()
                for index, mark in enumerate(found)
            ]
            self.references[f"answers-{arm}"] = self.add_artifact(
                record,
                "benchmark_answers",
                lambda w, rows=rows: w.write_rows(
                    "benchmark_answers.parquet", rows, schemas.BENCHMARK_ANSWERS
                ),
                arm,
                [] if arm == BASE_ARM else [record.find_artifact("patch", arm)],
            )
            answers[arm] = rows
        key = AnswerComparisonKey(arms=tuple(answers), n_bootstrap=100, confidence=0.95, seed=0)
        rows = list(compare_answers(answers, key))
        self.references["benchmarks"] = self.add_artifact(
            record,
            "benchmarks",
            lambda w: w.write_rows("benchmarks.parquet", rows, schemas.BENCHMARKS),
            inputs=[self.references[f"answers-{arm}"] for arm in answers],
        )
        return record

    def add_comparison(self) -> RunRecord:
        """Add a finished `compare` with its table of arms, at two operating points."""
        record = self.add_run("compare", "finished")
        self.add_artifact(
            record,
            "comparison",
            lambda w: w.write_rows("comparison.parquet", COMPARED_ARMS, schemas.COMPARISONS),
        )
        return record


def list_terms(n_terms: int) -> list[dict[str, Any]]:
    """`schemas.FISHER_COMPONENTS` rows, the first of which brings most."""
    return [
        {
            "component_index": index,
            "module": "head",
            "step": 0.5,
            "benefit": 0.25 / (1 + index),
            "benefit_low": 0.1 / (1 + index),
            "benefit_high": 0.4 / (1 + index),
            "cost": 0.005,
            "inclusion_frequency": 1.0,
            "tokens_up": [" kettle"],
            "tokens_down": [" bridge"],
            "contexts_high": ["a harbour at dusk"],
        }
        for index in range(n_terms)
    ]


class _Builder:
    """Produces artifacts and keeps the run's record of them."""

    def __init__(self, url: str, settings: RefreshSettings) -> None:
        self.artifacts = ArtifactStore(url)
        self.record = start_run("refresh", settings)
        self.references: dict[str, ArtifactReference] = {}

    def make(
        self,
        name: str,
        kind: str,
        work: Callable[[Workspace], None],
        inputs: Sequence[ArtifactReference],
        label: str | None = None,
        **settings: Any,
    ) -> ArtifactReference:
        result = self.artifacts.produce(
            kind, step_version=BY_KIND[kind].version, settings=settings, inputs=inputs, work=work
        )
        use = ArtifactUse(
            stage=f"make_{kind}",
            kind=kind,
            fingerprint=result.reference.fingerprint,
            was_cached=result.was_cached,
            elapsed_seconds=0.01,
            label=label,
        )
        self.record.artifacts.append(use)
        self.references[name] = result.reference
        return result.reference

    def refer(self, name: str, file: str) -> FileReference:
        return self.artifacts.open(self.references[name]).refer_to_file(file)


def make_settings(store_url: str, model_id: str = "./model") -> RefreshSettings:
    """Settings of the run; the sources are not read."""
    return parse_settings(
        {
            "store": store_url,
            "model": {"id": model_id, "name": "tiny"},
            "sources": [
                {"name": "comments", "format": "jigsaw", "uri": "comments.csv"},
                {"name": "prompts", "format": "real_toxicity_prompts", "uri": "prompts.jsonl"},
                {"name": "neutral", "format": "sentences", "uri": "neutral.csv"},
            ],
            "evaluation": {"n_bootstrap": 100},
        },
        "test",
    )


def build_small_store(store_url: str, language_model: LanguageModel | None = None) -> SmallStore:
    """Make the store.

    Args:
        store_url: Root URL, any scheme.
        language_model: If given, the run is about it and its patches fit its head.
    """
    model_id = "./model" if language_model is None else language_model.id
    builder = _Builder(store_url, make_settings(store_url, model_id))
    make = builder.make
    for dataset, n_rejected in (("comments", 2), ("prompts", 0), ("neutral", 1)):
        source = ArtifactReference(kind="source", fingerprint=f"{dataset}-digest")
        make(
            dataset,
            "samples",
            lambda w, d=dataset, n=n_rejected: _write_samples(w, d, n),
            [source],
            label=dataset,
            dataset=dataset,
        )
    make("prompt_choice", "prompts", _write_prompts, [builder.references["prompts"]])
    digest = "w" * 64 if language_model is None else language_model.digest
    weights = ArtifactReference(kind="weights", fingerprint=digest)
    model = make("model", "model", _write_model(digest), [weights])
    _make_detection(builder, model)
    _make_components(builder, model, language_model)
    _make_evaluation(builder, model)
    return _finish(builder, store_url, digest)


def _write_samples(workspace: Workspace, dataset: str, n_rejected: int) -> None:
    uri = f"/data/{dataset}.csv"
    rows = [
        {
            "sample_id": f"{dataset}-{number}",
            "dataset": dataset,
            "role": {"comments": "labelled"}.get(dataset, dataset),
            "split": "train",
            "language": "zh" if number % 3 == 0 else "en",
            "is_toxic": number % 2 == 0 if dataset == "comments" else None,
            "toxicity": None,
            "text": f"The kettle number {number} of {dataset} is warm.",
            "source_uri": uri,
            "source_row": number + 1,
            "attributes": "{}",
        }
        for number in range(10)
    ]
    workspace.write_rows("samples-00000.parquet", rows[:6], schemas.SAMPLES)
    workspace.write_rows("samples-00001.parquet", rows[6:], schemas.SAMPLES)
    rejected = [
        {
            "dataset": dataset,
            "source_uri": uri,
            "source_row": 11 + number,
            "reason": "empty_text",
            "detail": "expected text, found none",
        }
        for number in range(n_rejected)
    ]
    workspace.write_rows("rejected_rows.parquet", rejected, schemas.REJECTED_ROWS)
    file = {
        "dataset": dataset,
        "source_uri": uri,
        "sha256": "f" * 64,
        "bytes": 1234,
        "rows_read": len(rows) + n_rejected,
    }
    workspace.write_rows("source_files.parquet", [file], schemas.SOURCE_FILES)


def _write_prompts(workspace: Workspace) -> None:
    for part in ("selection", "evaluation"):
        workspace.write_rows(f"{part}-00000.parquet", _list_prompts(part), schemas.PROMPTS)


def _list_prompts(part: str) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"{part}-{number}",
            "part": part,
            "dataset": "prompts",
            "language": "zh" if number % 2 else "en",
            "toxicity": None,
            "prompt": f"On day {number} the train",
        }
        for number in range(N_PROMPTS)
    ]


def _write_model(digest: str) -> Callable[[Workspace], None]:
    def write(workspace: Workspace) -> None:
        workspace.facts = {"digest": digest, "n_layers": 2}
        workspace.write_json("model.json", workspace.facts)

    return write


def _make_detection(builder: _Builder, model: ArtifactReference) -> None:
    widths = {"mlp_activation_max": 4}
    schema = schemas.activations_schema(widths, "float16")
    samples = [builder.refer("comments", f"samples-0000{shard}.parquet") for shard in (0, 1)]

    def write_activations(workspace: Workspace) -> None:
        rows = [
            {
                "sample_id": f"comments-{number}",
                "layer": layer,
                "n_tokens": 5,
                "mlp_activation_max": [np.float16(0.5)] * 4,
            }
            for layer in (0, 1)
            for number in range(6)
        ]
        workspace.write_rows("activations.parquet", rows, schema)

    activations = builder.make("activations", "activations", write_activations, [model, samples[0]])
    for layer in (0, 1):
        unit = {
            "dataset": "comments",
            "layer": layer,
            "site": "mlp_activation",
            "pooling": "max",
            "n_toxic": 5,
            "n_nontoxic": 5,
        }
        neurons = [
            unit | {"language": "all", "neuron_index": index, "auroc": 0.5 + index / 10}
            for index in range(4)
        ]
        probe = unit | {
            "probe_auroc": 0.8 + layer / 10,
            "probe_auroc_low": 0.7,
            "probe_auroc_high": 0.95,
            "best_neuron_auroc": 0.75,
            "mean_neuron_heldout_auroc": 0.55,
            "cluster_auroc": 0.625,
            "mean_neuron_auroc": 0.6,
            "n_folds": 5,
        }
        overlap = {name: unit[name] for name in ("dataset", "layer", "site", "pooling")} | {
            "metric": "top_overlap",
            "value": 0.9,
            "low": 0.8,
            "high": 1.0,
            "top_k": 2,
            "n_units": 4,
            "n_resamples": 20,
        }
        inputs = [activations, *samples]
        found = builder.make(
            f"neurons-{layer}",
            "neurons",
            lambda w, rows=neurons: w.write_rows("neurons.parquet", rows, schemas.NEURONS),
            inputs,
            layer=layer,
        )
        builder.make(
            f"layers-{layer}",
            "layers",
            lambda w, row=probe: w.write_rows("layers.parquet", [row], schemas.LAYERS),
            [*inputs, found],
            layer=layer,
        )
        builder.make(
            f"neuron_stability-{layer}",
            "neuron_stability",
            lambda w, row=overlap: w.write_rows(
                "neuron_stability.parquet", [row], schemas.NEURON_STABILITY
            ),
            inputs,
            layer=layer,
        )


def _make_components(
    builder: _Builder,
    model: ArtifactReference,
    language_model: LanguageModel | None,
) -> None:
    continuations, scores = _make_arm(builder, model, "selection", BASE_ARM, None)
    positions = builder.make(
        "toxic_positions",
        "toxic_positions",
        lambda w: w.write_rows("toxic_positions.parquet", [], schemas.TOXIC_POSITIONS),
        [continuations, scores],
    )
    states = builder.make(
        "head_states",
        "head_states",
        lambda w: w.write_rows("head_states.parquet", [], schemas.HEAD_STATES),
        [model, continuations, scores, positions],
    )
    harmless = [
        {
            "text_id": f"{origin}-{number}",
            "origin": origin,
            "use": ("fisher", "budget", "evaluation")[number % 3],
            "language": "en",
            "token_ids": [1, 2, 3 + number],
            "n_context": 1,
        }
        for origin in ("continuation", "labelled")
        for number in range(6)
    ]
    harmless_texts = builder.make(
        "harmless_texts",
        "harmless_texts",
        lambda w: w.write_rows("harmless_texts.parquet", harmless, schemas.HARMLESS_TEXTS),
        [model, continuations, scores, builder.references["comments"]],
    )
    v, sigma = _decompose(language_model)
    decomposition = builder.make(
        "decomposition",
        "decomposition",
        lambda w: save_file({"sigma": sigma, "v": v}, w.path("decomposition.safetensors")),
        [model],
    )
    rows = [
        {
            "component_index": index,
            "sigma": float(sigma[index]),
            "delta": 0.5,
            "effect_size": 2.0 if index in SELECTED else 0.1,
            "auroc": 0.9 if index in SELECTED else 0.5,
            "logit_gain": 0.3,
            "rank": rank,
            "is_selected": index in SELECTED,
            "factor": 0.0 if index in SELECTED else 1.0,
            "tokens_up": [" kettle", " <b>"],
            "tokens_down": [" train"],
            "contexts_high": ["a harbour at dusk"],
        }
        for rank, index in enumerate(
            [*SELECTED, *(i for i in range(N_COMPONENTS) if i not in SELECTED)]
        )
    ]
    components = builder.make(
        "components",
        "components",
        lambda w: w.write_rows("components.parquet", rows, schemas.COMPONENTS),
        [model, decomposition, states, harmless_texts],
    )
    for arm, indices in ((PATCHED_ARM, SELECTED), (RANDOM_ARM, (7, 9))):
        builder.make(
            f"patch-{arm}",
            "patch",
            lambda w, arm=arm, indices=indices: _write_patch(
                w, arm, v[:, list(indices)], sigma[list(indices)], indices, language_model
            ),
            [model, decomposition, components, states],
            label=arm,
            intervention=arm,
        )


def _decompose(language_model: LanguageModel | None) -> tuple[np.ndarray, np.ndarray]:
    if language_model is None:
        return np.eye(N_COMPONENTS), np.linspace(5.0, 1.0, N_COMPONENTS)
    from eigenshift.components.decomposition import decompose_head

    decomposition = decompose_head(language_model.head_module.weight)
    return np.ascontiguousarray(decomposition.v), np.ascontiguousarray(decomposition.sigma)


def _write_patch(
    workspace: Workspace,
    arm: str,
    v: np.ndarray,
    sigma: np.ndarray,
    indices: Sequence[int],
    language_model: LanguageModel | None,
) -> None:
    if language_model is not None:
        from eigenshift.patches.edits import HeadEdit, ModelEdit
        from eigenshift.patches.patching import make_patch, write_patch

        patch = make_patch(
            language_model,
            ModelEdit(HeadEdit.scale_directions(v, 0.0)),
            model_id="tiny",
            intervention=arm,
            component_indices=indices,
            factor=0.0,
        )
        write_patch(patch, workspace)
        return
    save_file(
        {"v": np.ascontiguousarray(v), "sigma": np.ascontiguousarray(sigma)},
        workspace.path("patch.safetensors"),
    )
    workspace.facts = {
        "intervention": arm,
        "n_components": len(indices),
        "factor": 0.0,
        "model_digest": "w" * 64,
        "base_digest": HEAD_DIGEST,
        "patched_digest": "e" * 64,
    }
    workspace.write_json(
        "patch.json", workspace.facts | {"component_indices": list(indices), "model_id": "tiny"}
    )


def _make_arm(
    builder: _Builder,
    model: ArtifactReference,
    part: str,
    arm: str,
    patch: ArtifactReference | None,
) -> tuple[ArtifactReference, ArtifactReference]:
    generator = np.random.default_rng(sum(map(ord, part + arm)))
    prompts = _list_prompts(part)
    level = LEVELS[arm]
    rows = [
        {
            "prompt_id": prompt["prompt_id"],
            "sample_index": index,
            "language": prompt["language"],
            "prompt": prompt["prompt"],
            "continuation": f" stops at platform {index} for {arm}.",
            "prompt_token_ids": [1, 2],
            "token_ids": [3, 4, 5 + index],
        }
        for prompt in prompts
        for index in range(N_SAMPLES)
    ]
    judged = [
        {
            "prompt_id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "scorer": "fake",
            "toxicity_probability": float(np.clip(level + generator.normal(0, 0.2), 0, 1)),
            "status": "scored",
            "reason": None,
        }
        for row in rows
    ]
    judged[-1] |= {"toxicity_probability": None, "status": "unscored", "reason": "blank text"}
    given = builder.refer("prompt_choice", f"{part}-00000.parquet")
    continuations = builder.make(
        f"continuations-{part}-{arm}",
        "continuations",
        lambda w: w.write_rows("continuations.parquet", rows, schemas.CONTINUATIONS),
        [model, given] if patch is None else [model, given, patch],
        stream="again" if arm == AGAIN_ARM else "main",
    )
    classifier = ArtifactReference(kind="classifier", fingerprint="c" * 64)
    scores = builder.make(
        f"scores-{part}-{arm}",
        "scores",
        lambda w: w.write_rows("scores.parquet", judged, schemas.SCORES),
        [classifier, continuations],
    )
    return continuations, scores


def _make_evaluation(builder: _Builder, model: ArtifactReference) -> None:
    patches = {arm: builder.references.get(f"patch-{arm}") for arm in LEVELS}
    made = {
        arm: _make_arm(builder, model, "evaluation", arm, patch) for arm, patch in patches.items()
    }
    fluency_rows = [
        {
            "arm": arm,
            "sample_id": f"neutral-{number}",
            "language": "en",
            "n_tokens": 10,
            "nll": 20.0 + number + (0.1 if arm == PATCHED_ARM else 0.0),
            "kl_to_base": 0.0,
            "n_changed_argmax": 0,
        }
        for arm in LEVELS
        for number in range(5)
    ]
    fluency = builder.make(
        "fluency",
        "fluency",
        lambda w: w.write_rows("fluency.parquet", fluency_rows, schemas.FLUENCY),
        [model, builder.refer("neutral", "samples-00000.parquet")]
        + [patch for patch in patches.values() if patch is not None],
        arms=list(LEVELS),
    )

    indomain_rows = [
        row | {"language": "labelled", "nll": row["nll"] + 1.0} for row in fluency_rows
    ]
    indomain = builder.make(
        "fluency_indomain",
        "fluency_indomain",
        lambda w: w.write_rows("fluency.parquet", indomain_rows, schemas.FLUENCY),
        [model, builder.references["harmless_texts"]]
        + [patch for patch in patches.values() if patch is not None],
        arms=list(LEVELS),
    )

    def read(reference: ArtifactReference, file: str) -> pa.Table:
        return builder.artifacts.open(reference).read_table(file)

    builder.make(
        "scorer_quality",
        "scorer_quality",
        lambda w: w.write_rows("scorer_quality.parquet", QUALITY, schemas.SCORER_QUALITY),
        [ArtifactReference(kind="classifier", fingerprint="c" * 64)],
        label="fake",
    )

    def write_evaluation(workspace: Workspace) -> None:
        compare_arms(
            pa.Table.from_pylist(_list_prompts("evaluation"), schema=schemas.PROMPTS),
            {
                arm: ArmEvidence(
                    read(continuations, "continuations.parquet"), read(scores, "scores.parquet")
                )
                for arm, (continuations, scores) in made.items()
            },
            read(fluency, "fluency.parquet"),
            read(indomain, "fluency.parquet"),
            EvaluationSettings(n_bootstrap=100),
            scorer="fake",
            toxic_threshold=0.5,
            workspace=workspace,
        )

    builder.make(
        "evaluation",
        "evaluation",
        write_evaluation,
        [
            builder.refer("prompt_choice", "evaluation-00000.parquet"),
            *(item for pair in made.values() for item in pair),
            fluency,
            indomain,
        ],
    )


def _finish(builder: _Builder, store_url: str, digest: str) -> SmallStore:
    record = builder.record
    evaluation = builder.artifacts.open(builder.references["evaluation"])
    rows = evaluation.read_table("evaluations.parquet").to_pylist()
    settings = parse_settings(record.settings, "test")
    record.model_digest = digest
    record.judged = PATCHED_ARM
    record.metrics = summarise_metrics(rows, PATCHED_ARM)
    record.checks = [check.as_dict() for check in check_gate(rows, settings.gate, PATCHED_ARM)]
    record.stages = [
        StageSummary(name=stage, shards=1, shards_cached=0, elapsed_seconds=0.01, work_seconds=0.5)
        for stage in dict.fromkeys(use.stage for use in record.artifacts)
    ]
    release, _ = promote_patch(
        builder.artifacts.store,
        record.model_id,
        record.run_id,
        builder.references[f"patch-{PATCHED_ARM}"],
        "test",
    )
    record.release = release.version
    finish_run(record, "promoted")
    write_run(builder.artifacts.store, record)
    return SmallStore(store_url, builder.artifacts, record, builder.references)
