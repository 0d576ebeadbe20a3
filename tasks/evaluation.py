"""Tasks that measure fluency and compare arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from prefect.states import State

from eigenshift import models
from eigenshift.artifacts import (
    ArtifactReference,
    ArtifactStore,
    FileReference,
    StageResult,
    Workspace,
)
from eigenshift.calibration import split_neutral
from eigenshift.evaluation import arm_table, comparison, fluency
from eigenshift.patching import open_patch
from eigenshift.scoring import require_scored
from eigenshift.settings import (
    EvaluationSettings,
    ExecutionSettings,
    ModelSettings,
    ScorerSettings,
)
from tasks.stage import report, stage_task


@stage_task
def measure_fluency(
    store: str,
    shard: FileReference,
    model: ArtifactReference,
    patches: Mapping[str, ArtifactReference | None],
    n_texts: int,
    model_settings: ModelSettings,
    settings: EvaluationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Perplexity and divergence of all arms on one shard of neutral texts."""
    artifacts = ArtifactStore(store)
    given = {arm: patch for arm, patch in patches.items() if patch is not None}

    def work(workspace: Workspace) -> None:
        loaded = {
            arm: None if patch is None else open_patch(artifacts.open(patch))
            for arm, patch in patches.items()
        }
        texts = split_neutral(artifacts.read_table(shard), for_calibration=False)
        with models.use_model(model_settings, execution.device) as language_model:
            fluency.measure_fluency(
                language_model,
                loaded,
                texts.slice(0, n_texts),
                settings,
                tokens_per_batch=execution.tokens_per_batch,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "fluency",
            step_version=fluency.STEP_VERSION,
            settings={
                "arms": list(patches),
                "n_texts": n_texts,
                "max_tokens": settings.max_tokens,
                "dtype": model_settings.dtype,
            },
            inputs=[model, shard, *given.values()],
            work=work,
        )
    )


@stage_task
def compare_arms(
    store: str,
    prompts: Sequence[FileReference],
    continuations: Mapping[str, Sequence[ArtifactReference]],
    scores: Mapping[str, Sequence[ArtifactReference]],
    fluency_shards: Sequence[ArtifactReference],
    settings: EvaluationSettings,
    scorer: ScorerSettings,
) -> State[StageResult]:
    """Every metric of every arm, with intervals."""
    artifacts = ArtifactStore(store)

    def read(references: Sequence[ArtifactReference], name: str) -> pa.Table:
        return pa.concat_tables(artifacts.open(item).read_table(name) for item in references)

    def work(workspace: Workspace) -> None:
        evidence = {
            arm: comparison.ArmEvidence(
                read(continuations[arm], "continuations.parquet"),
                read(scores[arm], "scores.parquet"),
            )
            for arm in continuations
        }
        for arm, found in evidence.items():
            n_unscored = found.scores["toxicity_probability"].null_count
            require_scored(
                n_unscored, found.scores.num_rows, scorer.max_unscored_share, f"arm {arm}"
            )
        comparison.compare_arms(
            pa.concat_tables(artifacts.read_table(item) for item in prompts),
            evidence,
            read(fluency_shards, "fluency.parquet"),
            settings,
            scorer=scorer.name,
            toxic_threshold=scorer.toxic_threshold,
            workspace=workspace,
        )

    return report(
        artifacts.produce(
            "evaluation",
            step_version=comparison.STEP_VERSION,
            settings={
                "arms": sorted(continuations),
                "evaluation": settings,
                "scorer": scorer.name,
                "toxic_threshold": scorer.toxic_threshold,
                "max_unscored_share": scorer.max_unscored_share,
            },
            inputs=[
                *prompts,
                *(item for arm in sorted(continuations) for item in continuations[arm]),
                *(item for arm in sorted(scores) for item in scores[arm]),
                *fluency_shards,
            ],
            work=work,
        )
    )


@stage_task
def tabulate_arms(
    store: str,
    evaluation: ArtifactReference,
    patches: Mapping[str, ArtifactReference | None],
) -> State[StageResult]:
    """One row per arm, with what it took to build its patch."""
    artifacts = ArtifactStore(store)
    given = {arm: patch for arm, patch in patches.items() if patch is not None}
    return report(
        artifacts.produce(
            "comparison",
            step_version=arm_table.STEP_VERSION,
            settings={"arms": list(patches), "patched": list(given)},
            inputs=[evaluation, *given.values()],
            work=lambda workspace: arm_table.tabulate_arms(
                list(patches),
                artifacts.open(evaluation).read_table("evaluations.parquet").to_pylist(),
                {arm: arm_table.describe_build(artifacts, patch) for arm, patch in given.items()},
                workspace,
            ),
        )
    )
