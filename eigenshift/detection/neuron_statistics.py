"""Neuron statistics: how well each single unit tells toxic from non-toxic samples.

Reads the neuron summaries of all shards of a dataset (Parquet of the store, in place); writes
`neurons.parquet`. DuckDB selects the layer and streams a block of units at a time; each unit's
values, put together over shards, are counted (`ranking.py`). Which values a unit has is all that
matters: the same samples give the same bytes, whatever the shards, their order, the threads or the
memory limit, so an incremental refresh equals one from scratch.

Why not all in SQL: `sql/neuron_statistics.sql` computes the same numbers from the activations with
GROUP BY and window sums, is kept as the readable reference (`query_neuron_statistics`), and takes
many times the CPU (tests/benchmarks/bench_neuron_statistics.py). Layers are in `probes.py`.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from eigenshift.base.arrays import AnyArray, FloatArray, IntArray, KeyArray
from eigenshift.base.errors import ArtifactError
from eigenshift.base.schemas import NEURONS
from eigenshift.detection.labelled_layers import (
    connect,
    limit_threads,
    load_sql,
    open_labelled_layer,
    parse_memory_limit,
    set_variables,
    split_units,
    stream_batches,
)
from eigenshift.detection.neuron_summaries import KEY_COLUMNS, gather_keys
from eigenshift.detection.ranked_units import MOST_SAMPLES, RankedUnits, split_rows
from eigenshift.detection.ranking import HALVES, Levels
from eigenshift.detection.stages import NeuronInputs, NeuronKey
from eigenshift.settings import SitePooling
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.duckdb_files import TableFile, describe_file, read_schemas, register_files
from eigenshift.store.workspace import Workspace

if TYPE_CHECKING:
    from eigenshift.detection.counting import PackedKeys

logger = logging.getLogger(__name__)

ALL_LANGUAGES = "all"


@dataclass(frozen=True)
class UnitStatistics:
    """Statistics of one unit; None where one does not exist, and `reason` says why."""

    auroc: float | None
    average_precision: float | None
    mean_toxic: float | None
    mean_nontoxic: float | None
    variance_toxic: float | None
    variance_nontoxic: float | None
    cohens_d: float | None
    n_toxic: int
    n_nontoxic: int
    n_nonfinite: int
    reason: str | None


def compare_units(
    toxic: Sequence[KeyArray], nontoxic: Sequence[KeyArray], n_nonfinite: Sequence[int]
) -> list[UnitStatistics]:
    """Compare units' values on toxic and non-toxic samples.

    They are sorted together where there are few, else counted.

    Args:
        toxic: Keys (`ranking.encode_keys`) of each unit's finite values on toxic samples, in any
            order.
        nontoxic: Likewise on non-toxic samples.
        n_nonfinite: Values of each unit that were left out.

    Returns:
        Exact AUROC and average precision; means and sample variances (n - 1) in float64, in two
        passes; Cohen's d with the pooled standard deviation.
    """
    width_toxic, width_nontoxic = max(map(len, toxic)), max(map(len, nontoxic))
    if not 0 < width_toxic + width_nontoxic <= MOST_SAMPLES:
        return count_units(toxic, nontoxic, n_nonfinite)
    is_toxic = np.arange(width_nontoxic + width_toxic) >= width_nontoxic
    found: list[UnitStatistics] = []
    for rows in split_rows(len(toxic), len(is_toxic)):
        parts = [_stack(nontoxic[rows], width_nontoxic), _stack(toxic[rows], width_toxic)]
        n_finite = np.array(
            [len(a) + len(b) for a, b in zip(toxic[rows], nontoxic[rows], strict=True)]
        )
        ranked = RankedUnits(np.hstack(parts), is_toxic, n_finite)
        columns = (
            np.array(n_nonfinite[rows]),
            ranked.compute_aurocs(),
            ranked.compute_average_precisions(),
            ranked.n_toxic,
            *ranked.measure_toxic(),
            ranked.n_nontoxic,
            *ranked.measure_nontoxic(),
        )
        found += map(_complete, *(column.tolist() for column in columns))
    return found


def count_units(
    toxic: Sequence[KeyArray], nontoxic: Sequence[KeyArray], n_nonfinite: Sequence[int]
) -> list[UnitStatistics]:
    """As `compare_units`, each value counted at its level (`counting.count_classes`)."""
    from eigenshift.detection import counting  # a third of a second, wanted by no other stage

    compared = []
    for of_toxic, of_nontoxic in zip(toxic, nontoxic, strict=True):
        levels = Levels.of(np.concatenate([of_toxic, of_nontoxic]))
        codes, n_toxic = levels.codes, len(of_toxic)
        compared.append(counting.count_classes(codes[:n_toxic], codes[n_toxic:], levels.values))
    counts = ([len(keys) for keys in units] for units in (toxic, nontoxic))
    return _complete_all(np.array(compared), n_nonfinite, *counts)


def _complete_all(
    compared: FloatArray,
    n_nonfinite: Sequence[int],
    n_toxic: Sequence[int],
    n_nontoxic: Sequence[int],
) -> list[UnitStatistics]:
    """From what `counting` gives of each unit, shape (unit, 6), and its counts."""
    aurocs, precisions, *moments = compared.T.tolist()
    of_toxic, of_nontoxic = moments[:2], moments[2:]
    columns = [n_nonfinite, aurocs, precisions, n_toxic, *of_toxic, n_nontoxic, *of_nontoxic]
    return list(map(_complete, *columns))


def _stack(rows: Sequence[KeyArray], width: int) -> KeyArray:
    """Rows below each other, the short ones filled up with the largest key, which no value has."""
    dtype = rows[0].dtype
    stacked = np.full((len(rows), width), np.iinfo(dtype).max, dtype)
    for place, row in enumerate(rows):
        stacked[place, : len(row)] = row
    return stacked


def _complete(
    n_nonfinite: int,
    auroc: float,
    average_precision: float,
    n_toxic: int,
    mean_toxic: float,
    squares_toxic: float,
    n_nontoxic: int,
    mean_nontoxic: float,
    squares_nontoxic: float,
) -> UnitStatistics:
    """What follows from ranks, means and sums of squared deviations, where the counts allow it."""
    has_both = bool(n_toxic and n_nontoxic)
    cohens_d = None
    squares, degrees = squares_toxic + squares_nontoxic, n_toxic + n_nontoxic - 2
    if has_both and squares > 0 and degrees > 0:
        cohens_d = (mean_toxic - mean_nontoxic) / math.sqrt(squares / degrees)
    return UnitStatistics(
        auroc=auroc if has_both else None,
        average_precision=average_precision if n_toxic else None,
        mean_toxic=mean_toxic if n_toxic else None,
        mean_nontoxic=mean_nontoxic if n_nontoxic else None,
        variance_toxic=squares_toxic / (n_toxic - 1) if n_toxic > 1 else None,
        variance_nontoxic=squares_nontoxic / (n_nontoxic - 1) if n_nontoxic > 1 else None,
        cohens_d=cohens_d,
        n_toxic=n_toxic,
        n_nontoxic=n_nontoxic,
        n_nonfinite=n_nonfinite,
        reason=_explain(n_toxic, n_nontoxic, is_d_missing=cohens_d is None),
    )


def _explain(n_toxic: int, n_nontoxic: int, *, is_d_missing: bool) -> str | None:
    if n_toxic == 0 or n_nontoxic == 0:
        classes = [("toxic", n_toxic), ("nontoxic", n_nontoxic)]
        return ", ".join(f"no_{name}_values" for name, count in classes if count == 0)
    reasons = []
    if n_toxic == 1:
        reasons.append("one_toxic_value")
    if n_nontoxic == 1:
        reasons.append("one_nontoxic_value")
    if is_d_missing and n_toxic + n_nontoxic > 2:
        reasons.append("zero_variance")
    return ", ".join(reasons) or None


def compute_neuron_statistics(
    summary_files: Sequence[TableFile],
    dataset: str,
    layer: int,
    sites: Sequence[SitePooling],
    memory_limit: str,
    workspace: Workspace,
) -> None:
    """Write `neurons.parquet` for one dataset and layer: one row per site, language and unit.

    The language is 'all', and also each single one where the dataset has more than one.

    Args:
        summary_files: Neuron summaries of the dataset's shards, each once.
        dataset: Name of the dataset.
        layer: 0 = first layer.
        sites: Sites and poolings, in the order of the rows.
        memory_limit: DuckDB's limit; a quarter of it is also the size of a block of units.
        workspace: Where the table is written. Its facts get n_samples.

    Raises:
        ArtifactError: The shards disagree, lack a site, or one is given twice.
        SettingsError: The memory limit is too small for one batch of summaries.
    """
    started = time.perf_counter()
    _check_files(summary_files)
    memory_bytes = parse_memory_limit(memory_limit)
    parts: dict[tuple[str, SitePooling], list[pa.Table]] = {}
    n_samples = 0
    languages: list[str] = []
    with (
        tempfile.TemporaryDirectory(dir=workspace.folder, prefix="spill-") as spill,
        closing(connect(memory_limit, Path(spill))) as connection,
    ):
        connection.execute("SET preserve_insertion_order = false")
        names = register_files(connection, summary_files)
        set_variables(connection, summary_files=names, dataset=dataset, layer=layer)
        for site in sites:
            extent = _measure_extent(connection, dataset, layer, site)
            n_samples, languages = extent.n_samples, extent.languages
            limit_threads(connection, extent.bytes_per_row, memory_limit)
            for first, stop in split_units(extent.n_units, extent.bytes_per_unit, memory_bytes):
                block = _read_block(connection, site, first, stop, extent.key_bytes)
                for language in (ALL_LANGUAGES, *languages):
                    statistics = _compare(block, language)
                    parts.setdefault((language, site), []).append(
                        _tabulate(statistics, dataset, language, layer, site, first)
                    )
    table = pa.concat_tables(
        part
        for language in (ALL_LANGUAGES, *languages)
        for site in sites
        for part in parts[language, site]
    )
    workspace.write_table(tables.NEURONS.file, table, NEURONS)
    workspace.facts["n_samples"] = n_samples
    logger.debug(
        "neuron statistics: dataset=%s layer=%d samples=%d rows=%d seconds=%.2f",
        dataset,
        layer,
        n_samples,
        table.num_rows,
        time.perf_counter() - started,
    )


def _check_files(summary_files: Sequence[TableFile]) -> None:
    if not summary_files:
        raise ArtifactError(
            "neuron summaries: expected at least one shard, found none. Summarise the shards first."
        )
    times = Counter(describe_file(file) for file in summary_files)
    place, count = times.most_common(1)[0]
    if count > 1:
        raise ArtifactError(
            f"neuron summaries: expected each shard once, found {place} {count} times. Its samples "
            "would count twice. Give each file once."
        )
    first, *others = read_schemas(summary_files)
    for file, schema in zip(summary_files[1:], others, strict=True):
        if not schema.equals(first):
            raise ArtifactError(
                f"{describe_file(file)}: expected the columns of "
                f"{describe_file(summary_files[0])}, found others. The shards have activations of "
                "two precisions. Give shards of one run."
            )


@dataclass(frozen=True)
class _Extent:
    """How much the summaries of one dataset, layer and site hold."""

    n_units: int
    n_samples: int
    n_samples_of_largest: int
    key_bytes: int
    languages: list[str]

    @property
    def bytes_per_row(self) -> int:
        """Of the largest row of a summary."""
        return self.key_bytes * self.n_samples_of_largest

    @property
    def bytes_per_unit(self) -> int:
        """Of all shards' rows of a unit: as read, unpacked, and put together."""
        return 3 * self.key_bytes * self.n_samples


