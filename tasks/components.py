"""Tasks from head states to scored components."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.states import State

from eigenshift import components as scoring
from eigenshift import decomposition as decompositions
from eigenshift import head_states, labelled_text, models
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.settings import (
    ComponentSettings,
    EvaluationSettings,
    ExecutionSettings,
    ModelSettings,
    PositionSource,
    ScorerSettings,
)
from tasks.stage import model_task, report


@model_task
def encode_labelled_text(
    store: str,
    samples: Sequence[FileReference],
    model: ArtifactReference,
    model_settings: ModelSettings,
    settings: ComponentSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Labelled texts in the form of continuations and scores."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        with models.use_model(model_settings, execution.device) as language_model:
            labelled_text.encode_labelled_text(
                language_model,
                artifacts.read_files(samples),
                settings,
                workspace,
            )

    return report(
        artifacts.produce(
            "labelled_text",
            step_version=labelled_text.STEP_VERSION,
            settings={
                "max_labelled_texts": settings.max_labelled_texts,
                "seed": settings.seed,
            },
            inputs=[model, *samples],
            work=work,
        )
    )


@model_task
def collect_head_states(
    store: str,
    model: ArtifactReference,
    continuations: Sequence[ArtifactReference],
    scores: Sequence[ArtifactReference],
    positions: Sequence[ArtifactReference],
    model_settings: ModelSettings,
    scorer: ScorerSettings,
    settings: ComponentSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """States about to generate toxic words, and matched ones that are not."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        with models.use_model(model_settings, execution.device) as language_model:
            head_states.collect_head_states(
                language_model,
                artifacts.read_shards(continuations, "continuations.parquet"),
                artifacts.read_shards(scores, "scores.parquet"),
                artifacts.read_shards(positions, "toxic_positions.parquet"),
                settings,
                toxic_threshold=scorer.toxic_threshold,
                tokens_per_batch=execution.tokens_per_batch,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "head_states",
            step_version=head_states.STEP_VERSION,
            settings={
                "seed": settings.seed,
                "nontoxic_per_toxic": settings.nontoxic_per_toxic,
                "min_toxic_positions": settings.min_toxic_positions,
                "toxic_threshold": scorer.toxic_threshold,
                "is_marked": settings.positions is PositionSource.spans,
                "dtype": model_settings.dtype,
            },
            inputs=[model, *continuations, *scores, *positions],
            work=work,
        )
    )


@model_task
def score_components(
    store: str,
    model: ArtifactReference,
    decomposition: ArtifactReference,
    states: ArtifactReference,
    neutral: Sequence[FileReference],
    model_settings: ModelSettings,
    settings: ComponentSettings,
    evaluation: EvaluationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Score the head's components and choose which to damp."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        table = artifacts.open(states).read_table("head_states.parquet")
        if settings.permute_labels:
            table = head_states.permute_labels(table, settings.seed)
        with models.use_model(model_settings, execution.device) as language_model:
            scoring.write_components(
                language_model,
                table,
                decompositions.open_decomposition(artifacts.open(decomposition)),
                artifacts.read_files(neutral),
                settings,
                max_tokens=evaluation.max_tokens,
                tokens_per_batch=execution.tokens_per_batch,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "components",
            step_version=scoring.STEP_VERSION,
            settings={
                "components": settings.model_dump(mode="json", include=set(scoring.SETTINGS_READ)),
                "max_tokens": evaluation.max_tokens,
            },
            inputs=[model, decomposition, states, *neutral],
            work=work,
        )
    )
