"""Stages of this room: files in their original schemas -> records -> samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from typing_extensions import Self

from eigenshift.settings import IngestionSettings, SourceSettings
from eigenshift.stages import tables
from eigenshift.stages.inputs import Inputs, Of, Outside
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference, FileReference, choose_file

DEFAULTS = IngestionSettings()


class SourceContent(Outside):
    """The content of one file of a source, with what belongs to it."""

    kind: ClassVar[str] = "source"
    source: SourceSettings

    def identify(self) -> str:
        """Digest of the file, and of its labels file where it has one."""
        from eigenshift.datasets.reading import digest_source

        return digest_source(self.source)


class ReadingInputs(Inputs):
    """One file."""

    content: Annotated[SourceContent, Reads("sources[]")]


class ReadingKey(Key):
    """How a file is read."""

    source: Annotated[SourceSettings, Reads("sources[]")]
    max_characters: Annotated[int, Reads("ingestion.max_characters")]
    max_rejected_share: Annotated[float, Reads("ingestion.max_rejected_share")] = (
        DEFAULTS.max_rejected_share
    )
    max_unknown_labels: Annotated[float, Reads("ingestion.max_unknown_labels")] = (
        DEFAULTS.max_unknown_labels
    )


READ_FILE = Stage(
    name="read_file",
    kind="records",
    version=2,
    inputs=ReadingInputs,
    key=ReadingKey,
    files=(tables.RECORDS, tables.REJECTED_ROWS, tables.SOURCE_FILES),
    work="eigenshift.datasets.reading:carry_out",
)


class RecordFiles(Inputs):
    """What `read_file` made of one file of a source; it stands for what made it."""

    records: Annotated[FileReference, Of(("records",), tables.RECORDS)]
    rejected_rows: Annotated[FileReference, Of(("records",), tables.REJECTED_ROWS)]
    source_files: Annotated[FileReference, Of(("records",), tables.SOURCE_FILES)]

    @classmethod
    def choose(cls, files: Sequence[FileReference]) -> Self:
        """Of all files of the artifact."""
        return cls(
            records=choose_file(files, tables.RECORDS.file),
            rejected_rows=choose_file(files, tables.REJECTED_ROWS.file),
            source_files=choose_file(files, tables.SOURCE_FILES.file),
        )

    def list_references(self) -> list[ArtifactReference]:
        """The artifact that all three are files of."""
        return [self.records.artifact]


class IngestionInputs(Inputs):
    """The records of a source's files, in reading order."""

    records: tuple[RecordFiles, ...]


class IngestionKey(Key):
    """How samples are sharded."""

    source: Annotated[str, Reads("sources[].name")]
    rows_per_shard: Annotated[int, Reads("ingestion.rows_per_shard")]


INGEST_SOURCE = Stage(
    name="ingest_source",
    kind="samples",
    version=2,
    inputs=IngestionInputs,
    key=IngestionKey,
    files=(tables.SAMPLES, tables.REJECTED_ROWS, tables.SOURCE_FILES),
    work="eigenshift.datasets.ingestion:carry_out",
)