def _measure_extent(
    connection: duckdb.DuckDBPyConnection, dataset: str, layer: int, site: SitePooling
) -> _Extent:
    set_variables(connection, site=site.site.value, pooling=site.pooling.value)
    rows = connection.sql(load_sql("neuron_summary_extent")).fetchall()
    if len(rows) != 1:
        found = " and ".join(sorted(f"{row[0]} in float{8 * row[3]}" for row in rows)) or "none"
        raise ArtifactError(
            f"neuron summaries: expected as many units of {site.column} in each shard, and of one "
            f"precision, in layer {layer} of {dataset}, found {found}. The summaries belong to "
            "another layer, to other sites or to two models. Summarise the shards of one run."
        )
    n_units, n_samples, n_samples_of_largest, key_bytes, languages = rows[0]
    spoken = sorted(languages) if len(languages) > 1 else []
    return _Extent(n_units, n_samples, n_samples_of_largest, key_bytes, spoken)


@dataclass(frozen=True)
class _Block:
    """Summaries of neighbouring units: one row per unit, shard and language, in order of units.

    Attributes:
        n_units: How many units.
        units: Of each row, 0 = first of the block, shape (row,).
        languages: Likewise; None where it is unknown.
        n_nonfinite: Likewise: values that were left out.
        toxic: Keys of each row on toxic samples.
        nontoxic: On non-toxic samples.
    """

    n_units: int
    units: IntArray
    languages: AnyArray
    n_nonfinite: IntArray
    toxic: PackedKeys
    nontoxic: PackedKeys

    def take(self, rows: IntArray) -> _Block:
        """Some rows, in their order there."""
        return _Block(
            self.n_units,
            self.units[rows],
            self.languages[rows],
            self.n_nonfinite[rows],
            self.toxic.take(rows),
            self.nontoxic.take(rows),
        )

    def find_ends(self) -> IntArray:
        """Behind which row each unit ends, shape (unit,)."""
        return np.searchsorted(self.units, np.arange(self.n_units), side="right")

    def add_up(self, counts: IntArray) -> list[int]:
        """Sums by unit of a count of each row."""
        sums = np.zeros(self.n_units, np.int64)
        np.add.at(sums, self.units, counts)
        found: list[int] = sums.tolist()
        return found


