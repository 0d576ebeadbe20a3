"""Tasks that measure fluency and compare arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect.states import State
from pydantic import BaseModel, ConfigDict

from eigenshift import models, reload_check
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.calibration import split_neutral
from eigenshift.decomposition import open_decomposition
from eigenshift.evaluation import (
    agreement,
    arm_table,
    comparison,
    control_draws,
    fluency,
    token_shifts,
)
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.patching import open_patch
from eigenshift.scoring import require_scored
from eigenshift.settings import (
    EvaluationSettings,
    ExecutionSettings,
    ModelSettings,
    ScorerSettings,
)
from eigenshift.word_lists import WordList, read_words
from tasks.generation import refer_to_scorer
from tasks.stage import model_task, report, stage_task


class JudgedArms(BaseModel):
    """What one scorer said of every arm's continuations, shard by shard."""

    model_config = ConfigDict(frozen=True)
    scorer: ScorerSettings
    scores: dict[str, tuple[ArtifactReference, ...]]

    @property
    def inputs(self) -> list[ArtifactReference]:
        """All scores, arm by arm."""
        return [item for arm in sorted(self.scores) for item in self.scores[arm]]

    def read(self, artifacts: ArtifactStore) -> agreement.Verdicts:
        """Read the scores.

        Raises:
            EvaluationError: Too many continuations of an arm have none.
        """
        scores = {
            arm: artifacts.read_shards(references, "scores.parquet")
            for arm, references in self.scores.items()
        }
        for arm, table in scores.items():
            require_scored(
                table["toxicity_probability"].null_count,
                table.num_rows,
                self.scorer.max_unscored_share,
                f"arm {arm}, scorer {self.scorer.name}",
            )
        return agreement.Verdicts(self.scorer.name, self.scorer.toxic_threshold, scores)

    def describe(self) -> dict[str, object]:
        """The scorer's settings that `read` reads; what decides the scores is in the inputs."""
        return {
            "scorer": self.scorer.name,
            "toxic_threshold": self.scorer.toxic_threshold,
            "max_unscored_share": self.scorer.max_unscored_share,
        }


@model_task
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
    judged: JudgedArms,
    further: Sequence[JudgedArms],
    fluency_shards: Sequence[ArtifactReference],
    settings: EvaluationSettings,
) -> State[StageResult]:
    """Every metric of every arm, with intervals."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        verdicts = judged.read(artifacts)
        evidence = {
            arm: comparison.ArmEvidence(
                artifacts.read_shards(references, "continuations.parquet"), verdicts.scores[arm]
            )
            for arm, references in continuations.items()
        }
        comparison.compare_arms(
            artifacts.read_files(prompts),
            evidence,
            artifacts.read_shards(fluency_shards, "fluency.parquet"),
            settings,
            scorer=verdicts.scorer,
            toxic_threshold=verdicts.toxic_threshold,
            workspace=workspace,
            further=[item.read(artifacts) for item in further],
        )

    return report(
        artifacts.produce(
            "evaluation",
            step_version=comparison.STEP_VERSION,
            settings={
                "arms": sorted(continuations),
                "evaluation": settings,
                **judged.describe(),
                "further": [item.describe() for item in further],
            },
            inputs=[
                *prompts,
                *(item for arm in sorted(continuations) for item in continuations[arm]),
                *judged.inputs,
                *(item for other in further for item in other.inputs),
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


@model_task
def measure_token_shifts(
    store: str,
    model: ArtifactReference,
    patch: ArtifactReference,
    states: ArtifactReference,
    lexicons: Sequence[ScorerSettings],
    model_settings: ModelSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Which tokens a patch makes rarer, at toxic and other positions."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        with models.use_model(model_settings, execution.device) as language_model:
            token_shifts.measure_token_shifts(
                language_model,
                open_patch(artifacts.open(patch)),
                artifacts.open(states).read_table("head_states.parquet"),
                [WordList(read_words(lexicon.words or "")) for lexicon in lexicons],
                workspace,
            )

    return report(
        artifacts.produce(
            "token_shifts",
            step_version=token_shifts.STEP_VERSION,
            settings={"dtype": model_settings.dtype},
            inputs=[model, patch, states, *map(refer_to_scorer, lexicons)],
            work=work,
        )
    )


@model_task
def draw_controls(
    store: str,
    model: ArtifactReference,
    patch: ArtifactReference,
    decomposition: ArtifactReference,
    states: ArtifactReference,
    seed: int,
    n_draws: int,
    model_settings: ModelSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Compare a patch with many random choices of components, in closed form."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        with models.use_model(model_settings, execution.device) as language_model:
            control_draws.compare_with_draws(
                language_model,
                open_patch(artifacts.open(patch)),
                open_decomposition(artifacts.open(decomposition)),
                artifacts.open(states).read_table("head_states.parquet"),
                n_draws=n_draws,
                seed=seed,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "control_draws",
            step_version=control_draws.STEP_VERSION,
            settings={"seed": seed, "n_draws": n_draws, "dtype": model_settings.dtype},
            inputs=[model, patch, decomposition, states],
            work=work,
        )
    )


@model_task
def check_reload(
    store: str,
    model: ArtifactReference,
    patch: ArtifactReference,
    prompts: FileReference,
    model_settings: ModelSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Whether the exported model loads back as what was measured."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        reload_check.check_reload(
            model_settings,
            open_patch(artifacts.open(patch)),
            artifacts.read_table(prompts)["prompt"].to_pylist(),
            execution.device,
            workspace,
        )

    return report(
        artifacts.produce(
            "reload_check",
            step_version=reload_check.STEP_VERSION,
            settings={"dtype": model_settings.dtype},
            inputs=[model, patch, prompts],
            work=work,
        )
    )


@stage_task
def compare_scorers(
    store: str,
    continuations: Mapping[str, Sequence[ArtifactReference]],
    judged: Sequence[JudgedArms],
) -> State[StageResult]:
    """How far scorers agree about the same continuations."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "scorer_agreement",
            step_version=agreement.STEP_VERSION,
            settings={
                "arms": sorted(continuations),
                "scorers": [item.describe() for item in judged],
            },
            inputs=[
                *(item for arm in sorted(continuations) for item in continuations[arm]),
                *(item for scorer in judged for item in scorer.inputs),
            ],
            work=lambda workspace: agreement.compare_scorers(
                {
                    arm: artifacts.read_shards(references, "continuations.parquet")
                    for arm, references in continuations.items()
                },
                [item.read(artifacts) for item in judged],
                workspace,
            ),
        )
    )
