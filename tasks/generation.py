"""Tasks of the generation side: continuations, their scores, and the words that make them toxic."""

from __future__ import annotations

from prefect.states import State

from eigenshift import generation, models, scorers, scoring
from eigenshift.artifacts import (
    ArtifactReference,
    ArtifactStore,
    FileReference,
    StageResult,
    Workspace,
)
from eigenshift.patching import open_patch, patched_model
from eigenshift.settings import (
    ComponentSettings,
    ExecutionSettings,
    GenerationSettings,
    ModelSettings,
    ScorerSettings,
)
from tasks.stage import report, stage_task


@stage_task
def generate_continuations(
    store: str,
    prompts: FileReference,
    model: ArtifactReference,
    patch: ArtifactReference | None,
    stream: str,
    model_settings: ModelSettings,
    settings: GenerationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Continue one shard of prompts with the base model or with a patch."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        table = artifacts.read_table(prompts)
        loaded = None if patch is None else open_patch(artifacts.open(patch))
        with (
            models.use_model(model_settings, execution.device) as language_model,
            patched_model(language_model, loaded),
        ):
            generation.generate_continuations(
                language_model,
                table,
                settings,
                stream=stream,
                sequences_per_batch=execution.sequences_per_batch,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "continuations",
            step_version=generation.STEP_VERSION,
            settings={"generation": settings, "stream": stream, "dtype": model_settings.dtype},
            inputs=[model, prompts] if patch is None else [model, prompts, patch],
            work=work,
        )
    )


@stage_task
def score_continuations(
    store: str,
    continuations: ArtifactReference,
    settings: ScorerSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Score one shard of continuations."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "scores",
            step_version=scoring.SCORING_STEP_VERSION,
            settings={"scorer": settings.name},
            inputs=[_scorer_input(settings), continuations],
            work=lambda workspace: scoring.score_continuations(
                _load_scorer(settings, execution),
                artifacts.open(continuations).read_table("continuations.parquet"),
                workspace,
            ),
        )
    )


@stage_task
def locate_toxic_words(
    store: str,
    continuations: ArtifactReference,
    scores: ArtifactReference,
    model_settings: ModelSettings,
    scorer: ScorerSettings,
    components: ComponentSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Find the toxic words of one shard of continuations."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        with models.use_model(model_settings, execution.device) as language_model:
            scoring.locate_toxic_words(
                _load_scorer(scorer, execution),
                language_model.tokenizer,
                artifacts.open(continuations).read_table("continuations.parquet"),
                artifacts.open(scores).read_table("scores.parquet"),
                toxic_threshold=scorer.toxic_threshold,
                min_attribution=components.min_attribution,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "toxic_positions",
            step_version=scoring.LOCATION_STEP_VERSION,
            settings={
                "toxic_threshold": scorer.toxic_threshold,
                "min_attribution": components.min_attribution,
            },
            inputs=[_scorer_input(scorer), continuations, scores],
            work=work,
        )
    )


def _scorer_input(settings: ScorerSettings) -> ArtifactReference:
    return ArtifactReference(kind="classifier", fingerprint=scorers.identify_scorer(settings))


def _load_scorer(settings: ScorerSettings, execution: ExecutionSettings) -> scorers.Scorer:
    device = str(models.resolve_device(execution.device))
    return scorers.load_scorer(settings, device, execution.texts_per_scoring_batch)
