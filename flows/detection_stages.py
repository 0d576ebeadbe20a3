"""The stages of the detection side: activations, their summaries, statistics of units and layers.

Shared by all flows, as `stages.py` is. What the stages do is in `eigenshift/`; how they are cached
is in `tasks/detection.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eigenshift.activations import FILE_NAME as ACTIVATIONS_FILE
from eigenshift.interventions.unit_scaling import UNIT_SITES
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.neuron_statistics import FILE_NAME as NEURONS_FILE
from eigenshift.neuron_summaries import FILE_NAME as SUMMARIES_FILE
from eigenshift.settings import ActivationSettings, Pooling, SitePooling
from flows.journal import RunJournal
from tasks import detection


def study_detection(
    journal: RunJournal, model: ArtifactReference, samples: Mapping[str, ArtifactReference]
) -> None:
    """Activations on every labelled dataset, their summaries, then the statistics."""
    settings = journal.settings
    shards: dict[str, list[FileReference]] = {
        dataset: journal.refer_to_files(reference, "samples-")
        for dataset, reference in samples.items()
    }
    flat = [(dataset, shard) for dataset, files in shards.items() for shard in files]
    extracted, summaries = _extract(journal, model, flat, settings.activations)
    summaries_of: dict[str, list[FileReference]] = {dataset: [] for dataset in shards}
    activations_of: dict[str, list[FileReference]] = {dataset: [] for dataset in shards}
    for (dataset, _), file, summary in zip(flat, extracted, summaries, strict=True):
        activations_of[dataset].append(file)
        summaries_of[dataset].append(summary)
    detection_shards = [
        detection.DetectionShards(
            dataset=dataset, activations=tuple(activations_of[dataset]), samples=tuple(files)
        )
        for dataset, files in shards.items()
    ]
    n_layers = journal.artifacts.open(model).manifest.facts["n_layers"]
    layers = settings.activations.layers or tuple(range(n_layers))
    _compare_datasets(journal, layers, detection_shards, summaries_of)


def _compare_datasets(
    journal: RunJournal,
    layers: Sequence[int],
    shards: Sequence[detection.DetectionShards],
    summaries_of: Mapping[str, Sequence[FileReference]],
) -> None:
    """Statistics of every layer: of each dataset by itself, and from each to each other one."""
    settings = journal.settings
    cells = [(item, layer) for item in shards for layer in layers]
    judged = journal.collect(
        "compute_neuron_statistics",
        [
            detection.compute_neuron_statistics.submit(
                settings.store,
                item.dataset,
                layer,
                list(summaries_of[item.dataset]),
                settings.activations,
                settings.execution,
            )
            for item, layer in cells
        ],
    )
    neurons = [journal.refer_to_file(table, NEURONS_FILE) for table in judged]
    how = (settings.activations, settings.statistics, settings.execution)
    journal.collect(
        "compute_neuron_stability",
        [
            detection.compute_neuron_stability.submit(settings.store, layer, item, *how)
            for item, layer in cells
        ],
    )
    journal.collect(
        "compute_layer_statistics",
        [
            detection.compute_layer_statistics.submit(settings.store, layer, item, found, *how)
            for (item, layer), found in zip(cells, neurons, strict=True)
        ],
    )
    if len(shards) > 1:
        journal.collect(
            "compute_layer_transfers",
            [
                detection.compute_layer_transfers.submit(
                    settings.store,
                    layer,
                    list(shards),
                    [found for cell, found in zip(cells, neurons, strict=True) if cell[1] == layer],
                    *how,
                )
                for layer in layers
            ],
        )


def study_units(
    journal: RunJournal, model: ArtifactReference, dataset: str, samples: ArtifactReference
) -> list[ArtifactReference]:
    """Judge the units that interventions inside the trunk scale; one table per layer.

    A model whose MLPs have no such units (mixtures of experts) gives none.
    """
    facts = journal.artifacts.open(model).manifest.facts
    sites = tuple(
        SitePooling(site=site, pooling=Pooling.max)
        for site in UNIT_SITES
        if site.value in facts["sites"]
    )
    if not sites:
        return []
    settings = journal.settings
    activations = settings.activations.model_copy(update={"sites": sites, "layers": None})
    files = journal.refer_to_files(samples, "samples-")
    _, summaries = _extract(journal, model, [(dataset, file) for file in files], activations)
    return journal.collect(
        "compute_neuron_statistics",
        [
            detection.compute_neuron_statistics.submit(
                settings.store, dataset, layer, summaries, activations, settings.execution
            )
            for layer in range(facts["n_layers"])
        ],
    )


def _extract(
    journal: RunJournal,
    model: ArtifactReference,
    shards: Sequence[tuple[str, FileReference]],
    activations: ActivationSettings,
) -> tuple[list[FileReference], list[FileReference]]:
    """Activations of (dataset, shard) pairs and their summaries, in the same order."""
    settings = journal.settings
    made = journal.collect(
        "extract_activations",
        [
            detection.extract_activations.submit(
                settings.store, shard, model, settings.model, activations, settings.execution
            )
            for _, shard in shards
        ],
    )
    extracted = [journal.refer_to_file(shard, ACTIVATIONS_FILE) for shard in made]
    summaries = journal.collect(
        "summarise_neurons",
        [
            detection.summarise_neurons.submit(settings.store, dataset, file, shard, activations)
            for (dataset, shard), file in zip(shards, extracted, strict=True)
        ],
    )
    return extracted, [journal.refer_to_file(shard, SUMMARIES_FILE) for shard in summaries]
