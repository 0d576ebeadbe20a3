"""Tasks that read sources and choose prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from prefect.states import State

from eigenshift import datasets, prompts
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.manifests import ArtifactReference
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


@stage_task
def ingest_source(
    store: str,
    source: SourceSettings,
    records: Sequence[ArtifactReference],
    ingestion: IngestionSettings,
) -> State[StageResult]:
    """Make the samples of a source from the records of its files."""
    artifacts = ArtifactStore(store)

    def work(workspace: Workspace) -> None:
        files = [
            datasets.FileRecords(
                records=file.fetch(datasets.RECORDS_NAME),
                rejected_rows=file.fetch(datasets.REJECTED_NAME),
                source_files=file.fetch(datasets.SOURCE_FILES_NAME),
            )
            for file in map(artifacts.open, records)
        ]
        datasets.combine_records(source.uri, files, ingestion.rows_per_shard, workspace)

    return report(
        artifacts.produce(
            "samples",
            step_version=datasets.STEP_VERSION,
            settings={"source": source.name, "rows_per_shard": ingestion.rows_per_shard},
            inputs=records,
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
                pa.concat_tables(artifacts.open(item).read_tables("samples-") for item in samples),
                settings,
                workspace,
            ),
        )
    )
