"""Read a model's activations for many texts: one pooled value per text, layer and unit.

Reads samples and a model; writes `activations.parquet` (schema: `schemas.activations_schema`), one
row per (layer, sample), ordered by layer and then as the samples, one row group per layer so that
`WHERE layer = k` reads one. Values are pooled inside the forward pass; states of single tokens are
never kept. What they say about toxicity is `neuron_statistics.py`'s and
`layer_statistics.py`'s.

Which tokens a text becomes, and which of them are pooled over, is `model/encoding.py`'s. A text
that gives no token is given BOS (else EOS), so no row is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eigenshift.base.arrays import AnyArray
from eigenshift.base.errors import ArtifactError, ModelError
from eigenshift.base.schemas import activations_schema
from eigenshift.detection.pooling import pool_texts
from eigenshift.detection.stages import ActivationKey, ExtractionInputs
from eigenshift.model.encoding import encode_read_texts
from eigenshift.model.loading import TextModel, use_text_model
from eigenshift.model.taps import find_taps
from eigenshift.model.tokens import limit_tokens
from eigenshift.settings import ActivationSettings
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.parquet_files import open_parquet_writer
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


def extract_shard(
    text_model: TextModel,
    samples: pa.Table,
    settings: ActivationSettings,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Write the pooled activations of every sample.

    Holds one shard's values in memory: n_layers * n_samples * units * 2 or 4 bytes.

    Args:
        text_model: The model; its lock is held while it runs.
        samples: Table with sample_id and text, at least one row.
        settings: Sites, poolings, layers, precision, truncation.
        tokens_per_batch: Token budget of a forward pass; changes the results by rounding only.
        workspace: Receives `activations.parquet`, and the facts n_samples, n_tokens, n_truncated,
            n_nonfinite (stored values that are NaN or infinite), max_tokens (the limit in force:
            the setting, or the model's positions if fewer), seconds, tokens_per_second.

    Raises:
        ArtifactError: There are no samples.
        ModelError: The model lacks a site or gives states of an unknown shape.
        SettingsError: A layer does not exist.
    """
    started = time.perf_counter()
    if samples.num_rows == 0:
        raise ArtifactError(
            "samples: expected at least one row, found none. The shard is empty; ingest again."
        )
    taps = find_taps(text_model.model, [item.site for item in settings.sites], settings.layers)
    limit = limit_tokens(text_model.model, settings.max_tokens)
    texts, n_truncated = encode_read_texts(text_model, samples["text"].to_pylist(), limit)
    values = pool_texts(
        text_model, taps, texts, settings.sites, tokens_per_batch, settings.precision
    )
    seconds = time.perf_counter() - started
    counts = np.array([len(text.token_ids[text.counted]) for text in texts], dtype=np.int32)
    _write_layers(samples["sample_id"], counts, values, settings, workspace)
    n_tokens = int(counts.sum())
    workspace.facts |= {
        "n_samples": samples.num_rows,
        "n_tokens": n_tokens,
        "n_truncated": n_truncated,
        "n_nonfinite": sum(int((~np.isfinite(array)).sum()) for array in values.values()),
        "max_tokens": limit,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(n_tokens / seconds, 1),
    }


def _write_layers(
    sample_ids: pa.ChunkedArray,
    counts: npt.NDArray[np.int32],
    values: Mapping[tuple[int, str], AnyArray],
    settings: ActivationSettings,
    workspace: Workspace,
) -> None:
    """Write one row group per layer."""
    layers = sorted({layer for layer, _ in values})
    columns = list(dict.fromkeys(site_pooling.column for site_pooling in settings.sites))
    widths = {column: values[layers[0], column].shape[1] for column in columns}
    schema = activations_schema(widths, settings.precision)
    # Byte-stream-split makes float32 a quarter smaller; DuckDB cannot read it for float16.
    is_split = settings.precision == "float32"
    with open_parquet_writer(
        workspace.path(tables.ACTIVATIONS.file),
        schema,
        use_dictionary=["sample_id"],
        use_byte_stream_split=[f"{name}.list.element" for name in columns] if is_split else False,
    ) as writer:
        for layer in layers:
            arrays = [
                sample_ids.combine_chunks(),
                pa.array(np.full(len(counts), layer, dtype=np.int16)),
                pa.array(counts),
                *(
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(_take_values(values, layer, column, widths[column])),
                        widths[column],
                    )
                    for column in columns
                ),
            ]
            table = pa.Table.from_arrays(arrays, schema=schema)
            writer.write_table(table, row_group_size=len(counts))


def _take_values(
    values: Mapping[tuple[int, str], AnyArray],
    layer: int,
    column: str,
    width: int,
) -> AnyArray:
    """One layer's values, flat; all layers of a column must have the same width."""
    array = values[layer, column]
    if array.shape[1] != width:
        raise ModelError(
            f"layer {layer}, {column}: expected {width} units as in the first layer, found "
            f"{array.shape[1]}. The model's layers differ in width. Read them one width at a time "
            "(activations.layers)."
        )
    return array.reshape(-1)


def carry_out(
    inputs: ExtractionInputs, key: ActivationKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `extract_activations`."""
    with use_text_model(bench.model, bench.execution) as text_model:
        extract_shard(
            text_model,
            bench.artifacts.read_table(inputs.samples),
            key.activations,
            bench.execution.tokens_per_batch,
            workspace,
        )
