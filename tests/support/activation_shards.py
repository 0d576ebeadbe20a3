"""Activation shards and samples as a run writes them, from plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.schemas import SAMPLES, activations_schema
from eigenshift.settings import Pooling, Site, SitePooling

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
    with pq.ParquetWriter(path, schema) as writer:
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
