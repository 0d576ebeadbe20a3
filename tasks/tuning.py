"""Tasks of the search for score, number of components and factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect.states import State

from eigenshift import decomposition as decompositions
from eigenshift import models, tuning
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.components import gather_toxic_states
from eigenshift.evaluation.comparison import ArmEvidence
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.scoring import require_scored
from eigenshift.settings import (
    EvaluationSettings,
    ExecutionSettings,
    ModelSettings,
    ScorerSettings,
    TuneSettings,
)
from tasks.stage import model_task, report, stage_task


@model_task
def screen_trials(
    store: str,
    model: ArtifactReference,
    decomposition: ArtifactReference,
    states: ArtifactReference,
    components: ArtifactReference,
    automatic: Mapping[float, ArtifactReference],
    neutral: Sequence[FileReference],
    model_settings: ModelSettings,
    settings: TuneSettings,
    evaluation: EvaluationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Measure every trial in closed form."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        head_states = artifacts.open(states).read_table("head_states.parquet")
        tables = {
            factor: artifacts.open(reference).read_table("components.parquet")
            for factor, reference in automatic.items()
        }
        with models.use_model(model_settings, execution.device) as language_model:
            tuning.screen_trials(
                language_model,
                artifacts.open(components).read_table("components.parquet"),
                tables,
                decompositions.open_decomposition(artifacts.open(decomposition)),
                gather_toxic_states(head_states, language_model.head_weight),
                artifacts.read_files(neutral),
                settings,
                max_tokens=evaluation.max_tokens,
                tokens_per_batch=execution.tokens_per_batch,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "screening",
            step_version=tuning.SCREENING_STEP_VERSION,
            settings={
                "scores": settings.scores,
                "n_components": settings.n_components,
                "factors": settings.factors,
                "automatic_factors": list(automatic),
                "max_perplexity_increase": settings.max_perplexity_increase,
                "max_tokens": evaluation.max_tokens,
            },
            inputs=[model, decomposition, states, components, *automatic.values(), *neutral],
            work=work,
        )
    )


@stage_task
def confirm_trials(
    store: str,
    screening: ArtifactReference,
    prompts: Sequence[FileReference],
    continuations: Mapping[str, Sequence[ArtifactReference]],
    scores: Mapping[str, Sequence[ArtifactReference]],
    settings: TuneSettings,
    evaluation: EvaluationSettings,
    scorer: ScorerSettings,
) -> State[StageResult]:
    """Join what generation showed to the screened trials."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        evidence = {
            arm: ArmEvidence(
                artifacts.read_shards(continuations[arm], "continuations.parquet"),
                artifacts.read_shards(scores[arm], "scores.parquet"),
            )
            for arm in continuations
        }
        for arm, found in evidence.items():
            n_unscored = found.scores["toxicity_probability"].null_count
            n_rows = found.scores.num_rows
            require_scored(n_unscored, n_rows, scorer.max_unscored_share, f"arm {arm}")
        tuning.confirm_trials(
            artifacts.open(screening).read_table("trials.parquet"),
            artifacts.read_files(prompts),
            evidence,
            settings,
            evaluation,
            toxic_threshold=scorer.toxic_threshold,
            workspace=workspace,
        )

    return report(
        artifacts.produce(
            "trials",
            step_version=tuning.CONFIRMATION_STEP_VERSION,
            settings={
                "arms": sorted(continuations),
                "max_perplexity_increase": settings.max_perplexity_increase,
                "n_bootstrap": evaluation.n_bootstrap,
                "confidence": evaluation.confidence,
                "seed": evaluation.seed,
                "toxic_threshold": scorer.toxic_threshold,
                "max_unscored_share": scorer.max_unscored_share,
            },
            inputs=[
                screening,
                *prompts,
                *(item for arm in sorted(continuations) for item in continuations[arm]),
                *(item for arm in sorted(scores) for item in scores[arm]),
            ],
            work=work,
        )
    )
