"""Tasks of the detection side: the model's activations on labelled text, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.states import State

from eigenshift import activations, aggregation, models, probes
from eigenshift.artifacts import (
    ArtifactReference,
    ArtifactStore,
    FileReference,
    StageResult,
    Workspace,
)
from eigenshift.settings import (
    ActivationSettings,
    ExecutionSettings,
    ModelSettings,
    StatisticsSettings,
)
from eigenshift.storage import StoredFile
from tasks.stage import report, stage_task


@stage_task
def extract_activations(
    store: str,
    shard: FileReference,
    model: ArtifactReference,
    model_settings: ModelSettings,
    settings: ActivationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Pool the activations of one shard of labelled samples."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        with models.use_model(model_settings, execution.device) as language_model:
            activations.extract_shard(
                language_model,
                artifacts.read_table(shard),
                settings,
                execution.tokens_per_batch,
                workspace,
            )

    return report(
        artifacts.produce(
            "activations",
            step_version=activations.STEP_VERSION,
            settings={"activations": settings, "dtype": model_settings.dtype},
            inputs=[model, shard],
            work=work,
        )
    )


@stage_task
def compute_neuron_statistics(
    store: str,
    dataset: str,
    layer: int,
    shards: Sequence[ArtifactReference],
    samples: Sequence[FileReference],
    settings: ActivationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Aggregate every unit of one layer on one dataset in DuckDB."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "neurons",
            step_version=aggregation.STEP_VERSION,
            settings={"dataset": dataset, "layer": layer, "sites": _site_names(settings)},
            inputs=[*shards, *samples],
            work=lambda workspace: aggregation.compute_neuron_statistics(
                _locate_activations(artifacts, shards),
                _locate_samples(artifacts, samples),
                dataset,
                layer,
                settings.sites,
                execution.duckdb_memory_limit,
                workspace,
            ),
        )
    )


@stage_task
def compute_layer_statistics(
    store: str,
    dataset: str,
    layer: int,
    shards: Sequence[ArtifactReference],
    samples: Sequence[FileReference],
    neurons: ArtifactReference,
    settings: ActivationSettings,
    statistics: StatisticsSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Probe one layer on one dataset."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        probes.compute_layer_statistics(
            _locate_activations(artifacts, shards),
            _locate_samples(artifacts, samples),
            artifacts.open(neurons).read_table("neurons.parquet"),
            dataset,
            layer,
            settings.sites,
            statistics,
            workspace,
            execution.duckdb_memory_limit,
        )

    return report(
        artifacts.produce(
            "layers",
            step_version=probes.STEP_VERSION,
            settings={
                "dataset": dataset,
                "layer": layer,
                "sites": _site_names(settings),
                "statistics": statistics,
            },
            inputs=[*shards, *samples, neurons],
            work=work,
        )
    )


def _site_names(settings: ActivationSettings) -> list[str]:
    return [site.column for site in settings.sites]


def _locate_activations(
    artifacts: ArtifactStore, shards: Sequence[ArtifactReference]
) -> list[StoredFile]:
    return [artifacts.open(shard).locate("activations.parquet") for shard in shards]


def _locate_samples(artifacts: ArtifactStore, samples: Sequence[FileReference]) -> list[StoredFile]:
    return [artifacts.open(sample).locate(sample.file) for sample in samples]
