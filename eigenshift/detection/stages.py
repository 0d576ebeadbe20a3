"""Stages of this room: activations of labelled texts, and what units and layers know."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainSerializer

from eigenshift.settings import ActivationSettings, SitePooling
from eigenshift.stages import tables
from eigenshift.stages.edges import Model, SampleFile, SampleFiles
from eigenshift.stages.inputs import Inputs, Of
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import FileReference

ActivationFile = Annotated[FileReference, Of(("activations",), tables.ACTIVATIONS, as_made=True)]
NeuronFile = Annotated[FileReference, Of(("neurons",), tables.NEURONS, as_made=True)]
Sites = Annotated[
    tuple[SitePooling, ...],
    Reads("activations.sites"),
    PlainSerializer(lambda sites: [site.column for site in sites]),
]
"""Sites and poolings; in the fingerprint by the names of their columns."""


LAYERS_PER_TASK = 8
"""Statistics of a layer of few texts take tenths of a second, about what starting a task does."""


class ExtractionInputs(Inputs):
    """The model and one shard of labelled samples."""

    model: Model
    samples: SampleFile


class ActivationKey(Key):
    """Which activations are kept, how precisely, and the precision the model runs in."""

    activations: Annotated[ActivationSettings, Reads("activations")]
    dtype: Annotated[str, Reads("model.dtype")]


EXTRACT_ACTIVATIONS = Stage(
    name="extract_activations",
    kind="activations",
    version=1,
    inputs=ExtractionInputs,
    key=ActivationKey,
    files=(tables.ACTIVATIONS,),
    work="eigenshift.detection.activations:carry_out",
    runs_model=True,
)


class SummaryInputs(Inputs):
    """One shard's activations and samples."""

    activations: ActivationFile
    samples: SampleFile


class SummaryKey(Key):
    """Which dataset, and which columns of the activations."""

    dataset: str
    sites: Sites


SUMMARISE_NEURONS = Stage(
    name="summarise_neurons",
    kind="neuron_summaries",
    version=3,
    inputs=SummaryInputs,
    key=SummaryKey,
    files=(tables.NEURON_SUMMARIES,),
    work="eigenshift.detection.neuron_summaries:carry_out",
)


class NeuronInputs(Inputs):
    """The summaries of a dataset's shards."""

    summaries: Annotated[
        tuple[FileReference, ...], Of(("neuron_summaries",), tables.NEURON_SUMMARIES, as_made=True)
    ]


class NeuronKey(Key):
    """Which dataset and layer, and which columns of the activations."""

    dataset: str
    layer: int
    sites: Sites


COMPUTE_NEURON_STATISTICS = Stage(
    name="compute_neuron_statistics",
    kind="neurons",
    version=2,
    inputs=NeuronInputs,
    key=NeuronKey,
    files=(tables.NEURONS,),
    work="eigenshift.detection.neuron_statistics:carry_out",
    pieces_per_task=LAYERS_PER_TASK,
)


class Shards(Inputs):
    """The shards of one dataset: their activations and their samples, in the same order."""

    activations: Annotated[
        tuple[FileReference, ...], Of(("activations",), tables.ACTIVATIONS, as_made=True)
    ]
    samples: SampleFiles


class StabilityInputs(Inputs):
    """One dataset."""

    shards: Shards


class ResamplingKey(Key):
    """How units are resampled."""

    n_resamples: Annotated[int, Reads("statistics.n_resamples")]
    top_units: Annotated[int, Reads("statistics.top_units")]
    seed: Annotated[int, Reads("statistics.seed")]
    confidence: Annotated[float, Reads("statistics.confidence")]


class StabilityKey(Key):
    """Which dataset and layer, and how units are resampled."""

    dataset: str
    layer: int
    sites: Sites
    statistics: ResamplingKey


COMPUTE_NEURON_STABILITY = Stage(
    name="compute_neuron_stability",
    kind="neuron_stability",
    version=1,
    inputs=StabilityInputs,
    key=StabilityKey,
    files=(tables.NEURON_STABILITY,),
    work="eigenshift.detection.neuron_stability:carry_out",
    pieces_per_task=LAYERS_PER_TASK,
)


class LayerInputs(Inputs):
    """One dataset, and the units of one of its layers."""

    shards: Shards
    neurons: NeuronFile


class ProbeKey(Key):
    """How layers are probed."""

    n_folds: Annotated[int, Reads("statistics.n_folds")]
    ridge: Annotated[float, Reads("statistics.ridge")]
    confidence: Annotated[float, Reads("statistics.confidence")]
    max_probe_samples: Annotated[int | None, Reads("statistics.max_probe_samples")]


class LayerKey(Key):
    """Which dataset and layer, and how it is probed."""

    dataset: str
    layer: int
    sites: Sites
    statistics: ProbeKey


COMPUTE_LAYER_STATISTICS = Stage(
    name="compute_layer_statistics",
    kind="layers",
    version=2,
    inputs=LayerInputs,
    key=LayerKey,
    files=(tables.LAYERS,),
    work="eigenshift.detection.layer_statistics:carry_out",
    pieces_per_task=LAYERS_PER_TASK,
)


class TransferInputs(Inputs):
    """All datasets, and the units of one layer on each, in the same order."""

    shards: tuple[Shards, ...]
    neurons: Annotated[tuple[FileReference, ...], Of(("neurons",), tables.NEURONS, as_made=True)]


class TransferProbeKey(Key):
    """How probes and units are carried over."""

    ridge: Annotated[float, Reads("statistics.ridge")]
    confidence: Annotated[float, Reads("statistics.confidence")]
    top_units: Annotated[int, Reads("statistics.top_units")]
    max_probe_samples: Annotated[int | None, Reads("statistics.max_probe_samples")]


class TransferKey(Key):
    """Which datasets, in the order of the inputs, and which layer."""

    datasets: tuple[str, ...]
    layer: int
    sites: Sites
    statistics: TransferProbeKey


COMPUTE_LAYER_TRANSFERS = Stage(
    name="compute_layer_transfers",
    kind="layer_transfers",
    version=1,
    inputs=TransferInputs,
    key=TransferKey,
    files=(tables.LAYER_TRANSFERS,),
    work="eigenshift.detection.layer_transfers:carry_out",
    pieces_per_task=LAYERS_PER_TASK,
)
