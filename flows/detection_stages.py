"""The stages of the detection side: activations, their summaries, statistics of units and layers.

Shared by all flows, as `stages.py` is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eigenshift.detection import stages as detection
from eigenshift.patches.requests import UNIT_SITES
from eigenshift.settings import ActivationSettings, Pooling, SitePooling
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference, FileReference
from flows.journal import RunJournal


@dataclass(frozen=True)
class Extracted:
    """One dataset's shards, and the summaries of their units, in the same order."""

    shards: detection.Shards
    summaries: tuple[FileReference, ...]


def study_detection(
    journal: RunJournal, model: ArtifactReference, samples: Mapping[str, ArtifactReference]
) -> None:
    """Activations on every labelled dataset, their summaries, then the statistics."""
    settings = journal.settings
    extracted = _extract(journal, model, samples, settings.activations)
    layers = settings.activations.layers or range(journal.read_facts(model)["n_layers"])
    judged = _judge_units(journal, extracted, layers, settings.activations)
    stability, layer_pieces, transfers = [], [], []
    for (name, layer), neurons in judged.items():
        shards = extracted[name].shards
        named = {"dataset": name, "layer": layer}
        resampled = detection.StabilityInputs(shards=shards)
        stability.append((resampled, detection.StabilityKey.of(settings, **named)))
        probed = detection.LayerInputs(shards=shards, neurons=neurons)
        layer_pieces.append((probed, detection.LayerKey.of(settings, **named)))
    for layer in layers:
        carried = detection.TransferInputs(
            shards=tuple(found.shards for found in extracted.values()),
            neurons=tuple(judged[name, layer] for name in extracted),
        )
        key = detection.TransferKey.of(settings, datasets=tuple(extracted), layer=layer)
        transfers.append((carried, key))
    journal.run_each(detection.COMPUTE_NEURON_STABILITY, stability)
    journal.run_each(detection.COMPUTE_LAYER_STATISTICS, layer_pieces)
    if len(extracted) > 1:
        journal.run_each(detection.COMPUTE_LAYER_TRANSFERS, transfers)


def study_units(
    journal: RunJournal, model: ArtifactReference, dataset: str, samples: ArtifactReference
) -> tuple[ArtifactReference, ...]:
    """Judge the units that interventions inside the trunk scale; one table per layer.

    A model whose MLPs have no such units (mixtures of experts) gives none.
    """
    facts = journal.read_facts(model)
    present = [site for site in UNIT_SITES if site.value in facts["sites"]]
    if not present:
        return ()
    sites = tuple(SitePooling(site=site, pooling=Pooling.max) for site in present)
    update = {"sites": sites, "layers": None}
    activations = journal.settings.activations.model_copy(update=update)
    extracted = _extract(journal, model, {dataset: samples}, activations)
    judged = _judge_units(journal, extracted, range(facts["n_layers"]), activations)
    return tuple(file.artifact for file in judged.values())


def _judge_units(
    journal: RunJournal,
    extracted: Mapping[str, Extracted],
    layers: Sequence[int],
    activations: ActivationSettings,
) -> dict[tuple[str, int], FileReference]:
    """(dataset, layer) -> table of its units."""
    cells = [(name, layer) for name in extracted for layer in layers]
    pieces = (
        (
            detection.NeuronInputs(summaries=extracted[name].summaries),
            detection.NeuronKey(dataset=name, layer=layer, sites=activations.sites),
        )
        for name, layer in cells
    )
    made = journal.run_each(detection.COMPUTE_NEURON_STATISTICS, pieces)
    files = [journal.refer_to_file(table, tables.NEURONS) for table in made]
    return dict(zip(cells, files, strict=True))


def _extract(
    journal: RunJournal,
    model: ArtifactReference,
    samples: Mapping[str, ArtifactReference],
    activations: ActivationSettings,
) -> dict[str, Extracted]:
    """Activations and summaries of every shard of every dataset."""
    files = {name: journal.refer_to_files(found, tables.SAMPLES) for name, found in samples.items()}
    flat = [(name, shard) for name, shards in files.items() for shard in shards]
    inputs = (detection.ExtractionInputs(model=model, samples=shard) for _, shard in flat)
    key = detection.ActivationKey.of(journal.settings, activations=activations)
    made = journal.run(detection.EXTRACT_ACTIVATIONS, inputs, key)
    values = [journal.refer_to_file(item, tables.ACTIVATIONS) for item in made]
    pieces = (
        (
            detection.SummaryInputs(activations=file, samples=shard),
            detection.SummaryKey(dataset=name, sites=activations.sites),
        )
        for (name, shard), file in zip(flat, values, strict=True)
    )
    summarised = journal.run_each(detection.SUMMARISE_NEURONS, pieces)
    summaries = [journal.refer_to_file(table, tables.NEURON_SUMMARIES) for table in summarised]
    extracted, first = {}, 0
    for name, shards in files.items():
        own = slice(first, first + len(shards))
        found = detection.Shards(activations=tuple(values[own]), samples=shards)
        extracted[name] = Extracted(found, tuple(summaries[own]))
        first = own.stop
    return extracted
