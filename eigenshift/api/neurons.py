"""Activations of labelled texts, and how well each unit tells toxic from other texts.

The work is `detection/`'s, on one shard; the table is the one a run makes of the same texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.api.models import Model
from eigenshift.api.representations import Panel, Shown
from eigenshift.api.result_tables import ResultTable
from eigenshift.api.scratch import make_folder, read_table, work_in_scratch
from eigenshift.api.texts import Texts
from eigenshift.base.errors import DatasetError, SettingsError
from eigenshift.detection.activations import extract_shard
from eigenshift.detection.neuron_statistics import ALL_LANGUAGES, compute_neuron_statistics
from eigenshift.detection.neuron_summaries import summarise_shard
from eigenshift.settings import (
    ActivationSettings,
    ExecutionSettings,
    Pooling,
    Site,
    SitePooling,
    parse_section,
)
from eigenshift.stages import tables
from eigenshift.store.parquet_files import write_parquet
from eigenshift.store.workspace import Workspace

EXECUTION = ExecutionSettings()
SAMPLES_NAME = "samples.parquet"
UNIT_COLUMNS = ("layer", "site", "pooling", "neuron_index", "auroc", "cohens_d")


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Shown):
    """One value per text, layer and unit: in a file of this process, gone with the object.

    Attributes:
        texts: What was read.
        sites: Where in a layer, and how a text's tokens became one value.
        layers: 0 = first layer.
        facts: n_tokens, n_truncated, n_nonfinite, seconds.
    """

    texts: Texts
    sites: tuple[SitePooling, ...]
    layers: tuple[int, ...]
    facts: dict[str, Any]
    _folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    @property
    def path(self) -> Path:
        """The Parquet file (docs/tables.md, activations)."""
        return Path(self._folder.name) / tables.ACTIVATIONS.file

    def read(self, layer: int, site: str = "residual_mean") -> pa.Table:
        """One layer's values: sample_id, and a list of shape (unit,).

        Args:
            layer: 0 = first layer.
            site: Site and pooling, e.g. "mlp_activation_max".

        Raises:
            SettingsError: They were not extracted.
        """
        columns = [item.column for item in self.sites]
        if layer not in self.layers or site not in columns:
            raise SettingsError(
                f"activations: expected a layer of {', '.join(map(str, self.layers))} and a site "
                f"of {', '.join(columns)}, found layer {layer} and {site}. Extract them too."
            )
        place = self.layers.index(layer)  # one row group a layer
        return pq.ParquetFile(self.path).read_row_group(place, ["sample_id", site])

    def describe(self) -> Panel:
        """Of how many texts, where."""
        rows = [
            ("sites", " ".join(item.column for item in self.sites)),
            ("layers", f"{min(self.layers)} to {max(self.layers)} ({len(self.layers)})"),
            ("tokens", f"{self.facts['n_tokens']:,}"),
            ("texts cut", f"{self.facts['n_truncated']:,}"),
        ]
        return Panel(f"activations of {len(self.texts)} texts", ("", "value"), rows)


def extract_activations(
    model: Model,
    texts: Texts,
    *,
    sites: Sequence[str] | None = None,
    tokens_per_batch: int = EXECUTION.tokens_per_batch,
    **settings: Any,
) -> Activations:
    """Read a model's activations, one value per text, layer and unit.

    Args:
        model: The model.
        texts: At least one.
        sites: Sites with their poolings, e.g. ["mlp_activation_max", "residual_mean"].
        tokens_per_batch: Token budget of a forward pass; does not change the result but for
            rounding.
        settings: Further fields of `ActivationSettings`: layers, precision, max_tokens.

    Raises:
        SettingsError: There is no such site or layer.
    """
    named = {} if sites is None else {"sites": [_parse_site(name) for name in sites]}
    chosen = parse_section(ActivationSettings, {**named, **settings}, "extract_activations")
    folder = make_folder()
    workspace = Workspace(Path(folder.name))
    with model.language_model.lock:
        extract_shard(model.language_model, texts.samples, chosen, tokens_per_batch, workspace)
    write_parquet(texts.samples, workspace.path(SAMPLES_NAME))
    written = pq.read_table(workspace.path(tables.ACTIVATIONS.file), columns=["layer"])
    layers = tuple(sorted(written["layer"].unique().to_pylist()))
    return Activations(texts, chosen.sites, layers, workspace.facts, folder)


def _parse_site(name: str) -> dict[str, str]:
    site, _, pooling = name.rpartition("_")
    known = [item.value for item in Site], [item.value for item in Pooling]
    if site not in known[0] or pooling not in known[1]:
        raise SettingsError(
            f"sites: expected a site and a pooling, e.g. mlp_activation_max (sites: "
            f"{', '.join(known[0])}; poolings: {', '.join(known[1])}), found {name!r}."
        )
    return {"site": site, "pooling": pooling}


def compute_neurons(
    activations: Activations, *, memory_limit: str = EXECUTION.duckdb_memory_limit
) -> ResultTable:
    """Judge every unit: exact AUROC, average precision, means, variances, Cohen's d.

    Args:
        activations: Of labelled texts.
        memory_limit: Of DuckDB; no number depends on it.

    Returns:
        `schemas.NEURONS` rows (docs/tables.md), the units that tell most shown first.

    Raises:
        DatasetError: No text has a label.
    """
    if not activations.texts.samples["is_toxic"].drop_null():
        raise DatasetError(
            f"{activations.texts.name}: expected labelled texts, found none with a label. Give "
            "labels to read_texts."
        )
    with work_in_scratch() as workspace:
        samples = Path(activations.path.parent, SAMPLES_NAME)
        name, sites = activations.texts.name, activations.sites
        summarise_shard(activations.path, samples, name, sites, workspace)
        summaries = [workspace.path(tables.NEURON_SUMMARIES.file)]
        found = []
        for layer in activations.layers:
            compute_neuron_statistics(summaries, name, layer, sites, memory_limit, workspace)
            found.append(read_table(workspace, tables.NEURONS.file))
    units = pa.concat_tables(found)
    title = f"{len(activations.layers)} layers of units on {len(activations.texts)} texts of {name}"
    return ResultTable(units, title, UNIT_COLUMNS, _find_best(units))


def _find_best(units: pa.Table) -> tuple[int, ...]:
    """Places of the units that tell most, whichever way they point, over all languages."""
    aurocs = units["auroc"].to_numpy(zero_copy_only=False)
    is_whole = pa.compute.equal(units["language"], ALL_LANGUAGES).to_numpy()
    strength = np.where(is_whole & ~np.isnan(aurocs), np.abs(aurocs - 0.5), -1.0)
    order = np.argsort(-strength, kind="stable")
    return tuple(int(place) for place in order[: int((strength >= 0).sum())])
