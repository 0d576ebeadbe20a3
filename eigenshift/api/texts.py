"""Texts for a study: a list, a data frame, an Arrow table, or files in their original schemas.

All come the same way as a run's: text that cannot be used is counted, a repeated one is left out
(`datasets/`). Texts of this process go through a file, as if they had been read from one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from eigenshift.api.representations import Panel, Shown
from eigenshift.api.scratch import read_table, work_in_scratch
from eigenshift.base.errors import DatasetError, SettingsError
from eigenshift.datasets.ingestion import FileRecords, combine_records
from eigenshift.datasets.reading import list_sources, read_file
from eigenshift.generation.prompts import choose_prompts
from eigenshift.settings import (
    IngestionSettings,
    PromptSettings,
    Role,
    SourceFormat,
    SourceSettings,
    parse_section,
)
from eigenshift.stages import tables
from eigenshift.store.parquet_files import write_parquet
from eigenshift.store.workspace import Workspace

IN_MEMORY = "memory"
"""What stands for the file of texts that were given."""
TEXT, LABEL = "text", "label"
INGESTION = IngestionSettings()


@dataclass(frozen=True, eq=False, repr=False)
class Texts(Shown):
    """Some texts, with labels where they have any.

    Attributes:
        samples: `schemas.SAMPLES` rows (docs/tables.md).
        name: Of the data set.
        rejected: How many were left out, by reason.
    """

    samples: pa.Table
    name: str
    rejected: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.samples.num_rows)

    def __getitem__(self, places: slice) -> Texts:
        """Some of them, in their order."""
        chosen = range(len(self))[places]
        return self._take(pa.array(chosen, pa.int64()))

    def split(self, n_first: int, n_second: int, *, seed: int = 0) -> tuple[Texts, Texts]:
        """Two parts without a text in common, drawn as a run draws its prompts.

        Components are chosen on one part of the prompts and judged on another.

        Args:
            n_first: Texts of the first part; with too few texts both shrink in proportion.
            n_second: Of the second.
            seed: Of the draw; the order of the texts does not matter.
        """
        settings = parse_section(
            PromptSettings,
            {"n_selection": n_first, "n_evaluation": n_second, "seed": seed},
            "Texts.split",
        )
        with work_in_scratch() as workspace:
            choose_prompts(self.samples, settings, workspace)
            parts = [
                read_table(workspace, table.file)["prompt_id"].combine_chunks()
                for table in (tables.SELECTION_PROMPTS, tables.EVALUATION_PROMPTS)
            ]
        ids = self.samples["sample_id"].combine_chunks()
        first, second = (self._take(pa.compute.index_in(part, ids)) for part in parts)
        return first, second

    def describe(self) -> Panel:
        """How many of which kind."""
        counts = self.samples.group_by(["language", "is_toxic"]).aggregate([([], "count_all")])
        names = {True: "toxic", False: "not toxic", None: "no label"}
        rows = sorted(
            (row["language"] or "-", names[row["is_toxic"]], str(row["count_all"]))
            for row in counts.to_pylist()
        )
        notes = [f"left out: {reason} {n}" for reason, n in self.rejected.items()]
        title = f"{len(self)} texts of {self.name}"
        return Panel(title, ("language", "label", "texts"), rows, notes)

    def _take(self, places: pa.Array) -> Texts:
        return replace(self, samples=self.samples.take(places), rejected={})


def read_texts(
    source: Any,
    labels: Sequence[Any] | None = None,
    *,
    format: str = SourceFormat.sentences.value,
    name: str | None = None,
    max_characters: int = INGESTION.max_characters,
    **fields: Any,
) -> Texts:
    """Read texts.

    Args:
        source: A list of texts; a table (pandas, Polars, datasets, Arrow, a mapping of columns)
            with a column `text` and perhaps `label`; a path or URL; or `SourceSettings`.
        labels: Of a list: true or 1 where a text is toxic.
        format: Of files, its original schema: jigsaw, toxicn, real_toxicity_prompts, ...
            (docs/settings.md, section sources[]); sentences: a text a line, or a column of a table.
        name: Of the data set.
        max_characters: Longer texts are left out.
        fields: More fields of `SourceSettings`, such as
            `columns={"text": "comment", "label": "toxic"}`, language, role, max_rows.

    Raises:
        DatasetError: It cannot be read, or nothing in it can be used.
        SettingsError: A setting does not fit.
    """
    with work_in_scratch() as workspace:
        if isinstance(source, SourceSettings):
            chosen = source
        else:
            is_file = isinstance(source, str | Path)
            if labels is not None and is_file:
                raise SettingsError(
                    "read_texts: expected labels beside a list of texts, found them beside a file. "
                    "Name the file's column: columns={'label': ...}."
                )
            if not is_file:
                table = _tabulate(source, labels)
                fields = _describe_columns(table) | fields
                source = workspace.path("given.parquet")
                write_parquet(table, source)
            document = {"format": format, "uri": str(source), "name": name or "texts", **fields}
            chosen = parse_section(SourceSettings, document, "read_texts")
            if not is_file:
                found = _read(chosen, max_characters, workspace)
                place = found.samples.schema.get_field_index("source_uri")
                column = pa.array([IN_MEMORY] * len(found), pa.string())
                named = found.samples.schema.field(place)
                return replace(found, samples=found.samples.set_column(place, named, column))
        return _read(chosen, max_characters, workspace)


def digest_texts(*found: Texts | None) -> frozenset[str]:
    """Digests of all texts, the same under any name of their data sets."""
    ids = (texts.samples["sample_id"].to_pylist() for texts in found if texts is not None)
    return frozenset(name.rpartition("-")[2] for names in ids for name in names)


def _tabulate(source: Any, labels: Sequence[Any] | None) -> pa.Table:
    """What was given, as a table."""
    if isinstance(source, pa.Table):
        table = source
    elif hasattr(source, "to_pandas") and hasattr(source, "column_names"):  # datasets.Dataset
        table = pa.Table.from_pandas(source.to_pandas(), preserve_index=False)
    elif isinstance(source, Mapping) or (
        hasattr(source, "columns") and hasattr(source, "__arrow_c_stream__")
    ):
        table = pa.table(source)
    elif not hasattr(source, "__iter__"):
        raise DatasetError(
            f"read_texts: expected a list of texts, a table or a path, found a "
            f"{type(source).__name__}. Give one of these."
        )
    else:
        texts = list(source)
        if not all(isinstance(text, str) for text in texts):
            raise DatasetError(
                "read_texts: expected a list of strings, found something else in it. Take the "
                "texts out of what holds them."
            )
        table = pa.table({TEXT: pa.array(texts, pa.string())})
    if labels is None:
        return table
    if len(labels) != len(table):
        raise DatasetError(
            f"read_texts: expected a label for each of {len(table)} texts, found {len(labels)}."
        )
    return table.append_column(LABEL, pa.array(list(labels)))


def _describe_columns(table: pa.Table) -> dict[str, Any]:
    """What the columns of a table are, as its names say."""
    if LABEL not in table.column_names:
        return {"role": Role.neutral}
    return {"role": Role.labelled, "columns": {"text": TEXT, "label": LABEL}}


def _read(source: SourceSettings, max_characters: int, workspace: Workspace) -> Texts:
    """As the stages `read_file` and `ingest_source` do, all in one shard of each file."""
    files = []
    for number, file in enumerate(list_sources(source)):
        folder = workspace.path(f"file-{number:05d}")
        folder.mkdir()
        place = Workspace(folder)
        read_file(file, max_characters, place)
        found = (tables.RECORDS, tables.REJECTED_ROWS, tables.SOURCE_FILES)
        files.append(FileRecords(*(place.path(table.file) for table in found)))
    combine_records(files, INGESTION.rows_per_shard, workspace)
    samples = read_table(workspace, tables.SAMPLES.file)
    return Texts(samples, source.name, workspace.facts["rejected"])