def _read_block(
    connection: duckdb.DuckDBPyConnection,
    site: SitePooling,
    first: int,
    stop: int,
    key_bytes: int,
) -> _Block:
    set_variables(connection, first_unit=first, last_unit=stop - 1)
    batches = list(stream_batches(connection.sql(load_sql("neuron_summary_block"))))
    units = np.concatenate([batch.column("neuron_index").to_numpy() for batch in batches])
    languages = [name for batch in batches for name in batch.column("language").to_pylist()]
    n_nonfinite = np.concatenate([batch.column("n_nonfinite").to_numpy() for batch in batches])
    keys = (
        gather_keys([batch.column(name) for batch in batches], key_bytes) for name in KEY_COLUMNS
    )
    block = _Block(stop - first, units - first, np.array(languages, object), n_nonfinite, *keys)
    return block.take(np.argsort(block.units, kind="stable"))


def _compare(block: _Block, language: str) -> list[UnitStatistics]:
    """Statistics of each unit of a block, on the samples of one language or of all."""
    if language != ALL_LANGUAGES:
        block = block.take(np.flatnonzero(block.languages == language))
    n_nonfinite, n_toxic, n_nontoxic = (
        block.add_up(counts)
        for counts in (block.n_nonfinite, block.toxic.count(), block.nontoxic.count())
    )
    if block.toxic.key_bytes == 2 and max(n_toxic) + max(n_nontoxic) > MOST_SAMPLES:
        from eigenshift.detection import counting  # as above

        compared = counting.count_halves(block.toxic, block.nontoxic, block.find_ends(), HALVES)
        return _complete_all(compared, n_nonfinite, n_toxic, n_nontoxic)
    return compare_units(
        np.split(block.toxic.unpack(), np.cumsum(n_toxic)[:-1]),
        np.split(block.nontoxic.unpack(), np.cumsum(n_nontoxic)[:-1]),
        n_nonfinite,
    )


