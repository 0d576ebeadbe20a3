"""What the neuron statistics need of one shard: each unit's values by class, without the samples.

Reads one activation shard and its samples; writes `neuron_summaries.parquet`, one row per layer,
site, language and unit. A row holds the unit's values as keys (`ranking.py`), one binary value per
class: runs of keys that share their highest byte (`counting.pack_keys`). Values of a class are
added up by putting keys together, in any order, so the statistics of any number of shards follow
exactly (`neuron_statistics.py`), and a new shard costs its own reading. Compressed they take about
half the bytes of the activations, and lie together by unit
(docs/decisions/0012-neuron-summaries.md, 0080-counting-compiled.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eigenshift.base.arrays import BoolArray, IntArray, ValueArray
from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import NEURON_SUMMARIES
from eigenshift.detection.stages import SummaryInputs, SummaryKey
from eigenshift.settings import SitePooling
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.duckdb_files import TableFile, describe_file, open_parquet
from eigenshift.store.parquet_files import open_parquet_writer
from eigenshift.store.workspace import Workspace

if TYPE_CHECKING:
    from eigenshift.detection.counting import PackedKeys

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
        with _open_writer(workspace.path(tables.NEURON_SUMMARIES.file)) as writer:
            for layer, table in _read_layers(shard, sites):
                rows, positions = _match(table["sample_id"], labels, layer, place)
                n_samples = max(n_samples, len(rows))
                for site in sites:
                    values = _read_values(table[site.column], place)
                    for part in _summarise(values, rows, labels, positions):
                        writer.write_table(
                            _describe_rows(part, dataset, layer, site),
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
    values: ValueArray, rows: IntArray, labels: _Labels, positions: IntArray
) -> Iterator[dict[str, pa.Array | pa.ChunkedArray]]:
    """Columns for each language among the samples, or without a key where there are none.

    Args:
        values: Shape (row, unit).
        rows: Which rows have a label, shape (sample,).
        labels: The shard's labels.
        positions: Where in `labels` each sample is, shape (sample,).
    """
    languages = np.array([labels.languages[position] or "" for position in positions], object)
    is_toxic = labels.is_toxic[positions]
    for language in sorted(set(languages)) or [""]:
        is_spoken = languages == language
        n_samples = np.count_nonzero(is_spoken)
        n_nonfinite = np.full(values.shape[1], n_samples)
        columns = {}
        for name, is_class in zip(KEY_COLUMNS, (is_toxic, ~is_toxic), strict=True):
            columns[name], n_finite = _pack_keys(values, rows[is_spoken & is_class])
            n_nonfinite -= n_finite
        yield columns | {
            "language": pa.array([language or None] * len(n_nonfinite), pa.string()),
            "n_samples": pa.repeat(n_samples, len(n_nonfinite)),
            "n_nonfinite": pa.array(n_nonfinite, pa.int64()),
            "key_bytes": pa.repeat(pa.scalar(values.dtype.itemsize, pa.int8()), len(n_nonfinite)),
        }


def _pack_keys(values: ValueArray, rows: IntArray) -> tuple[pa.ChunkedArray, IntArray]:
    """Keys of each unit's finite values on some rows, packed, and how many those are."""
    from eigenshift.detection import counting  # a third of a second, wanted by no other stage

    keys, n_finite = counting.collect_keys(values, rows)
    parts = []
    for first in range(0, len(keys), UNITS_PER_ROW_GROUP):  # of less than 2 GiB, as Arrow wants it
        units = slice(first, first + UNITS_PER_ROW_GROUP)
        packed, stops = counting.pack_keys(keys[units], n_finite[units])
        offsets = np.concatenate([[0], stops]).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(packed)]
        parts.append(pa.Array.from_buffers(pa.binary(), len(stops), buffers))
    return pa.chunked_array(parts, pa.binary()), n_finite


def gather_keys(columns: Sequence[pa.Array], key_bytes: int) -> PackedKeys:
    """The rows of columns that were read back, one column after the other, still packed.

    Args:
        columns: Binary, without nulls.
        key_bytes: Length of a key.
    """
    from eigenshift.detection.counting import PackedKeys  # as above

    parts, starts, stops = [], [], []
    n_bytes = 0
    for column in columns:
        _, offsets, data = column.buffers()
        places = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
        n_here = int(places[-1] - places[0])
        parts.append(np.frombuffer(data or b"", np.uint8, n_here, places[0]))
        places = places - places[0] + np.int64(n_bytes)
        starts.append(places[:-1])
        stops.append(places[1:])
        n_bytes += n_here
    return PackedKeys(
        np.concatenate(parts), np.concatenate(starts), np.concatenate(stops), key_bytes
    )


def _describe_rows(
    columns: dict[str, pa.Array | pa.ChunkedArray], dataset: str, layer: int, site: SitePooling
) -> pa.Table:
    n_units = len(columns["n_nonfinite"])
    columns |= {
        "dataset": pa.repeat(dataset, n_units),
        "layer": pa.repeat(pa.scalar(layer, pa.int16()), n_units),
        "site": pa.repeat(site.site.value, n_units),
        "pooling": pa.repeat(site.pooling.value, n_units),
        "neuron_index": pa.array(np.arange(n_units), pa.int32()),
    }
    names = NEURON_SUMMARIES.names
    return pa.table([columns[name] for name in names], schema=NEURON_SUMMARIES)


def _open_writer(path: Path) -> pq.ParquetWriter:
    """lz4 finds ties and dead units; what is left of the keys nothing makes smaller."""
    return open_parquet_writer(
        path,
        NEURON_SUMMARIES,
        compression="lz4",
        use_dictionary=["dataset", "language", "site", "pooling"],
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
