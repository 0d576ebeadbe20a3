"""What the neuron statistics need of one shard: each unit's values by class, without the samples.

Reads one activation shard and its samples; writes `neuron_summaries.parquet`, one row per layer,
site, language and unit. A row holds the unit's values as two sorted lists of keys (`ranking.py`),
one per class. Values of a class are added up by putting lists together, so the statistics of any
number of shards follow exactly (`neuron_statistics.py`), and a new shard costs its own reading.
Sorted keys differ little from one to the next: delta encoded they take half the bytes of the
activations, lie together by unit, and decode faster (docs/decisions/0012-neuron-summaries.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eigenshift.base.arrays import BoolArray, IntArray, ValueArray
from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import neuron_summaries_schema
from eigenshift.detection.ranking import encode_keys
from eigenshift.detection.stages import SummaryInputs, SummaryKey
from eigenshift.settings import SitePooling
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.duckdb_files import TableFile, describe_file, open_parquet
from eigenshift.store.parquet_files import open_parquet_writer
from eigenshift.store.workspace import Workspace

UNITS_PER_ROW_GROUP = 256
KEY_COLUMNS = ("toxic_keys", "nontoxic_keys")


@dataclass(frozen=True)
class _Labels:
    """The labelled samples of a shard, shape (sample,) each."""

    sample_ids: pa.Array
    is_toxic: BoolArray
    languages: list[str | None]


def summarise_shard(
    activation_file: TableFile,
    sample_path: Path,
    dataset: str,
    sites: Sequence[SitePooling],
    workspace: Workspace,
) -> None:
    """Write `neuron_summaries.parquet` for one shard.

    Holds one layer of one site in memory, twice.

    Args:
        activation_file: Activations, one row per layer and sample; read in place.
        sample_path: Samples with labels; those of other datasets and those without a label are
            left out, and so are labels without activations.
        dataset: Name of the dataset.
        sites: Sites and poolings, in the order of the rows.
        workspace: Where the table is written. Its facts get n_samples, the labelled ones.

    Raises:
        ArtifactError: The shard lacks a site, has a sample twice in a layer, or a row without
            values.
    """
    labels = _read_labels(sample_path, dataset)
    n_samples = 0
    place = describe_file(activation_file)
    with open_parquet(activation_file) as shard:
        _check_sites(shard.schema_arrow, sites, place)
        value_type = shard.schema_arrow.field(sites[0].column).type.value_type
        schema = neuron_summaries_schema(
            "float16" if pa.types.is_float16(value_type) else "float32"
        )
        with _open_writer(workspace.path(tables.NEURON_SUMMARIES.file), schema) as writer:
            for layer, table in _read_layers(shard, sites):
                rows, positions = _match(table["sample_id"], labels, layer, place)
                n_samples = max(n_samples, len(rows))
                for site in sites:
                    values = _read_values(table[site.column], place)[rows]
                    for part in _summarise(values, labels, positions, schema):
                        writer.write_table(
                            _describe_rows(part, dataset, layer, site, schema),
                            row_group_size=UNITS_PER_ROW_GROUP,
                        )
    workspace.facts["n_samples"] = n_samples


def _read_labels(path: Path, dataset: str) -> _Labels:
    samples = pq.read_table(path, columns=["sample_id", "dataset", "language", "is_toxic"])
    samples = samples.filter(pc.equal(samples["dataset"], dataset))
    samples = samples.filter(samples["is_toxic"].is_valid()).combine_chunks()
    return _Labels(
        samples["sample_id"].combine_chunks(),
        np.array(samples["is_toxic"].to_pylist(), np.bool_),
        samples["language"].to_pylist(),
    )


def _check_sites(schema: pa.Schema, sites: Sequence[SitePooling], place: str) -> None:
    found = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    for site in sites:
        if site.column not in found:
            raise ArtifactError(
                f"{place}: expected a column {site.column!r}, found {', '.join(sorted(found))}. "
                "The shard was made with other sites. Ask for these sites, or extract the "
                "activations again with the sites you want."
            )


def _read_layers(
    shard: pq.ParquetFile, sites: Sequence[SitePooling]
) -> Iterator[tuple[int, pa.Table]]:
    """The shard layer by layer: each is one row group, as `activations.py` writes it."""
    seen: set[int] = set()
    for group in range(shard.num_row_groups):
        table = shard.read_row_group(
            group, ["sample_id", "layer", *dict.fromkeys(site.column for site in sites)]
        )
        layers = set(table["layer"].to_pylist())
        if len(layers) != 1 or layers & seen:
            raise ArtifactError(
                f"activations, row group {group}: expected the one layer no other row group has, "
                f"found {', '.join(map(str, sorted(layers))) or 'none'}. The shard was not written "
                "by this version. Extract the activations again."
            )
        seen |= layers
        yield layers.pop(), table


def _match(
    sample_ids: pa.ChunkedArray, labels: _Labels, layer: int, place: str
) -> tuple[IntArray, IntArray]:
    """Rows of the layer that have a label, and where in `labels` each label is."""
    found = pc.index_in(sample_ids, labels.sample_ids).combine_chunks()
    rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    positions = found.drop_null().to_numpy().astype(np.int64)
    counts = np.bincount(positions, minlength=1)
    if counts.max(initial=0) > 1:
        worst = int(counts.argmax())
        raise ArtifactError(
            f"{place}, layer {layer}: expected one row per sample, found {counts[worst]} for "
            f"sample {labels.sample_ids[worst]}. The shard was damaged. Extract the activations "
            "again."
        )
    return rows, positions


def _read_values(column: pa.ChunkedArray, place: str) -> ValueArray:
    """Shape (sample, unit), as stored."""
    width = column.type.list_size
    flat: ValueArray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != width * len(column):
        raise ArtifactError(
            f"{place}: expected {width} values for each of {len(column)} samples, found "
            f"{len(flat)} values. A row is null or cut short; the shard was damaged. Extract the "
            "activations again."
        )
    return flat.reshape(len(column), width)


def _summarise(
    values: ValueArray, labels: _Labels, positions: IntArray, schema: pa.Schema
) -> Iterator[dict[str, pa.Array]]:
    """Columns for each language among the samples, or of empty lists where there are none.

    Args:
        values: Shape (sample, unit).
        labels: The shard's labels.
        positions: Where in `labels` each sample is, shape (sample,).
        schema: Of the summaries.
    """
    languages = np.array([labels.languages[position] or "" for position in positions], object)
    is_toxic = labels.is_toxic[positions]
    for language in sorted(set(languages)) or [""]:
        is_spoken = languages == language
        n_nonfinite = np.count_nonzero(~np.isfinite(values[is_spoken]), axis=0)
        columns = {
            "language": pa.array([language or None] * len(n_nonfinite), pa.string()),
            "n_samples": pa.array([np.count_nonzero(is_spoken)] * len(n_nonfinite), pa.int64()),
            "n_nonfinite": pa.array(n_nonfinite, pa.int64()),
        }
        for name, is_class in zip(KEY_COLUMNS, (is_toxic, ~is_toxic), strict=True):
            columns[name] = _sort_keys(values[is_spoken & is_class].T, schema.field(name).type)
        yield columns


def _sort_keys(values: ValueArray, type_: pa.DataType) -> pa.Array:
    """Keys of each unit's finite values in ascending order, a list per unit.

    Args:
        values: Shape (unit, sample).
        type_: Of the column.
    """
    is_finite = np.isfinite(values)
    keys = encode_keys(values)
    keys[~is_finite] = np.iinfo(keys.dtype).max  # sorts behind every finite value
    keys.sort(axis=1)
    lengths = np.count_nonzero(is_finite, axis=1)
    is_kept = np.arange(values.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = keys.ravel() if is_kept.all() else keys[is_kept]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(kept), type=type_)


def _describe_rows(
    columns: dict[str, pa.Array], dataset: str, layer: int, site: SitePooling, schema: pa.Schema
) -> pa.Table:
    n_units = len(columns["n_nonfinite"])
    columns |= {
        "dataset": pa.repeat(dataset, n_units),
        "layer": pa.repeat(pa.scalar(layer, pa.int16()), n_units),
        "site": pa.repeat(site.site.value, n_units),
        "pooling": pa.repeat(site.pooling.value, n_units),
        "neuron_index": pa.array(np.arange(n_units), pa.int32()),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Keys delta encoded and not compressed again: a tenth smaller, but twice the time to read."""
    keys = [f"{name}.list.element" for name in KEY_COLUMNS]
    others = [name for name in schema.names if name not in KEY_COLUMNS]
    return open_parquet_writer(
        path,
        schema,
        compression=dict.fromkeys(others, "zstd") | dict.fromkeys(keys, "none"),
        use_dictionary=["dataset", "language", "site", "pooling"],
        column_encoding=dict.fromkeys(keys, "DELTA_BINARY_PACKED"),
    )


def carry_out(inputs: SummaryInputs, key: SummaryKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `summarise_neurons`."""
    summarise_shard(
        bench.artifacts.locate(inputs.activations),
        bench.artifacts.locate(inputs.samples).fetch(),
        key.dataset,
        key.sites,
        workspace,
    )
