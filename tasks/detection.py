"""Tasks of the detection side: the model's activations on labelled text, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.states import State
from pydantic import BaseModel, ConfigDict

from eigenshift import (
    activations,
    layer_statistics,
    layer_transfers,
    models,
    neuron_statistics,
    neuron_summaries,
    stability,
)
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.settings import (
    ActivationSettings,
    ExecutionSettings,
    ModelSettings,
    StatisticsSettings,
)
from eigenshift.storage import StoredFile
from tasks.stage import model_task, report, stage_task


@model_task
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
        with models.use_text_model(model_settings, execution.device) as text_model:
            activations.extract_shard(
                text_model,
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
def summarise_neurons(
    store: str,
    dataset: str,
    activation_shard: FileReference,
    sample_shard: FileReference,
    settings: ActivationSettings,
) -> State[StageResult]:
    """Sort every unit's values of one shard by class."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "neuron_summaries",
            step_version=neuron_summaries.STEP_VERSION,
            settings={"dataset": dataset, "sites": _site_names(settings)},
            inputs=[activation_shard.artifact, sample_shard],
            work=lambda workspace: neuron_summaries.summarise_shard(
                artifacts.locate(activation_shard),
                artifacts.locate(sample_shard).fetch(),
                dataset,
                settings.sites,
                workspace,
            ),
        )
    )


@stage_task
def compute_neuron_statistics(
    store: str,
    dataset: str,
    layer: int,
    summaries: Sequence[FileReference],
    settings: ActivationSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Judge every unit of one layer on one dataset, from the summaries of its shards."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "neurons",
            step_version=neuron_statistics.STEP_VERSION,
            settings={"dataset": dataset, "layer": layer, "sites": _site_names(settings)},
            inputs=[file.artifact for file in summaries],
            work=lambda workspace: neuron_statistics.compute_neuron_statistics(
                [artifacts.locate(file) for file in summaries],
                dataset,
                layer,
                settings.sites,
                execution.duckdb_memory_limit,
                workspace,
            ),
        )
    )


class DetectionShards(BaseModel):
    """The shards of one dataset: their activations and their samples."""

    model_config = ConfigDict(frozen=True)
    dataset: str
    activations: tuple[FileReference, ...]
    samples: tuple[FileReference, ...]

    @property
    def inputs(self) -> list[ArtifactReference]:
        """What a stage that reads all of them depends on."""
        return [*(file.artifact for file in self.activations), *self.samples]

    def locate(self, artifacts: ArtifactStore) -> tuple[list[StoredFile], list[StoredFile]]:
        """Where the activations and the samples are."""
        return (
            [artifacts.locate(file) for file in self.activations],
            [artifacts.locate(file) for file in self.samples],
        )


@stage_task
def compute_layer_statistics(
    store: str,
    layer: int,
    shards: DetectionShards,
    neurons: FileReference,
    settings: ActivationSettings,
    statistics: StatisticsSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Probe one layer on one dataset."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        layer_statistics.compute_layer_statistics(
            *shards.locate(artifacts),
            artifacts.read_table(neurons),
            shards.dataset,
            layer,
            settings.sites,
            statistics,
            workspace,
            execution.duckdb_memory_limit,
        )

    return report(
        artifacts.produce(
            "layers",
            step_version=layer_statistics.STEP_VERSION,
            settings={
                "dataset": shards.dataset,
                "layer": layer,
                "sites": _site_names(settings),
                "statistics": statistics.model_dump(
                    include={"n_folds", "ridge", "confidence", "max_probe_samples"}
                ),
            },
            inputs=[*shards.inputs, neurons.artifact],
            work=work,
        )
    )


@stage_task
def compute_neuron_stability(
    store: str,
    layer: int,
    shards: DetectionShards,
    settings: ActivationSettings,
    statistics: StatisticsSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Resample the samples of one dataset and see which units of a layer stay."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "neuron_stability",
            step_version=stability.STEP_VERSION,
            settings={
                "dataset": shards.dataset,
                "layer": layer,
                "sites": _site_names(settings),
                "statistics": statistics.model_dump(
                    include={"n_resamples", "top_units", "seed", "confidence"}
                ),
            },
            inputs=shards.inputs,
            work=lambda workspace: stability.compute_neuron_stability(
                *shards.locate(artifacts),
                shards.dataset,
                layer,
                settings.sites,
                statistics,
                workspace,
                execution.duckdb_memory_limit,
            ),
        )
    )


@stage_task
def compute_layer_transfers(
    store: str,
    layer: int,
    shards: Sequence[DetectionShards],
    neurons: Sequence[FileReference],
    settings: ActivationSettings,
    statistics: StatisticsSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Carry probes and units of one layer from each dataset to each other one."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        layer_transfers.compute_layer_transfers(
            [
                layer_transfers.DatasetFiles(
                    item.dataset, *item.locate(artifacts), artifacts.read_table(table)
                )
                for item, table in zip(shards, neurons, strict=True)
            ],
            layer,
            settings.sites,
            statistics,
            workspace,
            execution.duckdb_memory_limit,
        )

    return report(
        artifacts.produce(
            "layer_transfers",
            step_version=layer_transfers.STEP_VERSION,
            settings={
                "datasets": [item.dataset for item in shards],
                "layer": layer,
                "sites": _site_names(settings),
                "statistics": statistics.model_dump(
                    include={"ridge", "confidence", "top_units", "max_probe_samples"}
                ),
            },
            inputs=[
                *(reference for item in shards for reference in item.inputs),
                *(table.artifact for table in neurons),
            ],
            work=work,
        )
    )


def _site_names(settings: ActivationSettings) -> list[str]:
    return [site.column for site in settings.sites]
