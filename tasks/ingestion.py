"""Tasks that read sources and choose prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from prefect.states import State
from pydantic import BaseModel, ConfigDict

from eigenshift import datasets, prompts
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.settings import IngestionSettings, PromptSettings, SourceSettings
from tasks.stage import report, stage_task


@stage_task
def read_file(
    store: str, source: SourceSettings, ingestion: IngestionSettings
) -> State[StageResult]:
    """Read one file of a source into records and rejected rows."""
    content = ArtifactReference(kind="source", fingerprint=datasets.digest_source(source))
    return report(
        ArtifactStore(store).produce(
            "records",
            step_version=datasets.READING_STEP_VERSION,
            settings={"source": source, "max_characters": ingestion.max_characters},
            inputs=[content],
            work=lambda workspace: datasets.read_file(source, ingestion, workspace),
        )
    )


class RecordTables(BaseModel):
    """What `read_file` made of one file of a source."""

    model_config = ConfigDict(frozen=True)
    records: FileReference
    rejected_rows: FileReference
    source_files: FileReference

    def fetch(self, artifacts: ArtifactStore) -> datasets.FileRecords:
        """The tables as files of this machine."""
        return datasets.FileRecords(
            records=artifacts.locate(self.records).fetch(),
            rejected_rows=artifacts.locate(self.rejected_rows).fetch(),
            source_files=artifacts.locate(self.source_files).fetch(),
        )


@stage_task
def ingest_source(
    store: str,
    source: SourceSettings,
    records: Sequence[RecordTables],
    ingestion: IngestionSettings,
) -> State[StageResult]:
    """Make the samples of a source from the records of its files."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        files = artifacts.store.ask_all(lambda tables: tables.fetch(artifacts), records)
        datasets.combine_records(source.uri, files, ingestion.rows_per_shard, workspace)

    return report(
        artifacts.produce(
            "samples",
            step_version=datasets.STEP_VERSION,
            settings={"source": source.name, "rows_per_shard": ingestion.rows_per_shard},
            inputs=[tables.records.artifact for tables in records],
            work=work,
        )
    )


@stage_task
def choose_prompts(
    store: str, samples: Sequence[ArtifactReference], settings: PromptSettings
) -> State[StageResult]:
    """Draw selection and evaluation prompts."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "prompts",
            step_version=prompts.STEP_VERSION,
            settings={"prompts": settings},
            inputs=samples,
            work=lambda workspace: prompts.choose_prompts(
                pa.concat_tables(
                    item.read_tables("samples-") for item in artifacts.open_all(samples)
                ),
                settings,
                workspace,
            ),
        )
    )