def _tabulate(
    statistics: Sequence[UnitStatistics],
    dataset: str,
    language: str,
    layer: int,
    site: SitePooling,
    first: int,
) -> pa.Table:
    n_units = len(statistics)
    columns: dict[str, Any] = {
        "dataset": [dataset] * n_units,
        "language": [language] * n_units,
        "layer": [layer] * n_units,
        "site": [site.site.value] * n_units,
        "pooling": [site.pooling.value] * n_units,
        "neuron_index": range(first, first + n_units),
    }
    return pa.table(
        [
            pa.array(
                columns.get(column.name) or [getattr(unit, column.name) for unit in statistics],
                column.type,
            )
            for column in NEURONS
        ],
        schema=NEURONS,
    )


def query_neuron_statistics(
    activation_files: Sequence[TableFile],
    sample_files: Sequence[TableFile],
    dataset: str,
    layer: int,
    site: SitePooling,
    units: range,
    memory_limit: str,
    folder: Path,
) -> pa.Table:
    """Compute the statistics of some units in plain SQL, over all languages.

    For checking a few numbers of `neurons.parquet` against `sql/neuron_statistics.sql`; the last
    digits of means and variances may depend on the number of threads.

    Args:
        activation_files: Activation shards; together one row per layer and sample.
        sample_files: Samples with labels.
        dataset: Name of the dataset.
        layer: 0 = first layer.
        site: One site and pooling.
        units: Neighbouring units.
        memory_limit: DuckDB's limit.
        folder: For what is spilled.

    Returns:
        `neuron_index` and the statistics, named as in `schemas.NEURONS`.
    """
    with open_labelled_layer(
        activation_files, sample_files, dataset, layer, memory_limit, folder
    ) as labelled:
        return labelled.query("neuron_statistics", site.column, units.start, units.stop)


def carry_out(inputs: NeuronInputs, key: NeuronKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `compute_neuron_statistics`."""
    compute_neuron_statistics(
        [bench.artifacts.locate(file) for file in inputs.summaries],
        key.dataset,
        key.layer,
        key.sites,
        bench.execution.duckdb_memory_limit,
        workspace,
    )
