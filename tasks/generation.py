"""Tasks of the generation side: continuations, their scores, and the words that make them toxic."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prefect.states import State

from eigenshift import generation, labelled_text, models, scorers, scoring, toxic_positions
from eigenshift.artifacts import ArtifactStore, Order, StageResult, Workspace
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.patching import Patch, open_patch
from eigenshift.settings import (
    ComponentSettings,
    ExecutionSettings,
    GenerationSettings,
    ModelSettings,
    ScorerSettings,
)
from eigenshift.source_files import digest_file
from eigenshift.word_lists import require_word_file
from tasks.stage import model_task, report, report_all


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a patch (None: the base) and a stream of random numbers."""

    patch: ArtifactReference | None
    stream: str = "main"


@model_task
def generate_continuations(
    store: str,
    prompts: FileReference,
    model: ArtifactReference,
    arms: Mapping[str, Arm],
    model_settings: ModelSettings,
    settings: GenerationSettings,
    execution: ExecutionSettings,
) -> State[dict[str, StageResult]]:
    """Continue one shard of prompts with the base model and with patches, in one pass if possible.

    One artifact per arm; arms already in the store are not generated again.
    """
    artifacts = ArtifactStore(store)

    def work(workspaces: Mapping[str, Workspace]) -> Generator[Sequence[str], None, None]:
        table = artifacts.read_table(prompts)
        loaded = {
            name: generation.GenerationArm(_open(artifacts, arms[name].patch), arms[name].stream)
            for name in workspaces
        }
        with models.use_model(model_settings, execution.device) as language_model:
            yield from generation.generate_continuations(
                language_model,
                table,
                loaded,
                settings,
                sequences_per_batch=execution.sequences_per_batch,
                workspaces=workspaces,
            )

    return report_all(
        artifacts.produce_together(
            "continuations",
            step_version=generation.STEP_VERSION,
            orders={
                name: Order(
                    {
                        "generation": settings,
                        "stream": arm.stream,
                        "dtype": model_settings.dtype,
                    },
                    [model, prompts] if arm.patch is None else [model, prompts, arm.patch],
                )
                for name, arm in arms.items()
            },
            work=work,
        )
    )


def _open(artifacts: ArtifactStore, patch: ArtifactReference | None) -> Patch | None:
    return None if patch is None else open_patch(artifacts.open(patch))


@model_task
def score_continuations(
    store: str,
    continuations: ArtifactReference,
    settings: ScorerSettings,
    execution: ExecutionSettings,
    kind: Literal["scores", "further_scores"] = "scores",
) -> State[StageResult]:
    """Score one shard of continuations; further scores are those that decide nothing."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            kind,
            step_version=scoring.SCORING_STEP_VERSION,
            settings={"scorer": settings.name},
            inputs=[refer_to_scorer(settings), continuations],
            work=lambda workspace: scoring.score_continuations(
                _load_scorer(settings, execution),
                artifacts.open(continuations).read_table("continuations.parquet"),
                workspace,
            ),
        )
    )


@model_task
def locate_toxic_words(
    store: str,
    continuations: ArtifactReference,
    scores: ArtifactReference,
    model_settings: ModelSettings,
    scorer: ScorerSettings,
    components: ComponentSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Find the toxic words of one shard of continuations, or of the labelled texts."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        finder = toxic_positions.make_finder(
            components,
            scorer.toxic_threshold,
            load_scorer=lambda: _load_scorer(scorer, execution),
            read_spans=lambda: artifacts.open(continuations).read_table(labelled_text.SPANS_NAME),
        )
        with models.use_model(model_settings, execution.device) as language_model:
            toxic_positions.locate_toxic_words(
                finder,
                language_model.tokenizer,
                artifacts.open(continuations).read_table("continuations.parquet"),
                artifacts.open(scores).read_table("scores.parquet"),
                workspace,
            )

    bounds = {
        "toxic_threshold": scorer.toxic_threshold,
        "min_attribution": components.min_attribution,
    }
    asks_scorer = components.positions.asks_scorer
    outside = [refer_to_scorer(scorer)] if asks_scorer else []
    if components.lexicon is not None:
        require_word_file(components.lexicon, "components.lexicon")
        digest = digest_file(components.lexicon)
        outside = [ArtifactReference(kind="lexicon", fingerprint=digest)]
    return report(
        artifacts.produce(
            "toxic_positions",
            step_version=toxic_positions.STEP_VERSION,
            settings={
                "positions": components.positions.value,
                **(bounds if asks_scorer else {}),
            },
            inputs=[*outside, continuations, scores],
            work=work,
        )
    )


def refer_to_scorer(settings: ScorerSettings) -> ArtifactReference:
    """What stands for a scorer among the inputs of those who use it."""
    return ArtifactReference(kind="classifier", fingerprint=scorers.identify_scorer(settings))


def _load_scorer(settings: ScorerSettings, execution: ExecutionSettings) -> scorers.Scorer:
    device = str(models.resolve_device(execution.device))
    return scorers.load_scorer(settings, device, execution.texts_per_scoring_batch)
