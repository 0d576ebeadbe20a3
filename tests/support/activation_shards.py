"""Activation shards and samples as a run writes them, from plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base.schemas import SAMPLES, activations_schema
from eigenshift.detection.neuron_statistics import compute_neuron_statistics
from eigenshift.detection.neuron_summaries import summarise_shard
from eigenshift.settings import Pooling, Site, SitePooling
from eigenshift.stages.tables import NEURON_SUMMARIES
from eigenshift.store.workspace import Workspace

MLP_MAX = SitePooling(site=Site.mlp_activation, pooling=Pooling.max)
RESIDUAL_MEAN = SitePooling(site=Site.residual, pooling=Pooling.mean)


def write_samples(
    path: Path,
    sample_ids: Sequence[str],
    is_toxic: Sequence[bool | None],
    languages: Sequence[str] | None = None,
    dataset: str = "demo",
) -> Path:
    """Write a samples file; columns that no statistic reads are null."""
    columns = {
        "sample_id": list(sample_ids),
        "dataset": [dataset] * len(sample_ids),
        "language": list(languages or ["en"] * len(sample_ids)),
        "is_toxic": list(is_toxic),
    }
    arrays = [
        pa.array(columns.get(field.name, [None] * len(sample_ids)), field.type) for field in SAMPLES
    ]
    pq.write_table(pa.table(arrays, schema=SAMPLES), path)
    return path


def write_shard(
    path: Path, sample_ids: Sequence[str], layers: Sequence[dict[str, np.ndarray]]
) -> Path:
    """Write a shard: for each layer, column name -> values of shape (sample, unit)."""
    widths = {name: values.shape[1] for name, values in layers[0].items()}
    precision = next(iter(layers[0].values())).dtype.name
    schema = activations_schema(widths, precision)
    is_split = precision == "float32"
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["sample_id"],
        use_byte_stream_split=[f"{name}.list.element" for name in widths] if is_split else False,
    ) as writer:
        for number, columns in enumerate(layers):
            arrays = [
                pa.array(list(sample_ids)),
                pa.array([number] * len(sample_ids), pa.int16()),
                pa.array([7] * len(sample_ids), pa.int32()),
                *(
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(np.ascontiguousarray(columns[name]).ravel()), width
                    )
                    for name, width in widths.items()
                ),
            ]
            writer.write_table(pa.table(arrays, schema=schema))
    return path


def compute_neurons(
    shards: Sequence[Path],
    samples: Path,
    workspace: Workspace,
    dataset: str = "demo",
    layer: int = 0,
    sites: Sequence[SitePooling] = (MLP_MAX,),
    memory_limit: str = "500MB",
) -> pa.Table:
    """Summarise shards and compute the neurons table of one layer from the summaries."""
    summaries = [summarise(shard, samples, dataset, sites) for shard in shards]
    compute_neuron_statistics(summaries, dataset, layer, sites, memory_limit, workspace)
    return pq.read_table(workspace.path("neurons.parquet"))


def summarise(
    shard: Path, samples: Path, dataset: str = "demo", sites: Sequence[SitePooling] = (MLP_MAX,)
) -> Path:
    """Write a shard's summary into a folder beside it."""
    folder = shard.with_name(f"{shard.stem}-summary-of-{dataset}")
    folder.mkdir(exist_ok=True)
    summarise_shard(shard, samples, dataset, sites, Workspace(folder))
    return folder / NEURON_SUMMARIES.file
